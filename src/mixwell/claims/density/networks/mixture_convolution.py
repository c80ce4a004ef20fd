"""Mixture convolution network: two layers read digits given as Gaussian mixtures better than a linear model can.

Paper: Gaussian Mixture Convolution Networks.
Tried: scikit-learn's 1797 digits of 8 x 8, each fitted by EM on its pixels with 16 components that start at pixels
drawn by their ink; 800 train, 997 test. The net has 4 channels of 8 components after its first layer, 4 Gaussians in a
kernel of radius 1, and learns for 8 epochs. Baseline: logistic regression on the 96 standardised parameters, components
sorted into four rows and each row from left to right; learning rate and weight of the penalty tuned. Beside it: a
perceptron of 64 units on the same. Against it: an accuracy that is no higher.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.core.rng import generator
from mixwell.density.networks.mixture_convolution import Config, Mixture, MixtureConvolutionNet

SIDE, COMPONENTS, TRAIN, EPOCHS, BATCH = 8, 16, 800, 8, 16
PIXEL_VARIANCE = 1 / 12  # of a square of side 1


def mixtures(images_BP: Tensor, draws: torch.Generator, steps: int = 25) -> Mixture:
    """Gaussian mixtures (B, 1, 16) of total weight 1, fitted to the ink of images (B, 64) by EM."""
    axis = torch.arange(SIDE, dtype=images_BP.dtype)
    x_PD = torch.cartesian_prod(axis, axis)
    ink_BP = images_BP / images_BP.sum(1, keepdim=True)
    mean = x_PD[torch.multinomial(ink_BP, COMPONENTS, generator=draws)]
    weight = torch.full((len(ink_BP), COMPONENTS), 1 / COMPONENTS, dtype=ink_BP.dtype)
    covariance = torch.eye(2, dtype=ink_BP.dtype).expand(*weight.shape, 2, 2)
    for _ in range(steps):
        weight, mean, covariance = em_step(ink_BP, x_PD, weight, mean, covariance)
    return Mixture(weight[:, None], mean[:, None], covariance[:, None])


def em_step(ink_BP: Tensor, x_PD: Tensor, weight: Tensor, mean: Tensor,
            covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (B, 16), means and covariances after a step; pixels are squares and no points."""
    gap = x_PD[:, None] - mean[:, None]
    precision = torch.linalg.inv(covariance)
    far = torch.einsum("bpnd,bnde,bpne->bpn", gap, precision, gap)
    size = covariance.logdet()[:, None]
    log = weight.log()[:, None] - 0.5 * (far + size)
    share = log.softmax(-1) * ink_BP[..., None]
    weight = share.sum(1).clamp(min=1e-6)
    share = share / weight[:, None]
    mean = share.mT @ x_PD
    gap = x_PD[:, None] - mean[:, None]
    scatter = torch.einsum("bpn,bpnd,bpne->bnde", share, gap, gap)
    pixel = PIXEL_VARIANCE * torch.eye(2, dtype=ink_BP.dtype)
    return weight, mean, scatter + pixel


def numbers(mixture: Mixture) -> np.ndarray:
    """Parameters (B, 96), components sorted into four rows and along each."""
    weight, mean, covariance = (part[:, 0] for part in mixture)
    row, column = mean.unbind(-1)
    by_row = row.argsort(1)
    columns = column.gather(1, by_row).unflatten(1, (4, 4))
    within = columns.argsort(-1)
    rows = by_row.unflatten(1, (4, 4))
    order = rows.gather(-1, within).flatten(1)
    upper = covariance.flatten(-2)[..., [0, 1, 3]]
    every = torch.cat([weight[..., None], mean, upper], -1)
    into = order[..., None].expand_as(every)
    in_order = every.gather(1, into)
    found: np.ndarray = in_order.flatten(1).numpy()
    return found


def part_of(mixture: Mixture, rows: Tensor) -> Mixture:
    """The mixtures of these items."""
    return Mixture(*(part[rows] for part in mixture))


def trained(mixture: Mixture, label_B: Tensor, train: Tensor, lr: float, seed: int) -> MixtureConvolutionNet:
    """The network after EPOCHS."""
    config = Config(channels=(4,), components=(8,), kernel_components=4, radius=1.0)
    net = MixtureConvolutionNet(1, 10, 2, config, generator(seed, "net"))
    draws = generator(seed, "order")
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * TRAIN // BATCH)
    for _ in range(EPOCHS):
        order = torch.randperm(TRAIN, generator=draws)
        for rows in train[order].split(BATCH):
            logits = net(part_of(mixture, rows))
            loss = nn.functional.cross_entropy(logits, label_B[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: MixtureConvolutionNet, mixture: Mixture, label_B: Tensor, test: Tensor) -> float:
    """Of the network on test items."""
    logits = [net(part_of(mixture, rows)) for rows in test.split(BATCH)]
    right = torch.cat(logits).argmax(1) == label_B[test]
    return float(right.float().mean())


class Problem(NamedTuple):
    """Digits as mixtures, and which of them are known."""

    mixture: Mixture
    label_B: Tensor
    train: Tensor
    test: Tensor


def problem(seed: int) -> Problem:
    """Fit the digits in an order of the seed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, label_B = torch.from_numpy(digits.data).float(), torch.from_numpy(digits.target)
    draws = generator(seed, "digits")
    train, test = torch.randperm(len(label_B), generator=draws).tensor_split([TRAIN])
    return Problem(mixtures(images, draws), label_B, train, test)


def by_network(bench: Bench, seed: int, *, lr: float) -> float:
    """Test accuracy of the network."""
    mixture, label_B, train, test = problem(seed)
    net = trained(mixture, label_B, train, lr, seed)
    return accuracy(net, mixture, label_B, test)


def on_numbers(seed: int, model: Any) -> float:
    """Test accuracy of a classifier on the components' standardised parameters."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    mixture, label_B, train, test = problem(seed)
    x = numbers(mixture)
    scaled = make_pipeline(StandardScaler(), model).fit(x[train], label_B[train])
    return float(scaled.score(x[test], label_B[test]))


def linear(bench: Bench, seed: int, *, C: float) -> float:
    """Test accuracy of logistic regression."""
    from sklearn.linear_model import LogisticRegression

    return on_numbers(seed, LogisticRegression(C=C, max_iter=1000))


def perceptron(bench: Bench, seed: int) -> float:
    """Test accuracy of a perceptron of 64 units."""
    from sklearn.neural_network import MLPClassifier

    return on_numbers(seed, MLPClassifier(64, max_iter=300, random_state=seed))


CLAIM = Claim("A network of two mixture convolutions beats logistic regression on the components' parameters.",
              "test accuracy", lower_is_better=False,
              sides={"method": Side(by_network, {}, {"lr": (3e-3, 1e-2, 3e-2)}),
                     "baseline": Side(linear, {}, {"C": (0.01, 0.1, 1.0)}), "perceptron": Side(perceptron)})
