"""Adapters in folders of their own: which method, at which targets, beside which base, and their tensors.

`adapter.json` names the method with its options, the targets, and a digest of the base; `adapter.safetensors` holds
the tensors by `<target>/<part>`. Those of a stack of experts have the expert first, as `PACKING` in the file says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.adapters.attached import Attached, attach
from mixwell.core import machine, registry
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.files import whole_folder
from mixwell.formats import sealed
from mixwell.formats.tensors import open_file, save_tensors

FILE, TENSORS = "adapter.json", "adapter.safetensors"
PACKING = "expert first: [E, ...], one expert after another"
REMEDY = "save the adapter anew, or take an older copy"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of a base's numbers, whatever type holds them: names, shapes and values as float32."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu()
        found.update(f"{name} {list(value.shape)}".encode())
        if value.is_floating_point():
            value = value.float()
        raw = value.contiguous().view(-1).view(torch.uint8)
        found.update(raw.numpy().data)
    return found.hexdigest()


def base_digest(attached: Attached) -> str:
    """`digest` of the base beside which an adapter stands."""
    return digest(attached.base_tensors())


def save(attached: Attached, folder: str | Path, base: str = "") -> Path:
    """Write the adapter to a folder, whole or not at all; `base` names the model that it belongs to, for readers."""
    own = attached.tensors()
    content = {
        "method": attached.method,
        "config": to_dict(attached.config),
        "targets": list(attached.adapters),
        "trained": list(attached.trained),
        "base": {"name": base, "digest": base_digest(attached)},
        "experts": PACKING,
        "versions": machine.versions(),
    }
    with whole_folder(folder) as scratch:
        sealed.write(scratch / FILE, content)
        save_tensors(scratch / TENSORS, own)
    return Path(folder)


def load(folder: str | Path, model: nn.Module, *, other_base: bool = False,
         base_digest: Callable[[Attached], str] = base_digest) -> Attached:
    """Put the adapter in a folder beside `model`; base_digest: may count the model's numbers once for many adapters.

    A file that is damaged, a target or a shape that the model has not, and a base with other numbers than the one that
    the adapter was trained beside raise `MixwellError`; the last only without `other_base`.
    """
    folder = Path(folder)
    content = sealed.read(folder / FILE, REMEDY)
    entry = registry.find(str(content["method"]))
    config = from_dict(entry.module().Config, content["config"], f"{folder / FILE}: config")
    held = open_file(folder / TENSORS)
    found = attach(entry.load(), model, content["targets"], config, trained=content["trained"], begin=False, held=held)
    try:
        if not other_base:
            _check_base(content["base"], base_digest(found), folder)
        found.load_tensors(held)
    except MixwellError:
        found.detach()
        raise
    return found


def _check_base(base: Mapping[str, Any], own: str, folder: Path) -> None:
    if own != base["digest"]:
        there, named = base["digest"], base["name"] or "unnamed"
        raise MixwellError(f"{folder} was made for another base ({named}): the weights' digest there is {there[:12]}, "
                           f"here {own[:12]}. Hand in that base, or say other_base=True.")
