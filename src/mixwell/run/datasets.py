"""Data sets that every machine has: text from the running Python's own standard library, in four domains.

* code: library modules without their docstrings
* tests: files below test directories
* reference: the prose behind `help()`, one document a topic
* docstrings: the docstrings of those library modules, one document a module

Code and docstrings share no text, so that the domains are told apart by what they are.
"""

from __future__ import annotations

import ast
import functools
import importlib
import os
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mixwell.core.errors import MixwellError, suggest
from mixwell.core.files import digest
from mixwell.lm.documents import Document
from mixwell.lm.splitting import head

_TEST_FOLDERS = {"test", "tests", "idle_test"}
_LEFT_OUT = {"site-packages", "dist-packages", "lib-dynload", "__pycache__", "pydoc_data", "encodings"}
# encodings are character tables, pydoc_data is the reference domain, and these files tell of the machine they lie on.
_OF_THE_MACHINE = ("_sysconfigdata", "_sysconfig_vars", "sitecustomize", "usercustomize")
_OWNERS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")  # of statements, in what holds some
_GONE = b"\0"  # stands for a line that only held a docstring; no source line can be it


def load(name: str, max_bytes_per_domain: int | None = None) -> dict[str, list[Document]]:
    """The documents by domain of the data set `name`. Raises `MixwellError` for a name that is not known."""
    if name not in DATASETS:
        raise MixwellError(f"no data set {name!r}.{suggest(name, DATASETS)} Known: {', '.join(DATASETS)}.")
    return DATASETS[name](max_bytes_per_domain)


def files(name: str) -> list[Path]:
    """The files that the data set `name` is read from, and may be read from under a smaller or larger cap."""
    root = Path(sysconfig.get_path("stdlib"))
    topics = root / "pydoc_data" / "topics.py"
    modules, tests = _files(root)
    return [*(root / file for file in (*modules, *tests)), *([topics] if topics.is_file() else [])]


def standard_library(max_bytes_per_domain: int | None = None) -> dict[str, list[Document]]:
    """The domains code, tests, reference and docstrings, each in the order of the hashes of its documents' names.

    max_bytes_per_domain: UTF-8 bytes taken at most, the last document being cut at a line; only as many files are
    read as that needs. Names are told from the library's folder, so the result depends on the Python version alone
    (and on what its distributor left out). A Python without the files raises `MixwellError`.
    """
    if max_bytes_per_domain is not None and max_bytes_per_domain < 1:
        raise MixwellError(f"max_bytes_per_domain {max_bytes_per_domain}: expected at least 1, or None for all.")
    root = Path(sysconfig.get_path("stdlib"))
    modules, tests = _files(root)
    apart = functools.cache(lambda name: _take_apart(_source(root / name)))
    sources: dict[str, Iterable[Document]] = {
        "code": (Document(name, apart(name)[0]) for name in modules),
        "tests": (Document(name, _source(root / name)) for name in tests),
        "reference": _topics(),
        "docstrings": (Document(name, apart(name)[1]) for name in modules),
    }
    found = {domain: _capped(documents, max_bytes_per_domain) for domain, documents in sources.items()}
    for domain, documents in found.items():
        if not documents:
            raise MixwellError(f"this Python ({root}) ships no text for the domain {domain!r}; run with a full Python "
                               "installation, or name folders of your own as domains.")
    return found


def _files(root: Path) -> tuple[list[str], list[str]]:
    """Names of the library's modules and of its tests, in a mixed but fixed order."""
    names = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name not in _LEFT_OUT and not name.startswith("config-")]
        place = Path(folder).relative_to(root)
        own = [file for file in files if file.endswith(".py") and not file.startswith(_OF_THE_MACHINE)]
        names += [(place / file).as_posix() for file in own]
    names.sort(key=lambda name: digest(name.encode()))
    tests = [name for name in names if _is_test(name)]
    modules = [name for name in names if not _is_test(name)]
    return modules, tests


def _is_test(name: str) -> bool:
    folders = name.split("/")[:-1]
    return not _TEST_FOLDERS.isdisjoint(folders)


def _capped(documents: Iterable[Document], max_bytes: int | None) -> list[Document]:
    """Documents with text, each text once, up to `max_bytes` together.

    They come in the order of their names' hashes, of which the split, which hashes texts, knows nothing.
    """
    seen: set[str] = set()
    kept: list[Document] = []
    room = float("inf") if max_bytes is None else max_bytes
    for document in documents:
        if not document.text.strip() or document.identity in seen:
            continue
        if document.size > room:
            part = head(document, int(room))
            return [*kept, part] if part.text.strip() else kept
        seen.add(document.identity)
        kept.append(document)
        room -= document.size
    return kept


def _source(path: Path) -> str:
    """The text of a Python file with Unix line ends; empty where it is not UTF-8 (some tests are not, on purpose)."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def _take_apart(source: str) -> tuple[str, str]:
    """(the module without its docstrings, its docstrings one after the other); both empty where it does not parse."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return "", ""
    owners = [node for node in _statements(tree)
              if isinstance(node, _OWNERS) and ast.get_docstring(node, clean=False)]
    owners.sort(key=lambda node: node.body[0].lineno)
    lines = source.encode().split(b"\n")  # ast counts columns in bytes, and lines at newlines alone
    for owner in reversed(owners):
        _cut(lines, owner.body[0], needed=len(owner.body) == 1 and owner is not tree)
    code = b"\n".join(line for line in lines if line != _GONE).decode()
    return code, "\n\n".join(text for node in owners if (text := ast.get_docstring(node))) + "\n"


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and all that holds statements in it; the expressions, nine nodes of ten, own no docstring."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for name in _BLOCKS:
            waiting += getattr(node, name, ())


def _cut(lines: list[bytes], docstring: ast.stmt, needed: bool) -> None:
    """Put `pass` in the docstring's place, or nothing where it stands alone on its lines and is not `needed`."""
    first = docstring.lineno - 1
    end = docstring.end_lineno or docstring.lineno
    before = lines[first][: docstring.col_offset]
    after = lines[end - 1][docstring.end_col_offset :]
    rest = before + b"pass" + after
    alone = rest.strip() == b"pass"
    if alone and not needed:
        rest = _GONE
    gone = [_GONE] * (end - 1 - first)
    lines[first:end] = [rest, *gone]


def _topics() -> list[Document]:
    """The reference topics of `pydoc`, in the order of the hashes of their names; none where they are not shipped."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return []
    mixed = sorted(topics, key=lambda name: digest(name.encode()))
    return [Document(f"{name}.txt", topics[name]) for name in mixed]


DATASETS: dict[str, Callable[[int | None], dict[str, list[Document]]]] = {"standard-library": standard_library}
