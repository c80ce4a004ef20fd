"""Merging experts: alike ones of a layer become their mean by usage; the router stays and leads to fewer experts.

**Equation:** by outputs (HC-SMoE): o_e = mean of f_e(x) over all tokens; the two groups of least mean distance
    ||o_a - o_b|| between members join until r are left. by router (M-SMoE): the r most used experts lead; every other
    joins the one whose column of router logits over the tokens has the largest cosine with its own.
    W_group = sum_e u_e W_e / sum_e u_e, u_e how often e is chosen. align: the hidden units of each member are permuted
    so that sum <gate, up and down vectors of unit pi(i), of the leader's unit i> is largest.
**Shapes:** gate_up_proj [E, 2 F, D] -> [r, 2 F, D]; router.weight [E, D] as it was, behind many_to_one.
**Reference:** Chen et al. 2024, HC-SMoE (2410.08589), section 3; Li et al. 2023, MC-SMoE (2310.01334), section 3.
**Differs:** with `across` "all" busy layers keep more as in M-SMoE: experts are ranked over all layers by usage, each
    layer's first one before all; HC-SMoE keeps r in each. `centred` takes the mean of each logit column off before
    the cosine, which it else mostly follows. M-SMoE's low-rank and sparse step and its distilling are not made.
**Fails when:** experts were trained from scratch and are merged without alignment: their units do not correspond.
**Cost:** every expert on every token once (by outputs); align O(F^3) an expert, by SciPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mixwell.convert._parts import (
    Rewrite,
    expert_units,
    is_top_k,
    mixture_layers,
    sparse_example,
    stacked,
)
from mixwell.convert._usage import Usage, check_plain_router, usage
from mixwell.convert.calibration import Calibration, Needs
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_least

PASSED_ON = ("k", "scores", "renormalise", "scale", "constant")  # options of top_k that the merged router keeps


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of merging experts."""

    keep: int | None = None  # r: experts of each layer that are left; default half of them
    by: Literal["outputs", "router"] = "outputs"  # what makes experts alike
    across: Literal["layer", "all"] = "layer"  # r in each layer, or on average over layers by usage
    align: bool = False  # permute hidden units to the leader's before averaging
    centred: bool = False  # logits less their mean, before the cosine
    layers: tuple[int, ...] | None = None  # which layers, from 0; default all mixtures
    tokens: int = 8192  # of text looked at

    def __post_init__(self) -> None:
        check_least(self, keep=1, tokens=1)
        if self.across == "all" and self.by != "router":
            raise ValueError("across 'all' ranks experts that lead groups, as by 'router' does; by is 'outputs'")
        if self.centred and self.by != "router":
            raise ValueError("centred is about router logits; by is 'outputs'")


def needs(config: Config) -> Needs:
    """Text, to see what the experts do."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """Nothing: a mean of experts is none of them."""
    return {}


def average_linkage(points_ED: Tensor, count: int) -> list[list[int]]:
    """Groups of rows, joined by least mean distance between their members until `count` are left."""
    distance = torch.cdist(points_ED.double(), points_ED.double())
    groups = [[e] for e in range(len(points_ED))]
    while len(groups) > count:
        pairs = [(a, b) for b in range(len(groups)) for a in range(b)]
        apart = [_mean_distance(distance, groups[a], groups[b]) for a, b in pairs]
        a, b = pairs[apart.index(min(apart))]
        groups[a] = groups[a] + groups.pop(b)
    return groups


def _mean_distance(distance_EE: Tensor, one: list[int], other: list[int]) -> float:
    between = distance_EE[one][:, other]
    return float(between.mean())


def around_leaders(logits_TE: Tensor, leaders: list[int], centred: bool) -> list[list[int]]:
    """Each expert with the leader whose logits over the tokens are most alike; leaders first."""
    columns = logits_TE.double()
    if centred:
        columns = columns - columns.mean(0)
    unit = normalize(columns, dim=0)
    alike = unit.T @ unit[:, leaders]
    groups = [[leader] for leader in leaders]
    for e in range(logits_TE.shape[1]):
        if e not in leaders:
            groups[int(alike[e].argmax())].append(e)
    return groups


def leaders_of(found: Mapping[int, Usage], keep: int, across: str) -> dict[int, list[int]]:
    """The experts of each layer that lead a group, most used first."""
    order = {layer: used.count_E.argsort(descending=True, stable=True).tolist() for layer, used in found.items()}
    if across == "layer":
        return {layer: experts[:keep] for layer, experts in order.items()}
    first = {layer: experts[:1] for layer, experts in order.items()}
    others = []
    for layer, used in found.items():
        share_E = used.share_E.tolist()
        others += [(-share_E[e], layer, e) for e in order[layer][1:]]
    room = (keep - 1) * len(found)
    for _, layer, e in sorted(others)[:room]:
        first[layer].append(e)
    return first


def aligned(experts: tuple[Tensor, Tensor], leader: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The expert with its hidden units in the order that is most alike the leader's; raises without SciPy."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MixwellError("align needs SciPy; install mixwell[tables].") from error
    own, theirs = _unit_vectors(experts), _unit_vectors(leader)
    gain_FF = theirs @ own.T
    _, units = linear_sum_assignment(gain_FF.numpy(), maximize=True)
    return expert_units(*experts, torch.from_numpy(units))


def _unit_vectors(expert: tuple[Tensor, Tensor]) -> Tensor:
    """All that belongs to each hidden unit: gate row, up row, down column, [F, 3 D]."""
    gate_up, down = expert
    gate, up = gate_up.double().chunk(2)
    columns = down.double().T
    return torch.cat([gate, up, columns], dim=1)


def merged(experts: tuple[Tensor, Tensor], group: list[int], count_E: Tensor, align: bool) -> tuple[Tensor, Tensor]:
    """The mean of a group's experts by usage (evenly where none was chosen), summed in float32."""
    members = [(experts[0][e], experts[1][e]) for e in group]
    used = count_E[group]
    if not float(used.sum()):
        used = torch.ones_like(used)
    if align:
        leader = members[int(used.argmax())]
        members = [aligned(member, leader) for member in members]
    share = used / used.sum()
    gate_up, down = stacked(members)
    return _mean(gate_up, share), _mean(down, share)


def _mean(weight_E: Tensor, share_E: Tensor) -> Tensor:
    mean = torch.einsum("eij,e->ij", weight_E.float(), share_E.float())
    return mean.to(weight_E.dtype)


def _groups(found: Mapping[int, Usage], config: Config, keep: Mapping[int, int]) -> dict[int, list[list[int]]]:
    groups: dict[int, list[list[int]]] = {}
    if config.by == "outputs":
        for layer, used in found.items():
            assert used.output_ED is not None
            groups[layer] = average_linkage(used.output_ED / used.tokens, keep[layer])
        return groups
    leaders = leaders_of(found, min(keep.values()), config.across)
    for layer, used in found.items():
        logits_TE = torch.cat(used.logits_TE)
        groups[layer] = around_leaders(logits_TE, leaders[layer], config.centred)
    return groups


def merge_layer(work: Rewrite, layer: int, groups: list[list[int]], count_E: Tensor, align: bool) -> None:
    """Put the groups' means in place of the experts, and a router that leads to them."""
    spec = work.specs[layer]
    experts = work.take_block(layer)
    means = [merged(experts, group, count_E, align) for group in groups]
    work.put_block(layer, stacked(means))
    owner = {e: number for number, group in enumerate(groups) for e in group}
    before = spec.get("router") or {}
    router = {name: before[name] for name in PASSED_ON if name in before}
    members = [owner[e] for e in range(len(owner))]
    router |= {"method": "many_to_one", "members": members}
    work.specs[layer] = {**spec, "num_experts": len(groups), "router": router}


@method(
    title="Merging alike experts",
    paper=("Retraining-Free Merging of Sparse MoE via Hierarchical Clustering",
           "Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing Policy"),
    year=2024,
)
def merge_experts(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
                  calibration: Calibration) -> Checkpoint:
    """Merge the experts of each layer that are alike. Draws nothing from `generator`.

    Raises `MixwellError` where a layer has no more experts than are to be left, or its router is not top_k.
    """
    work = Rewrite(checkpoint, "merging experts")
    layers = mixture_layers(work.specs, config.layers, "merging experts")
    keep = {layer: _kept(work.specs[layer], layer, config) for layer in layers}
    found = usage(checkpoint, layers, calibration, everywhere=True, norms=False)
    for layer, groups in _groups(found, config, keep).items():
        merge_layer(work, layer, groups, found[layer].count_E, config.align)
    return work.result()


def _kept(spec: Mapping[str, Any], layer: int, config: Config) -> int:
    """How many experts are left of a layer, checked."""
    check_plain_router(spec, layer, "merging experts")
    router = spec.get("router") or {}
    if not is_top_k(router) or router.get("bias"):
        raise MixwellError(f"layer {layer} routes by {router.get('method')!r}; merging experts keeps the rows of top_k "
                           "without a bias only.")
    experts = int(spec["num_experts"])
    count = config.keep or experts // 2
    if not 1 <= count < experts:
        raise MixwellError(f"layer {layer} has {experts} experts; expected keep to be below that.")
    return count


def example(generator: torch.Generator) -> dict[str, Any]:
    """A model of two mixtures of four experts, of which two are left."""
    return {"checkpoint": sparse_example(generator), "config": Config(tokens=48), "generator": generator}
