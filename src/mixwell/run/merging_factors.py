"""What a PEFT LoRA folder changes, read and written without its base: a product of two factors for each module.

Legend: E experts, O outputs, I inputs, R rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError, shown
from mixwell.core.files import whole_folder, write_json, write_text
from mixwell.formats.declared import finite
from mixwell.formats.tensors import LazyTensors, open_file, save_tensors
from mixwell.lm.peft.experts import check_packing, packed, unpacked
from mixwell.lm.peft.options import alpha_at, rank_at, read_options
from mixwell.lm.peft.places import BASE, CONFIG, PACKING, PREFIX, TENSORS

CARD = "README.md"
REMEDY = "Merge each adapter into its base, and then the models."
PLAIN = {"bias": ("none",), "use_dora": (), "modules_to_save": ()}  # what may stand there
USUAL = {"bias": "none", "lora_dropout": 0.0, "use_rslora": False, "use_dora": False, "init_lora_weights": True,
         "inference_mode": True, "modules_to_save": None}
SAME = ("task_type", "fan_in_fan_out", "base_model_name_or_path", BASE)  # keys that a merge takes over
PART = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(\.weight)?")


class Change(NamedTuple):
    """B @ A, its scale worked into B; with one product an expert where there are three axes."""

    A: Tensor  # [R, I] or [E, R, I]
    B: Tensor  # [O, R] or [E, O, R]

    @property
    def rank(self) -> int:
        """R."""
        return self.A.shape[-2]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the product: [O, I] or [E, O, I]."""
        *experts, _, inputs = self.A.shape
        outputs = self.B.shape[-2]
        return (*experts, outputs, inputs)

    @property
    def size(self) -> int:
        """Numbers in both factors."""
        return self.A.numel() + self.B.numel()

    def product(self) -> Tensor:
        """The change of the weight."""
        return self.B @ self.A


class Adapter(NamedTuple):
    """A LoRA folder."""

    name: str
    config: Mapping[str, Any]
    changes: Mapping[str, Change]  # by the module's name in the file, float32
    dtype: torch.dtype  # of the file

    @property
    def parameters(self) -> list[str]:
        """Bare parameters that are changed, as experts are."""
        named = self.config.get("target_parameters") or []
        return sorted(named)


def is_adapter(place: object) -> bool:
    """Whether it names a folder with an adapter and no model."""
    if not isinstance(place, (str, Path)):
        return False
    folder = Path(place)
    model = folder / "config.json"
    config = folder / CONFIG
    return config.is_file() and not model.exists()


def read(folder: str | Path) -> Adapter:
    """The changes in a folder; those that are no plain product of two factors raise `MixwellError`."""
    folder = Path(folder)
    config = _config(folder)
    tensors = open_file(folder / TENSORS)
    halves = dict(_halves(tensors, folder))
    modules = sorted({module for module, _ in halves})
    if not modules:
        raise MixwellError(f"{folder / TENSORS} adapts no module; expected lora_A and lora_B of one.")
    changes = {}
    for module in modules:
        changes[module] = _change(module, halves, config, folder)
    kept = next(iter(halves.values())).dtype
    return Adapter(str(folder), config, changes, kept)


def _config(folder: Path) -> dict[str, Any]:
    """adapter_config.json, once nothing in it asks for more than products of factors beside the base as it is."""
    path = folder / CONFIG
    config = read_options(folder)
    kind = config["peft_type"]
    if kind != "LORA":
        raise MixwellError(f"{path}: peft_type is {shown(kind)}; adapters of the kind LORA are merged.")
    for key, allowed in PLAIN.items():
        value = config.get(key)
        if value and value not in allowed:
            raise MixwellError(f"{path}: {key} is {shown(value)}; only products of two factors are merged as adapters. "
                               f"{REMEDY}")
    patterned = config.get("rank_pattern") or config.get("alpha_pattern")
    parameters = config.get("target_parameters")
    if patterned and parameters:
        raise MixwellError(f"{path}: ranks or alphas by pattern beside target_parameters; which holds for the experts "
                           f"cannot be told without the base. {REMEDY}")
    return config


def _halves(tensors: LazyTensors, folder: Path) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """((module, A or B), its tensor)."""
    for name in tensors:
        short = name.removeprefix(PREFIX)
        match = PART.fullmatch(short)
        if match is None:
            raise MixwellError(f"{folder}: {name} is no lora_A or lora_B; it would be lost. {REMEDY}")
        value = tensors[name]
        if value.ndim != 2 or not value.is_floating_point():
            shape = list(value.shape)
            raise MixwellError(f"{folder}: {name} is {value.dtype} {shape}; expected a floating matrix.")
        if not finite(value):
            raise MixwellError(f"{folder}: {name} has values that are not finite; nothing was merged.")
        module, part = match["module"], match["part"]
        yield (module, part), value


def _change(module: str, halves: Mapping[tuple[str, str], Tensor], config: Mapping[str, Any], folder: Path) -> Change:
    """The product of a module, for each expert where the file holds all of them at once."""
    for part in "AB":
        if (module, part) not in halves:
            raise MixwellError(f"{folder}: {module}.lora_{part} is missing; nothing was merged.")
    A = halves[module, "A"].float()
    B = halves[module, "B"].float()
    where = f"{folder}: {module}"
    if config.get("target_parameters"):
        A, B = _by_expert(A, B, config, where)
    rank = A.shape[-2]
    if B.shape[-1] != rank:
        raise MixwellError(f"{where} has lora_A {list(A.shape)} and lora_B {list(B.shape)}; expected one rank of both.")
    scale = _scale(config, module, rank)
    return Change(A, scale * B)


def _by_expert(A: Tensor, B: Tensor, config: Mapping[str, Any], where: str) -> tuple[Tensor, Tensor]:
    """A [E, R, I] and B [E, O, R] where a module holds more ranks than the config's, one expert after the other."""
    rank = rank_at(config, where)
    experts, rest = divmod(len(A), rank)
    if rest:
        raise MixwellError(f"{where} has {len(A)} rows in lora_A; expected a multiple of r, {rank}.")
    if experts == 1:
        return A, B
    order = str(config.get(PACKING) or "peft")
    check_packing(order)
    return unpacked(A, B, experts, order, where)


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / R, or over its root."""
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    return alpha_at(config, module) / divisor


def write(folder: str | Path, changes: Mapping[str, Change], like: Adapter, dtype: torch.dtype, about: str) -> Path:
    """A folder that PEFT loads beside the base of `like`, whole or not at all; every scale is 1, alpha being R.

    about: README.md.
    """
    tensors = {}
    for module, change in changes.items():
        factors = change if change.A.ndim == 2 else packed(*change)
        for part, value in zip("AB", factors):
            name = f"{PREFIX}{module}.lora_{part}.weight"
            tensors[name] = value.to(dtype).contiguous()
    config = _written_config(changes, like)
    with whole_folder(folder) as scratch:
        write_json(scratch / CONFIG, dict(sorted(config.items())))
        write_text(scratch / CARD, about)
        save_tensors(scratch / TENSORS, tensors, {"format": "pt"})
    return Path(folder)


def _written_config(changes: Mapping[str, Change], like: Adapter) -> dict[str, Any]:
    """PEFT's; ranks of all experts of a layer are the config's own, those of modules may depart from it by name."""
    before = like.config
    stacks, single = [], {}
    for module, change in changes.items():
        if change.A.ndim == 3:
            stacks.append(change.rank)
        else:
            single[module] = change.rank
    ranks = stacks or single.values()
    r = max(ranks)
    apart = {module: rank for module, rank in single.items() if rank != r}
    parameters = before.get("target_parameters") if stacks else None
    found = {"peft_type": "LORA", "r": r, "lora_alpha": r, "rank_pattern": apart, "alpha_pattern": dict(apart),
             "target_modules": sorted(single), "target_parameters": parameters, **USUAL}
    found |= {key: before[key] for key in SAME if key in before}
    if stacks:
        found[PACKING] = "peft"
    return found
