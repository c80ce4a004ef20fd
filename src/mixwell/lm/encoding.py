"""Documents as token ids, each with what its tokenizer puts around it, and which of the ids the loss counts.

Also counted is what does not survive: text that the tokenizer changes, or does not know, costs few bits, and would make
bits per byte look better than they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from mixwell.core.errors import MixwellError
from mixwell.lm.chat import Chat, Encoded
from mixwell.lm.conversation import Conversation
from mixwell.lm.documents import Document
from mixwell.lm.tokenizer import Tokenizer

AT_ONCE = 256  # documents handed to the tokenizer together: bounds memory, still feeds all its threads


def enclosed(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[list[int], list[bool]]:
    """A text's ids with what the tokenizer puts around them, closed by the end-of-text token; and which of them count.

    All do but what stands before the text.
    """
    before, behind = tokenizer.around
    whole = [*before, *ids, *behind]
    if not behind or whole[-1] != tokenizer.eos_id:
        whole.append(tokenizer.eos_id)
    counts = [place >= len(before) for place in range(len(whole))]
    return whole, counts


class Encoder:
    """Encodes documents, one after the other, each closed by the end-of-text token.

    Of plain text all counts but what the tokenizer's template puts before it; of a conversation the answers, or all
    where `answers_only` is false. `changed`, `changed_bytes` and `unknown_bytes` tell afterwards how many documents
    would not come back from their ids as they were, how long these are, and how much became the unknown token.
    """

    def __init__(self, tokenizer: Tokenizer, answers_only: bool = True) -> None:
        self.tokenizer, self.answers_only = tokenizer, answers_only
        self.changed, self.changed_bytes, self.unknown_bytes = 0, 0, 0

    def masks(self, documents: Sequence[Document]) -> bool:
        """Whether any id of the documents may not count."""
        before, _ = self.tokenizer.around
        return bool(before) or any(document.messages for document in documents)

    def encode(self, documents: Sequence[Document]) -> Iterator[Encoded]:
        """The documents in their order."""
        for start in range(0, len(documents), AT_ONCE):
            part = documents[start : start + AT_ONCE]
            checked = not self.tokenizer.round_trips
            texts = [document.text for document in part if checked or not document.messages]
            found = iter(self.tokenizer.encode_batch(texts))
            for document in part:
                ids = next(found) if checked or not document.messages else []
                if checked:
                    self._check(document, ids)
                yield self._conversation(document) if document.messages else self._text(document, ids)

    def _text(self, document: Document, ids: list[int]) -> Encoded:
        whole, counts = enclosed(self.tokenizer, ids)
        return Encoded(whole, counts, document.size)

    def _conversation(self, document: Document) -> Encoded:
        """A conversation, closed where its template leaves it open; the model is to end it where nothing else does."""
        try:
            found = self._chat.encode(Conversation.from_json(document.messages), self.answers_only)
        except MixwellError as error:
            raise MixwellError(f"{document.path}: {error}") from error
        special = self.tokenizer.special_ids
        last = next((number for number in reversed(found.ids) if number in special), None)
        if last == self.tokenizer.eos_id:
            return found
        counts = not self.answers_only or not self._chat.ends
        return Encoded([*found.ids, self.tokenizer.eos_id], [*found.counts, counts], found.size)

    def _check(self, document: Document, ids: list[int]) -> None:
        if self.tokenizer.decode(ids) == document.text:
            return
        self.changed += 1
        self.changed_bytes += document.size
        self.unknown_bytes += self.tokenizer.unknown_bytes(document.text)

    @cached_property
    def _chat(self) -> Chat:
        return Chat(self.tokenizer)
