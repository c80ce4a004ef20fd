"""What a model says with one matrix of it changed: KL by place and width, and text that the model writes itself.

Legend: N windows, S positions, V vocabulary, U matrices, B widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.mixing.calibration import Inputs
from mixwell.precision.bits import Place

LENGTH = 64  # tokens of a window that the model writes, at most

Changed = Callable[[Place, int], Tensor]  # the matrix [O, I] at a place, at a width
Measure = Callable[[Place, Tensor, Tensor], float]  # of logits [B, S, V] before and after, by the place changed


@torch.no_grad()
def summed(checkpoint: Checkpoint, places: Sequence[Place], widths: Sequence[int], changed: Changed,
           calibration: Inputs, measure: Measure) -> Tensor:
    """A measure of the model against itself with one matrix at one width, summed over the text: float64 [U, B]."""
    total_UB = torch.zeros(len(places), len(widths), dtype=torch.float64)
    for batch in calibration.batches:
        whole = calibration.logits(checkpoint, batch, {})
        for unit, place in enumerate(places):
            for column, width in enumerate(widths):
                moved = in_place(checkpoint, place, changed(place, width))
                other = calibration.logits(checkpoint, batch, moved)
                total_UB[unit, column] += measure(place, whole, other)
    return total_UB


@torch.no_grad()
def of_mixes(checkpoint: Checkpoint, mixes: Iterable[Mapping[str, Tensor]], calibration: Inputs,
             measure: Callable[[Tensor, Tensor], float]) -> list[float]:
    """A measure of the model against itself with each mix of weights in their places, a token; see `summed`.

    The model's own logits over all of the text are in memory meanwhile.
    """
    wholes = [calibration.logits(checkpoint, batch, {}) for batch in calibration.batches]
    tokens = tokens_of(calibration)
    found = []
    for moved in mixes:
        total = 0.0
        for batch, whole in zip(calibration.batches, wholes):
            other = calibration.logits(checkpoint, batch, moved)
            total += measure(whole, other)
        found.append(total / tokens)
    return found


def divergences(checkpoint: Checkpoint, places: Sequence[Place], widths: Sequence[int], changed: Changed,
                calibration: Inputs) -> Tensor:
    """Mean KL(model || model with one matrix at one width) in nats a token, float64 [U, B]."""
    total_UB = summed(checkpoint, places, widths, changed, calibration, _kl_at)
    mean_UB = total_UB / tokens_of(calibration)
    return mean_UB.clamp_min(0)


def tokens_of(calibration: Inputs) -> int:
    """How many tokens the text has."""
    return sum(batch.numel() for batch in calibration.batches)


def _kl_at(place: Place, whole: Tensor, other: Tensor) -> float:
    return kl(whole, other)


def kl(whole: Tensor, other: Tensor) -> float:
    """Sum over tokens of KL(whole || other), of logits."""
    first = whole.float().log_softmax(-1)
    second = other.float().log_softmax(-1)
    total = F.kl_div(second, first, log_target=True, reduction="sum")
    return float(total)


def in_place(checkpoint: Checkpoint, place: Place, matrix: Tensor) -> dict[str, Tensor]:
    """The weight that a matrix is of, with it in its place."""
    name, expert = place
    if expert is None:
        return {name: matrix}
    stack = checkpoint.tensors[name].clone()
    stack[expert] = matrix.to(stack.dtype)
    return {name: stack}


@torch.no_grad()
def own_text(checkpoint: Checkpoint, tokens: int, calibration: Inputs | None, generator: torch.Generator) -> Inputs:
    """As `calibration`, over text that the model writes, so many tokens or a few more.

    Each window begins with a token drawn evenly; the others are drawn from the model's own shares. Raises
    `MixwellError` without a calibration, which is what runs the model.
    """
    if calibration is None:
        raise MixwellError("the model must be run to write its own text; hand in a calibration, whatever its text.")
    arch = checkpoint.arch
    vocab = int(arch["vocab_size"])
    most = int(arch.get("max_positions", LENGTH))
    longest = min(LENGTH, most)
    rows = -(-tokens // longest)
    length = -(-tokens // rows)
    written_NS = torch.randint(0, vocab, (rows, 1), generator=generator)
    for _ in range(length - 1):
        last_NV = calibration.logits(checkpoint, written_NS, {})[:, -1]
        shares_NV = last_NV.float().softmax(-1)
        next_N1 = torch.multinomial(shares_NV, 1, generator=generator)
        written_NS = torch.cat([written_NS, next_N1], 1)
    return calibration.over(written_NS)
