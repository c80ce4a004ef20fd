"""Whether a conversion's result has room on this machine, told before anything of it is made."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.registry import Entry
from mixwell.core.rng import generator
from mixwell.formats.declared import form_of
from mixwell.formats.tensors import size_bytes
from mixwell.lm.calibration import random_calibration
from mixwell.lm.conversion import convert
from mixwell.lm.weights import GIB, check_memory
from mixwell.run.shapes import as_meta
from mixwell.run.stages.convert import ROWS, SKETCHED, read_other

COUNTED = ("num_experts", "blocks", "hidden_dim")  # options that say how many hidden units there will be at least
ROWS_A_UNIT = 3  # gate, up, down


def check_room(entry: Entry, before: Checkpoint, config: Any, out: str | Path | None = None) -> None:
    """Raise `MixwellError` where the result takes more than this machine's memory, or than the disk of `out` has free.

    It is sketched without numbers; a method that cannot be tells its size by its largest count alone. A conversion that
    has a disk to go to takes the memory of its largest tensor, and on the disk, on its way there, its size twice.
    """
    _check_counts(entry, before, config)
    after = sketch(entry, before, config)
    if after is None:
        return
    size = size_bytes(after.tensors)
    streams = out is not None and entry.room == "convert"
    if streams:
        largest = max(tensor.nbytes for tensor in after.tensors.values())
        check_memory(largest, f"{entry.name}: the largest tensor of the result")
    else:
        check_memory(size, f"{entry.name}: the result")
    if out is None:
        return
    free = shutil.disk_usage(_there(Path(out))).free
    needed = 2 * size if streams else size
    if needed > free:
        raise MixwellError(f"{entry.name}: the result takes {needed / GIB:,.1f} GiB until it is written; the disk of "
                           f"{out} has {free / GIB:,.1f} GiB free.")


def _check_counts(entry: Entry, before: Checkpoint, config: Any) -> None:
    """A hidden unit for each of so many takes memory, whatever else they have."""
    width = int(before.arch["dim"])
    layers = getattr(config, "layers", None) or range(int(before.arch["num_layers"]))
    rows = ROWS_A_UNIT * len(layers)
    each = rows * width * torch.float32.itemsize
    for option in COUNTED:
        count = getattr(config, option, None)
        if type(count) is int:
            check_memory(count * each, f"{entry.name}: {option} = {count}, {rows} rows of {width} numbers for each,")


def sketch(entry: Entry, before: Checkpoint, config: Any) -> Checkpoint | None:
    """The result without numbers; None where the method looks at some."""
    draws = generator(0)
    outline = before.derive(tensors=_outline(before.tensors))
    seen = random_calibration(before.arch, ROWS, SKETCHED, draws, read_other)
    return as_meta(lambda: convert(entry, outline, config, draws, seen))


def _outline(tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    found = {}
    for name in tensors:
        form = form_of(tensors, name)
        found[name] = torch.empty(form.shape, dtype=form.dtype, device="meta")
    return found


def _there(path: Path) -> Path:
    """The nearest folder above that is there."""
    above = path.absolute().parents
    return next(parent for parent in above if parent.is_dir())
