"""EMQ: a proxy of sensitivity is evolved on this model, not chosen: the tree whose scores rank mixes of bits best.

**Equation:** score_u = pool(joint(f2(f1(a_u)), g2(g1(c_u)))), a and c two of {W, dL/dW, W dL/dW, mean of squared
    gradients by window, size of the inputs}; predicted quality of a mix = sum_u score_u b_u. Fitness: Spearman with
    minus the KL of `bank` drawn mixes, half of which are kept for the check. Evolution: tournaments, the best crossed
    with the one least like it, a gene drawn anew, what tells nothing dropped. Bits: max sum_u score_u b_u within the
    budget.
**Shapes:** a and c [n] of each matrix, n numbers drawn of it; score [U].
**Reference:** Dong et al. 2023 (2307.10554), section 3, and the authors' code, in which the search itself is missing.
**Differs:** quality is KL on text, where theirs is accuracy after rounding a network of images. The product W dL/dW
    stands for their virtual gradient (SynFlow, which a network with softmax has not), squared gradients for the
    Hessian. Trace and SNIP are in the first population. `curve="error"` counts a width as -4^-b, since an error falls
    fourfold a bit, where theirs is linear in b. A program in place of a second evolution chooses the bits.
**Fails when:** few mixes in the bank: the tree then fits their noise, which the held-out half tells. A score that is
    linear in b gives some matrices most and others least, little between.
**Cost:** one pass for each mix of the bank, one gradient a window, and populations of trees over n numbers a matrix;
    bits as budgeted, with 16 / G for scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision import bits
from mixwell.precision._divergence import kl, of_mixes, tokens_of
from mixwell.precision._parts import named, quantised_example
from mixwell.precision._statistics import Statistic, gathered
from mixwell.precision.bits import Budget, Place, Sensitivities, at_widths, names_of, of_inputs, part, places_of
from mixwell.precision.proxies import INPUTS, Bank, Evolution, Known, evolved, scores, words

FEWEST = 6  # mixes of a bank, half of which are for the check


def _power(x: Tensor) -> Tensor:
    return x.double().square().sum(-2)


POWER = Statistic(_power, torch.add)


@dataclass(frozen=True, kw_only=True)
class Config(Budget):
    """Options of EMQ."""

    tokens: int = 1024  # of text
    bank: int = 40  # mixes that are tried, 6 or more
    population: int = 20  # trees that live
    children: int = 400  # that are made, one after the other
    tournament: int = 5  # trees that parents are chosen from, 2 or more
    sample: int = 4096  # n: numbers of a matrix that trees look at, at most
    curve: Literal["bits", "error"] = "bits"  # what b bits count for: b, or -4^-b

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, bank=FEWEST, population=2, children=0, tournament=2, sample=1)
        if len(self.widths) < 2:
            raise ValueError(f"widths is {self.widths}; expected two or more, to try mixes of")


def needs(config: Config) -> Needs:
    """Text, for gradients, inputs and the bank."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def known(checkpoint: Checkpoint, places: Sequence[Place], calibration: Inputs, config: Config,
          generator: torch.Generator) -> Known:
    """What trees are made of, of numbers drawn of every matrix."""
    names = names_of(places)
    mean, square = gradients(checkpoint, names, calibration)
    (power,) = gathered(checkpoint, names, calibration, POWER)
    tokens = tokens_of(calibration)
    found: dict[str, list[Tensor]] = {name: [] for name in INPUTS}
    counts = []
    for place in places:
        weight, slope = part(checkpoint.tensors, place).double(), part(mean, place)
        power_I = of_inputs(power, place, 1)
        size = (power_I / tokens).sqrt()
        whole = {"weight": weight, "gradient": slope, "product": weight * slope}
        whole["curvature"] = part(square, place)
        whole["activation"] = size.expand_as(weight)
        drawn = torch.randperm(weight.numel(), generator=generator)
        some = drawn[: config.sample]
        for name, matrix in whole.items():
            found[name].append(matrix.flatten()[some])
        counts.append(weight.numel())
    return Known(found, counts)


def gradients(checkpoint: Checkpoint, names: Sequence[str],
              calibration: Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean over windows of the gradient of the loss by each weight, and of its square, float64."""
    weights = {name: checkpoint.tensors[name] for name in names}
    mean = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
    square = {name: value.clone() for name, value in mean.items()}
    windows = sum(map(len, calibration.batches))
    for slopes in calibration.slopes(checkpoint, weights, rows=1):
        for name, slope in slopes.items():
            share = slope / windows
            mean[name] += share
            square[name] += share * slope
    return mean, square


def tried(checkpoint: Checkpoint, places: Sequence[Place], calibration: Inputs, config: Config,
          generator: torch.Generator) -> Bank:
    """Mixes drawn evenly, and minus the KL in nats a token of each."""
    shape = config.bank, len(places)
    drawn_MU = torch.randint(0, len(config.widths), shape, generator=generator)
    mixes = (_mixed(checkpoint, places, drawn_U, config) for drawn_U in drawn_MU)
    nats = of_mixes(checkpoint, mixes, calibration, kl)
    nats_M = torch.tensor(nats, dtype=torch.float64)
    values_B = counted(config)
    return Bank(values_B[drawn_MU], -nats_M)


def counted(config: Config) -> Tensor:
    """What each width counts for, float64 [B]."""
    widths_B = torch.tensor(config.widths, dtype=torch.float64)
    return widths_B if config.curve == "bits" else -(4.0**-widths_B)


def _mixed(checkpoint: Checkpoint, places: Sequence[Place], drawn_U: Tensor, config: Config) -> dict[str, Tensor]:
    """All weights at the widths drawn."""
    widths = [config.widths[column] for column in drawn_U.tolist()]
    return at_widths(checkpoint, places, widths, config)


def sensitivities(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
                  calibration: Inputs) -> Sensitivities:
    """Minus what each width of each matrix adds to the predicted quality, by the proxy that evolved.

    Raises `MixwellError` where every mix of the bank does alike.
    """
    places = places_of(checkpoint, config)
    about = known(checkpoint, places, calibration, config, generator)
    bank = tried(checkpoint, places, calibration, config, generator)
    if not float(bank.quality_M.std()) > 0:
        raise MixwellError("all mixes of bits do alike on this text; hand in a trained model, or more text (tokens).")
    plan = Evolution(config.population, config.children, config.tournament)
    judged, kept = bank.half(True), bank.half(False)
    genes, fitness = named("bank", evolved, about, judged, plan, generator)
    score_U = scores(genes, about)
    held_out = kept.agreement(score_U)
    gain_UB = score_U[:, None] * counted(config)
    found = bits.sensitivities(checkpoint, places, -gain_UB, calibration)
    told: dict[str, Any] = {"formula": words(genes), "spearman": fitness}
    told["spearman_held_out"] = held_out if math.isfinite(held_out) else None
    return replace(found, record={**found.record, "proxy": told})


@method(
    title="EMQ: evolved proxies of sensitivity",
    paper="EMQ: Evolving Training-free Proxies for Automated Mixed Precision Quantization",
    year=2023,
    tags={"codes", "calibrated", "budgeted"},
)
def emq(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint whose matrices have bits by a proxy evolved on it. `generator` draws mixes, numbers and trees.

    Raises `MixwellError` as `precision.integers`, and where the budget is too small.
    """
    found = sensitivities(checkpoint, config, generator, calibration)
    return bits.allotted(checkpoint, found, config)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    config = Config(group_size=8, tokens=72, widths=(2, 4, 8), bank=8, children=20)
    return {"checkpoint": quantised_example(generator), "config": config, "generator": generator}
