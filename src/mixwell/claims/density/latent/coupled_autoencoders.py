"""Coupled mixture autoencoders: two arms that must agree cluster digits better than one mixture VAE.

Paper: Mixture Representation Learning with Coupled Autoencoders.
Tried: scikit-learn's digits in quarters of a grey level range of 16, so that their variance in nats is that of MNIST in
[0, 1]; ten categories, ten state dimensions, every copy turned, scaled and shifted a little at random; accuracy under
the best matching after 2000 steps of both, with the same nets (two arms cost twice as much a step), learning rate
tuned. Beside it: a Gaussian mixture on the same rows, and how often the two arms agree. Against it: an accuracy that is
no higher.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims._judging import matched_accuracy
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.density.latent.coupled_autoencoders import CoupledAutoencoders


def moved(x_ND: Tensor, generator: torch.Generator) -> Tensor:
    """Digits (N, 64) turned by up to 0.2 radians, scaled by up to a tenth, shifted by up to half a pixel."""
    drawn_N4 = torch.rand(len(x_ND), 4, generator=generator, dtype=x_ND.dtype)
    u_N4 = 2 * drawn_N4 - 1
    turn_N, size_N, shift_N, other_N = u_N4.unbind(1)
    angle_N, scale_N = 0.2 * turn_N, 1 + 0.1 * size_N
    cos_N, sin_N = scale_N * angle_N.cos(), scale_N * angle_N.sin()
    first = torch.stack([cos_N, -sin_N, 0.125 * shift_N], 1)
    second = torch.stack([sin_N, cos_N, 0.125 * other_N], 1)
    maps = torch.stack([first, second], 1)
    images = x_ND.view(-1, 1, 8, 8)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).flatten(1)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Rows (1797, 64) in quarters of a grey level, and their digits."""
    from sklearn.datasets import load_digits

    table, digit = load_digits(return_X_y=True)
    return (table / 4).astype(np.float32), digit


def by_arms(bench: Bench, seed: int, *, arms: int, lr: float) -> dict[str, float]:
    """Cluster accuracy of so many arms, and how often they agree."""
    x, digit = digits()
    options: dict[str, Any] = {"state_dim": 10, "augment": moved, "random_state": seed}
    model = CoupledAutoencoders(n_arms=arms, lr=lr, **options).fit(x)
    return {"accuracy": matched_accuracy(digit, model.labels_), "agreement": model.agreement_}


def by_mixture(bench: Bench, seed: int) -> dict[str, float]:
    """Cluster accuracy of a Gaussian mixture."""
    from sklearn.mixture import GaussianMixture

    x, digit = digits()
    found = GaussianMixture(10, reg_covar=0.1, random_state=seed).fit_predict(x)
    return {"accuracy": matched_accuracy(digit, found)}


RATES = {"lr": (3e-4, 1e-3, 3e-3)}

CLAIM = Claim("Two coupled arms cluster digits better than one mixture VAE.", "cluster accuracy of digits",
              quantity="accuracy", lower_is_better=False,
              sides={"method": Side(by_arms, {"arms": 2}, RATES), "baseline": Side(by_arms, {"arms": 1}, RATES),
                     "Gaussian mixture": Side(by_mixture)})
