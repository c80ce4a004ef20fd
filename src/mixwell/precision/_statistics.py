"""What calibration text tells of each weight's inputs, every expert meeting every token.

Legend: T tokens, I input width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.mixing.calibration import Inputs
from mixwell.precision._parts import Coded, named, with_codes


def gathered(checkpoint: Checkpoint, names: Sequence[str], calibration: Inputs, start: Callable[[Tensor], Tensor],
             join: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """`start` of each batch's inputs, joined over batches, by weight."""
    found: dict[str, Tensor] = {}
    for batch in calibration.inputs(checkpoint, names):
        for name, x in batch.items():
            value = start(x)
            found[name] = join(found[name], value) if name in found else value
    return found


def second_moments(checkpoint: Checkpoint, names: Sequence[str], calibration: Inputs) -> dict[str, Tensor]:
    """2 / n sum x x^T of each weight's inputs, float64: [I, I], of a stack's down map [E, I, I]."""
    tokens = _tokens(calibration)
    sums = gathered(checkpoint, names, calibration, _outer, torch.add)
    return {name: total * (2 / tokens) for name, total in sums.items()}


def _tokens(calibration: Inputs) -> int:
    return sum(batch.numel() for batch in calibration.batches)


def _outer(x: Tensor) -> Tensor:
    wide = x.double()
    return wide.mT @ wide


def mean_magnitudes(checkpoint: Checkpoint, names: Sequence[str], calibration: Inputs) -> dict[str, Tensor]:
    """Sum over tokens of |x| of each weight's inputs, float64 [I] or [E, I]: the mean but for a factor."""
    return gathered(checkpoint, names, calibration, _total, torch.add)


def _total(x: Tensor) -> Tensor:
    return x.double().abs().sum(-2)


def largest_magnitudes(checkpoint: Checkpoint, names: Sequence[str], calibration: Inputs) -> dict[str, Tensor]:
    """The largest |x| of each weight's inputs, float64 [I] or [E, I]."""
    return gathered(checkpoint, names, calibration, _most, torch.maximum)


def _most(x: Tensor) -> Tensor:
    return x.double().abs().amax(-2)


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
    made = {name: named(name, encode, checkpoint.tensors[name], found[name]) for name in names}
    record = calibrated(checkpoint, calibration)
    return with_codes(checkpoint, made, record=record)


def output_error(change: Tensor, moments: Tensor) -> float:
    """The squared error tr(D H D^T) that a change D [O, I] of a weight, or D [E, O, I] of a stack, makes in outputs."""
    wide = change.double()
    return float(((wide @ moments) * wide).sum())
