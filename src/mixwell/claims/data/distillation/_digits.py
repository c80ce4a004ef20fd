"""Handwritten digits in training and test images, networks for them, and what students of a few images reach."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from mixwell.claims._series import mean
from mixwell.core.rng import generator
from mixwell.data.compact import Build, Compact, ConvNet, Images, Training, accuracy, drawn, trained

LEARNED = 1200


def images(seed: int, side: int = 8) -> tuple[Images, Images]:
    """1,200 images from 0 to 1 to learn from and 597 to test on, grown to a larger side where asked."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    flat = torch.tensor(pixels / 16, dtype=torch.float32)
    whole = flat.reshape(-1, 1, 8, 8)
    if side > 8:
        whole = functional.interpolate(whole, size=(side, side), mode="bilinear")
    every = Images(whole, torch.tensor(classes))
    draws = generator(seed, "distilled digits")
    count = len(whole)
    order = torch.randperm(count, generator=draws)
    first, rest = order.split([LEARNED, count - LEARNED])
    return every.rows(first), every.rows(rest)


def convolutions(side: int = 8) -> Build:
    """Networks of two convolutions with batch norm."""
    return lambda draws: ConvNet(1, side, 10, draws, width=8)


def perceptron(draws: torch.Generator) -> nn.Module:
    """64 pixels, 32 units, 10 classes."""
    flat = nn.Flatten()
    bent = nn.ReLU()
    into = drawn(nn.Linear, draws, 64, 32)
    out = drawn(nn.Linear, draws, 32, 10)
    return nn.Sequential(flat, into, bent, out)


def reached(made: Compact, test: Images, build: Build, training: Training, seeds: Sequence[int],
            teacher: nn.Module | None = None) -> float:
    """Test accuracy of fresh networks that learned from the compact set alone, in their mean."""
    small = made.training()
    found = []
    for seed in seeds:
        draws = generator(seed, "student")
        student = trained(build(draws), small, training, draws, teacher)
        found.append(accuracy(student, test))
    return mean(found)
