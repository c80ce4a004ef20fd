"""Deep mixture of experts: on jittered digits the first layer's gate learns where, the second layer's what.

Paper: Learning Factored Representations in a Deep Mixture of Experts.
Tried: scikit-learn's digits at one of nine places on a canvas of 16 by 16; two soft layers of four experts of width 20,
the balance constraint for the first 300 of 1,500 steps; mutual information, in nats, of the first gate's choice with
the place, against that with the digit, on fresh placements of the test images. Against it: that it is no larger, or
that the second gate knows the place better than the digit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixwell.claims._judging import provided
from mixwell.claims.bench import Bench
from mixwell.claims.experts._digits import images
from mixwell.core import registry
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.core.routing import Context

EXPERTS, PLACES, SIDE, STEPS = 4, 9, 16, 1500


def placed(x_NHW: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """(canvases [N, 256], place of each image)."""
    place = torch.randint(PLACES, (len(x_NHW),), generator=draws)
    canvas = x_NHW.new_zeros(len(x_NHW), SIDE, SIDE)
    for p in range(PLACES):
        row, column = 4 * (p // 3), 4 * (p % 3)
        canvas[place == p, row : row + 8, column : column + 8] = x_NHW[place == p]
    return canvas.flatten(1), place


def information(gates_NE: Tensor, labels_N: Tensor) -> float:
    """Mutual information in nats between the chosen expert (drawn by its gate) and the label."""
    joint = torch.stack([gates_NE[labels_N == label].sum(0) for label in labels_N.unique()]).double()
    joint = joint / joint.sum()
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float(torch.special.xlogy(joint, joint / independent.clamp_min(1e-300)).sum())


def measure(seed: int) -> tuple[float, float, float, float, float]:
    """(information of the first gate on place and digit, of the second on both, accuracy)."""
    draws, entry = generator(seed, "deep"), registry.find("stacked", "experts.layers")
    config = entry.module().Config(first_experts=EXPERTS, second_experts=EXPERTS, hidden_dim=20, constrained_steps=300)
    layer = entry.load()(SIDE * SIDE, config, draws)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(parameter.shape[-1] ** -0.5 / 0.02)
    x, y, x_test, y_test = images(seed)
    optimizer = torch.optim.Adam(layer.parameters(), lr=2e-3)
    for step in range(STEPS):
        rows = torch.randint(len(x), (128,), generator=draws)
        mixed = layer(placed(x[rows], draws)[0], Context(step=step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(mixed.y_TD[:, :10], y[rows]).backward()
        optimizer.step()
        layer.after_step([mixed.routing])
    with torch.no_grad():
        canvas, place = placed(x_test, draws)
        mixed = layer.eval()(canvas, Context())
    first, second = mixed.routing.scores_TE.split(EXPERTS, 1)
    right = float((mixed.y_TD[:, :10].argmax(1) == y_test).float().mean())
    return (information(first, place), information(first, y_test), information(second, place),
            information(second, y_test), right)


def claim(bench: Bench) -> Evidence:
    """What the first gate tells of the place against what it tells of the digit."""
    where1, what1, where2, what2, right = map(list, zip(*(measure(seed) for seed in bench.seeds)))
    evidence = weigh("The first gate learns where, the second what.",
                     "mutual information of the first gate with the place in nats; baseline is that with the digit",
                     where1, what1, lower_is_better=False)
    return provided(evidence, sum(what2) > sum(where2), "The second gate knows the place better than the digit.",
                    second_gate_place=where2, second_gate_digit=what2, accuracy=right)
