"""Small problems on which routers and balance rules show what they do, and the loop that trains a layer on them.

Legend: T tokens, D width, C clusters or tasks, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.claims._methods import widen, with_aux
from mixwell.claims.bench import Bench
from mixwell.claims.grids import RATES, finer, variants
from mixwell.claims.starts import level
from mixwell.core import registry
from mixwell.core.config import from_dict
from mixwell.core.rng import generator
from mixwell.core.routing import Context

DIM = 16
SIZE = 0.3  # root mean square of a layer's output at its start; targets have 1
TOP1: Mapping[str, Any] = {"router": {"method": "top_k", "k": 1}, "balance": {"switch": 0.01}}  # Switch's layer
TOP2: Mapping[str, Any] = {"router": {"method": "top_k", "k": 2}, "balance": {"switch": 0.01}}
BALANCED: Mapping[str, Any] = {"lr": RATES, "balance": variants({}, switch=(0.003, 0.01, 0.03))}  # nine settings
FINE: Mapping[str, Any] = {"lr": finer(RATES, 9)}  # as many, where there is nothing else to tune


@dataclass(frozen=True, eq=False)
class Batch:
    """Tokens with their targets, and what a router may know of them."""

    x_TD: Tensor
    y_TD: Tensor
    labels_T: Tensor  # cluster, task or token id, as the problem says


Draw = Callable[[int, torch.Generator], Batch]


class Clusters:
    """Each cluster has a linear map of its own: x = centre_c + z and y = A_c z + noise, z standard normal.

    Targets have variance 1 without noise, so that an error is a share of it. `zipf` is the exponent by which the
    frequency of a cluster falls with its rank.
    """

    def __init__(self, seed: int, *, clusters: int = 16, zipf: float = 0.0, noise: float = 0.0) -> None:
        draws = generator(seed, "clusters")
        self.centres_CD = 2 * torch.randn(clusters, DIM, generator=draws)
        maps = torch.randn(clusters, DIM, DIM, generator=draws)
        self.maps_CDD = maps / DIM**0.5
        ranks = torch.arange(1, clusters + 1)
        self.shares_C = ranks.float() ** -zipf
        self.noise = noise

    def __call__(self, count: int, draws: torch.Generator) -> Batch:
        """`count` tokens, labelled by their clusters."""
        labels = torch.multinomial(self.shares_C, count, replacement=True, generator=draws)
        z = torch.randn(count, DIM, generator=draws)
        noise = self.noise * torch.randn(count, DIM, generator=draws)
        x = self.centres_CD[labels] + z
        y = mapped(self.maps_CDD, labels, z)
        return Batch(x, y + noise, labels)


def mapped(maps_COI: Tensor, labels_T: Tensor, x_TI: Tensor) -> Tensor:
    """Each row by the map of its label: [T, I] -> [T, O]."""
    return torch.einsum("toi,ti->to", maps_COI[labels_T], x_TI)


class Families(Clusters):
    """Sixteen equally frequent clusters in families of six, four, three, two and one.

    An even load fits the clusters, as balanced routing presumes, and a gate that only sees families is uneven. Centres
    and maps of a family share half and more of their variance.
    """

    SIZES = (6, 4, 3, 2, 1)

    def __init__(self, seed: int, *, noise: float = 0.0) -> None:
        super().__init__(seed, clusters=sum(self.SIZES), noise=noise)
        families = len(self.SIZES)
        draws = generator(seed, "families")
        centres = 3**0.5 * torch.randn(families, DIM, generator=draws)
        maps = torch.randn(families, DIM, DIM, generator=draws) / DIM**0.5
        sizes = torch.tensor(self.SIZES)
        own = torch.arange(families).repeat_interleave(sizes)
        self.family_C = own
        near_CD = self.centres_CD / 2
        self.centres_CD = near_CD + centres[own]
        both_CDD = self.maps_CDD + maps[own]
        self.maps_CDD = both_CDD / 2**0.5


def clusters(seed: int, *, zipf: float = 0.0, families: bool = False) -> Clusters:
    """The problem that a claim names: `Families`, or `Clusters` whose frequency falls by `zipf`."""
    return Families(seed) if families else Clusters(seed, zipf=zipf)


def build(seed: int, spec: Mapping[str, Any], *, dim: int = DIM, method: str = "moe", problem: Draw | None = None,
          **options: Any) -> Any:
    """A layer by name, its experts started at 1 / sqrt(fan in) so that a few hundred steps train it.

    With a `problem` its router starts with one spread of logits and its output with one size on that problem's tokens,
    whatever the method.
    """
    usual = {"method": method, "hidden_dim": 32}
    given = {**usual, **spec, **options}
    entry = registry.find(given.pop("method"), "experts.layers")
    options_of = entry.module().Config
    if any(field.name == "num_experts" for field in fields(options_of)):
        given.setdefault("num_experts", 8)
    config = from_dict(options_of, given)
    layer = entry.load()(dim, config, generator(seed, "layer"))
    widen(projections(layer))
    if problem is not None:
        batch = problem(512, generator(seed, "start"))
        level(layer, (batch.x_TD, known(batch)), SIZE)
    return layer


def known(batch: Batch, step: int = 0, draws: torch.Generator | None = None) -> Context:
    """What a router may know of a batch: its labels, as labels and as token ids."""
    return Context(labels_T=batch.labels_T, token_ids_T=batch.labels_T, step=step, generator=draws)


def projections(layer: nn.Module) -> list[Tensor]:
    """The weights of a layer's experts."""
    named = dict(layer.named_parameters())
    return [named[name] for name in named if name.endswith("_proj")]


def fit(layer: Any, draw: Draw, seed: int, *, steps: int = 500, count: int = 512, lr: float = 3e-3,
        watch: Callable[[int, Any], None] | None = None) -> Any:
    """Train a layer by squared error and its auxiliary losses with Adam, and hand it back in evaluation mode.

    `watch` gets the step and what the layer gave.
    """
    optimizer = torch.optim.Adam(layer.parameters(), lr=lr)
    draws = generator(seed, "fit")
    router: Any = getattr(layer, "router", None)
    layer.train()
    for step in range(steps):
        batch = draw(count, draws)
        mixed = layer(batch.x_TD, known(batch, step, draws))
        loss = nn.functional.mse_loss(mixed.y_TD, batch.y_TD)
        optimizer.zero_grad()
        with_aux(loss, mixed.aux).backward()
        optimizer.step()
        if hasattr(router, "update"):
            router.update(mixed.routing.load_E())
        if watch is not None:
            watch(step, mixed)
    return layer.eval()


@torch.no_grad()
def test(layer: Any, draw: Draw, seed: int, count: int = 4096) -> tuple[Batch, Any]:
    """A fresh batch and what the layer gives for it."""
    batch = draw(count, generator(seed, "test"))
    return batch, layer(batch.x_TD, known(batch))


def squared_error(mixed: Any, batch: Batch) -> float:
    """Mean squared error of what a layer gave for a batch."""
    return float(nn.functional.mse_loss(mixed.y_TD, batch.y_TD))


def error(layer: Any, draw: Draw, seed: int) -> float:
    """Mean squared error on fresh tokens."""
    batch, mixed = test(layer, draw, seed)
    return squared_error(mixed, batch)


def unserved(mixed: Any) -> float:
    """Share of the slots of tokens that no expert serves."""
    empty = mixed.routing.indices_TK < 0
    return float(empty.float().mean())


def imbalance(load_E: Tensor) -> float:
    """The busiest expert's load over the mean load; 1 at balance."""
    mean = load_E.float().mean()
    return float(load_E.max() / mean)


def on_clusters(bench: Bench, seed: int, *, zipf: float = 0.0, families: bool = False,
                **options: Any) -> dict[str, float]:
    """What `on_problem` measures on `clusters`."""
    problem = partial(clusters, zipf=zipf, families=families)
    return on_problem(bench, seed, problem=problem, **options)


def on_problem(bench: Bench, seed: int, *, problem: Callable[[int], Draw], lr: float = 3e-3, steps: int = 500,
               **spec: Any) -> dict[str, float]:
    """Error, imbalance of the load and share of empty slots, on fresh tokens of a problem, of a layer trained there.

    `spec` are the layer's options and its `method`.
    """
    draw = problem(seed)
    layer = build(seed, spec, problem=draw)
    fit(layer, draw, seed, lr=lr, steps=steps)
    batch, mixed = test(layer, draw, seed)
    found = {"error": squared_error(mixed, batch)}
    if mixed.routing is not None:
        load_E = mixed.routing.load_E()
        found["load"] = imbalance(load_E)
        found["dropped"] = unserved(mixed)
    return found


def fixed(draw: Draw, seed: int, count: int) -> Draw:
    """The same `count` tokens at every call: a training set of limited size."""
    batch = draw(count, generator(seed, "training set"))
    return lambda count, draws: batch


def few_data(bench: Bench | None, seed: int, *, lr: float = 3e-3, **spec: Any) -> dict[str, float]:
    """The error on fresh tokens without noise of a layer trained on 512 noisy ones of `Clusters`."""
    noisy = Clusters(seed, noise=0.5)
    clean = Clusters(seed)
    few = fixed(noisy, seed, 512)
    layer = build(seed, spec, problem=noisy)
    fit(layer, few, seed, lr=lr)
    return {"error": error(layer, clean, seed)}
