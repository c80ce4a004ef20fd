"""Files that hold tables, opened: packed or not, in whatever encoding, or refused by their right name."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mixwell.core.errors import MixwellError

TEXT_ENDINGS = (".csv", ".tsv", ".txt", ".data", ".dat", ".asc", ".tab")
JSON_ENDINGS = (".jsonl", ".ndjson")
ARROW_ENDINGS = (".feather", ".arrow")
PARQUET_ENDINGS = (".parquet", ".pq")
EXCEL_ENDINGS = (".xlsx", ".xlsm")
PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
EXPECTED = (".csv, .tsv, .txt, .data, .dat, .jsonl, .parquet, .feather or .xlsx, or as one of them packed (.gz, .bz2, "
            ".xz, .zip)")
FOREIGN = {".xls": "an old Excel workbook", ".ods": "an OpenDocument spreadsheet", ".sav": "an SPSS file",
           ".dta": "a Stata file", ".sas7bdat": "a SAS file", ".rds": "an R object", ".rdata": "R objects",
           ".rda": "R objects", ".mat": "a MATLAB file", ".h5": "an HDF5 file", ".hdf5": "an HDF5 file",
           ".pkl": "a pickle, which could run code", ".pickle": "a pickle, which could run code",
           ".json": "a JSON document", ".npy": "a NumPy array", ".npz": "NumPy arrays",
           ".db": "a database", ".sqlite": "a database"}
MAGIC = {b"PK\x03\x04": "a zip archive or an Excel workbook", b"PAR1": "a Parquet file", b"\x1f\x8b": "gzip-packed",
         b"BZh": "bzip2-packed", b"\xfd7zXZ": "xz-packed", b"ARROW1": "an Arrow file",
         b"\xd0\xcf\x11\xe0": "an old Excel workbook", b"%PDF": "a PDF", b"\x89HDF": "an HDF5 file"}
STDIN = "-"
CHUNK = 1 << 20
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
UNPACKING = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Source:
    """Bytes of a table: a file, one packed inside it, or what came through a pipe."""

    name: str
    ending: str  # of the table itself, without that of its packing
    packing: str = ""
    data: bytes | None = None

    @property
    def is_text(self) -> bool:
        """Whether it holds rows of text."""
        return self.ending in TEXT_ENDINGS

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The unpacked bytes from the beginning; a `MixwellError` where they cannot be unpacked."""
        try:
            with self._unpacked() as file:
                yield file
        except UNPACKING as error:
            raise MixwellError(f"{self.name} is not a proper table: {error or type(error).__name__}.") from error

    @contextmanager
    def _unpacked(self) -> Iterator[IO[bytes]]:
        if self.data is not None:
            yield io.BytesIO(self.data)
        elif self.packing == ".zip":
            with zipfile.ZipFile(self.name) as archive, archive.open(_member(archive, self.name)) as inner:
                yield inner
        else:
            opener: Any = PACKED.get(self.packing, open)
            with opener(self.name, "rb") as file:
                yield file

    @contextmanager
    def text(self, encoding: str) -> Iterator[io.TextIOWrapper]:
        """The text from the beginning, ends of lines as they are."""
        with self.opened() as raw, io.TextIOWrapper(raw, encoding=encoding, newline="") as text:
            yield text


def source_of(path: Path) -> Source:
    """What a path names, by its ending; a `MixwellError` names what is no table."""
    if str(path) == STDIN:
        return Source("standard input", ".csv", data=sys.stdin.buffer.read())
    ending, packing = path.suffix.lower(), ""
    if ending in PACKED:
        inner = Path(path.stem)
        packing, ending = ending, inner.suffix.lower()
    elif ending == ".zip":
        packing, ending = ending, _packed_ending(path)
    _refuse_foreign(path, ending)
    return Source(str(path), ending, packing)


def is_table(path: Path) -> bool:
    """Whether a file of a folder is one of its tables, by its ending."""
    stem = path.name.lower()
    for packing in PACKED:
        stem = stem.removesuffix(packing)
    endings = TEXT_ENDINGS + JSON_ENDINGS + ARROW_ENDINGS + PARQUET_ENDINGS
    return stem.endswith(endings)


def _packed_ending(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            return Path(_member(archive, str(path))).suffix.lower()
    except zipfile.BadZipFile as error:
        raise MixwellError(f"{path} is no zip archive ({error}).") from error


def _member(archive: zipfile.ZipFile, name: str) -> str:
    """The one file of an archive."""
    inside = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    files = [file for file in inside if not file.startswith("__MACOSX/")]
    if len(files) != 1:
        raise MixwellError(f"{name} holds {len(files)} files; expected one table. Unpack it and name one.")
    return files[0]


def _refuse_foreign(path: Path, ending: str) -> None:
    known = TEXT_ENDINGS + JSON_ENDINGS + ARROW_ENDINGS + PARQUET_ENDINGS + EXCEL_ENDINGS
    if ending in FOREIGN:
        raise MixwellError(f"{path} is {FOREIGN[ending]}, which is not read; save it as CSV or Parquet.")
    if ending not in known:
        raise MixwellError(f"{path}: expected a table that ends as {EXPECTED}.")


def encoding_of(source: Source, wanted: str = "") -> tuple[str, str]:
    """The encoding of a text, and a note where it is not UTF-8; a `MixwellError` where it is no text."""
    if wanted:
        return _known(wanted), ""
    with source.opened() as file:
        head = file.read(4096)
        for magic, what in MAGIC.items():
            if head.startswith(magic):
                raise MixwellError(f"{source.name} is {what}, not text; give it the ending of what it is.")
        for mark, encoding in MARKS:
            if head.startswith(mark):
                return encoding, "" if encoding == "utf-8-sig" else f"text in {encoding.upper()}"
        wide = _without_mark(head)
        if wide:
            return wide, f"text in {wide.upper()}"
        strange = _not_utf8(head, file)
    if strange is None:
        return "utf-8-sig", ""
    if strange in (0x81, 0x8D, 0x8F, 0x90, 0x9D):
        raise MixwellError(f"{source.name} is neither UTF-8 nor Latin-1 text; name its encoding with --encoding.")
    return "cp1252", "text in Latin-1 (Windows-1252), not UTF-8; --encoding names another"


def _known(encoding: str) -> str:
    try:
        return codecs.lookup(encoding).name
    except LookupError as error:
        raise MixwellError(f"unknown encoding {encoding!r}; expected one such as utf-8, latin-1 or utf-16.") from error


def _without_mark(head: bytes) -> str:
    """UTF-16 that no mark announces: every other byte of plain letters is zero."""
    if len(head) < 8:
        return ""
    even, odd = head[0::2], head[1::2]
    zeros = even.count(0), odd.count(0)
    most = 0.3 * len(head)
    if zeros[0] == 0 and zeros[1] > most:
        return "utf-16-le"
    if zeros[1] == 0 and zeros[0] > most:
        return "utf-16-be"
    return ""


def _not_utf8(head: bytes, rest: IO[bytes]) -> int | None:
    """The first byte that UTF-8 does not have in its place, or None."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    chunk = head
    while chunk:
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError as error:
            return error.object[error.start]
        chunk = rest.read(CHUNK)
    pending, _ = decoder.getstate()
    return pending[0] if pending else None
