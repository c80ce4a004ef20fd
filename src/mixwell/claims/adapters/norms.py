"""Norms alone: training the gains and shifts of random features does far more than as many random weights elsewhere.

Paper: Training BatchNorm and Only BatchNorm: On the Expressive Power of Random Features in CNNs.
Tried: a net of four hidden layers of 128 with BatchNorm and random weights that stay, on digits, 100 steps: gains from
U(0, 1) and shifts are trained, against as many random entries of the weights; the output layer stays in both. Beside:
the share of gains below 0.01. Against it: an error that is no smaller.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from mixwell.adapters.norms import switched_off
from mixwell.claims.adapters._turned import CLASSES, RATES, WIDTH, Rows, attached, images, trained, wrong
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.core.rng import generator

HIDDEN, DEPTH, STEPS = 128, 4, 100


def net(seed: int) -> nn.Sequential:
    """Random features."""
    parts: list[nn.Module] = []
    widths = [WIDTH, *(HIDDEN for _ in range(DEPTH))]
    for inputs, outputs in itertools.pairwise(widths):
        parts += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
    found = nn.Sequential(*parts, nn.Linear(HIDDEN, CLASSES))
    draw(found, generator(seed, "features"))
    return found


@torch.no_grad()
def draw(net: nn.Sequential, draws: torch.Generator) -> None:
    """Normal weights of spread sqrt(2 / fan in)."""
    linear = [part for part in net if isinstance(part, nn.Linear)]
    for part in linear:
        variance = 2 / part.in_features
        drawn = torch.randn(part.weight.shape, generator=draws)
        scaled = variance**0.5 * drawn
        part.weight.copy_(scaled)


def halves(seed: int) -> tuple[Rows, Rows]:
    """Digits to train on and to judge by."""
    upright, _, _ = images(seed)
    inks = upright.x.split(600)
    names = upright.y.split(600)
    first, second = map(Rows, inks, names)
    return first, second


def norms(bench: Bench, seed: int, *, lr: float) -> dict[str, float]:
    """Error with the norms trained, and the share of gains that were switched off."""
    found = net(seed)
    there = attached(found, "norms", seed, "*", start="uniform")
    rows, others = halves(seed)
    trained(found, rows, STEPS, lr)
    found.eval()
    error = wrong(found, others)
    return {"error": error, "off": switched_off(there)}


def entries(bench: Bench, seed: int, *, lr: float) -> dict[str, float]:
    """Error with as many random entries of the weights trained."""
    found = net(seed)
    there = attached(found, "norms", seed, "*", start="uniform")
    for parameter in there.trained.values():
        parameter.requires_grad_(False)
    draws = generator(seed, "entries")
    hidden = list(found)[:-1]
    weights = [part.weight for part in hidden if isinstance(part, nn.Linear)]
    chance = there.num_parameters / sum(weight.numel() for weight in weights)
    for weight in weights:
        weight.requires_grad_(True)
        kept = torch.rand(weight.shape, generator=draws) < chance
        weight.register_hook(kept.mul)
    rows, others = halves(seed)
    trained(found, rows, STEPS, lr)
    return {"error": wrong(found.eval(), others)}


GRID = {"lr": RATES}
CLAIM = Claim(
    "Training the norms of random features does more than training as many of their weights.",
    "share of held-out digits that are read wrongly", quantity="error", at_least=0.05,
    sides={"method": Side(norms, {}, GRID), "baseline": Side(entries, {}, GRID)})
