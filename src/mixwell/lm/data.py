"""Tokens on disk: the documents of every domain, to train on and held out, as memory-mapped streams.

A token folder holds raw little-endian `.bin` files and one `index.json`; nothing in it is unpickled. A stream may have
marks beside it, a byte a token: the first bit says that the loss counts the token (not where it is only read, as a
question is), the second that a document ends with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError, disk_errors
from mixwell.core.files import read_json, whole_folder, write_json
from mixwell.lm.documents import Document
from mixwell.lm.encoding import Encoder
from mixwell.lm.network import IGNORED
from mixwell.lm.splitting import Split
from mixwell.lm.tokenizer import Tokenizer

INDEX = "index.json"
TOKEN_BYTES = "token_bytes.bin"
DTYPES = ("<u2", "<u4")
SPLITS = ("train", "held")
FORMAT = 3
COUNTS, ENDS = 1, 2  # bits of a mark


def write_shards(folder: str | Path, domains: Mapping[str, Split], tokenizer: Tokenizer,
                 answers_only: bool = True) -> TokenData:
    """Encode every domain's documents, each followed by the end-of-text token, into a folder that appears whole.

    answers_only: of conversations, the loss counts the answers alone. Raises `MixwellError` without a domain.
    """
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
                encoder = Encoder(tokenizer, answers_only)
                entry[side] = _write_stream(scratch / file, documents, encoder, dtype)
            entries[name] = entry
        write_json(scratch / INDEX, index)
    return TokenData.open(folder)


def _write_stream(path: Path, documents: Sequence[Document], encoder: Encoder, dtype: str) -> dict[str, Any]:
    """Write the documents' ids, and their mask where one is needed; what the index says of them."""
    tokens, size, token_bytes, counted = 0, 0, 0, 0
    masked = encoder.masks(documents)
    mask = path.with_suffix(".mask.bin")
    with open(path, "wb") as file, open(mask, "wb") as beside:
        for found in encoder.encode(documents):
            ids = np.asarray(found.ids, dtype)
            counts = np.asarray(found.counts, np.uint8)
            file.write(ids.tobytes())
            marks = counts.copy()
            marks[-1:] |= ENDS
            beside.write(marks.tobytes() if masked else b"")
            tokens += len(ids)
            size += found.size
            token_bytes += int(encoder.tokenizer.token_bytes_V[ids].sum())
            counted += int(counts.sum())
    if not masked:
        mask.unlink()
    return {"file": path.name, "mask": mask.name if masked else None, "tokens": tokens, "counted": counted,
            "bytes": size, "token_bytes": token_bytes, "documents": len(documents), "changed": encoder.changed,
            "changed_bytes": encoder.changed_bytes, "unknown_bytes": encoder.unknown_bytes}


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
        self._maps: dict[str, np.memmap] = {}  # of the files that were asked for

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
        return self._map(entry["file"], self._index["dtype"])

    def mask(self, domain: str, split: str) -> np.ndarray | None:
        """Which tokens of a stream the loss counts, uint8; None where it counts all."""
        marks = self._marks(domain, split)
        return None if marks is None else marks & COUNTS

    def _marks(self, domain: str, split: str) -> np.memmap | None:
        name = self._entry(domain, split)["mask"]
        return None if name is None else self._map(name, "u1")

    def ends(self, domain: str, split: str) -> np.ndarray:
        """The place behind the last token of each document of a stream, int64, rising."""
        marks = self._marks(domain, split)
        if marks is None:
            last = self.tokens(domain, split) == self.eos_id
        else:
            last = marks & ENDS
        return np.flatnonzero(last) + 1

    def labels(self, domain: str, split: str, start: int, stop: int) -> np.ndarray:
        """Tokens from `start` up to `stop` as targets, int64: those that do not count are `IGNORED`."""
        ids = self.tokens(domain, split)[start:stop].astype(np.int64)
        marks = self._marks(domain, split)
        if marks is not None:
            counts = marks[start:stop] & COUNTS
            ids[counts == 0] = IGNORED
        return ids

    def count(self, domain: str, split: str) -> int:
        """Number of tokens in a stream, the end-of-text tokens among them."""
        return self._entry(domain, split)["tokens"]

    def counted(self, domain: str, split: str) -> int:
        """Number of tokens that the loss counts."""
        return self._entry(domain, split)["counted"]

    def bytes(self, domain: str, split: str) -> int:
        """Number of UTF-8 bytes of the text that a stream stands for; end-of-text tokens stand for none."""
        return self._entry(domain, split)["bytes"]

    def bytes_of(self, domain: str, split: str, start: int, stop: int) -> float:
        """UTF-8 bytes that the tokens from `start` up to `stop` of a stream stand for, those that count alone.

        Exact for byte-level tokenizers. Where a normaliser makes the lengths of the tokens miss the text's, they are
        scaled so that the whole stream stands for `bytes`.
        """
        entry = self._entry(domain, split)
        ids = self.labels(domain, split, start, stop)
        ids = ids[ids != IGNORED]
        part = int(self.token_bytes_V[ids].sum(dtype=np.int64))
        if not part:
            return 0.0
        return part * entry["bytes"] / entry["token_bytes"]

    def documents(self, domain: str, split: str) -> int:
        """Number of documents in a stream."""
        return self._entry(domain, split)["documents"]

    def lost(self, domain: str) -> dict[str, int]:
        """Of a domain's documents: how many the tokenizer does not give back, their bytes, and the unknown ones."""
        names = ("documents", "bytes", "changed", "changed_bytes", "unknown_bytes")
        sides = [self._entry(domain, side) for side in SPLITS]
        return {name: sum(side[name] for side in sides) for name in names}

    def note(self, domain: str) -> str:
        """How the domain was split, in words."""
        return self._index["domains"][domain]["note"]

    def _map(self, name: str, dtype: str) -> np.memmap:
        if name not in self._maps:
            self._maps[name] = np.memmap(self.folder / name, dtype, "r")
        return self._maps[name]

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
            if stream["mask"] is not None:
                sizes[stream["mask"]] = stream["tokens"]
    return sizes
