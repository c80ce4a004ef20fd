"""Whether what stands in a run's folder is what was written there.

The record of a stage holds digests of all its files. Every run looks at their sizes and times, which costs next to
nothing; where these are other than when the digests were last found right (`.checked.json` keeps them), the files are
read. `verify` reads everything: a disk that loses a bit changes no time.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mixwell.core.errors import MixwellError, on_one_line
from mixwell.core.files import read_json, write_json
from mixwell.formats import sealed
from mixwell.report import digests, records
from mixwell.report.records import STAGE, StageRecord
from mixwell.run import sizing
from mixwell.run.paths import stage_folders

COMPARISON = "compare.json"
CHECKED = ".checked.json"  # beside stage.json
Facts = dict[str, list[int]]  # file -> size, inode, times of change of its content and of itself (ns)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A stage's folder as it was found."""

    record: StageRecord | None = None  # None: there is no such stage, or it is damaged
    damage: str = ""  # what is wrong with what stands there, as a sentence without its end
    facts: Facts = field(default_factory=dict)  # of files whose digests are right
    news: bool = False  # the digests had to be taken: `remember` spares that the next time


def standing(folder: Path, key: str) -> Standing:
    """The finished stage of that key in `folder`, its files checked as cheaply as can be.

    A file that the stage did not write raises `MixwellError`: it may change what is read, and may be someone's own.
    """
    if not folder.is_dir():
        return Standing()
    try:
        record = records.read_stage(folder)
    except MixwellError as error:
        return Standing(damage=_first_clause(error))
    if record.key != key:
        return Standing(damage=f"{folder / STAGE} is of the key {record.key[:8]}")
    facts = _facts(record)
    known = remembered(folder)
    if facts == known:
        return Standing(record=record, facts=facts)
    for name in foreign(record):
        raise MixwellError(f"{folder / name} was not written by the run, and may change what is read there; move it "
                           "elsewhere.")
    problems = list(damages(record, lambda name: name not in facts or facts[name] != known.get(name)))
    if problems:
        return Standing(damage=problems[0])
    return Standing(record=record, facts=facts, news=True)


def _first_clause(error: MixwellError) -> str:
    return str(error).partition(";")[0].rstrip(".")


def damages(record: StageRecord, doubted: Callable[[str], bool] = lambda name: True) -> Iterator[str]:
    """What is wrong with the files of a stage, a sentence each; only those `doubted` are read."""
    folder = record.folder
    assert folder is not None
    for name, expected in record.files.items():
        problem = digests.wrong(folder / name, expected) if doubted(name) else ""
        if problem:
            yield f"{folder / name} {problem}"
    for name in foreign(record):
        yield f"{folder / name} was not written by the run"


def foreign(record: StageRecord) -> list[str]:
    """Files in a stage's folder that the stage did not write, hidden ones left aside."""
    assert record.folder is not None
    expected = {STAGE, *record.files}
    return sorted(set(digests.visible(record.folder)) - expected)


def _facts(record: StageRecord) -> Facts:
    """Size and times of the files of a stage that are there."""
    assert record.folder is not None
    found = {}
    for name in [*record.files, *foreign(record)]:
        with contextlib.suppress(OSError):
            found[name] = _fact(record.folder / name)
    return found


def _fact(path: Path) -> list[int]:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        return []
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def remembered(folder: Path) -> Facts:
    """What `remember` wrote; empty where it is not there or not readable, which costs time and nothing else."""
    try:
        found = read_json(folder / CHECKED)
    except (MixwellError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(record: StageRecord, facts: Facts | None = None) -> None:
    """Keep the sizes and times at which a stage's digests were right: `facts`, else those of now."""
    assert record.folder is not None
    now = _facts(record) if facts is None else facts
    with contextlib.suppress(MixwellError, OSError):  # a folder that cannot be written is checked anew each time
        write_json(record.folder / CHECKED, now)


def forget(folder: Path) -> None:
    """Have the next run read the files of a stage."""
    with contextlib.suppress(OSError):
        (folder / CHECKED).unlink(missing_ok=True)


@dataclass
class Found:
    """What `verify` saw."""

    stages: int = 0
    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)


def verify(run: Path, progress: Callable[[float, str], None] = lambda share, words: None) -> Found:
    """Read every file that the run in `run` wrote and hold it against its digest.

    A stage in which something is wrong is read anew, and made again, by the next run. progress: hears the share that
    is done (0 to 1) and what is read. A folder that holds no run raises `MixwellError`.
    """
    folders = stage_folders(run)
    if not folders and not (run / records.RUN).is_file():
        raise MixwellError(f"{run} holds no stages; expected the folder of a run or of a comparison.")
    found = Found()
    for number, folder in enumerate(folders):
        progress(number / len(folders), folder.name)
        problems = _stage_problems(folder, found)
        if problems:
            forget(folder)
        found.problems += problems
    found.problems += _record_problems(run, found)
    return found


def _stage_problems(folder: Path, found: Found) -> list[str]:
    found.stages += 1
    found.files += 1
    try:
        record = records.read_stage(folder)
        found.files += len(record.files)
        found.bytes += sum(one.bytes for one in record.files.values())
        named = f"{record.id}-{record.key[:8]}"
        problems = list(map(on_one_line, damages(record)))
    except MixwellError as error:
        return [_first_clause(error)]
    if named != folder.name:
        problems.append(f"{folder} holds the stage {named}")
    return problems


def _record_problems(run: Path, found: Found) -> list[str]:
    """What is wrong with the files beside the stages."""
    checks: Mapping[str, Callable[[], object]] = {
        records.RUN: lambda: records.listed_stages(run),
        records.RECIPE: lambda: _check_recipe(run),
        sizing.FILE: lambda: sealed.read(run / sizing.FILE, "remove it"),
        COMPARISON: lambda: sealed.read(run / COMPARISON, records.AGAIN)}
    problems = []
    for name, check in checks.items():
        if not os.path.lexists(run / name):
            continue
        found.files += 1
        try:
            check()
        except MixwellError as error:
            problems.append(_first_clause(error))
    return problems


def _check_recipe(run: Path) -> None:
    """The recipe beside run.json says what that holds."""
    path = run / records.RECIPE
    if not (run / records.RUN).is_file():
        return
    expected = records.written_recipe(run).encode()
    if not path.is_file() or path.read_bytes() != expected:
        raise MixwellError(f"{path} is not as it was written; {records.AGAIN}.")
