"""A user's text: read by domain, split into train and held-out documents, laid down as memory-mapped tokens.

A token folder holds raw little-endian `.bin` files and one `index.json`; nothing in it is unpickled.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError, disk_errors
from mixwell.core.files import digest, read_json, whole_folder, write_json
from mixwell.lm.tokenizer import Tokenizer

INDEX = "index.json"
SPLITS = ("train", "held")
FORMAT = 1
_ENCODE_AT_ONCE = 256  # documents handed to the tokenizer together: bounds memory, still feeds all its threads


@dataclass(frozen=True)
class Document:
    """One file's text and where it came from (relative to its domain)."""

    path: str
    text: str


@dataclass(frozen=True)
class Split:
    """A domain's documents to train on and those held out, and in words how they were told apart."""

    train: tuple[Document, ...]
    held: tuple[Document, ...]
    note: str


def read_domain(spec: str | Path) -> list[Document]:
    """Read a domain's documents, sorted by path: a file, a folder (all files below it), or a glob (`**` goes deep).

    Hidden and empty files are passed over. A missing or empty domain, a binary file or one that is not UTF-8 raises
    `MixwellError` that names it.
    """
    root, paths = _paths(Path(spec).expanduser())
    documents = [Document(path.relative_to(root).as_posix(), read_text(path)) for path in paths]
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise MixwellError(f"{spec}: the {len(paths)} files found hold no text; expected UTF-8 text.")
    return documents


def _paths(spec: Path) -> tuple[Path, list[Path]]:
    """The files that `spec` means, and the folder their names are told from."""
    if spec.is_file():
        return spec.parent, [spec]
    found: Iterable[Path]
    if spec.is_dir():
        root, found = spec, spec.rglob("*")
    elif glob.has_magic(str(spec)):
        steps = spec.parts
        plain = next(i for i, part in enumerate(steps) if glob.has_magic(part))
        root = Path(*steps[:plain])
        found = map(Path, glob.iglob(str(spec), recursive=True))
    else:
        raise MixwellError(f"{spec} is not there; expected a file, a folder or a glob of text files.")
    files = sorted(p for p in found if p.is_file() and not any(s.startswith(".") for s in p.relative_to(root).parts))
    if not files:
        raise MixwellError(f"{spec} holds no files; expected UTF-8 text files.")
    return root, files


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, byte for byte but for a leading byte-order mark."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MixwellError(f"cannot read {path}: {error.strerror}. Make it readable or leave it out.") from error
    if b"\0" in data:
        raise MixwellError(f"{path} is a binary file; expected UTF-8 text. Leave it out, with a glob such as "
                           f"{path.parent / '*.txt'}.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MixwellError(f"{path} is not UTF-8 (byte {error.start}: {error.reason}); convert it "
                           "(iconv -f LATIN1 -t UTF-8, say) or leave it out.") from error


def split_documents(documents: Sequence[Document], held_fraction: float = 0.1) -> Split:
    """Hold out about `held_fraction` of the documents, chosen by the hash of their content.

    A document therefore stays on its side when others come or go, and copies of one text count once. At least one
    document is held out and one kept; a lone document is cut near its end, at a line where it has lines.
    """
    if not 0 < held_fraction < 1:
        raise MixwellError(f"held_fraction {held_fraction}: expected a share between 0 and 1.")
    unique = {digest(document.text.encode()): document for document in reversed(documents)}
    if not unique:
        raise MixwellError("no documents to split; expected at least one.")
    if len(unique) == 1:
        return _split_by_position(next(iter(unique.values())), held_fraction)
    order = sorted(unique)
    count = sum(int(key[:16], 16) < held_fraction * 2**64 for key in order)
    held = set(order[: min(max(count, 1), len(order) - 1)])
    keyed = [(key, document) for key, document in reversed(unique.items())]
    train_side = tuple(document for key, document in keyed if key not in held)
    held_side = tuple(document for key, document in keyed if key in held)
    return Split(train_side, held_side, f"by file: {len(train_side)} to train on, {len(held_side)} held out")


def _split_by_position(document: Document, held_fraction: float) -> Split:
    text, place = document.text, document.path
    if len(text) < 2:
        raise MixwellError(f"{place} holds one character; a domain needs text to train on and text to hold out.")
    target = min(max(round(len(text) * (1 - held_fraction)), 1), len(text) - 1)
    cut = text.rfind("\n", 0, target) + 1 or text.find("\n", target) + 1
    if 0 < cut < len(text):
        note = f"one file: held out from line {text.count(chr(10), 0, cut) + 1} on"
    else:
        cut, note = target, f"one file of one line: held out from character {target + 1} on"
    return Split((Document(place, text[:cut]),), (Document(place, text[cut:]),), note)


def write_shards(folder: str | Path, domains: Mapping[str, Split], tokenizer: Tokenizer) -> TokenData:
    """Encode every domain's documents, each followed by the end-of-text token, into a folder that appears whole."""
    if not domains:
        raise MixwellError("no domains; expected at least one with text.")
    dtype = "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"
    index: dict[str, Any] = {"format": FORMAT, "dtype": dtype, "vocab_size": tokenizer.vocab_size,
                             "eos_id": tokenizer.eos_id, "tokenizer": tokenizer.digest, "domains": {}}
    with whole_folder(folder) as scratch, disk_errors(folder):
        (scratch / "token_bytes.bin").write_bytes(tokenizer.token_bytes_V.astype("<u4").tobytes())
        for number, (name, split) in enumerate(domains.items()):
            entry: dict[str, Any] = {"note": split.note}
            for side in SPLITS:
                file = f"{number:02d}.{side}.bin"
                entry[side] = {"file": file} | _write_stream(scratch / file, getattr(split, side), tokenizer, dtype)
            index["domains"][name] = entry
        write_json(scratch / INDEX, index)
    return TokenData.open(folder)


def _write_stream(path: Path, documents: Sequence[Document], tokenizer: Tokenizer, dtype: str) -> dict[str, int]:
    counts = {"tokens": 0, "bytes": sum(len(d.text.encode()) for d in documents), "token_bytes": 0,
              "documents": len(documents)}
    with open(path, "wb") as file:
        for start in range(0, len(documents), _ENCODE_AT_ONCE):
            part = documents[start : start + _ENCODE_AT_ONCE]
            for encoded in tokenizer.encode_batch([document.text for document in part]):
                ids = np.asarray([*encoded, tokenizer.eos_id], dtype)
                file.write(ids.tobytes())
                counts["tokens"] += len(ids)
                counts["token_bytes"] += int(tokenizer.token_bytes_V[ids].sum())
    return counts


class TokenData:
    """A token folder, opened: `domains`, and per domain and split (`"train"`, `"held"`) its tokens and bytes."""

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder = folder
        self._index = index
        self.domains: tuple[str, ...] = tuple(index["domains"])
        self.vocab_size: int = index["vocab_size"]
        self.eos_id: int = index["eos_id"]
        self.tokenizer_digest: str = index["tokenizer"]
        self.token_bytes_V = np.fromfile(folder / "token_bytes.bin", "<u4")

    @classmethod
    def open(cls, folder: str | Path) -> TokenData:
        """Open a folder that `write_shards` wrote; a missing, foreign or shortened file raises `MixwellError`."""
        folder = Path(folder)
        index = read_json(folder / INDEX)
        if not isinstance(index, dict) or index.get("format") != FORMAT or index.get("dtype") not in ("<u2", "<u4"):
            raise MixwellError(f"{folder / INDEX} is not a token index of format {FORMAT}; write the tokens again.")
        width = int(index["dtype"][-1])
        sizes = {entry[side]["file"]: entry[side]["tokens"] * width for entry in index["domains"].values()
                 for side in SPLITS}
        for name, size in {**sizes, "token_bytes.bin": 4 * index["vocab_size"]}.items():
            path = folder / name
            found = path.stat().st_size if Path(name).name == name and path.is_file() else None
            if found != size:
                raise MixwellError(f"{path} has {found} bytes, {size} expected; write the tokens again.")
        return cls(folder, index)

    def tokens(self, domain: str, split: str) -> np.memmap:
        """The stream of token ids, read-only, uint16 or uint32; documents end with `eos_id`."""
        return np.memmap(self.folder / self._entry(domain, split)["file"], self._index["dtype"], "r")

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
        part = int(self.token_bytes_V[self.tokens(domain, split)[start:stop]].sum(dtype=np.int64))
        return part * entry["bytes"] / entry["token_bytes"] if part else 0.0

    def documents(self, domain: str, split: str) -> int:
        """Number of documents in a stream."""
        return self._entry(domain, split)["documents"]

    def note(self, domain: str) -> str:
        """How the domain was split, in words."""
        return self._index["domains"][domain]["note"]

    def _entry(self, domain: str, split: str) -> dict[str, Any]:
        if domain not in self._index["domains"] or split not in SPLITS:
            raise MixwellError(f"no tokens for {domain!r}, {split!r}; domains: {', '.join(self.domains)}; splits: "
                               f"{', '.join(SPLITS)}.")
        return self._index["domains"][domain][split]
