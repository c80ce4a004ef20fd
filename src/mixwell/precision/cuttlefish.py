"""Cuttlefish: after a while of full training each map goes on in factors of the rank that it has settled at.

**Equation:** s(W) = ||W||_F^2 / sigma_1^2, of every map after each epoch; kappa = full rank / s at the start; once the
    running means of all s have stopped moving, rank = min(full, ceil(kappa s)), U = U_r S_r^1/2, V = S_r^1/2 V_r^T.
**Shapes:** W [O, I] -> U [O, r], V [r, I]; gate, up and out of a block or of each expert have a rank of their own.
**Reference:** Wang et al. 2023 (2305.02538), sections 3 and 4, and its code.
**Differs:** s as it is, where the code cuts it to an integer. The start's s is that of a normal matrix, O I / (sqrt O +
    sqrt I)^2, so that no model of the start is needed. A map whose factors would be no smaller stays whole; the code
    leaves layers whole by timing. `decay` is the Frobenius decay; batch norms between factors are not here.
    `StableRanks` tells the moment to a training loop; in a recipe the stage's place is the moment.
**Fails when:** the maps' ranks do not fall: all stay whole, which is an error here.
**Cost:** one decomposition of each map; an epoch's watching one largest singular value each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least, check_most, check_not_negative
from mixwell.precision._blocks import Blocks, check_layers, structured_spec, whole_blocks
from mixwell.precision._parts import quantised_example


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of Cuttlefish's switch."""

    scaled: bool = True  # times kappa; False takes the stable rank itself, which is far too small for most
    least: float = 0.0  # smallest rank of a map, a share of its full one, 0 to 1; the code's transformers have 0.5
    decay: float = 0.0  # of the product's squared norm in the training that follows; 0 or more
    layers: tuple[int, ...] | None = None  # which layers, from 0; default all
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_above(self, max_kl_nats=0)
        check_least(self, least=0)
        check_most(self, least=1)
        check_not_negative(self, "decay")
        check_layers(self.layers)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def stable_rank(weight: Tensor) -> float:
    """||W||_F^2 / sigma_1^2; 0 of a matrix of zeros."""
    wide = weight.detach().double()
    largest = torch.linalg.matrix_norm(wide, 2).square()
    if not float(largest):
        return 0.0
    return float(wide.square().sum() / largest)


def start_ratio(rows: int, columns: int) -> float:
    """kappa of a matrix of normal draws: its full rank over its stable one."""
    sides = math.sqrt(rows) + math.sqrt(columns)
    return sides**2 / max(rows, columns)


def settled_rank(weight: Tensor, config: Config) -> int:
    """The rank to go on with; 0 where factors of it would be no smaller than the map."""
    rows, columns = weight.shape
    full = min(rows, columns)
    ratio = start_ratio(rows, columns) if config.scaled else 1.0
    wanted = ratio * stable_rank(weight)
    rank = max(wanted, config.least * full, 1.0)
    rank = min(full, math.ceil(rank - 1e-6))  # what is whole but for rounding stays whole
    factors = rank * (rows + columns)
    return rank if factors < rows * columns else 0


class StableRanks:
    """Running means of maps' stable ranks, epoch by epoch, and whether all of them have stopped moving.

    A map has settled once the mean slope of its running mean over the last eleven epochs is at most 0.1, 0.25 where two
    are left and 0.5 for the last; never before `window` epochs.
    """

    SLOPES, ENTRIES = (0.5, 0.25, 0.1), 11

    def __init__(self, window: int = 15) -> None:
        if window < 2:
            raise ValueError(f"window is {window}; expected 2 epochs or more")
        self.window = window
        self.means: dict[str, list[float]] = {}
        self.settled: set[str] = set()

    def update(self, weights: Mapping[str, Tensor]) -> bool:
        """Look at the maps after an epoch; whether all have settled."""
        share = 2 / (self.window + 1)
        for name, weight in weights.items():
            now = stable_rank(weight)
            past = self.means.setdefault(name, [now])
            move = share * (now - past[-1])
            past.append(past[-1] + move)
        self._settle()
        return len(self.settled) == len(self.means)

    def _settle(self) -> None:
        for name, past in self.means.items():
            if name in self.settled or len(past) < self.window:
                continue
            left = len(self.means) - len(self.settled)
            most = self.SLOPES[min(left, 3) - 1]
            if self.slope(name) <= most:
                self.settled.add(name)

    def slope(self, name: str) -> float:
        """Mean size of the slope of a map's running mean over the last epochs."""
        past = torch.tensor(self.means[name], dtype=torch.float64)
        slopes, = torch.gradient(past)
        return float(slopes[-self.ENTRIES :].abs().mean())


def halves(weight: Tensor, rank: int) -> dict[str, Tensor]:
    """The factors as a structured matrix keeps them, in the weight's type; rank 0 is the map itself."""
    if not rank:
        return {"weight": weight.clone()}
    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    roots = S[:rank].sqrt()
    left = U[:, :rank] * roots
    right = Vh[:rank] * roots[:, None]
    left = left.to(weight.dtype)
    right = right.to(weight.dtype)
    return {"weight": left.contiguous(), "right": right.contiguous()}


@method(
    title="Cuttlefish: factors of the settled rank",
    paper="Cuttlefish: Low-Rank Model Training without All the Tuning",
    year=2023,
)
def cuttlefish(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """A checkpoint whose feed-forwards are factors of low rank, to be trained on. Draws nothing from `generator`.

    Raises `MixwellError` where every map would stay whole, and as `precision.factorise`.
    """
    work = Blocks(checkpoint, config.layers, "Cuttlefish")
    found: dict[str, list[int]] = {}
    for layer in work.layers:
        ranks = []
        for place, weight in whole_blocks(work, layer):
            rank = settled_rank(weight, config)
            work.put(layer, place, halves(weight, rank))
            ranks.append(rank)
        structure = {"method": "low_rank", "ranks": ranks, "decay": config.decay}
        work.specs[layer] = structured_spec(work.specs[layer], structure)
        found[str(layer)] = ranks
    if not any(any(ranks) for ranks in found.values()):
        raise MixwellError("no map's rank has fallen so far that factors are smaller than the map; train on before the "
                           "switch, or name layers whose ranks have fallen.")
    return work.result({"ranks": found})


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture of maps near rank one."""
    checkpoint = quantised_example(generator)
    tensors = dict(checkpoint.tensors)
    for name, value in tensors.items():
        if value.ndim == 3:
            outer = value[:, :, :1] * value[:, :1]
            tensors[name] = outer + 0.01 * value
    fallen = checkpoint.derive(tensors=tensors)
    return {"checkpoint": fallen, "config": Config(max_kl_nats=2), "generator": generator}
