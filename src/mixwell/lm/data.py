"""Tokens on disk: the documents of every domain, to train on and held out, as memory-mapped streams.

A token folder holds raw little-endian `.bin` files and one `index.json`; nothing in it is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError, disk_errors
from mixwell.core.files import read_json, whole_folder, write_json
from mixwell.lm.documents import Document, size_bytes
from mixwell.lm.splitting import Split
from mixwell.lm.tokenizer import Tokenizer

INDEX = "index.json"
TOKEN_BYTES = "token_bytes.bin"
DTYPES = ("<u2", "<u4")
SPLITS = ("train", "held")
FORMAT = 1
_ENCODE_AT_ONCE = 256  # documents handed to the tokenizer together: bounds memory, still feeds all its threads


def write_shards(folder: str | Path, domains: Mapping[str, Split], tokenizer: Tokenizer) -> TokenData:
    """Encode every domain's documents, each followed by the end-of-text token, into a folder that appears whole."""
    if not domains:
        raise MixwellError("no domains; expected at least one with text.")
    dtype = DTYPES[0] if tokenizer.vocab_size <= 2**16 else DTYPES[1]
    entries: dict[str, dict[str, Any]] = {}
    index = {"format": FORMAT, "dtype": dtype, "vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id,
             "tokenizer": tokenizer.digest, "domains": entries}
    sizes_V = tokenizer.token_bytes_V.astype("<u4")
    with whole_folder(folder) as scratch, disk_errors(folder):
        (scratch / TOKEN_BYTES).write_bytes(sizes_V.tobytes())
        for number, (name, split) in enumerate(domains.items()):
            entry: dict[str, Any] = {"note": split.note}
            for side in SPLITS:
                file = f"{number:02d}.{side}.bin"
                documents = getattr(split, side)
                counts = _write_stream(scratch / file, documents, tokenizer, dtype)
                entry[side] = {"file": file} | counts
            entries[name] = entry
        write_json(scratch / INDEX, index)
    return TokenData.open(folder)


def _write_stream(path: Path, documents: Sequence[Document], tokenizer: Tokenizer, dtype: str) -> dict[str, int]:
    tokens, token_bytes = 0, 0
    with open(path, "wb") as file:
        for encoded in _encoded(documents, tokenizer):
            ids = np.asarray([*encoded, tokenizer.eos_id], dtype)
            file.write(ids.tobytes())
            tokens += len(ids)
            token_bytes += int(tokenizer.token_bytes_V[ids].sum())
    return {"tokens": tokens, "bytes": size_bytes(documents), "token_bytes": token_bytes, "documents": len(documents)}


def _encoded(documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[list[int]]:
    for start in range(0, len(documents), _ENCODE_AT_ONCE):
        part = documents[start : start + _ENCODE_AT_ONCE]
        texts = [document.text for document in part]
        yield from tokenizer.encode_batch(texts)


class TokenData:
    """A token folder, opened: `domains`, and per domain and split (`"train"`, `"held"`) its tokens and bytes."""

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder = folder
        self._index = index
        self.domains: tuple[str, ...] = tuple(index["domains"])
        self.vocab_size: int = index["vocab_size"]
        self.eos_id: int = index["eos_id"]
        self.tokenizer_digest: str = index["tokenizer"]
        self.token_bytes_V = np.fromfile(folder / TOKEN_BYTES, "<u4")

    @classmethod
    def open(cls, folder: str | Path) -> TokenData:
        """Open a folder that `write_shards` wrote; a missing, foreign or shortened file raises `MixwellError`."""
        folder = Path(folder)
        index = read_json(folder / INDEX)
        known = isinstance(index, dict) and index.get("format") == FORMAT
        if not known or index.get("dtype") not in DTYPES:
            raise MixwellError(f"{folder / INDEX} is not a token index of format {FORMAT}; write the tokens again.")
        for name, size in _file_sizes(index).items():
            path = folder / name
            inside = Path(name).name == name
            found = path.stat().st_size if inside and path.is_file() else None
            if found != size:
                raise MixwellError(f"{path} has {found} bytes, {size} expected; write the tokens again.")
        return cls(folder, index)

    def tokens(self, domain: str, split: str) -> np.memmap:
        """The stream of token ids, read-only, uint16 or uint32; documents end with `eos_id`."""
        entry = self._entry(domain, split)
        path = self.folder / entry["file"]
        return np.memmap(path, self._index["dtype"], "r")

    def count(self, domain: str, split: str) -> int:
        """Number of tokens in a stream, the end-of-text tokens among them."""
        return self._entry(domain, split)["tokens"]

    def bytes(self, domain: str, split: str) -> int:
        """Number of UTF-8 bytes of the text that a stream stands for; end-of-text tokens stand for none."""
        return self._entry(domain, split)["bytes"]

    def bytes_of(self, domain: str, split: str, start: int, stop: int) -> float:
        """UTF-8 bytes that the tokens from `start` up to `stop` of a stream stand for.

        Exact for byte-level tokenizers. Where a normaliser makes the lengths of the tokens miss the text's, they are
        scaled so that the whole stream stands for `bytes`.
        """
        entry = self._entry(domain, split)
        ids = self.tokens(domain, split)[start:stop]
        part = int(self.token_bytes_V[ids].sum(dtype=np.int64))
        if not part:
            return 0.0
        return part * entry["bytes"] / entry["token_bytes"]

    def documents(self, domain: str, split: str) -> int:
        """Number of documents in a stream."""
        return self._entry(domain, split)["documents"]

    def note(self, domain: str) -> str:
        """How the domain was split, in words."""
        return self._index["domains"][domain]["note"]

    def _entry(self, domain: str, split: str) -> dict[str, Any]:
        if domain not in self.domains or split not in SPLITS:
            domains, splits = ", ".join(self.domains), ", ".join(SPLITS)
            raise MixwellError(f"no tokens for {domain!r}, {split!r}; domains: {domains}; splits: {splits}.")
        entries = self._index["domains"]
        return entries[domain][split]


def _file_sizes(index: Mapping[str, Any]) -> dict[str, int]:
    """Bytes that each file of an index must have."""
    width = int(index["dtype"][-1])
    sizes = {TOKEN_BYTES: 4 * index["vocab_size"]}
    for entry in index["domains"].values():
        for side in SPLITS:
            stream = entry[side]
            sizes[stream["file"]] = stream["tokens"] * width
    return sizes
