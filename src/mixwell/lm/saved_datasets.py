"""Folders that Hugging Face's `datasets` saved: which of their files hold rows, and which splits there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mixwell.formats.plain import Schema, keyed, read_object, sequence, text

SPLITS = "dataset_dict.json"  # of a folder that holds a folder for each split
STATE = "state.json"  # of a folder of rows
BESIDE = ("dataset_info.json", STATE, SPLITS)  # these tell of the rows and are none
TRAIN = "train"
_NAME = text(1000)
_DICT: Schema = {"splits": sequence(_NAME)}
_STATE: Schema = {"_data_files": sequence(keyed({"filename": _NAME}, ("filename",)))}


def without_bookkeeping(files: Sequence[Path]) -> list[Path]:
    """The files that hold rows: not what `datasets` notes beside them, and not the caches it leaves among them.

    Of several splits those are left out which are not for training.
    """
    if not any(path.suffix == ".arrow" for path in files):
        return list(files)
    left_out: set[Path] = set()
    listed: dict[Path, list[str]] = {}
    for path in files:
        folder = path.parent
        if path.name == SPLITS:
            left_out.update(folder / name for name in other_splits(folder))
        elif path.name == STATE:
            listed[folder] = _rows(path)
    rows = [path for path in files if path.name not in BESIDE and _is_own(path, listed)]
    return [path for path in rows if left_out.isdisjoint(path.parents)]


def _is_own(path: Path, listed: Mapping[Path, Sequence[str]]) -> bool:
    """Whether a file is among those that the state beside it lists, where it lists any."""
    names = listed.get(path.parent)
    return not names or path.suffix != ".arrow" or path.name in names


def other_splits(folder: Path) -> list[str]:
    """Splits of a saved folder beside the one for training; none where it has no such one."""
    file = folder / SPLITS
    splits = read_object(file, _DICT).get("splits", []) if file.is_file() else []
    return [name for name in splits if name != TRAIN] if TRAIN in splits else []


def _rows(state: Path) -> list[str]:
    """Names of the files that a state counts as the data set's own."""
    content = read_object(state, _STATE)
    entries = content.get("_data_files", ())
    return [entry["filename"] for entry in entries]
