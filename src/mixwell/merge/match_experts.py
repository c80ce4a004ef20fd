"""Expert matching: two mixtures' experts are paired, the second one's brought into the first one's order, and merged.

**Equation:** per layer, for all pairs (i, j): the units' permutation Q_ij of least |g_i - Q g_j|^2 + |u_i - Q u_j|^2 +
    |d_i - d_j Q^T|^2; C_ij = that least / (|A_i|^2 + |B_j|^2) + mu (1 - cos(r_i, r_j)), r router rows centred over
    experts. P = linear assignment on C. w = (1 - t) A + t P(B): experts, their units, router rows and biases.
**Shapes:** gate_up_proj [E, 2 F, D], down_proj [E, D, F], router.* [E, ..].
**Reference:** no paper: assignment of experts as in Ainsworth et al. 2022 (2209.04836).
**Differs:** routers are centred before they are averaged (`centre`): one vector added to all rows changes no softmax,
    yet would change the mean's temperature.
**Fails when:** residual streams differ: match those first, or start from one ancestor.
**Cost:** O(E^2 F^2 D + E^2 F^3) a layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.merge._assignment import best_assignment, mean_of, squared_distances
from mixwell.merge._parts import MANY

MODELS = range(2, MANY)
NOTHING = 1e-12  # size that is divided by


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of expert matching."""

    t: float = 0.5  # share of the matched models in the result; 1 gives the last one, matched
    router_weight: float = 0.1  # mu
    units: bool = True  # permute hidden units inside experts, too
    centre: bool = True  # take the mean over experts off router rows before they are averaged

    def __post_init__(self) -> None:
        within = 0 <= self.t <= 1
        if self.router_weight < 0 or not within:
            raise ValueError(f"router_weight is {self.router_weight}, t {self.t}; expected 0 or more, and 0 to 1")


def unit_rows(gate_up: Tensor, down: Tensor) -> Tensor:
    """What belongs to each hidden unit of an expert: its rows of gate and up, its column of down [F, 3 D]."""
    gate, up = gate_up.chunk(2)
    return torch.cat([gate, up, down.T], dim=1)


def from_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(gate_up, down) of an expert, from what belongs to each unit."""
    gate, up, down = rows.chunk(3, dim=1)
    return torch.cat([gate, up]), down.T


def matched_units(first: Tensor, second: Tensor, permute: bool) -> tuple[Tensor, float]:
    """(the second expert's unit for each of the first one's, the squared distance that is left)."""
    order = torch.arange(len(first))
    if permute:
        costs = squared_distances(first, second)
        order = best_assignment(costs)
    apart = first - second[order]
    left = apart.double().square().sum()
    return order, float(left)


def router_costs(first_ED: Tensor, second_ED: Tensor) -> Tensor:
    """1 - cos of router rows [E, E], centred over experts."""
    a, b = centred(first_ED).double(), centred(second_ED).double()
    unit_a = F.normalize(a, dim=1)
    unit_b = F.normalize(b, dim=1)
    return 1 - unit_a @ unit_b.T


def centred(router: Tensor) -> Tensor:
    """Without the mean over experts, which moves all logits alike."""
    return router - router.mean(0)


def match_layer(first: Mapping[str, Tensor], second: Mapping[str, Tensor],
                config: Config) -> tuple[Tensor, dict[int, Tensor]]:
    """(the second layer's expert for each of the first one's, the order of its units by that place)."""
    own, other = _all_rows(first), _all_rows(second)
    apart = router_costs(first["router.weight"], second["router.weight"])
    costs = config.router_weight * apart
    orders: dict[tuple[int, int], Tensor] = {}
    pairs = itertools.product(enumerate(own), enumerate(other))
    for (i, rows), (j, others) in pairs:
        orders[i, j], left = matched_units(rows, others, config.units)
        size = rows.square().sum() + others.square().sum()
        costs[i, j] += left / max(float(size), NOTHING)
    experts = best_assignment(costs)
    chosen = enumerate(experts.tolist())
    return experts, {place: orders[place, expert] for place, expert in chosen}


def _all_rows(layer: Mapping[str, Tensor]) -> list[Tensor]:
    pairs = zip(layer["gate_up_proj"], layer["down_proj"])
    return [unit_rows(gate_up.float(), down.float()) for gate_up, down in pairs]


def reordered(layer: Mapping[str, Tensor], experts: Tensor, orders: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """The layer with its experts, their units, and what the router has of each in that order."""
    count = len(experts)
    rows = _all_rows(layer)
    made = []
    for place, expert in enumerate(experts.tolist()):
        units = rows[expert][orders[place]]
        made.append(from_rows(units))
    gate_ups, downs = zip(*made)
    found = dict(layer)
    found["gate_up_proj"] = torch.stack(gate_ups)
    found["down_proj"] = torch.stack(downs)
    for name, tensor in layer.items():
        if not name.startswith("router."):
            continue
        if tensor.ndim == 0 or tensor.shape[0] != count:
            raise MixwellError(f"expert matching: {name} {list(tensor.shape)} has no axis of {count} experts in front; "
                               "expected a router with a row an expert.")
        found[name] = tensor[experts]
    return found


def _layers(checkpoint: Checkpoint) -> list[str]:
    """The beginnings of the names of all mixtures' tensors."""
    ending = ".gate_up_proj"
    found = [name.removesuffix("gate_up_proj") for name, tensor in checkpoint.tensors.items()
             if name.endswith(ending) and tensor.ndim == 3]
    if not found:
        raise MixwellError("expert matching: no layer has experts; give mixtures, or use another merge.")
    return found


def _inside(tensors: Mapping[str, Tensor], stem: str) -> dict[str, Tensor]:
    names = [name for name in tensors if name.startswith(stem)]
    return {name.removeprefix(stem): tensors[name] for name in names}


def matched(first: Mapping[str, Tensor], second: Mapping[str, Tensor], stems: Sequence[str],
            config: Config) -> dict[str, Tensor]:
    """The second model's tensors, its experts in the first one's order."""
    found = dict(second)
    for stem in stems:
        own, other = _inside(first, stem), _inside(second, stem)
        experts, orders = match_layer(own, other, config)
        for name, tensor in reordered(other, experts, orders).items():
            found[stem + name] = tensor
    return found


@method(title="Expert matching", year=2026, tags={"checkpoints"})
def match_experts(checkpoints: Sequence[Checkpoint], base: Checkpoint | None, config: Config,
                  generator: torch.Generator) -> Checkpoint:
    """The mean of the first mixture and the others, their experts in its order."""
    first, *others = checkpoints
    stems = _layers(first)
    start = dict(first.tensors)
    found = [matched(start, dict(other.tensors), stems, config) for other in others]
    if config.centre:
        start, *found = [_with_centred(tensors, stems) for tensors in (start, *found)]
    return first.derive(tensors=mean_of(start, found, config.t))


def _with_centred(tensors: Mapping[str, Tensor], stems: Sequence[str]) -> dict[str, Tensor]:
    """The tensors with centred routers, in their own types."""
    routers = {}
    for stem in stems:
        name = f"{stem}router.weight"
        router = tensors[name]
        moved = centred(router.float())
        routers[name] = moved.to(router.dtype)
    return {**tensors, **routers}


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two mixtures of one layer, width six, three experts of four units."""
    checkpoints = [_mixture(generator) for _ in range(2)]
    return {"checkpoints": checkpoints, "base": None, "config": Config(), "generator": generator}


def _mixture(generator: torch.Generator) -> Checkpoint:
    mixer = {"method": "experts.layers.moe", "hidden_dim": 4}
    arch = {"num_layers": 1, "dim": 6, "channel_mixer": mixer}
    stem = "layers.0.channel_mixer."
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (9, 6),
        f"{stem}gate_up_proj": (3, 8, 6),
        f"{stem}down_proj": (3, 6, 4),
        f"{stem}router.weight": (3, 6),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return Checkpoint(arch, tensors)
