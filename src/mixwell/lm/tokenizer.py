"""A byte-level BPE tokenizer, trained here or read from a Hugging Face folder.

All 256 bytes are in the alphabet, so no text is unknown and decoding gives back the very text that was encoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from mixwell.core.errors import MixwellError
from mixwell.core.files import digest
from mixwell.lm.gguf.header import is_gguf
from mixwell.lm.gguf.reading import GgufFile
from mixwell.lm.gguf.tokenizer import tokenizer_files

MAIN = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
FILES = (MAIN, CONFIG, SPECIAL, "added_tokens.json", "chat_template.jinja", "vocab.json", "merges.txt")
END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """Text to token ids and back. Make one with `train`, `load` or `from_files`."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        if MAIN not in files:
            raise MixwellError(f"no {MAIN} among the tokenizer's files ({', '.join(files) or 'none'}); expected the "
                               "files of a fast Hugging Face tokenizer (transformers: save_pretrained writes them).")
        self._files = {name: bytes(data) for name, data in files.items() if name in FILES}
        self._backend = _parse(self._files[MAIN])
        # Text that spells a special token stays text: otherwise a document could end itself.
        self._backend.encode_special_tokens = True

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, special: Sequence[str] = (END_OF_TEXT,)) -> Tokenizer:
        """Learn byte-pair merges from `texts`; the same texts give the same tokenizer, whatever their order.

        vocab_size: ids wanted, special tokens and the 256 bytes among them; little text may give fewer.
        special: tokens that stand outside the text, taking the first ids; the first one ends a document.
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
        backend.train_from_iterator(texts, trainer)
        marks = dict.fromkeys(("eos_token", "bos_token", "pad_token"), special[0])
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **marks, "clean_up_tokenization_spaces": False,
                  "model_max_length": 10**9}
        main = backend.to_str(pretty=True)
        return cls({MAIN: main.encode(), CONFIG: _json(config), SPECIAL: _json(marks)})

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Tokenizer:
        """Build from file contents by name (`Checkpoint.files`); `tokenizer.json` must be among them."""
        return cls(files)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer of a Hugging Face folder, or of a GGUF file."""
        folder = Path(folder)
        if is_gguf(folder):
            return cls(tokenizer_files(GgufFile(folder).metadata, str(folder)))
        found = [folder / name for name in FILES if (folder / name).is_file()]
        files = {path.name: path.read_bytes() for path in found}
        if MAIN not in files:
            raise MixwellError(f"{folder} holds no {MAIN}; expected a Hugging Face folder with a fast tokenizer.")
        return cls(files)

    def save_files(self) -> dict[str, bytes]:
        """The files, by name, that `transformers.AutoTokenizer.from_pretrained` reads."""
        return dict(self._files)

    @property
    def digest(self) -> str:
        """SHA-256 of `tokenizer.json`: which ids mean what."""
        return digest(self._files[MAIN])

    @cached_property
    def vocab_size(self) -> int:
        """Largest id plus one."""
        vocab = self._backend.get_vocab(with_added_tokens=True)
        return max(vocab.values()) + 1

    @cached_property
    def eos_id(self) -> int:
        """Id of the token that ends a document; `MixwellError` where the files name none."""
        for name in (CONFIG, SPECIAL):
            content = _object(self._files.get(name, b"{}"), name)
            token = content.get("eos_token")
            text = token.get("content") if isinstance(token, dict) else token
            found = self._backend.token_to_id(text) if isinstance(text, str) else None
            if found is not None:
                return found
        raise MixwellError(f"the tokenizer names no end-of-text token; add eos_token to {CONFIG}.")

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`; with `special`, a special token spelt in it becomes its own id (for chat templates)."""
        backend = self._with_special if special else self._backend
        return backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, in parallel."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in encoded]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; special tokens are spelt out, or left out where `skip_special`."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    @cached_property
    def token_bytes_V(self) -> np.ndarray:
        """Number of UTF-8 bytes that each id stands for, uint32 [vocab_size]; 0 for special tokens.

        Exact for byte-level tokenizers. Otherwise a word mark counts as one space and `<0x0A>` as one byte, which
        leaves out what a normaliser did to the text.
        """
        main = json.loads(self._files[MAIN])
        size = len if _is_byte_level(main.get("decoder")) else _spelt_bytes
        sizes_V = np.zeros(self.vocab_size, np.uint32)
        plain = self._backend.get_vocab(with_added_tokens=False)
        for token, number in plain.items():
            sizes_V[number] = size(token)
        added = self._backend.get_added_tokens_decoder()
        for number, entry in added.items():
            sizes_V[number] = 0 if entry.special else len(entry.content.encode())
        return sizes_V

    @cached_property
    def _with_special(self) -> tokenizers.Tokenizer:
        return _parse(self._files[MAIN])


def _parse(data: bytes) -> tokenizers.Tokenizer:
    """The tokenizer of a file, without the lengths that it may carry: text is encoded whole, always."""
    try:
        found = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the Rust side raises bare Exception
        raise MixwellError(f"{MAIN} is not a tokenizer that the tokenizers package reads ({error}).") from error
    found.no_truncation()
    found.no_padding()
    return found


def _is_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    return decoder.get("type") == "ByteLevel" or any(map(_is_byte_level, decoder.get("decoders", ())))


def _spelt_bytes(token: str) -> int:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode())


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise MixwellError(f"{name} is not readable as JSON ({error}); restore it.") from error
    if not isinstance(value, dict):
        raise MixwellError(f"{name} holds {type(value).__name__}; expected keys and values.")
    return value
