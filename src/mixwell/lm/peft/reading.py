"""PEFT adapter folders put beside a model: LoRA with its options, also on experts, (IA)^3, rotations, and norms.

Modules that are one matrix here share one adapter: their A stand below each other, their B along the diagonal.

Legend: E experts, O outputs, I inputs, R rank.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixwell.adapters import files
from mixwell.adapters.attached import Attached, attach
from mixwell.core import registry
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.core.files import read_json
from mixwell.formats.tensors import open_file
from mixwell.lm.model import LanguageModel
from mixwell.lm.peft.experts import check_packing, unpacked
from mixwell.lm.peft.options import alpha_at, check_targets, named, rank_at, read_options, targeted
from mixwell.lm.peft.places import BASE, CONFIG, PACKING, PREFIX, TENSORS, WEIGHT, Place, module_of, places_of
from mixwell.lm.peft.rotations import rotated, rotating
from mixwell.lm.tokenizer import MAIN

PARTS = {"LORA": "lora_A|lora_B|lora_magnitude_vector", "IA3": "ia3_l", "BOFT": "boft_R|boft_s", "OFT": "oft_R",
         "LN_TUNING": "ln_tuning_layers"}  # of a module, by the kind of adapter
NORMS = "LN_TUNING"
PART = {kind: re.compile(rf"(?P<module>.+?)(?P<nest>(?:\.base_layer)*)\.(?P<part>{parts})(?:\.weight)?")
        for kind, parts in PARTS.items()}


@dataclass
class Module:
    """What a file holds of one module: A [R, I], B [O, R], m [O], or l; its scale is worked in later."""

    place: Place
    name: str  # in Hugging Face's model
    scale: float = 1.0
    of_inputs: bool = False  # of (IA)^3: whether its inputs are scaled
    parts: dict[str, Tensor] = field(default_factory=dict)


def read(folder: str | Path, model: LanguageModel, *, packing: str | None = None,
         other_base: bool = False, base_digest: Callable[[Attached], str] = files.base_digest) -> Attached:
    """Put the adapter in a PEFT folder beside `model`; it can be trained on, merged or saved in either form.

    packing: the order of experts in B, "peft" or "expert_first" (Unsloth before 2026-09-17), or "stacks"; None takes
    what the file says of itself, else PEFT's; `settled_packing` asks, or tells by the loss. An option or a tensor that
    is not understood, a target that the file lacks, and an adapter of another base raise `MixwellError`; nothing is
    attached. other_base: whether the base that the file names by digest may be another. base_digest: may count
    the model's numbers once for many adapters.
    """
    folder = Path(folder)
    config = read_options(folder)
    tensors = open_file(folder / TENSORS)
    order = packing or str(config.get(PACKING) or "peft")
    check_packing(order)
    _check_tokenizer(folder, model)
    places = places_of(model)
    check_targets(config, map(module_of, places), places)
    modules, whole = _sorted_out(tensors, places, config, order, model)
    if not modules:
        raise MixwellError(f"{folder / TENSORS} adapts no module; expected lora_A and lora_B, ia3_l, boft_R, "
                           "oft_R or ln_tuning_layers, of one.")
    _check_complete(config, places, modules)
    _check_saved(config, places, whole)
    if config["peft_type"] == NORMS:
        found = _norms(model, modules, whole, places)
    else:
        found = _attached(model, modules, _whole(model, whole, places), config)
    if BASE in config and not other_base:
        _check_base(found, str(config[BASE]), base_digest(found), folder)
    return found


def _check_base(found: Attached, there: str, own: str, folder: Path) -> None:
    if own == there:
        return
    found.detach()
    raise MixwellError(f"{folder} was made for another base: the weights' digest there is {there[:12]}, here "
                       f"{own[:12]}. Hand in that base, or take {BASE} out of {CONFIG}.")


def _check_tokenizer(folder: Path, model: LanguageModel) -> None:
    """An adapter trained with other ids is for another base."""
    beside = folder / MAIN
    if not beside.exists() or MAIN not in model.files:
        return
    there, here = read_json(beside), json.loads(model.files[MAIN])
    if there["model"]["vocab"] != here["model"]["vocab"]:
        raise MixwellError(f"{beside} has another vocabulary than the model's; the adapter was made for another base.")


def _sorted_out(tensors: Mapping[str, Tensor], places: Mapping[str, Place], config: Mapping[str, Any], packing: str,
                model: LanguageModel) -> tuple[list[Module], dict[str, Tensor]]:
    """The adapted modules, and the tensors that the file holds as a whole, by their names in Hugging Face's model."""
    modules: dict[str, Module] = {}
    whole: dict[str, Tensor] = {}
    targets = {module_of(name): place for name, place in places.items()}
    part = PART[config["peft_type"]]
    nests = _nests(tensors, part)
    for name in tensors:
        short = name.removeprefix(PREFIX)
        value = tensors[name].float()
        if not bool(value.isfinite().all()):
            raise MixwellError(f"{name} has values that are not finite; nothing was loaded.")
        match = part.fullmatch(short)
        if match is None and short in places:
            whole[short] = value
            continue
        path = None if match is None else _path(match, nests, targets, config)
        if match is None or path not in targets:
            raise MixwellError(f"{name} has no place in this model; it would be dropped. The adapter was made for "
                               "another base, or by a method that is not read.")
        scale = alpha_at(config, path) if config["peft_type"] == "LORA" else 1.0
        held = modules.setdefault(path, Module(targets[path], path, scale))
        held.parts[match["part"]] = value
    for held in modules.values():
        if config["peft_type"] in ("LORA", "IA3"):
            _complete(held, packing, config, model)
    return list(modules.values()), whole


def _nests(tensors: Mapping[str, Tensor], part: re.Pattern[str]) -> dict[str, int]:
    """How often each module is wrapped."""
    depths: dict[str, int] = defaultdict(int)
    for name in tensors:
        match = part.fullmatch(name.removeprefix(PREFIX))
        if match is not None:
            depth = match["nest"].count(".base_layer")
            depths[match["module"]] = max(depths[match["module"]], depth)
    return depths


def _path(match: re.Match[str], nests: Mapping[str, int], targets: Mapping[str, Place],
          config: Mapping[str, Any]) -> str:
    """The module that a tensor belongs to; a bare parameter of a module by how deep it is wrapped."""
    module = match["module"]
    inside = [f"{module}.{name}" for name in ("gate_up_proj", "down_proj")]  # in the module's own order
    there = [path for path in inside if path in targets and named(path, config.get("target_parameters") or ())]
    if module in targets or not there:
        return module
    if len(there) != nests[module] + 1:
        raise MixwellError(f"{module}: the file wraps it {nests[module] + 1} times where target_parameters names "
                           f"{len(there)} of its parameters; which is which cannot be told.")
    depth = match["nest"].count(".base_layer")
    return there[nests[module] - depth]  # the first parameter is wrapped first, so it lies deepest


def _complete(held: Module, packing: str, config: Mapping[str, Any], model: LanguageModel) -> None:
    """Check the module's parts, unpack those of all experts, and bring its rows into order."""
    parts, place = held.parts, held.place
    if "ia3_l" in parts:
        parts["ia3_l"] = parts["ia3_l"].flatten()
        held.of_inputs = targeted(held.name, config.get("feedforward_modules") or [])
        return
    for name in ("lora_A", "lora_B"):
        if name not in parts:
            raise MixwellError(f"{held.name}.{name} is missing in the file; nothing was loaded.")
    A, B = parts["lora_A"], parts["lora_B"]
    weight = model.get_parameter(place.canonical)
    if weight.ndim == 3 and place.expert is None:
        A, B = unpacked(A, B, len(weight), packing, held.name)
    rows = range(weight.shape[-2])[place.rows]
    expected = [len(rows), weight.shape[-1]]
    found = [B.shape[-2], A.shape[-1]]
    if found != expected or A.shape[-2] != B.shape[-1]:
        raise MixwellError(f"{held.name}: the file changes a matrix of {found}, this base has {expected}; the adapter "
                           "was made for another base.")
    rank = A.shape[-2]
    _check_rank(held.name, rank, rank_at(config, held.name), expected)
    held.scale /= math.sqrt(rank) if config.get("use_rslora") else rank
    parts["lora_A"], parts["lora_B"] = A, place.arranged(B, -2)
    if "lora_magnitude_vector" in parts:
        magnitude = parts["lora_magnitude_vector"].flatten()
        parts["lora_magnitude_vector"] = place.arranged(magnitude, -1)


def _check_rank(name: str, found: int, said: int, shape: list[int]) -> None:
    if found != said:
        raise MixwellError(f"{name}: the file's tensors have rank {found}, its config says {said}; the two do not "
                           "belong together.")
    if found > min(shape):
        raise MixwellError(f"{name}: rank {found} is more than a matrix of {shape[0]} x {shape[1]} can have; expected "
                           f"{min(shape)} at most.")


def _check_complete(config: Mapping[str, Any], places: Mapping[str, Place], modules: list[Module]) -> None:
    """Refuse a file that lacks a module which its config targets: never skip one silently."""
    if config.get("layers_to_transform") is not None or config.get("exclude_modules"):
        return
    there = {held.name for held in modules}
    fused = {held.name.rpartition(".")[0] for held in modules if held.place.expert is None}
    targets = config.get("target_modules") or []
    parameters = config.get("target_parameters") or ()
    for name, place in places.items():
        path = module_of(name)
        chosen = name.endswith(WEIGHT) and targeted(path, targets)
        chosen = chosen or named(name, parameters)
        inside = place.expert is not None and any(path.startswith(f"{stack}.") for stack in fused)
        of_norms = config["peft_type"] == NORMS
        if chosen and path not in there and not inside and _is_vector(name) == of_norms:
            raise MixwellError(f"{path} is a target of this adapter and missing in its file; nothing was loaded.")


def _check_saved(config: Mapping[str, Any], places: Mapping[str, Place], whole: Mapping[str, Tensor]) -> None:
    """Refuse a file without a module that its config says it holds whole: a router's gate, say."""
    for wanted in config.get("modules_to_save") or ():
        weights = [name for name in places if name.endswith(WEIGHT) and named(module_of(name), [wanted])]
        missing = [name for name in weights if name not in whole]
        if missing:
            raise MixwellError(f"{missing[0]} is named in modules_to_save ({wanted}) and missing in the file; nothing "
                               "was loaded.")


def _is_vector(name: str) -> bool:
    return "norm" in name or name.endswith("bias")


def _attached(model: LanguageModel, modules: list[Module], trained: Mapping[str, Tensor],
              config: Mapping[str, Any]) -> Attached:
    """Modules gathered by the tensor that they are a part of, and an adapter beside each; `trained` comes whole."""
    grouped: dict[str, list[Module]] = defaultdict(list)
    for held in modules:
        grouped[held.place.canonical].append(held)
    name, joined = JOINED[config["peft_type"]]
    tensors: dict[str, Tensor] = {}
    options = rotating(config) if joined is rotated else {}
    method = registry.find(name)
    for canonical, held_here in grouped.items():
        weight = model.get_parameter(canonical).detach().float()
        own = joined(canonical, held_here, weight, options)
        tensors |= {f"{canonical}/{part}": value for part, value in own.items()}
    if config.get("use_dora"):
        options["dora"] = True
    rate = config.get("lora_dropout")
    if rate:
        options["dropout"] = rate
    settled = from_dict(method.module().Config, options, CONFIG)
    found = attach(method.load(), model, list(grouped), settled, trained=list(trained), begin=False)
    try:
        found.load_tensors(tensors | {f"{name}/": value for name, value in trained.items()})
    except MixwellError:
        found.detach()
        raise
    return found


def _norms(model: LanguageModel, modules: list[Module], whole: Mapping[str, Tensor],
           places: Mapping[str, Place]) -> Attached:
    """Norms trained as they are, and what else the file holds as a whole."""
    own = {held.name + WEIGHT: held.parts["ln_tuning_layers"] for held in modules}
    values = _whole(model, {**whole, **own}, places)
    tensors = {f"{name}/": value for name, value in values.items()}
    method = registry.find("adapters.norms")
    config = method.module().Config()
    found = attach(method.load(), model, None, config, begin=False, held=tensors)
    found.load_tensors(tensors)
    return found


def _whole(model: LanguageModel, whole: Mapping[str, Tensor], places: Mapping[str, Place]) -> dict[str, Tensor]:
    """Canonical tensors in which those that the file holds as a whole stand, the rest as it is."""
    found: dict[str, Tensor] = {}
    for name, value in whole.items():
        place = places[name]
        if place.canonical not in found:
            found[place.canonical] = model.get_parameter(place.canonical).detach().float().clone()
        room = place.within(found[place.canonical])[place.rows]
        if room.shape != value.shape:
            raise MixwellError(f"{name}: the file has {list(value.shape)}, this base takes {list(room.shape)}; the "
                               "adapter was made for another base.")
        room.copy_(place.arranged(value, 0))
    return found


def _low_rank(canonical: str, modules: list[Module], weight: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    """A and B (and m) of the parts of one tensor [..., O, I]; its rank and its alpha go into `options`."""
    grouped: dict[int | None, list[Module]] = defaultdict(list)
    for held in modules:
        grouped[held.place.expert].append(held)
    if None in grouped and len(grouped) > 1:
        raise MixwellError(f"{canonical}: the file adapts its experts both one by one and all at once; which holds "
                           "cannot be told.")
    if None in grouped:
        A, B, scale = _joined(grouped[None], weight)
    else:
        A, B, scale = _stacked(canonical, grouped, weight)
    rank = A.shape[-2]
    options.setdefault("rank_pattern", {})[canonical] = rank
    options.setdefault("alpha_pattern", {})[canonical] = scale * rank
    found = {"A": A, "B": B}
    lengths = [held for held in modules if "lora_magnitude_vector" in held.parts]
    if lengths:
        magnitude = weight.norm(dim=-1)
        for held in lengths:
            room = held.place.within(magnitude)
            room[held.place.rows] = held.parts["lora_magnitude_vector"]
        found["magnitude"] = magnitude
    return found


def _stacked(canonical: str, grouped: Mapping[int | None, list[Module]],
             weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """(A, B, s) of a stack [E, O, I] whose experts came one by one."""
    experts = range(len(weight))
    missing = [expert for expert in experts if expert not in grouped]
    if missing:
        raise MixwellError(f"{canonical}: the file adapts some experts and lacks {missing}; none is skipped silently.")
    joined = [_joined(grouped[expert], weight[expert]) for expert in experts]
    As, Bs, scales = zip(*joined)
    ranks = {len(A) for A in As}
    if len(ranks) > 1:
        raise MixwellError(f"{canonical}: experts have the ranks {sorted(ranks)}; expected one rank for all.")
    if len(set(scales)) > 1:
        raise MixwellError(f"{canonical}: experts have different scales; expected one for all.")
    return torch.stack(As), torch.stack(Bs), scales[0]


def _joined(modules: list[Module], weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """(A, B, s) of one matrix or stack: A once where the parts share it, else one below the other."""
    first = modules[0]
    A, scale = first.parts["lora_A"], first.scale
    outputs = weight.shape[-2]
    if all(torch.equal(A, held.parts["lora_A"]) and held.scale == scale for held in modules):
        B = A.new_zeros(*A.shape[:-2], outputs, A.shape[-2])
        for held in modules:
            B[..., held.place.rows, :] = held.parts["lora_B"]
        return A, B, scale
    stacked = torch.cat([held.parts["lora_A"] for held in modules], dim=-2)
    B = A.new_zeros(*A.shape[:-2], outputs, stacked.shape[-2])
    start = 0
    for held in modules:
        own = held.parts["lora_B"]
        end = start + own.shape[-1]
        B[..., held.place.rows, start:end] = own * (held.scale / scale)
        start = end
    return stacked, B, scale


def _factors(canonical: str, modules: list[Module], weight: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    """The factors of one tensor: of its outputs, or of its inputs where the file says so."""
    inputs: list[str] = options.setdefault("inputs", [])
    if weight.ndim == 3:
        raise MixwellError(f"{modules[0].name}: (IA)^3 on experts is not read from PEFT's files.")
    of_inputs = [held.of_inputs for held in modules]
    if any(of_inputs):
        inputs.append(canonical)
        if len(modules) > 1 or modules[0].place.rows != slice(None):
            raise MixwellError(f"{modules[0].name}: factors of its inputs would be shared with the modules that are "
                               f"one matrix with it here ({canonical}); only factors of outputs can be read.")
    found = torch.ones(weight.shape[-1] if any(of_inputs) else weight.shape[-2])
    for held in modules:
        place, factors = held.place, held.parts["ia3_l"]
        rows = found[place.rows]
        if len(factors) != len(rows):
            raise MixwellError(f"{held.name}: the file has {len(factors)} factors, this base takes {len(rows)}.")
        found[place.rows] = factors if held.of_inputs else place.arranged(factors, 0)
    return {"factors": found}


JOINED: Mapping[str, tuple[str, Any]] = {
    "LORA": ("adapters.lora", _low_rank), "IA3": ("adapters.ia3", _factors), "BOFT": ("adapters.boft", rotated),
    "OFT": ("adapters.boft", rotated)}  # kind -> method, and how modules are joined that are one tensor here
