"""Probabilistic integral circuits: compiled by quadrature, they beat the same circuit learnt by EM.

Paper: Probabilistic Integral Circuits.
Tried: scikit-learn's 8 x 8 digits as bits, Chow-Liu tree, 16 states a node; nets trained by 250 steps of Adam and
compiled, against 60 steps of EM on the same tree from a random start; bits a pixel on a third of the digits, held out.
Against it: bits a pixel that are no fewer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixwell.claims._series import series
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.density.circuits.integral import Config, IntegralCircuit, train
from mixwell.density.circuits.trees import TreeCircuit, chow_liu


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """Binary pixels (1198, 64) to learn from, and (599, 64) to test on."""
    from sklearn.datasets import load_digits

    grey = torch.from_numpy(load_digits().data)
    order = torch.randperm(len(grey), generator=generator(seed, "split"))
    inked = grey[order] > 7
    x = inked.float()
    return x[:1198], x[1198:]


def bits(log_prob_N: Tensor) -> float:
    """Mean bits a pixel."""
    nats = -float(log_prob_N.mean())
    return nats / 64 / math.log(2)


def both(seed: int) -> tuple[float, float]:
    """Bits a pixel of the integral circuit and of EM."""
    x, fresh = digits(seed)
    parent = chow_liu(x, 2)
    config = Config(points=16, units=32)
    model = IntegralCircuit(parent, config, generator(seed, "model"))
    batches = generator(seed, "batches")
    for _ in train(model, x, steps=250, batch=256, lr=0.01, generator=batches):
        pass
    circuit = TreeCircuit.random(parent, torch.arange(64), 16, 2, generator(seed, "circuit"))
    for _ in range(60):
        circuit, _ = circuit.em_step(x.double(), smoothing=0.01)
    with torch.no_grad():
        ours = model(fresh)
    theirs = circuit.log_prob(fresh.double())
    return bits(ours), bits(theirs)


def claim(bench: Bench) -> Evidence:
    """Held-out bits a pixel of the compiled circuit against EM's."""
    ours, theirs = series(bench, both)
    return weigh("Circuits compiled from integral circuits beat the same circuits learnt by EM.",
                 "held-out bits a pixel", ours, theirs,
                 note="The nets had 250 steps of Adam, far fewer than the paper's.")
