"""Handwritten digits and a small perceptron, for claims of what it is trained on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixwell.core.rng import generator
from mixwell.data.compact import drawn

HELD = 500


class Labelled(NamedTuple):
    """Rows of 64 pixels from 0 to 1, and classes."""

    x: Tensor
    y: Tensor

    def rows(self, places: Tensor) -> Labelled:
        """Some of them."""
        return Labelled(self.x[places], self.y[places])


def digits(seed: int) -> tuple[Labelled, Labelled]:
    """1,297 to learn from and 500 to test on."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    draws = generator(seed, "digits")
    order = torch.randperm(len(classes), generator=draws)
    x = torch.tensor(pixels / 16, dtype=torch.float32)
    every = Labelled(x, torch.tensor(classes))
    test, learned = order.split([HELD, len(order) - HELD])
    return every.rows(learned), every.rows(test)


def perceptron(draws: torch.Generator) -> nn.Module:
    """64 pixels, 32 units, 10 classes."""
    into = drawn(nn.Linear, draws, 64, 32)
    bent = nn.ReLU()
    out = drawn(nn.Linear, draws, 32, 10)
    return nn.Sequential(into, bent, out)


def step(network: nn.Module, batch: Labelled, lr: float) -> float:
    """One step of gradient descent; the loss before it."""
    loss = functional.cross_entropy(network(batch.x), batch.y)
    weights = list(network.parameters())
    slopes = torch.autograd.grad(loss, weights)
    with torch.no_grad():
        for weight, slope in zip(weights, slopes):
            weight.sub_(lr * slope)
    return loss.item()


@torch.no_grad()
def right(network: nn.Module, data: Labelled) -> Tensor:
    """Which rows it tells rightly: [N]."""
    return network(data.x).argmax(1) == data.y


def accuracy(network: nn.Module, data: Labelled) -> float:
    """Share of the rows that it tells rightly."""
    told_N = right(network, data)
    return told_N.double().mean().item()


@torch.no_grad()
def loss(network: nn.Module, data: Labelled) -> float:
    """Mean cross-entropy."""
    return functional.cross_entropy(network(data.x), data.y).item()
