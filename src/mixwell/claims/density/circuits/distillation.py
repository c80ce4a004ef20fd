"""Latent variable distillation: a circuit started from a teacher's clusters beats the same circuit started by chance.

Paper: Understanding the Distillation Process from Deep Generative Models to Tractable Probabilistic Circuits.
Tried: scikit-learn's digits as bits, 16 patches of 2 x 2 pixels, 16 states; the teacher is the grey values of the patch
and its neighbours; bits a pixel on a third of the digits, held out, after 20 steps of EM, against the same tree from a
random start with as many steps. Teachers of the paper are deep generative models. Against it: bits a pixel that are no
fewer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims._series import series
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.density.circuits.distillation import Config, distil
from mixwell.density.circuits.trees import TreeCircuit

NOTE = ("Equal within the spread. The latents come from grey values of neighbouring pixels, the paper's from "
        "a deep model.")
TRAIN, STEPS = 1198, 20


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """Bits (1797, 64) and neighbourhoods (1797, 16, 16) in an order of the seed."""
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images / 16)
    order = torch.randperm(len(images), generator=generator(seed, "split"))
    grey = images[order]
    framed = F.pad(grey[:, None], (1, 1, 1, 1))
    around = F.unfold(framed, 4, stride=2).transpose(1, 2)
    inked = grey > 7 / 16
    return inked.double().flatten(1), around


def patch_of_pixel() -> Tensor:
    """Which of the sixteen patches each of the 64 pixels is in."""
    axis = torch.arange(8) // 2
    row, column = axis.repeat_interleave(8), axis.repeat(8)
    return 4 * row + column


def bits(circuit: TreeCircuit, x: Tensor) -> float:
    """Bits a pixel."""
    nats = -float(circuit.log_prob(x).mean())
    return nats / 64 / math.log(2)


def both(seed: int) -> tuple[float, float]:
    """Bits a pixel of the distilled circuit and of EM from chance."""
    x, around = digits(seed)
    x, fresh = x.tensor_split([TRAIN])
    node = patch_of_pixel()
    config = Config(n_states=16, max_states=16, em_steps=STEPS)
    found = distil(x, node, around[:TRAIN], generator(seed, "distil"), config)
    chance = TreeCircuit.random(found.circuit.parent, node, 16, 2, generator(seed, "chance"))
    for _ in range(STEPS):
        chance, _ = chance.em_step(x, 0.01)
    return bits(found.circuit, fresh), bits(chance, fresh)


def claim(bench: Bench) -> Evidence:
    """Held-out bits a pixel of both."""
    ours, theirs = series(bench, both)
    return weigh("Distilled latents make a better circuit than a random start.", "held-out bits a pixel", ours, theirs,
                 note=NOTE)
