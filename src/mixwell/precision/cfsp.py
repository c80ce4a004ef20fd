"""CFSP: hidden units cut by what text does to layers (coarse) and to units (fine), in one pass.

**Equation:** I_l = mean arccos(cos(what layer l reads, what it leaves)) / pi; g_l = sigmoid(13.1072 a (I_l - mean I));
    the layer keeps (1 - share) g_l / mean g, deviations of g shrunk where one would keep all. A unit f of a block
    scores n_f^c mean_d [N(|W_down| n^b) + N(|W_up|^T) + N(|W_gate|^T)]_df, n_f the root of the sum of its squared
    activations; N divides by the sum over units, "units", or over the d that are averaged, "released". The best stay.
**Shapes:** W_down [D, F], W_up and W_gate [F, D], n [F]; an expert's are its own.
**Reference:** Wang et al. 2024 (2409.13199) and the authors' code, lib/prune.py.
**Differs:** 13.1072 stands for their sum over 131,072 tokens over 1e4. Released, every bracket is 1 / D and the score
    3 n^c / D whatever the weights: "units" is what it may have been meant to be. Widths are multiples of `multiple`,
    not of 128. Experts of a layer keep one width, each its own units, and every expert meets every token. No recovery.
**Fails when:** layers are few or alike: the coarse part then gives all of them the same.
**Cost:** two passes over the text; no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision._parts import quantised_example
from mixwell.precision._statistics import Statistic, gathered
from mixwell.precision.cutting import Block, best, blocks, cosines, cut, each_matrix, kept_units, staying

PUBLISHED = 131_072 / 1e4  # tokens that they sum over, over the constant that they divide by
SLACK = 1.05  # how far below everything the widest layer stays

Normaliser = Literal["units", "released"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of CFSP."""

    share: float = 0.2  # p, of the hidden units that go, 0 up to 1
    spread: float = 1.0  # a, how far layers differ, 0: not at all
    normaliser: Normaliser = "units"  # N; released: as in the code, where the weights cancel
    weighted: float = 1.0  # b, power of activations beside the down map's weights, at least 0
    activation: float = 1.0  # c, power of activations beside the bracket, at least 0
    multiple: int = 8  # widths are multiples of it, at least 1
    tokens: int = 16_384  # of calibration text

    def __post_init__(self) -> None:
        check_least(self, spread=0, weighted=0, activation=0, multiple=1, tokens=1)
        if not 0 <= self.share < 1:
            raise ValueError(f"share is {self.share}; expected 0 up to 1")


def needs(config: Config) -> Needs:
    """Text, for activations."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """Nothing: what goes is missed."""
    return {}


def importance(cosines_LT: Tensor) -> Tensor:
    """I_l: the mean angle by which each layer turns the stream, in half turns, [L]."""
    return cosines_LT.arccos().mean(1) / math.pi


def kept_shares(importance_L: Tensor, share: float, spread: float) -> Tensor:
    """What each layer keeps, [L], of mean 1 - `share` and below 1 where `share` is above 0."""
    away_L = importance_L - importance_L.mean()
    g_L = (spread * PUBLISHED * away_L).sigmoid()
    mean = g_L.mean()
    kept = 1 - share
    most = g_L.max()
    if not share:
        return torch.ones_like(g_L)
    if float(most / mean) * kept >= 1:
        room = mean * (1 / kept - 1)
        g_L = mean + (g_L - mean) * room / (most - mean) / SLACK
    return kept * g_L / mean


def scores(gate_up: Tensor, down: Tensor, norm_F: Tensor, config: Config) -> Tensor:
    """The score of each unit of a block: gate above up [2 F, D], down [D, F], norms of its activations [F]."""
    sizes = gate_up.double().abs()
    gate, up = sizes.chunk(2)
    louder_F = norm_F**config.weighted
    weighed_DF = down.double().abs() * louder_F
    over = 1 if config.normaliser == "units" else 0
    parts = [_shared_out(part_DF, over) for part_DF in (weighed_DF, up.T, gate.T)]
    total_DF = torch.stack(parts).sum(0)
    return total_DF.mean(0) * norm_F**config.activation


def _shared_out(part_DF: Tensor, over: int) -> Tensor:
    """Over its own sums; what is nothing everywhere stays nothing."""
    sums = part_DF.sum(over, keepdim=True)
    tiny = torch.finfo(sums.dtype).tiny
    return part_DF / sums.clamp_min(tiny)


def _energies(x: Tensor) -> Tensor:
    return x.double().square().sum(-2)


ENERGY = Statistic(_energies, torch.add)


def activation_norms(checkpoint: Checkpoint, found: Sequence[Block], calibration: Inputs) -> dict[Block, Tensor]:
    """n of each unit [F] or [E, F]: the root of the sum of its squared activations over the text."""
    names = [block.down for block in found]
    (energy,) = gathered(checkpoint, names, calibration, ENERGY)
    return {block: energy[block.down].sqrt() for block in found}


@method(title="CFSP: hidden units cut by activations of layers and of units",
        paper="CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine Activation Information",
        year=2024, tags={"narrower"})
def cfsp(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint with narrower feed-forward blocks. Draws nothing from `generator`.

    Raises `MixwellError` for layers that are neither SwiGLU blocks nor mixtures of them, for quantised weights and for
    blocks narrower than `multiple`.
    """
    found = blocks(checkpoint, "CFSP")
    turned_L = importance(cosines(checkpoint, calibration))
    kept_L = kept_shares(turned_L, config.share, config.spread).tolist()
    norms = activation_norms(checkpoint, found, calibration)
    scored = partial(scores, config=config)
    made = {}
    for block, width in staying(checkpoint, found, kept_L, config.multiple).items():
        weights = block.weights(checkpoint)
        score = each_matrix(scored, *weights, norms[block])
        kept = best(score, width)
        made[block] = kept_units(weights, kept)
    return cut(checkpoint, made, calibration)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture, whose experts lose two units of eight each."""
    config = Config(share=0.25, multiple=2, tokens=72)
    return {"checkpoint": quantised_example(generator), "config": config, "generator": generator}
