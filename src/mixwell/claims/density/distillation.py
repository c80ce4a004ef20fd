"""Latent variable distillation: a circuit started from a teacher's clusters beats the same circuit started by chance.

Paper: Understanding the Distillation Process from Deep Generative Models to Tractable Probabilistic Circuits.
Tried: scikit-learn's digits as bits, 16 patches of 2 x 2 pixels, 16 states; the teacher is the grey values of the patch
and its neighbours; bits a pixel on a third of the digits, held out, after 20 steps of EM, against the same tree from a
random start with as many steps. Teachers of the paper are deep generative models.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.density.circuits.distillation import Config, distil
from mixwell.density.circuits.trees import TreeCircuit

NOTE = ("Equal within the spread. The latents come from grey values of neighbouring pixels, the paper's from "
        "a deep model.")


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """Bits (1797, 64) and neighbourhoods (1797, 16, 16) in an order of the seed."""
    from sklearn.datasets import load_digits

    grey = torch.from_numpy(load_digits().images / 16)
    grey = grey[torch.randperm(len(grey), generator=generator(seed, "split"))]
    around = torch.nn.functional.unfold(torch.nn.functional.pad(grey[:, None], (1, 1, 1, 1)), 4, stride=2)
    return (grey > 7 / 16).double().flatten(1), around.transpose(1, 2)


def both(seed: int) -> tuple[float, float]:
    """Bits a pixel of the distilled circuit and of EM from chance."""
    x, around = digits(seed)
    row, column = torch.arange(8).repeat_interleave(8) // 2, torch.arange(8).repeat(8) // 2
    node, steps = 4 * row + column, 20
    found = distil(x[:1198], node, around[:1198], generator(seed, "distil"),
                   Config(n_states=16, max_states=16, em_steps=steps))
    chance = TreeCircuit.random(found.circuit.parent, node, 16, 2, generator(seed, "chance"))
    for _ in range(steps):
        chance, _ = chance.em_step(x[:1198], 0.01)
    ours, theirs = (-float(c.log_prob(x[1198:]).mean()) / 64 / math.log(2) for c in (found.circuit, chance))
    return ours, theirs


def claim(bench: Bench) -> Evidence:
    """Held-out bits a pixel of both."""
    ours, theirs = zip(*(both(seed) for seed in bench.seeds))
    return weigh("Distilled latents make a better circuit than a random start.", "held-out bits a pixel", ours, theirs,
                 note=NOTE)
