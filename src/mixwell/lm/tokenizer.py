"""Text to token ids and back: a byte-level BPE tokenizer trained here, or one read from a Hugging Face folder.

Of one trained here all 256 bytes are in the alphabet, so that no text is unknown and decoding gives back the very text
that was encoded; of one that was read, `round_trips` says as much where that is so.

Text never becomes a special token, however it spells one: it is encoded by a copy of the tokenizer in which special
tokens go by names that do not occur in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from mixwell.core.errors import MixwellError
from mixwell.core.files import digest
from mixwell.lm import older_tokenizer
from mixwell.lm import tokenizer_files as layout
from mixwell.lm.gguf.header import is_gguf
from mixwell.lm.gguf.reading import GgufFile
from mixwell.lm.gguf.tokenizer import tokenizer_files
from mixwell.lm.schemas import side_files
from mixwell.lm.tokenizer_files import CONFIG, MAIN, SPECIAL, TEMPLATE

FILES = (MAIN, CONFIG, SPECIAL, "added_tokens.json", TEMPLATE, "vocab.json", "merges.txt")
OLDER = (*FILES, older_tokenizer.PIECES)
END_OF_TEXT = "<|endoftext|>"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MOST_IDS = 2**24  # the largest vocabularies have a 60th of it
LONGEST_WORD = 512  # characters; learning merges takes time with the square of a word's length
LONG_RUNS = re.compile(rf"\S{{{LONGEST_WORD},}}|\s{{{LONGEST_WORD},}}")
BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")  # how a vocabulary names one
MOST_ENCODERS = 8  # copies under other names that are kept; strange texts need further ones
PRIVATE = range(0xE5C1, 0xF8FF)  # characters without a meaning: one that a text lacks sets names apart in it


@dataclass(frozen=True)
class Spelt:
    """Ids of a text in which special tokens count, and what each of them stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]  # characters of the text as it was encoded, one pair an id
    cuts: list[int]  # where each part of the text ends in it
    size: int  # UTF-8 bytes of the text, special tokens apart


class Tokenizer:
    """Text to token ids and back. Make one with `train`, `load` or `from_files`."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        if MAIN not in files:
            raise MixwellError(f"no {MAIN} among the tokenizer's files ({', '.join(files) or 'none'}); expected the "
                               "files of a fast Hugging Face tokenizer (transformers: save_pretrained writes them).")
        self._files = {name: bytes(data) for name, data in files.items() if name in FILES}
        self._backend = _parse(self._files[MAIN])
        if self.vocab_size > MOST_IDS:  # all up to it are walked through, and get a place in tables
            raise MixwellError(f"{MAIN}: its largest id is {self.vocab_size - 1}; expected ids below {MOST_IDS}.")
        self._encoders: dict[str, tokenizers.Tokenizer] = {}  # the character that sets names apart -> `_encoder`

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, special: Sequence[str] = (END_OF_TEXT,)) -> Tokenizer:
        """Learn byte-pair merges from `texts`; the same texts give the same tokenizer, whatever their order.

        Words longer than `LONGEST_WORD` characters (a genome, minified code) are learned from in pieces of that length.
        vocab_size: ids wanted, special tokens and the 256 bytes among them; little text may give fewer.
        special: tokens that stand outside the text, taking the first ids; the first one ends a document.
        Raises `MixwellError` without a special token, and for a vocabulary that the bytes alone fill.
        """
        if not special or len(set(special)) != len(special):
            raise MixwellError(f"special tokens {tuple(special)!r}: expected at least one, each once.")
        if vocab_size < 256 + len(special):
            raise MixwellError(f"vocab_size {vocab_size} is too small: 256 bytes and {len(special)} special tokens "
                               f"need {256 + len(special)} or more.")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(special), show_progress=False,
                                      initial_alphabet=alphabet)
        pieces = (piece for text in texts for piece in _bounded(text))
        backend.train_from_iterator(pieces, trainer)
        marks = dict.fromkeys(("eos_token", "bos_token", "pad_token"), special[0])
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **marks, "clean_up_tokenization_spaces": False,
                  "model_max_length": 10**9}
        main = backend.to_str(pretty=True)
        return cls({MAIN: main.encode(), CONFIG: layout.text(config), SPECIAL: layout.text(marks)})

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Tokenizer:
        """Build from file contents by name (`Checkpoint.files`); `tokenizer.json` must be among them."""
        return cls(files)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer of a Hugging Face folder, or of a GGUF file. Raises `MixwellError` where there is none."""
        folder = Path(folder)
        if is_gguf(folder):
            return cls(tokenizer_files(GgufFile(folder).metadata, str(folder)))
        files = side_files(folder, OLDER)
        if older_tokenizer.is_older(files):
            files = older_tokenizer.completed(folder, files)
        if MAIN not in files:
            raise MixwellError(f"{folder} holds no {MAIN}; expected a Hugging Face folder with a fast tokenizer.")
        return cls(files)

    def save_files(self) -> dict[str, bytes]:
        """The files, by name, that `transformers.AutoTokenizer.from_pretrained` reads."""
        return dict(self._files)

    @property
    def digest(self) -> str:
        """SHA-256 of what `tokenizer.json` says of which ids mean what; lengths and templates in it do not count."""
        main = {name: value for name, value in self._main.items() if name not in layout.OF_CALLERS}
        return digest(main)

    @cached_property
    def _main(self) -> dict[str, Any]:
        """`tokenizer.json` as it was written."""
        return layout.keys(self._files[MAIN], MAIN)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token -> id, added ones too."""
        return self._backend.get_vocab(with_added_tokens=True)

    @cached_property
    def _understood(self) -> dict[str, Any]:
        """`tokenizer.json` as its library takes it: what a file leaves out is there."""
        return json.loads(self._backend.to_str())

    @cached_property
    def vocab_size(self) -> int:
        """Largest id plus one."""
        return max(self.vocabulary.values(), default=-1) + 1

    @cached_property
    def names(self) -> dict[str, str]:
        """The tokens that the files name: `bos_token` and so on -> how it is spelt."""
        found = {}
        for file in (SPECIAL, CONFIG):
            content = layout.keys(self._files.get(file, b"{}"), file)
            spelt = {name: layout.spelling(content.get(name)) for name in NAMED}
            found.update({name: text for name, text in spelt.items() if text})
        return found

    def id_of(self, token: str | None) -> int | None:
        """Id of a token by its spelling; None where there is none such."""
        return self._backend.token_to_id(token) if token else None

    @cached_property
    def eos_id(self) -> int:
        """Id of the token that ends a document; `MixwellError` where the files name none."""
        found = self.id_of(self.names.get("eos_token"))
        if found is None:
            raise MixwellError(f"the tokenizer names no end-of-text token; add eos_token to {CONFIG}.")
        return found

    @cached_property
    def special(self) -> tuple[str, ...]:
        """Spellings of the special tokens, the longest first, as they are looked for."""
        named = set(self.names.values())
        added = self._backend.get_added_tokens_decoder().values()
        found = [entry.content for entry in added if entry.special or entry.content in named]
        return tuple(sorted(found, key=lambda text: (-len(text), text)))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens."""
        found = map(self.id_of, self.special)
        return frozenset(number for number in found if number is not None)

    @cached_property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids that the tokenizer's own template puts before a text and behind it, as `transformers` does."""
        bare = self._backend.encode("a", add_special_tokens=False).ids
        whole = self._backend.encode("a", add_special_tokens=True).ids
        length = len(bare)
        places = range(len(whole) - length + 1)
        start = next(place for place in places if whole[place : place + length] == bare)
        before, behind = whole[:start], whole[start + length :]
        return tuple(before), tuple(behind)

    def with_bos(self, wanted: bool) -> Tokenizer:
        """A tokenizer whose template puts the beginning-of-text token before a text, or none; its file says so.

        Raises `MixwellError` where no token is named for that.
        """
        token = self.names.get("bos_token")
        number = self.id_of(token)
        if token is None or number is None:
            raise MixwellError(f"tokenizer.bos: the tokenizer names no beginning-of-text token; add bos_token to "
                               f"{CONFIG}, or leave the key out.")
        before, behind = self.around
        rest = [number] * wanted + [at for at in before if at != number]
        spelt = {at: str(self._backend.id_to_token(at)) for at in (*rest, *behind)}
        main = layout.with_template(self._main, rest, behind, spelt)
        return Tokenizer(self._files | {MAIN: layout.text(main)})

    @cached_property
    def chat_template(self) -> str | None:
        """Source of the template that conversations are written with; None where the files hold none."""
        return layout.chat_template(self._files)

    def with_chat_template(self, source: str) -> Tokenizer:
        """A tokenizer with that template for conversations."""
        return Tokenizer(self._files | {TEMPLATE: source.encode()})

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, nothing around it; with `special`, a special token spelt in it becomes its own id."""
        backend = self._backend if special else self._encoder(free_character([text]))
        return backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, in parallel."""
        encoder = self._encoder(free_character(texts))
        encoded = encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in encoded]

    def prompt(self, text: str) -> list[int]:
        """Ids of a text that is to be continued: what the template puts before it, and the text."""
        return [*self.around[0], *self.encode(text)]

    def encode_spelt(self, parts: Sequence[str], gap: str) -> Spelt:
        """Ids of `parts`, one after the other, where special tokens count, but for those that hold a `gap`.

        gap: a character that keeps apart what would spell a special token; it is no part of the text.
        """
        mark = free_character(parts, gap)
        aliases = {token: layout.alias(mark, place) for place, token in enumerate(self.special)}
        text, cuts, size = "", [], 0
        for part in parts:
            for piece in self._pieces(part):
                plain = piece.replace(gap, "")
                text += aliases.get(piece, plain)
                size += 0 if piece in aliases else len(plain.encode())
            cuts.append(len(text))
        found = self._encoder(mark).encode(text, add_special_tokens=False)
        return Spelt(found.ids, found.offsets, cuts, size)

    def _pieces(self, text: str) -> Iterator[str]:
        """The text cut at its special tokens, these among the pieces."""
        end = 0
        for found in self._special_pattern.finditer(text):
            yield text[end : found.start()]
            yield found.group()
            end = found.end()
        yield text[end:]

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return any_of(self.special)

    def _encoder(self, mark: str) -> tokenizers.Tokenizer:
        """The tokenizer, its special tokens under names that begin with `mark`.

        Without such names a text could be a special token: a Unigram or word-level model knows these as words.
        """
        found = self._encoders.get(mark)
        if found is None:
            renamed = layout.renamed(self._understood, self.special, mark)
            found = _parse(json.dumps(renamed).encode())
            if len(self._encoders) < MOST_ENCODERS:
                self._encoders[mark] = found
        return found

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; special tokens are spelt out, or left out where `skip_special`."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    @cached_property
    def token_bytes_V(self) -> np.ndarray:
        """Number of UTF-8 bytes that each id stands for, uint32 [vocab_size]; 0 for special tokens.

        Exact for byte-level tokenizers. Otherwise a word mark counts as one space and `<0x0A>` as one byte, which
        leaves out what a normaliser did to the text.
        """
        size = len if self.byte_level else _spelt_bytes
        sizes_V = np.zeros(self.vocab_size, np.uint32)
        plain = self._backend.get_vocab(with_added_tokens=False)
        for token, number in plain.items():
            sizes_V[number] = size(token)
        added = self._backend.get_added_tokens_decoder()
        for number, entry in added.items():
            sizes_V[number] = 0 if entry.special else len(entry.content.encode())
        return sizes_V

    @property
    def byte_level(self) -> bool:
        """Whether each character of a token stands for one byte."""
        return layout.has_type(self._understood.get("decoder"), "ByteLevel")

    @cached_property
    def round_trips(self) -> bool:
        """Whether it is certain that every text comes back from its ids as it was: byte for byte, nothing changed."""
        vocab = self._backend.get_vocab(with_added_tokens=False)
        whole = all(letter in vocab for letter in pre_tokenizers.ByteLevel.alphabet())
        return whole and layout.is_plain_byte_level(self._understood)

    def unknown_bytes(self, text: str) -> int:
        """UTF-8 bytes of `text` that became the unknown token."""
        unknown = self.id_of(layout.unknown_token(self._understood))
        if unknown is None:
            return 0
        found = self._encoder(free_character([text])).encode(text, add_special_tokens=False)
        spans = [span for number, span in zip(found.ids, found.offsets) if number == unknown]
        return sum(len(text[start:stop].encode()) for start, stop in spans)


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that fits each of the texts, the first one where several do, and nothing where there are none."""
    escaped = map(re.escape, texts)
    return re.compile("|".join(escaped) or "(?!)")


def free_character(texts: Iterable[str], taken: str = "") -> str:
    """A character of the private area that stands in none of the texts and not among `taken`.

    Raises `MixwellError` where all of them stand there.
    """
    held = [taken, *texts]
    for number in PRIVATE:
        if not any(chr(number) in text for text in held):
            return chr(number)
    raise MixwellError(f"a text holds all {len(PRIVATE)} characters of Unicode's private area; leave it out.")


def _bounded(text: str) -> Iterator[str]:
    """The text, cut inside words that are too long to learn from whole."""
    begin = 0
    for run in LONG_RUNS.finditer(text):
        for end in range(run.start() + LONGEST_WORD, run.end(), LONGEST_WORD):
            yield text[begin:end]
            begin = end
    yield text[begin:]


def _parse(data: bytes) -> tokenizers.Tokenizer:
    """The tokenizer of a file, without the lengths that it may carry: text is encoded whole, always."""
    try:
        found = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the Rust side raises bare Exception
        raise MixwellError(f"{MAIN} is not a tokenizer that the tokenizers package reads ({error}).") from error
    found.no_truncation()
    found.no_padding()
    return found


def spelt(token: str) -> bytes:
    """What a token's spelling stands for where characters are no bytes: a byte by its name, or text, its word marks
    spaces."""
    named = BYTE.fullmatch(token)
    return bytes.fromhex(named[1]) if named else token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def _spelt_bytes(token: str) -> int:
    found = spelt(token)
    return len(found)
