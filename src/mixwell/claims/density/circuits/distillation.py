"""Latent variable distillation: a circuit started from a teacher's clusters beats the same circuit started by chance.

Paper: Understanding the Distillation Process from Deep Generative Models to Tractable Probabilistic Circuits.
Tried: scikit-learn's digits as bits, 16 patches of 2 x 2 pixels, 16 states; the teacher is the grey values of the patch
and its neighbours; bits a pixel on a third of the digits, held out, after 20 steps of EM, against the same tree from
the likeliest of three random starts with as many steps on the same rows. Teachers of the paper are deep generative
models. Against it: bits a pixel that are no fewer, or no fewer than from as many starts on the Chow-Liu tree of the
patches' bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.core.rng import generator
from mixwell.density.circuits.distillation import Config, distil
from mixwell.density.circuits.trees import TreeCircuit, chow_liu

TRAIN, STEPS, STATES = 1198, 20, 16

CLAIM = Claim("Distilled latents make a better circuit than a random start.", "held-out bits a pixel",
              provided=(Comparison(baseline="tree of the bits"),))


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


def by_chance(parent: tuple[int, ...], x: Tensor, seed: int) -> TreeCircuit:
    """The likeliest of three circuits on this tree that EM leads to from random starts."""
    draws = generator(seed, "chance")
    reached = []
    for _ in range(3):
        circuit = TreeCircuit.random(parent, patch_of_pixel(), STATES, 2, draws)
        for _ in range(STEPS):
            circuit, height = circuit.em_step(x, 0.01)
        reached.append((height, circuit))
    return max(reached, key=lambda one: one[0])[1]


def codes(x: Tensor) -> Tensor:
    """The four bits of every patch as a number below 16 (N, 16)."""
    order = patch_of_pixel().argsort(stable=True)
    bits_NP4 = x[:, order].unflatten(1, (16, 4)).long()
    return bits_NP4 @ torch.tensor([8, 4, 2, 1])


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits a pixel of the distilled circuit and of EM from chance."""
    x, around = digits(seed)
    x, fresh = x.tensor_split([TRAIN])
    config = Config(n_states=STATES, max_states=STATES, em_steps=STEPS, valid_share=1e-6)  # one row is held out
    found = distil(x, patch_of_pixel(), around[:TRAIN], generator(seed, "distil"), config)
    own_tree = chow_liu(codes(x), 16)
    circuits = {"method": found.circuit, "baseline": by_chance(found.circuit.parent, x, seed),
                "tree of the bits": by_chance(own_tree, x, seed)}
    return {name: bits(circuit, fresh) for name, circuit in circuits.items()}
