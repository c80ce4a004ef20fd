"""PEFT adapter folders made of adapters: LoRA with its options, also on experts, (IA)^3, rotations, and norms.

Legend: E experts, O outputs, I inputs, R rank.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.adapters import files
from mixwell.adapters.attached import Attached
from mixwell.core.errors import MixwellError
from mixwell.core.files import whole_folder, write_json
from mixwell.formats.tensors import save_tensors
from mixwell.lm.model import LanguageModel
from mixwell.lm.peft.experts import check_packing, packed
from mixwell.lm.peft.places import BASE, CONFIG, PACKING, PREFIX, TENSORS, WEIGHT, Place, module_of, places_of
from mixwell.lm.peft.rotations import Rotations

Experts = Literal["fused", "apart"]
LORA, IA3, BOFT, NORMS = "adapters.lora", "adapters.ia3", "adapters.boft", "adapters.norms"
GATE_UP, DOWN = "gate_up_proj", "down_proj"  # parameters of a module of experts, in its own order


def write(attached: Attached, folder: str | Path, *, base: str = "", experts: Experts = "fused",
          packing: str = "peft") -> Path:
    """Write a folder that PEFT loads beside the same base in `transformers`; it appears whole or not at all.

    base: name of the base for PEFT's config. experts: "fused" for PEFT's `target_parameters`, "apart" for a module an
    expert, as older files and servers have them. packing: of fused experts, see `read`; PEFT itself knows "peft" only.
    A method or an option that PEFT has not raises `MixwellError`.
    """
    check_packing(packing)
    model: Any = attached.model
    if attached.method not in (LORA, IA3, BOFT, NORMS):
        raise MixwellError(f"PEFT has no {attached.method}; save it by mixwell.adapters.files, or merge it.")
    if experts not in ("fused", "apart"):
        raise MixwellError(f"experts is {experts!r}; expected fused or apart.")
    places = _wanted(places_of(model), model, experts)
    wanted = _of_method(attached, packing)
    for canonical, adapter in attached.adapters.items():
        own = {name: place for name, place in places.items() if place.canonical == canonical}
        if not own:
            raise MixwellError(f"{canonical} has no place in a decoder of transformers; PEFT cannot hold its adapter.")
        wanted.add(canonical, adapter, own)
    saved = _saved(attached, places)
    if attached.method == NORMS:
        saved = wanted.taken(saved)
    modules = sorted(module_of(name) for name in saved)
    config = wanted.config() | {
        "base_model_name_or_path": base or None, "task_type": "CAUSAL_LM", "inference_mode": True,
        "modules_to_save": modules or None, BASE: files.base_digest(attached)}
    tensors = {PREFIX + name: value.contiguous() for name, value in (wanted.tensors | saved).items()}
    with whole_folder(folder) as scratch:
        write_json(scratch / CONFIG, dict(sorted(config.items())))
        save_tensors(scratch / TENSORS, tensors, {"format": "pt"})
    return Path(folder)


def _of_method(attached: Attached, packing: str) -> Any:
    """What gathers the tensors and the config of a file."""
    if attached.method == LORA:
        return _LoRA(attached, packing)
    if attached.method == BOFT:
        return Rotations(attached.config)
    return _Norms() if attached.method == NORMS else _IA3(attached)


def _wanted(places: Mapping[str, Place], model: LanguageModel, experts: Experts) -> dict[str, Place]:
    """The places without those of the other form of experts, and one name for each."""
    stacks = {name for name, value in model.state_dict().items() if value.ndim == 3}
    found: dict[str, Place] = {}
    seen: set[Any] = set()
    for name, place in places.items():
        stacked = place.canonical in stacks
        if stacked and (place.expert is None) != (experts == "fused"):
            continue
        mark = place.canonical, place.expert, place.rows.start
        if mark not in seen:
            found[name] = place
        seen.add(mark)
    return found


def _saved(attached: Attached, places: Mapping[str, Place]) -> dict[str, Tensor]:
    """Parameters trained as they are, by Hugging Face's names."""
    found: dict[str, Tensor] = {}
    for canonical, parameter in attached.trained.items():
        own = [(name, place) for name, place in places.items() if place.canonical == canonical]
        if len(own) != 1 or not own[0][0].endswith(WEIGHT):
            raise MixwellError(f"{canonical} is no module of its own in transformers, so PEFT's modules_to_save cannot "
                               "hold it.")
        name, place = own[0]
        found[name] = place.given_back(parameter.detach(), 0).clone()
    return found


class _LoRA:
    """What a LoRA's file holds, module by module."""

    def __init__(self, attached: Attached, packing: str) -> None:
        self.options, self.packing = attached.config, packing
        self.tensors: dict[str, Tensor] = {}
        self.modules: dict[str, tuple[int, float]] = {}  # name -> (rank, alpha)
        self.parameters: dict[str, tuple[int, float]] = {}
        self._stacks = {name for name, adapter in attached.adapters.items() if adapter.target.stack}

    def add(self, canonical: str, adapter: Any, places: Mapping[str, Place]) -> None:
        """The tensors of one target."""
        A, B = _whole_start(adapter)
        rank = A.shape[-2]
        alpha = adapter.scale * (math.sqrt(rank) if self.options.rslora else rank)
        magnitude = adapter.magnitude
        for name, place in places.items():
            path = module_of(name)
            if A.ndim == 3 and place.expert is None:
                if magnitude is not None:
                    raise MixwellError(f"{canonical}: PEFT has no DoRA on experts; write them apart, or merge.")
                self.parameters[path] = rank, alpha
                own_A, own_B = packed(A, place.given_back(B, -2), self.packing)
                stem = self._stem(canonical, path)
            else:
                self.modules[path] = rank, alpha
                own_A = place.within(A)
                rows = place.within(B)
                own_B = place.given_back(rows, -2)[place.rows]
                stem = path
                if magnitude is not None:
                    lengths = place.within(magnitude).detach()
                    back = place.given_back(lengths, -1)
                    self.tensors[f"{path}.lora_magnitude_vector"] = back[place.rows].clone()
            self.tensors[f"{stem}.lora_A.weight"] = own_A.detach().clone()
            self.tensors[f"{stem}.lora_B.weight"] = own_B.detach().clone()

    def _stem(self, canonical: str, path: str) -> str:
        """The wrapper of a module of experts: that of its first parameter lies inside that of the second."""
        module, _, parameter = path.rpartition(".")
        inner = parameter == GATE_UP and canonical.replace(GATE_UP, DOWN) in self._stacks
        return f"{module}.base_layer" if inner else module

    def config(self) -> dict[str, Any]:
        """PEFT's, as far as it depends on the method."""
        options = self.options
        everywhere = self.modules | self.parameters
        r, alpha = next(iter(everywhere.values()))
        dropout = options.dropout
        if dropout and self.parameters:
            warnings.warn("PEFT has no dropout on experts; lora_dropout is written as 0.", UserWarning, stacklevel=3)
            dropout = 0.0
        return {
            "peft_type": "LORA", "r": r, "lora_alpha": alpha, "lora_dropout": dropout, "bias": "none",
            "use_rslora": options.rslora, "use_dora": options.dora, "init_lora_weights": True, "fan_in_fan_out": False,
            "rank_pattern": {name: own for name, (own, _) in everywhere.items() if own != r},
            "alpha_pattern": {name: own for name, (_, own) in everywhere.items() if own != alpha},
            "target_modules": sorted(self.modules), "target_parameters": sorted(self.parameters) or None,
            **({PACKING: self.packing} if self.parameters else {})}


def _whole_start(adapter: Any) -> tuple[Tensor, Tensor]:
    """(A, B) of the change as one product; PiSSA's start is taken out by as many ranks more."""
    if adapter.start_A is None:
        return adapter.A, adapter.B
    A = torch.cat((adapter.A, adapter.start_A), dim=-2)
    B = torch.cat((adapter.B, -adapter.start_B), dim=-1)
    return A, B


class _IA3:
    """What an (IA)^3 file holds, module by module."""

    def __init__(self, attached: Attached) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.modules: list[str] = []
        self.inputs: list[str] = []

    def add(self, canonical: str, adapter: Any, places: Mapping[str, Place]) -> None:
        """The factors of one target."""
        if adapter.target.stack:
            raise MixwellError(f"{canonical}: PEFT has no (IA)^3 on experts; save it by mixwell.adapters.files, or "
                               "merge it.")
        factors = adapter.factors.detach()
        for name, place in places.items():
            path = module_of(name)
            self.modules.append(path)
            if adapter.maps_input:
                self.inputs.append(path)
                own = factors[None]
            else:
                back = place.given_back(factors, 0)
                own = back[place.rows][:, None]
            self.tensors[f"{path}.ia3_l"] = own.clone()

    def config(self) -> dict[str, Any]:
        """PEFT's, as far as it depends on the method."""
        return {"peft_type": "IA3", "target_modules": sorted(self.modules), "feedforward_modules": sorted(self.inputs),
                "init_ia3_weights": True, "fan_in_fan_out": False}


class _Norms:
    """What a file of tuned norms holds: norms as they are, each a layer of PEFT's own."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.modules: list[str] = []

    def taken(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take the norms out of what is saved as a whole; the rest is PEFT's modules_to_save."""
        rest: dict[str, Tensor] = {}
        for name, value in saved.items():
            if value.ndim > 1:
                rest[name] = value
                continue
            path = module_of(name)
            self.modules.append(path)
            self.tensors[f"{path}.ln_tuning_layers{WEIGHT}"] = value
        return rest

    def config(self) -> dict[str, Any]:
        """PEFT's, as far as it depends on the method."""
        return {"peft_type": "LN_TUNING", "target_modules": sorted(self.modules)}
