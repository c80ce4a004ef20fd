"""Mixture-of-Mamba: projections of their own for each modality reach the dense block's loss in fewer steps.

Paper: Mixture-of-Mamba: Enhancing Multi-Modal State-Space Models with Modality-Aware Sparsity.
Tried: sequences of 64 symbols in stretches of sixteen, by turns a Markov chain over 32 symbols and a quantised sine
wave over 32 others; one block of width 32 with all four projections split by modality, against none split; 300 steps
of Adam, each at the best of three rates at every seed. Against it: that half of the steps or more are needed to the
loss that the dense block ends with.
"""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.claims._methods import build
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.grids import RATES
from mixwell.core.rng import generator
from mixwell.core.routing import Context

SYMBOLS, STRETCH, LENGTH, WIDTH, STEPS, ROWS = 32, 16, 65, 32, 300, 16

ALL = ("in", "x", "dt", "out")  # projections


class TwoModalities:
    """Text-like and wave-like stretches in turn."""

    def __init__(self, seed: int) -> None:
        self.draws = generator(seed, "modalities")
        logits = 2.5 * torch.randn(SYMBOLS, SYMBOLS, generator=self.draws)
        self.chain = logits.softmax(1)

    def text(self) -> Tensor:
        """Walks of the chain [B, T]."""
        symbol = torch.randint(SYMBOLS, (ROWS,), generator=self.draws)
        walk = [symbol]
        for _ in range(1, LENGTH):
            ahead = self.chain[symbol]
            drawn = torch.multinomial(ahead, 1, generator=self.draws)
            symbol = drawn.squeeze(1)
            walk.append(symbol)
        return torch.stack(walk, 1)

    def wave(self) -> Tensor:
        """Sines of random pace and phase in SYMBOLS steps [B, T]."""
        pace, phase = torch.rand(2, ROWS, 1, generator=self.draws)
        rate = 0.02 + 0.1 * pace
        cycles = phase + rate * torch.arange(LENGTH)
        angle = 2 * math.pi * cycles
        level = (angle.sin() + 1) / 2 * SYMBOLS
        return level.long().clamp_max(SYMBOLS - 1)

    def batch(self) -> tuple[Tensor, Tensor]:
        """(symbols [B, T], modality of each symbol [B, T])."""
        text = self.text()
        wave = SYMBOLS + self.wave()
        turns = torch.arange(LENGTH) // STRETCH % 2
        modality = turns.expand(ROWS, LENGTH)
        symbols = torch.where(modality == 0, text, wave)
        return symbols, modality


class Network(nn.Module):
    """Embeddings, one block, and a map back to symbols."""

    def __init__(self, seed: int, split: tuple[str, ...]) -> None:
        super().__init__()
        draws = generator(seed, "block")
        options = {"num_modalities": 2, "split": split, "state_dim": 8}
        self.block = build("sequence.mixture_of_mamba", WIDTH, generator=draws, **options)
        self.embed = start(draws)
        self.head = start(draws)

    def forward(self, symbols: Tensor, modality: Tensor) -> Tensor:
        """Logits of the next symbols [B, T, 2 SYMBOLS]."""
        x = self.embed[symbols]
        known = Context(labels_T=modality.flatten())
        mixed = self.block(norm(x), context=known)
        hidden = x + mixed.y_BTD
        return norm(hidden) @ self.head.T


def norm(x: Tensor) -> Tensor:
    """Rows at root mean square 1."""
    return F.rms_norm(x, (WIDTH,))


def start(draws: torch.Generator) -> nn.Parameter:
    """A row for each symbol."""
    drawn = torch.randn(2 * SYMBOLS, WIDTH, generator=draws)
    return nn.Parameter(0.3 * drawn)


def losses(seed: int, split: tuple[str, ...], lr: float) -> list[float]:
    """Cross-entropy in nats at each step."""
    data = TwoModalities(seed)
    network = Network(seed, split)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    found = []
    for _ in range(STEPS):
        symbols, modality = data.batch()
        known, following = symbols[:, :-1], symbols[:, 1:].flatten()
        logits = network(known, modality[:, :-1])
        rows = logits.flatten(0, 1)
        loss = F.cross_entropy(rows, following)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def share_of_steps(split: list[float], goal: float) -> float:
    """Steps until the mean loss of twenty is at the goal, over all steps."""
    for step in range(20, STEPS):
        if statistics.fmean(split[step - 20 : step]) <= goal:
            return step / STEPS
    return 1.0


CLAIM = Claim("Projections by modality reach the dense block's loss in less than half of the steps.",
              "share of the steps to the dense block's final loss", baseline=0.5)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Share of the steps to the least loss of the dense block's last twenty, means of twenty on both sides."""
    ends, shares = [], []
    for lr in RATES:
        dense = losses(seed, (), lr)
        ends.append(statistics.fmean(dense[-20:]))
    goal = min(ends)
    for lr in RATES:
        split = losses(seed, ALL, lr)
        shares.append(share_of_steps(split, goal))
    return {"method": min(shares)}
