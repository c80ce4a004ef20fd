"""MixDQ: bits by two measures for two groups of matrices, a family of programs, and a pick by the real output.

**Equation:** content (feed-forward blocks and experts): s_ub = mean KL of the output with matrix u alone in b bits; the
    rest (attention): s_ub = -10 log10(|y|^2 / |y - y_ub|^2), y the logits. For each ratio k in 0.46 to 1.36 and each
    average a in target - 0.3 to target: b_content = k b_rest with the mean over both a; min sum s_ub in each group
    within its bits, by integer programs; of all mixes that whose y is closest to the whole model's by squared error.
    The first token stays whole where inputs share a scale (`rounded_but_first`).
**Shapes:** s [U, B]; y [B, S, V]; x [B, S, D].
**Reference:** Zhao et al. 2024 (2405.17873), sections 4 and 5, and the authors' code.
**Differs:** theirs are few-step diffusion networks, content being feed-forward and cross-attention by SSIM of images; a
    language model's stand-in for what is said is KL. Budgets are kept from above, where theirs may miss by 2 %; the
    even deal is always in the family, so that it is never empty. Weights alone are rounded: this library rounds inputs
    token by token, so that no first token widens another's scale.
**Fails when:** one group is nearly all of the model: there is nothing to deal between both.
**Cost:** as many passes over the text as matrices times widths, and one for each mix of the family (a hundred at most);
    bits as budgeted, with 16 / G for scales.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least, check_not_negative
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision import bits
from mixwell.precision._allocation import allocate
from mixwell.precision._divergence import kl, of_mixes, summed, tokens_of
from mixwell.precision._parts import quantised_example
from mixwell.precision._statistics import calibrated
from mixwell.precision.bits import Budget, Place, Sensitivities, at_width, at_widths, part, places_of

CONTENT = ".channel_mixer."
EXACT = 1e-12  # share of a budget that rounding of a product may take
LEAST = 1e-30  # of a squared error, so that what is exact has a ratio


@dataclass(frozen=True, kw_only=True)
class Config(Budget):
    """Options of MixDQ."""

    tokens: int = 1024  # of text
    least_ratio: float = 0.46  # k: bits of content over those of the rest, above 0
    most_ratio: float = 1.36  # at least least_ratio
    ratios: int = 10  # values of k
    below: float = 0.3  # bits under the target that averages begin at, 0 or more
    averages: int = 10  # values of a

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above(self, least_ratio=0)
        check_least(self, ratios=1, averages=1, most_ratio=self.least_ratio)
        check_not_negative(self, "below")


def needs(config: Config) -> Needs:
    """Text, for both measures and the pick."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


@dataclass(frozen=True, eq=False, kw_only=True)
class Decoupled(Sensitivities):
    """Harms of two measures, and the text that mixes are picked by."""

    content_U: Tensor  # bool: which matrices are of the first group
    calibration: Inputs


def sensitivities(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
                  calibration: Inputs) -> Decoupled:
    """KL of content, negative decibels of the rest, of every matrix and width. Draws nothing from `generator`."""
    places = places_of(checkpoint, config)
    flags = [CONTENT in name for name, _ in places]
    content_U = torch.tensor(flags)

    def changed(place: Place, width: int) -> Tensor:
        weight = part(checkpoint.tensors, place)
        return at_width(weight, width, config)

    raw_UB = summed(checkpoint, places, config.widths, changed, calibration, _measure)
    nats_UB = raw_UB / tokens_of(calibration)
    decibels_UB = ratio_decibels(_signal(checkpoint, calibration), raw_UB)
    harm_UB = torch.where(content_U[:, None], nats_UB, -decibels_UB)
    record = calibrated(checkpoint, calibration)
    return Decoupled(places=places, harm_UB=harm_UB, record=record, content_U=content_U, calibration=calibration)


def _measure(place: Place, whole: Tensor, other: Tensor) -> float:
    name, _ = place
    return kl(whole, other) if CONTENT in name else squared_error(whole, other)


def squared_error(whole: Tensor, other: Tensor) -> float:
    """Sum of squares of what is between two outputs."""
    apart = whole.double() - other.double()
    return float(apart.square().sum())


@torch.no_grad()
def _signal(checkpoint: Checkpoint, calibration: Inputs) -> float:
    """Sum of squares of the model's output over the text."""
    total = 0.0
    for batch in calibration.batches:
        logits = calibration.logits(checkpoint, batch, {})
        total += float(logits.double().square().sum())
    return total


def ratio_decibels(signal: float, noise_UB: Tensor) -> Tensor:
    """10 log10 of a signal over noises."""
    share_UB = signal / noise_UB.clamp_min(LEAST)
    return 10 * share_UB.log10()


def dealt(target: float, share: float, config: Config) -> Iterator[tuple[float, float]]:
    """Mean bits of content and of the rest: the even deal, then one for every average and ratio.

    share: of all numbers, those that are content's.
    """
    yield target, target
    first = target - config.below
    ratios = torch.linspace(config.least_ratio, config.most_ratio, config.ratios)
    averages = torch.linspace(first, target, config.averages)
    for average in averages.tolist():
        for ratio in ratios.tolist():
            weight = ratio * share + 1 - share
            rest = average / weight
            yield ratio * rest, rest


def mixes(found: Decoupled, size_UB: Tensor, counts_U: Tensor, target: float, config: Config) -> list[tuple[int, ...]]:
    """The family: widths [U], as places in B, of every pair of budgets that holds the smallest widths; each once."""
    groups = found.content_U, ~found.content_U
    shares_U = counts_U / counts_U.sum()
    share = float(shares_U[found.content_U].sum())
    once: dict[tuple[int, ...], None] = {}
    for means in dealt(target, share, config):
        choice_U = torch.zeros(len(counts_U), dtype=torch.int64)
        try:
            for group_U, mean in zip(groups, means):
                choice_U[group_U] = _in_group(found.harm_UB[group_U], size_UB[group_U], mean * counts_U[group_U])
        except ValueError:
            continue  # a group's bits are below its smallest widths
        choice = tuple(choice_U.tolist())
        once[choice] = None
    return list(once)


def _in_group(harm_UB: Tensor, size_UB: Tensor, room_U: Tensor) -> Tensor:
    """Places in B [U] of the matrices of one group, of which there may be none."""
    if not len(harm_UB):
        return torch.zeros(0, dtype=torch.int64)
    budget = float(room_U.sum()) * (1 + EXACT)
    return torch.tensor(allocate(harm_UB, size_UB, budget))


def settle(checkpoint: Checkpoint, found: Decoupled, config: Config) -> Checkpoint:
    """The checkpoint with the mix whose output is closest; the lineage says of how many."""
    places = found.places
    size_UB = bits.sizes(checkpoint, places, config.widths)
    counts_U1 = bits.sizes(checkpoint, places, (1,))
    counts_U = counts_U1.squeeze(-1)
    target = bits.room(checkpoint, places, config) / float(counts_U.sum())
    family = mixes(found, size_UB, counts_U, target, config)
    each = [[config.widths[place] for place in choice] for choice in family]
    rounded = (at_widths(checkpoint, places, widths, config) for widths in each)
    errors = of_mixes(checkpoint, rounded, found.calibration, squared_error)
    error, widths = min(zip(errors, each), key=lambda one: one[0])
    picked = {"family": len(family), "squared_error": error}
    told = replace(found, record={**found.record, **picked})
    return bits.in_widths(checkpoint, told, widths, config)


def rounded_but_first(x_BSD: Tensor, bits: int, keep: int = 1) -> Tensor:
    """Inputs on one asymmetric grid over all of them, but for the first `keep` tokens of each row, which stay whole."""
    first, rest = x_BSD[:, :keep], x_BSD[:, keep:]
    low = rest.amin().clamp_max(0)
    high = rest.amax().clamp_min(0)
    most = 2**bits - 1
    least = torch.finfo(x_BSD.dtype).tiny
    step = ((high - low) / most).clamp_min(least)
    zero = (-low / step).round()
    codes = (rest / step).round() + zero
    numbers = codes.clamp(0, most) - zero
    return torch.cat([first, numbers * step], 1)


@method(
    title="MixDQ: two measures for two groups, picked by the output",
    paper="MixDQ: Memory-Efficient Few-Step Text-to-Image Diffusion Models with Metric-Decoupled Mixed Precision "
          "Quantization",
    year=2024,
    tags={"codes", "calibrated", "budgeted"},
)
def mixdq(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint whose matrices have bits by the measure of their group. Draws nothing from `generator`.

    Raises `MixwellError` as `precision.integers`, and where the budget is too small.
    """
    found = sensitivities(checkpoint, config, generator, calibration)
    return settle(checkpoint, found, config)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    config = Config(group_size=8, tokens=72, widths=(2, 4, 8), ratios=3, averages=2)
    return {"checkpoint": quantised_example(generator), "config": config, "generator": generator}
