"""Learning curves of small networks on handwritten digits, all trained at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mixwell.core.rng import generator

COUNT, EPOCHS, BATCH, HIDDEN, TRAINED = 96, 27, 32, 16, 1200


def table(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Validation errors [96, 27], and what describes the configurations: learning rate, start, decay, each 0 to 1."""
    draws = generator(seed, "digits search")
    features_ND = torch.rand(COUNT, 3, generator=draws)
    rate_N, start_N, decay_N = features_ND.unbind(1)
    rates_N = 10 ** (4 * rate_N - 3)  # 0.001 to 10
    starts_N = 10 ** (2 * start_N - 1.5)
    decays_N = 10 ** (4 * decay_N - 5)
    images, classes = _digits(draws)
    weights = [_start(starts_N, 64, HIDDEN, draws), _start(starts_N, HIDDEN, 10, draws)]
    errors = []
    for _ in range(EPOCHS):
        order = torch.randperm(TRAINED, generator=draws)
        for some in order.split(BATCH):
            weights = _stepped(weights, images[some], classes[some], rates_N, decays_N)
        errors.append(_errors(weights, images[TRAINED:], classes[TRAINED:]))
    return torch.stack(errors, 1).double().numpy(), features_ND.double().numpy()


def _digits(draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [1797, 64] from 0 to 1 and their classes, shuffled."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=draws)
    images = torch.tensor(pixels / 16, dtype=torch.float32)
    labels = torch.tensor(classes)
    return images[order], labels[order]


def _start(starts_N: Tensor, into: int, out: int, draws: torch.Generator) -> Tensor:
    noise = torch.randn(COUNT, into, out, generator=draws)
    scale_N = starts_N / into**0.5
    return scale_N[:, None, None] * noise


def _output(weights: list[Tensor], images: Tensor) -> Tensor:
    """Logits [N, B, 10]."""
    first, second = weights
    hidden = torch.relu(images @ first)
    return hidden @ second


def _stepped(weights: list[Tensor], images: Tensor, classes: Tensor, rates_N: Tensor,
             decays_N: Tensor) -> list[Tensor]:
    """One step of gradient descent of every network."""
    weights = [weight.requires_grad_() for weight in weights]
    log_share = _output(weights, images).log_softmax(-1)
    place = torch.arange(len(classes))
    told = log_share[:, place, classes]
    gradients = torch.autograd.grad(-told.mean(1).sum(), weights)
    rate = rates_N[:, None, None]
    decay = decays_N[:, None, None]
    pairs = zip(weights, gradients, strict=True)
    return [(weight - rate * (slope + decay * weight)).detach() for weight, slope in pairs]


def _errors(weights: list[Tensor], images: Tensor, classes: Tensor) -> Tensor:
    """Share of the validation images that each network gets wrong: [N]."""
    with torch.no_grad():
        wrong = _output(weights, images).argmax(-1) != classes
    return wrong.float().mean(1)
