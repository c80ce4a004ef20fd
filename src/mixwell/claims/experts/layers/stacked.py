"""Deep mixture of experts: on jittered digits the first layer's gate learns where, the second layer's what.

Paper: Learning Factored Representations in a Deep Mixture of Experts.
Tried: scikit-learn's digits at one of nine places on a canvas of 16 by 16; two soft layers of four experts of width 20,
the balance constraint for the first 300 of 1,500 steps; mutual information, in nats, of the first gate's choice with
the place, against that with the digit, on fresh placements of the test images. Against it: that it is no larger, or
that the second gate knows the digit no better than the place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixwell.claims._methods import build, widen
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Untestable
from mixwell.claims.experts._digits import images, share_right
from mixwell.core.rng import generator
from mixwell.core.routing import Context

EXPERTS, PLACES, SIDE, STEPS = 4, 9, 16, 1500
LEAST = 0.8  # share of the digits that layers must read right for their gates to mean something


def placed(x_NHW: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """(canvases [N, 256], place of each image)."""
    count = len(x_NHW)
    place = torch.randint(PLACES, (count,), generator=draws)
    canvas = x_NHW.new_zeros(count, SIDE, SIDE)
    for p in range(PLACES):
        here = place == p
        row, column = divmod(p, 3)
        row, column = 4 * row, 4 * column
        canvas[here, row : row + 8, column : column + 8] = x_NHW[here]
    return canvas.flatten(1), place


def information(gates_NE: Tensor, labels_N: Tensor) -> float:
    """Mutual information in nats between the chosen expert (drawn by its gate) and the label."""
    labels = labels_N.unique()
    sums = [gates_NE[labels_N == label].sum(0) for label in labels]
    counts = torch.stack(sums).double()
    joint = counts / counts.sum()
    row = joint.sum(1, keepdim=True)
    column = joint.sum(0, keepdim=True)
    product = row * column
    ratio = joint / product.clamp_min(1e-300)
    parts = torch.special.xlogy(joint, ratio)
    return float(parts.sum())


def trained(x: Tensor, y: Tensor, draws: torch.Generator) -> Any:
    """Two layers of gates and experts after training on images in random places."""
    sizes = {"first_experts": EXPERTS, "second_experts": EXPERTS, "hidden_dim": 20}
    options = sizes | {"constrained_steps": 300}
    layer = build("experts.layers.stacked", SIDE * SIDE, generator=draws, **options)
    widen(layer.parameters())
    optimizer = torch.optim.Adam(layer.parameters(), lr=2e-3)
    for step in range(STEPS):
        rows = torch.randint(len(x), (128,), generator=draws)
        canvas, _ = placed(x[rows], draws)
        mixed = layer(canvas, Context(step=step))
        scores = mixed.y_TD[:, :10]
        optimizer.zero_grad()
        nn.functional.cross_entropy(scores, y[rows]).backward()
        optimizer.step()
        layer.after_step([mixed.routing])
    return layer.eval()


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Information of the first gate on place (method) and digit (baseline), of the second on both, and accuracy."""
    draws = generator(seed, "deep")
    x, y, x_test, y_test = images(seed)
    layer = trained(x, y, draws)
    with torch.no_grad():
        canvas, place = placed(x_test, draws)
        mixed = layer(canvas, Context())
    scores = mixed.y_TD[:, :10]
    right = share_right(scores, y_test)
    if right < LEAST:
        raise Untestable(f"{right:.0%} of the digits are read right; expected {LEAST:.0%} of layers that have learnt")
    gates = mixed.routing.scores_TE
    first, second = gates.split(EXPERTS, 1)
    return {"method": information(first, place), "baseline": information(first, y_test),
            "second gate on digit": information(second, y_test), "second gate on place": information(second, place),
            "accuracy": right}


CLAIM = Claim(
    "The first gate learns where, the second what.",
    "mutual information of the first gate with the place in nats; baseline is that with the digit",
    lower_is_better=False,
    provided=(Comparison(method="second gate on digit", baseline="second gate on place", lower_is_better=False),))
