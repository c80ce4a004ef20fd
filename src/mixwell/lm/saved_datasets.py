"""Folders that Hugging Face's `datasets` saved: which of their files hold rows, and which splits there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixwell.core.files import read_json

SPLITS = "dataset_dict.json"  # of a folder that holds a folder for each split
STATE = "state.json"  # of a folder of rows
BESIDE = ("dataset_info.json", STATE, SPLITS)  # these tell of the rows and are none
TRAIN = "train"


def without_bookkeeping(files: Sequence[Path]) -> list[Path]:
    """The files that hold rows: not what `datasets` notes beside them, and not the caches it leaves among them.

    Of several splits those are left out which are not for training.
    """
    if not any(path.suffix == ".arrow" for path in files):
        return list(files)
    left_out = {path.parent / name for path in files if path.name == SPLITS for name in other_splits(path.parent)}
    listed = {path.parent: _rows(path) for path in files if path.name == STATE}
    kept = [path for path in files if path.name not in BESIDE and not left_out & set(path.parents)]
    return [path for path in kept if path.suffix != ".arrow" or _is_own(path, listed.get(path.parent, ()))]


def _is_own(path: Path, listed: Sequence[str]) -> bool:
    """Whether a file is among those that a state lists, where it lists any."""
    return not listed or path.name in listed


def other_splits(folder: Path) -> list[str]:
    """Splits of a saved folder beside the one for training; none where it has no such one."""
    file = folder / SPLITS
    splits = read_json(file).get("splits", []) if file.is_file() else []
    return [name for name in splits if name != TRAIN] if TRAIN in splits else []


def _rows(state: Path) -> tuple[str, ...]:
    """Names of the files that a state counts as the data set's own."""
    return tuple(entry["filename"] for entry in read_json(state).get("_data_files", ()))
