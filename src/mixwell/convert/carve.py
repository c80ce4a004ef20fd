"""Carving: the hidden units of a dense block are dealt out to experts, of which a token visits a few.

**Equation:** units {1..F} = S + G_1 + ... + G_E, all parts of one size n;  E_i = the block cut to G_i;
    y = S(x) + a sum_{i in I(x)} w_i E_i(x), a = E written into W_down: with k = E and even weights y = MLP(x).
    split:  order · random · clustered: balanced k-means of the unit rows of gate and up · importance: v_c(i) = sum of
    |h_i| ||W_down[:, i]|| over tokens x of cluster c (k-means of x) · gradient: v_c(i) = sum of |h_i dL/dh_i| ·
    coactivation: m_i(x) = [i among the K_a units of largest |(x . u_i) silu(x . g_i)|, all unit vectors].
    importance, gradient: S takes the units that most experts rank among their n best, then the largest v_c(i) left
    fills its expert. coactivation: S takes the units most often marked; the next ones seed E clusters of the columns
    of m under the L1 distance, n places each; the router asks each cluster's most central unit, weights are 1.
**Shapes:** gate_up_proj [2 F, D] -> [E, 2 n, D]; down_proj [D, F] -> [E, D, n]; shared_gate_up_proj [2 |S|, D].
**Reference:** Zhu et al. 2024, LLaMA-MoE (2406.16554), section 3.1; Qu et al. 2024, LLaMA-MoE v2 (2411.15708),
    sections 3.1-3.2; Pei et al. 2025, CMoE (2502.04416), sections 4.1-4.2.
**Differs:** clusters get their places by choice in turn and swaps of pairs, not by an exact assignment. Centroids
    that start a router are centred and scaled to logits of spread 1. K_a is F / 64, at least 1, not 10 of 11008.
    Statistics keep 2048 tokens a layer. Feed-forward blocks only; `convert.attention_experts` makes
    those of LLaMA-MoE v2's attention.
**Fails when:** few experts are active and nothing is trained after: most of the block is then missing.
**Cost:** one pass over the text (two with importance or gradient); N^2 C for the clusters of N units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mixwell.convert._clusters import assign_places, k_means, squared_distances
from mixwell.convert._parts import (
    DOWN,
    GATE_UP,
    SPARSE,
    Rewrite,
    activations,
    channel,
    dense_example,
    dense_layers,
    expert_units,
    fresh_router,
    loudness,
    stacked,
    sums_to_one,
)
from mixwell.convert.calibration import Calibration, Needs, Seen
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least, check_not_negative

KEPT = 2048  # tokens of each layer that statistics keep
Split = Literal["order", "random", "clustered", "importance", "gradient", "coactivation"]
LOOKING = ("importance", "gradient", "coactivation")  # splits that look at text
SCORED = ("importance", "gradient")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of carving."""

    num_experts: int = 8  # E, routed ones, at least 2
    shared: int = 0  # further parts of the same size that every token visits, 0 or more
    split: Split = "random"  # how units are dealt out
    # method and options; coactivation brings its own and reads k alone
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 2})
    start: Literal["drawn", "centroids", "even"] = "drawn"  # router's rows: random, of token clusters, or all zero
    scale: float | None = None  # a, above 0; default E, or 1 where the router's weights are 1
    marked: int | None = None  # K_a: units marked on a token; default F / 64
    balance: Mapping[str, Any] | None = None  # rule -> coefficient; default as in experts.layers.moe
    layers: tuple[int, ...] | None = None  # which layers, from 0; default all that are dense
    tokens: int = 8192  # of text looked at, by the splits that do

    def __post_init__(self) -> None:
        check_least(self, num_experts=2, marked=1, tokens=1)
        check_not_negative(self, "shared")
        check_above(self, scale=0)
        if self.start == "centroids" and self.split not in SCORED:
            raise ValueError(f"start is 'centroids' with split {self.split!r}; tokens are clustered for importance and "
                             "gradient only")
        if self.start != "drawn" and self.router.get("method", "top_k") != "top_k":
            raise ValueError(f"start is {self.start!r} with router {self.router['method']!r}; expected top_k")
        if self.split == "coactivation" and (self.start != "drawn" or self.router.get("method", "top_k") != "top_k"):
            raise ValueError("split 'coactivation' reads its router off the units; leave start and router.method out")

    @property
    def k(self) -> int:
        """Experts a token visits."""
        return int(self.router.get("k", 2))


class Dealt(NamedTuple):
    """The units of one block, dealt out."""

    shared: Tensor  # units that every token visits
    groups: list[Tensor]  # units of each expert
    rows_ED: Tensor | None = None  # at which the router starts
    central: Tensor | None = None  # the unit that stands for each expert


def needs(config: Config) -> Needs:
    """Text, for the splits that look at it."""
    return Needs(tokens=config.tokens if config.split in LOOKING else 0)


def promises(config: Config) -> dict[str, float]:
    """The same logits to rounding, where all experts are active with even weights."""
    even = config.start == "even" and sums_to_one(config.router)
    if config.split == "coactivation":
        even = True
    all_on = config.k == config.num_experts
    if even and all_on and config.scale is None:
        return {"max_logit_error": 1e-3, "kl_nats": 1e-6}
    return {}


def unit_scores(x_TD: Tensor, gate_up: Tensor) -> Tensor:
    """|(x . u_i) silu(x . g_i)| of unit vectors [T, F]."""
    rows = normalize(gate_up.float(), dim=-1)
    return activations(normalize(x_TD, dim=-1), rows).abs()


def in_parts(order: Tensor, size: int, shared: int) -> Dealt:
    """Units in this order: the first ones shared, then each expert's."""
    parts = order[shared * size :].split(size)
    return Dealt(order[: shared * size], list(parts))


def by_weights(gate_up: Tensor, down: Tensor, config: Config, size: int, generator: torch.Generator) -> Dealt:
    """The largest units shared, the others in balanced clusters of the unit rows of gate and up."""
    gate, up = gate_up.float().chunk(2)
    order = loudness(gate_up, down).argsort(descending=True, stable=True)
    common = config.shared * size
    rest = order[common:].sort().values
    unit_rows = normalize(gate[rest]), normalize(up[rest])
    rows = torch.cat(unit_rows, dim=1)
    places = [size] * config.num_experts
    _, found = k_means(rows, config.num_experts, generator, places)
    return Dealt(order[:common], _groups(rest, found, config.num_experts))


def _groups(units: Tensor, found: Tensor, count: int) -> list[Tensor]:
    """The units of each group, by the group that was found for each."""
    return [units[found == group] for group in range(count)]


def by_scores(scores_EF: Tensor, size: int, shared: int) -> Dealt:
    """Units that most experts rank among their best shared; then the largest score left fills its expert."""
    experts, hidden = scores_EF.shape
    best = scores_EF.topk(size, dim=1).indices
    wanted = torch.bincount(best.flatten(), minlength=hidden).double()
    total = scores_EF.double().sum(0)
    rank = wanted + total / (total.max() + 1)  # ties go to the larger sum
    common = rank.argsort(descending=True, stable=True)[: shared * size]
    owner = torch.full((hidden,), -1)
    owner[common] = experts
    room = [size] * experts
    for place in scores_EF.flatten().argsort(descending=True, stable=True).tolist():
        expert, unit = divmod(place, hidden)
        if room[expert] and owner[unit] < 0:
            owner[unit] = expert
            room[expert] -= 1
    return Dealt(common, _groups(torch.arange(hidden), owner, experts))


def by_coactivation(marks_TF: Tensor, size: int, config: Config) -> Dealt:
    """Units most often marked shared; the others in balanced clusters of their marks, around the next most marked."""
    marks_FT = marks_TF.double().T
    rate = marks_FT.mean(1)
    order = rate.argsort(descending=True, stable=True)
    common = config.shared * size
    rest = order[common:]
    rows = marks_FT[rest]
    seeds = rows[: config.num_experts]
    distance = torch.cdist(rows, seeds, p=1)
    found = assign_places(distance, [size] * config.num_experts)
    groups = _groups(rest, found, config.num_experts)
    central = [_most_central(group, marks_FT) for group in groups]
    return Dealt(order[:common], groups, central=torch.stack(central))


def _most_central(group: Tensor, marks_FT: Tensor) -> Tensor:
    """The unit whose marks are nearest to the group's mean."""
    own = marks_FT[group]
    away = (own - own.mean(0)).abs().sum(1)
    return group[away.argmin()]


class Kept:
    """Some tokens of each layer, spread over the batches, at most about `KEPT` of a layer."""

    def __init__(self, calibration: Calibration, checkpoint: Checkpoint, layers: Sequence[int]) -> None:
        batches = len(calibration.batches)
        self.x: dict[int, Tensor] = {}
        rows: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        for seen in calibration.seen(checkpoint):
            for layer in layers:
                x_TD = seen[layer].x_TD
                each = max(1, len(x_TD) * batches // KEPT)
                rows[layer].append(x_TD[::each].clone())
        for layer, parts in rows.items():
            self.x[layer] = torch.cat(parts)


def scores_of(checkpoint: Checkpoint, calibration: Calibration, centres: Mapping[int, Tensor],
              config: Config) -> dict[int, Tensor]:
    """v_c(i) of each layer, float64 [E, F], summed over the tokens nearest to each centre."""
    found: dict[int, Tensor] = {}
    gradients = config.split == "gradient"
    for seen in calibration.seen(checkpoint, gradients=gradients):
        for layer, centres_ED in centres.items():
            value_TF = importance(seen[layer], *block(checkpoint, layer))
            nearest = squared_distances(seen[layer].x_TD, centres_ED).argmin(1)
            start = value_TF.new_zeros(len(centres_ED), value_TF.shape[1])
            so_far = found.get(layer, start)
            found[layer] = so_far.index_add(0, nearest, value_TF)
    return found


def importance(seen: Seen, gate_up: Tensor, down: Tensor) -> Tensor:
    """|h_i dL/dh_i| of each token where the gradient is known, else |h_i| ||W_down[:, i]||; float64 [T, F]."""
    h_TF = activations(seen.x_TD, gate_up)
    out = down.float()
    if seen.grad_TD is None:
        by_unit = out.norm(dim=0)
    else:
        by_unit = seen.grad_TD @ out
    value_TF = h_TF * by_unit
    return value_TF.abs().double()


def block(checkpoint: Checkpoint, layer: int) -> tuple[Tensor, Tensor]:
    """(gate above up [2 F, D], down [D, F]) of a dense layer."""
    gate_up = checkpoint.tensors[channel(layer, GATE_UP)]
    return gate_up, checkpoint.tensors[channel(layer, DOWN)]


def started(centres_ED: Tensor, x_TD: Tensor) -> Tensor:
    """Centroids as a router's rows: centred, since a common row changes nothing, and scaled to logits of spread 1."""
    rows = centres_ED - centres_ED.mean(0)
    spread = (x_TD @ rows.T).std()
    return rows / spread.clamp_min(1e-12)


def deal(work: Rewrite, layers: Sequence[int], config: Config, generator: torch.Generator,
         calibration: Calibration | None) -> dict[int, Dealt]:
    """The units of every layer named, dealt out.

    Raises `MixwellError` where they do not fall into equal parts.
    """
    sizes = {layer: _size(work.specs[layer]["hidden_dim"], config) for layer in layers}
    source = work.source
    if config.split not in LOOKING:
        return {layer: by_dice_or_weights(*block(source, layer), config, sizes[layer], generator) for layer in layers}
    assert calibration is not None
    kept = Kept(calibration, source, layers)
    found = {}
    if config.split == "coactivation":
        for layer in layers:
            gate_up, _ = block(source, layer)
            marks_TF = marks(kept.x[layer], gate_up, config)
            found[layer] = by_coactivation(marks_TF, sizes[layer], config)
        return found
    centres = {layer: k_means(kept.x[layer], config.num_experts, generator)[0] for layer in layers}
    scores = scores_of(source, calibration, centres, config)
    for layer in layers:
        dealt = by_scores(scores[layer], sizes[layer], config.shared)
        rows_ED = started(centres[layer], kept.x[layer])
        found[layer] = dealt._replace(rows_ED=rows_ED)
    return found


def by_dice_or_weights(gate_up: Tensor, down: Tensor, config: Config, size: int, generator: torch.Generator) -> Dealt:
    """The units of one layer without a look at text."""
    hidden = down.shape[1]
    if config.split == "clustered":
        return by_weights(gate_up, down, config, size, generator)
    if config.split == "random":
        order = torch.randperm(hidden, generator=generator)
    else:
        order = torch.arange(hidden)
    return in_parts(order, size, config.shared)


def marks(x_TD: Tensor, gate_up: Tensor, config: Config) -> Tensor:
    """1 for each token's K_a units of highest score, 0 for the others [T, F]."""
    scores = unit_scores(x_TD, gate_up)
    hidden = scores.shape[1]
    usual = max(1, hidden // 64)
    marked = config.marked or usual
    units = scores.topk(marked, dim=1).indices
    nothing = torch.zeros_like(scores)
    return nothing.scatter(1, units, 1.0)


def _size(hidden: int, config: Config) -> int:
    parts = config.num_experts + config.shared
    if hidden % parts:
        raise MixwellError(f"{hidden} hidden units do not fall into {parts} equal parts; expected num_experts + shared "
                           "to be a divisor.")
    return hidden // parts


def spec_of(config: Config, size: int) -> dict[str, Any]:
    """The options of a carved layer."""
    router: dict[str, Any] = {**config.router, "k": config.k}
    if config.split == "coactivation":
        router = {"method": "representative", "k": config.k}
    spec = {"method": SPARSE, "num_experts": config.num_experts, "hidden_dim": size, "router": router}
    if config.shared:
        spec["shared_experts"] = config.shared
    if config.split == "coactivation" and config.balance is None:
        spec["balance"] = {}  # its router keeps the load even by itself
    if config.balance is not None:
        spec["balance"] = dict(config.balance)
    return spec


def _scale(config: Config) -> float:
    """a, the factor on W_down of the routed parts."""
    if config.scale is not None:
        return config.scale
    return 1.0 if config.split == "coactivation" else float(config.num_experts)


def _start(router: Any, dealt: Dealt, gate_up: Tensor, config: Config) -> None:
    """Put the router where the split, or the options, want it to start."""
    with torch.no_grad():
        if dealt.central is not None:
            gate, up = gate_up.float().chunk(2)
            router.gate.copy_(normalize(gate[dealt.central]))
            router.up.copy_(normalize(up[dealt.central]))
        elif config.start == "centroids":
            router.weight.copy_(dealt.rows_ED)
        elif config.start == "even":
            router.weight.zero_()


@method(
    title="Carving experts out of a dense block",
    paper=(
        "LLaMA-MoE: Building Mixture-of-Experts from LLaMA with Continual Pre-training",
        "LLaMA-MoE v2: Exploring Sparsity of LLaMA from Perspective of Mixture-of-Experts with Post-Training",
        "CMoE: Fast Carving of Mixture-of-Experts for Efficient LLM Inference",
    ),
    year=2024,
)
def carve(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
          calibration: Calibration | None = None) -> Checkpoint:
    """Turn dense layers into mixtures of parts of themselves.

    Raises `MixwellError` where a layer cannot be carved into equal parts, or weights are quantised.
    """
    work = Rewrite(checkpoint, "carving")
    layers = dense_layers(work.specs, config.layers, "carving")
    first: Any = None
    for layer, dealt in deal(work, layers, config, generator, calibration).items():
        gate_up, down = work.take_block(layer)
        size = len(dealt.groups[0])
        spec = spec_of(config, size)
        scaled = _scale(config) * down
        parts = [expert_units(gate_up, scaled, units) for units in dealt.groups]
        work.put_block(layer, stacked(parts))
        if config.shared:
            shared = expert_units(gate_up, down, dealt.shared)
            work.put_shared(layer, shared)
        router = fresh_router(spec["router"], down.shape[0], config.num_experts, generator, first)
        first = first or router
        _start(router, dealt, gate_up, config)
        work.put_router(layer, router)
        work.specs[layer] = spec
    return work.result()


def example(generator: torch.Generator) -> dict[str, Any]:
    """A dense model of two layers, width six, hidden width eight."""
    checkpoint = dense_example(generator)
    config = Config(num_experts=3, shared=1, split="coactivation", router={"k": 3}, tokens=48)
    return {"checkpoint": checkpoint, "config": config, "generator": generator}
