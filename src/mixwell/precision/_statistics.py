"""What calibration text tells of each weight's inputs, every expert meeting every token.

Legend: T tokens, I input width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.mixing.calibration import Inputs
from mixwell.precision._parts import Coded, named, with_codes


def _outer(x: Tensor) -> Tensor:
    wide = x.double()
    return wide.mT @ wide


def _total(x: Tensor) -> Tensor:
    return x.double().abs().sum(-2)


def _most(x: Tensor) -> Tensor:
    return x.double().abs().amax(-2)


class Statistic(NamedTuple):
    """What is kept of a weight's inputs."""

    start: Callable[[Tensor], Tensor]  # of a batch
    join: Callable[[Tensor, Tensor], Tensor]  # of what two batches gave


OUTER = Statistic(_outer, torch.add)
TOTAL = Statistic(_total, torch.add)
MOST = Statistic(_most, torch.maximum)


def gathered(checkpoint: Checkpoint, names: Sequence[str], calibration: Inputs,
             *statistics: Statistic) -> list[dict[str, Tensor]]:
    """Each statistic of each weight's inputs, by weight, all in one pass over the text."""
    found: list[dict[str, Tensor]] = [{} for _ in statistics]
    for batch in calibration.inputs(checkpoint, names):
        for name, x in batch.items():
            for statistic, own in zip(statistics, found):
                value = statistic.start(x)
                own[name] = statistic.join(own[name], value) if name in own else value
    return found


def second_moments(checkpoint: Checkpoint, names: Sequence[str], calibration: Inputs) -> dict[str, Tensor]:
    """2 / n sum x x^T of each weight's inputs, float64: [I, I], of a stack's down map [E, I, I]."""
    (sums,) = gathered(checkpoint, names, calibration, OUTER)
    return _over_tokens(sums, 2, calibration)


def means_and_moments(checkpoint: Checkpoint, names: Sequence[str],
                      calibration: Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean |x| of each weight's inputs, float64 [I] or [E, I], and their `second_moments`."""
    totals, sums = gathered(checkpoint, names, calibration, TOTAL, OUTER)
    means = _over_tokens(totals, 1, calibration)
    return means, _over_tokens(sums, 2, calibration)


def _over_tokens(sums: Mapping[str, Tensor], factor: int, calibration: Inputs) -> dict[str, Tensor]:
    each = factor / _tokens(calibration)
    return {name: total * each for name, total in sums.items()}


def _tokens(calibration: Inputs) -> int:
    return sum(batch.numel() for batch in calibration.batches)


def largest_magnitudes(checkpoint: Checkpoint, names: Sequence[str], calibration: Inputs) -> dict[str, Tensor]:
    """The largest |x| of each weight's inputs, float64 [I] or [E, I]."""
    (largest,) = gathered(checkpoint, names, calibration, MOST)
    return largest


def calibrated(checkpoint: Checkpoint, calibration: Inputs) -> dict[str, Any]:
    """The record of a calibration: tokens that every expert was shown, and those that the router sent to each."""
    routed = {}
    for layer, counts_E in calibration.routed(checkpoint).items():
        routed[str(layer)] = counts_E.tolist()
    told = {"tokens_shown_to_every_expert": _tokens(calibration), "tokens_routed_by_expert": routed}
    return {"account": {"calibration": told}}


def by_moments(checkpoint: Checkpoint, names: Sequence[str], calibration: Inputs,
               encode: Callable[[Tensor, Tensor], Coded]) -> Checkpoint:
    """The checkpoint with each weight named encoded by itself and the second moments of its inputs."""
    found = second_moments(checkpoint, names, calibration)
    made = {}
    for name in names:
        weight, moments = checkpoint.tensors[name], found[name]
        made[name] = named(name, encode, weight, moments)
    record = calibrated(checkpoint, calibration)
    return with_codes(checkpoint, made, record)


def output_error(change: Tensor, moments: Tensor) -> float:
    """The squared error tr(D H D^T) that a change D [O, I] of a weight, or D [E, O, I] of a stack, makes in outputs."""
    wide = change.double()
    return float(((wide @ moments) * wide).sum())
