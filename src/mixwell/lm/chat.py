"""Conversations as token ids: written by the tokenizer's chat template, the answers told from the rest.

Special tokens count where the template put them and nowhere else: what users write is text, whatever it spells. A
character that no message holds, the gap, is put inside what would spell one before the template is run, and taken out
before the text is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

from mixwell.core.errors import MixwellError
from mixwell.lm import template
from mixwell.lm.conversation import ANSWERING, Conversation
from mixwell.lm.tokenizer import Tokenizer, any_of, free_character

Span = tuple[int, int]  # characters of a written conversation
ROLE = "role"  # the key of a message that holds no one's text


@dataclass(frozen=True)
class Encoded:
    """Token ids, which of them the loss counts, and the UTF-8 bytes of the text that they stand for."""

    ids: list[int]
    counts: list[bool]
    size: int


class Chat:
    """A tokenizer with its chat template; `MixwellError` where it has none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.chat_template is None:
            raise MixwellError("the tokenizer has no chat template (chat_template.jinja, or chat_template in "
                               "tokenizer_config.json); name one: tokenizer.chat_template: chatml, or a file.")
        self.tokenizer, self.source = tokenizer, tokenizer.chat_template

    def prompt(self, conversation: Conversation, /, today: date | None = None, **variables: Any) -> list[int]:
        """Ids of a conversation up to where the model's answer begins.

        variables: further ones that the template knows, such as `enable_thinking`.
        """
        writing = _Writing(self, conversation, today or date.today(), variables)
        text = writing.text(answering=True)
        return self.tokenizer.encode_spelt([text], writing.gap).ids

    def encode(self, conversation: Conversation, answers_only: bool = True) -> Encoded:
        """Ids of a whole conversation; what counts are the answers with the token that ends each, or all of it.

        Where the template has no `{% generation %}` blocks, an answer is what follows the prompt for it. A template
        that writes earlier messages otherwise when later ones are there may hide where that is: `MixwellError`.
        """
        writing = _Writing(self, conversation, template.STEADY, {})
        whole, spans = writing.answers() if answers_only else writing.everything()
        found = self.tokenizer.encode_spelt(list(_parts(whole, spans)), writing.gap)
        counts = _overlaps(found.offsets, found.cuts)
        if counts and found.ids[0] == self.tokenizer.id_of(self.tokenizer.names.get("bos_token")):
            counts[0] = False
        return Encoded(found.ids, counts, found.size)

    @cached_property
    def guard(self) -> _Guard:
        """What messages must not spell."""
        return _Guard(self.tokenizer.special)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Ids that end an answer: the special token that the template puts behind one, where it puts any."""
        said = ({"role": "user", "content": "a"}, {"role": ANSWERING, "content": "a"})
        try:
            found = self.encode(Conversation(said))
        except MixwellError:
            return ()
        counted = [number for number, counts in zip(found.ids, found.counts) if counts]
        return tuple(number for number in counted[-1:] if number in self.tokenizer.special_ids)


def ends(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an answer in the tokenizer's chat template; none where it has no template."""
    return Chat(tokenizer).ends if tokenizer.chat_template else ()


class _Writing:
    """One conversation as the template writes it, gaps included."""

    def __init__(self, chat: Chat, conversation: Conversation, today: date, variables: Mapping[str, Any]) -> None:
        self.chat, self.conversation, self.today = chat, conversation, today
        held = conversation.to_json(), chat.source
        self.gap = free_character(held)
        self.begin = free_character(held, self.gap)
        self.end = free_character(held, self.gap + self.begin)
        self.messages = [self._guarded_message(message) for message in conversation.messages]
        self.tools = [self._guarded(tool) for tool in conversation.tools]
        self.variables = {**chat.tokenizer.names, **variables}

    def text(self, messages: Sequence[Any] | None = None, answering: bool = False, **variables: Any) -> str:
        """The text of the messages, all of them unless told otherwise, with the beginning of an answer behind it."""
        said = self.messages if messages is None else list(messages)
        return template.render(self.chat.source, self.today, messages=said, tools=self.tools or None,
                               add_generation_prompt=answering, **self.variables | variables)

    def everything(self) -> tuple[str, list[Span]]:
        """The text, and all of it as one span."""
        whole = self.text()
        return whole, [(0, len(whole))]

    def answers(self) -> tuple[str, list[Span]]:
        """The text, and where the answers stand in it."""
        if template.marks_answers(self.chat.source):
            return self._marked()
        whole = self.text()
        return whole, [self._answer(whole, place) for place in self.conversation.answers]

    def _marked(self) -> tuple[str, list[Span]]:
        """The text without the marks around the answers, and where these were."""
        marked = self.text(answer_begins=self.begin, answer_ends=self.end)
        pieces = re.split(f"[{self.begin}{self.end}]", marked)
        whole, spans = "", []
        for number, piece in enumerate(pieces):
            if number % 2:
                spans.append((len(whole), len(whole) + len(piece)))
            whole += piece
        return whole, spans

    def _answer(self, whole: str, place: int) -> Span:
        """Where the answer at `place` stands: behind the prompt for it, up to where the text with it ends."""
        before = self.text(self.messages[:place], answering=True) if place else ""
        until = self.text(self.messages[: place + 1])
        if not whole.startswith(before):
            raise self._hidden(place)
        stop = len(until) if whole.startswith(until) else self._stop(whole, place)
        return len(before), self._without_rest(whole, len(before), stop)

    def _stop(self, whole: str, place: int) -> int:
        """Where an answer ends that is written otherwise once others follow: behind its content and the token there."""
        content = self.messages[place].get("content", "")
        said = content.rstrip()
        marked = {**self.messages[place], "content": said + self.end + content[len(said):]}
        found = self.text([*self.messages[:place], marked, *self.messages[place + 1 :]])
        if not said or found.replace(self.end, "") != whole or found.count(self.end) != 1:
            raise self._hidden(place)
        stop = found.index(self.end)
        following = re.compile(rf"\s*(?:{self._special})")
        closing = following.match(whole, stop)
        return closing.end() if closing else stop

    def _without_rest(self, whole: str, start: int, stop: int) -> int:
        """The end of an answer without the white space behind its last special token: no model is to write that."""
        last = re.compile(rf"(?:{self._special})(?=\s*\Z)")
        closing = last.search(whole[start:stop])
        return start + closing.end() if closing else stop

    def _hidden(self, place: int) -> MixwellError:
        return MixwellError(f"the chat template does not tell where message {place + 1}, an answer, begins and ends; "
                            "put {% generation %} and {% endgeneration %} around answers in it, or set "
                            "data.answers_only: false.")

    @property
    def _special(self) -> str:
        return any_of(self.chat.tokenizer.special).pattern

    def _guarded_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        spoken = {name: self._guarded(value) for name, value in message.items() if name != ROLE}
        return {ROLE: message[ROLE], **spoken}

    def _guarded(self, value: Any) -> Any:
        """Plain data in which no text spells a special token, whole or together with what stands beside it."""
        if isinstance(value, str):
            return self._guarded_text(value)
        if isinstance(value, Mapping):
            return {self._guarded_text(name): self._guarded(inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._guarded(inner) for inner in value]
        return value

    def _guarded_text(self, text: str) -> str:
        guard = self.chat.guard
        for token in filter(text.__contains__, guard.single):
            raise MixwellError(f"a message holds {token!r}, a special token of one character; leave it out.")
        while found := guard.whole.search(text):
            inside = found.start() + 1
            text = text[:inside] + self.gap + text[inside:]
        said = text.strip()
        lengths = range(1, min(guard.longest, len(said) + 1))
        begun = any(said[-length:] in guard.heads for length in lengths)
        ended = any(said[:length] in guard.tails for length in lengths)
        if not begun and not ended:
            return text
        lead, tail = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
        return lead + self.gap * ended + said + self.gap * begun + tail


class _Guard:
    """What a text must not hold: special tokens whole, or at its ends parts that what stands there would complete."""

    def __init__(self, special: Sequence[str]) -> None:
        longer = [token for token in special if len(token) > 1]
        self.single = [token for token in special if len(token) == 1]
        self.whole = any_of(longer)
        self.longest = max(map(len, longer), default=0)
        heads: set[str] = set()
        tails: set[str] = set()
        for token in longer:
            places = range(1, len(token))
            heads.update(token[:place] for place in places)
            tails.update(token[place:] for place in places)
        self.heads, self.tails = frozenset(heads), frozenset(tails)


def _parts(whole: str, spans: Sequence[Span]) -> Iterator[str]:
    """The text between the spans and in them, by turns."""
    end = 0
    for start, stop in spans:
        yield whole[end:start]
        yield whole[start:stop]
        end = stop
    yield whole[end:]


def _overlaps(offsets: Sequence[Span], cuts: Sequence[int]) -> list[bool]:
    """Whether each token lies in a part of odd place, if only in part; the parts end at `cuts`."""
    counts, part = [], 0
    for start, stop in offsets:
        while part < len(cuts) - 1 and start >= cuts[part]:
            part += 1
        following = part + 1 < len(cuts) and stop > cuts[part]
        counts.append(bool(part % 2) or following)
    return counts
