"""Mixture convolution network: two layers read digits given as Gaussian mixtures better than a linear model can.

Paper: Gaussian Mixture Convolution Networks.
Tried: scikit-learn's 1797 digits of 8 x 8, each fitted by EM on its pixels with 16 components that start at pixels
drawn by their ink; 800 train, 997 test. The net has 4 channels of 8 components after its first layer, 4 Gaussians in a
kernel of radius 1, and learns for 8 epochs. Baseline: logistic regression on the 96 standardised parameters, components
sorted into four rows and each row from left to right; in the values also a perceptron of 64 units on the same.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.density.networks.mixture_convolution import Config, Mixture, MixtureConvolutionNet

SIDE, COMPONENTS, TRAIN, EPOCHS, BATCH = 8, 16, 800, 8, 16
PIXEL_VARIANCE = 1 / 12  # of a square of side 1

NOTE = ("The net underfits: with the worst seed it reads 0.66 of its training digits, and 0.73 after 24 epochs. "
        "Believed to be why: kernels as narrow as the components see few neighbours, and the integral at the end "
        "forgets where a feature lay, which the baseline knows. Tried once after this run, and not in it: radius 2.5, "
        "one of the authors' own, reads 0.88 of that seed's test digits, still below the baseline.")


def mixtures(images_BP: Tensor, draws: torch.Generator, steps: int = 25) -> Mixture:
    """Gaussian mixtures (B, 1, 16) of total weight 1, fitted to the ink of images (B, 64) by EM."""
    axis = torch.arange(SIDE, dtype=images_BP.dtype)
    x_PD = torch.cartesian_prod(axis, axis)
    ink_BP = images_BP / images_BP.sum(1, keepdim=True)
    mean = x_PD[torch.multinomial(ink_BP, COMPONENTS, generator=draws)]
    weight = ink_BP.new_full((len(ink_BP), COMPONENTS), 1 / COMPONENTS)
    eye = torch.eye(2, dtype=ink_BP.dtype)
    covariance = eye.expand(*weight.shape, 2, 2)
    for _ in range(steps):
        gap = x_PD[:, None] - mean[:, None]
        far = torch.einsum("bpnd,bnde,bpne->bpn", gap, torch.linalg.inv(covariance), gap)
        share = (weight.log()[:, None] - 0.5 * (far + covariance.logdet()[:, None])).softmax(-1) * ink_BP[..., None]
        weight = share.sum(1).clamp(min=1e-6)
        share = share / weight[:, None]
        mean = share.mT @ x_PD
        gap = x_PD[:, None] - mean[:, None]
        covariance = torch.einsum("bpn,bpnd,bpne->bnde", share, gap, gap) + PIXEL_VARIANCE * eye
    return Mixture(weight[:, None], mean[:, None], covariance[:, None])


def numbers(mixture: Mixture) -> np.ndarray:
    """Parameters (B, 96), components sorted into four rows and along each."""
    weight, mean, covariance = (part[:, 0] for part in mixture)
    rows = mean[..., 0].argsort(1).unflatten(1, (4, 4))
    across = mean[..., 1].gather(1, rows.flatten(1)).unflatten(1, (4, 4)).argsort(-1)
    order = rows.gather(-1, across).flatten(1)[..., None].expand(-1, -1, 6)
    upper = covariance.flatten(-2)[..., [0, 1, 3]]
    found: np.ndarray = torch.cat([weight[..., None], mean, upper], -1).gather(1, order).flatten(1).numpy()
    return found


def accuracy(mixture: Mixture, label_B: Tensor, train: Tensor, test: Tensor, seed: int) -> float:
    """Of the network on test items."""
    config = Config(channels=(4,), components=(8,), kernel_components=4, radius=1.0)
    net, draws = MixtureConvolutionNet(1, 10, 2, config, generator(seed, "net")), generator(seed, "order")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    steps = EPOCHS * TRAIN // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for rows in train[torch.randperm(TRAIN, generator=draws)].split(BATCH):
            loss = nn.functional.cross_entropy(net(Mixture(*(part[rows] for part in mixture))), label_B[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        logits = torch.cat([net(Mixture(*(part[rows] for part in mixture))) for rows in test.split(BATCH)])
    return float((logits.argmax(1) == label_B[test]).float().mean())


def claim(bench: Bench) -> Evidence:
    """Test accuracy of the network and of logistic regression."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    digits = load_digits()
    images, label = torch.from_numpy(digits.data).float(), torch.from_numpy(digits.target)
    ours: list[float] = []
    linear: list[float] = []
    perceptron: list[float] = []
    for seed in bench.seeds:
        draws = generator(seed, "digits")
        train, test = torch.randperm(len(label), generator=draws).tensor_split([TRAIN])
        mixture = mixtures(images, draws)
        x = numbers(mixture)
        ours.append(accuracy(mixture, label, train, test, seed))
        for model, found in ((LogisticRegression(max_iter=1000), linear),
                             (MLPClassifier(64, max_iter=300, random_state=seed), perceptron)):
            fitted = make_pipeline(StandardScaler(), model).fit(x[train], label[train])
            found.append(float(fitted.score(x[test], label[test])))
    evidence = weigh("A network of two mixture convolutions beats logistic regression on the components' parameters.",
                     "test accuracy", ours, linear, lower_is_better=False, note=NOTE)
    evidence.values["perceptron"] = perceptron
    return evidence
