"""Spherical interpolation: a point of the arc between two nets merges them better than a point of the chord.

Paper: none; the folklore of merges of language models, where SLERP is said to keep what the mean of weights loses.
Tried: a small net after 40 steps on the digits, tuned on 0 to 4 and, apart from that, on 5 to 9; accuracy on all ten
digits of the arc's point and of the chord's, each with the best of nine shares on validation rows. Against it: an
accuracy that is no higher. Nothing can be seen where the arc is the chord: cosines above 0.9995 in every tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Untestable
from mixwell.claims.merge._digits import Tensors, Tuned, best, digits, fresh, merged, module, tuned

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
EARLY, STEPS, RATE = 40, 100, 3e-3
CLAIM = Claim("Points of the arc merge two nets better than points of the chord.", "accuracy on all ten digits",
              lower_is_better=False)


def halves(seed: int) -> Tuned:
    """A net that was left early, and two fine-tunes of it on five digits each."""
    split = digits(seed)
    base = tuned(fresh(seed), split.train, seed, steps=EARLY)
    low = split.train.y < 5
    parts = [split.train.of(low), split.train.of(~low)]
    models = [tuned(base, part, seed, steps=STEPS, lr=RATE) for part in parts]
    return Tuned([split], base, models)


def check_arc(first: Tensors, second: Tensors) -> None:
    """Raise where no tensor's arc differs from its chord."""
    cosines = [cosine(first[name], second[name]) for name in first]
    if min(cosines) > module("merge.slerp").PARALLEL:
        raise Untestable(f"all cosines are above {min(cosines):.4f}, where the arc is the chord")


def cosine(first: Tensor, second: Tensor) -> float:
    """Of two tensors as vectors."""
    one, other = first.double().flatten(), second.double().flatten()
    return float(torch.cosine_similarity(one, other, dim=0))


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of the best point of the arc, of the best point of the chord, and of the better net."""
    task = halves(seed)
    check_arc(*task.models)

    def arc(share: float) -> Tensors:
        return merged("slerp", task, t=share)

    def chord(share: float) -> Tensors:
        config = {"weight": (1 - share, share)}
        return merged("linear", task, **config)

    ways: dict[str, Callable[[float], Tensors]] = {"method": arc, "baseline": chord}
    return {side: best(way, SHARES, task) for side, way in ways.items()}
