"""Noise shaping: condensed bits of random features are closer to the kernel than rounded features of as many bits.

Paper: Sigma-Delta and Distributed Noise-Shaping Quantization Methods for Random Fourier Features.
Tried: the Gaussian kernel of 300 images of digits, 1024 bits an image on both sides; first-order bits in blocks of 7,
15 or 63 against cosines rounded to nearest in 2, 4 or 8 bits, each chosen on a seed of its own.
Against it: a mean absolute error of the kernel that is no lower.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.core.rng import generator
from mixwell.precision.activations import noise_shaping
from mixwell.precision.activations.noise_shaping import Config

BITS, ROWS, WIDTH = 1024, 300, 2.5  # of an image scaled to values up to 1


def images(seed: int) -> Tensor:
    """Rows of digits."""
    from sklearn.datasets import load_digits

    data = torch.from_numpy(load_digits().data) / 16
    order = torch.randperm(len(data), generator=generator(seed, "digits"))
    return data[order[:ROWS]]


def error(features: Tensor, x: Tensor) -> float:
    """Mean absolute error of the kernel that features stand for."""
    found = features @ features.T
    whole = noise_shaping.kernel(x, x, WIDTH)
    return float((found - whole).abs().mean())


def shaped(bench: Bench, seed: int, block: int) -> float:
    """Condensed bits."""
    x = images(seed)
    each = math.log2(block + 1)
    config = Config(features=int(BITS / each), block=block, width=WIDTH)
    w, b = noise_shaping.drawn(x.shape[1], config, generator(seed, "waves"))
    z = noise_shaping.waves(x, w, b)
    q, _ = noise_shaping.shaped(z, config)
    return error(noise_shaping.condensed(q, config), x)


def rounded(bench: Bench, seed: int, bits: int) -> float:
    """Cosines on 2^bits steps from -1 to 1."""
    x = images(seed)
    count = BITS // bits
    config = Config(features=count, block=1, width=WIDTH)
    w, b = noise_shaping.drawn(x.shape[1], config, generator(seed, "waves"))
    z = noise_shaping.waves(x, w, b)
    step = 2 / (2**bits - 1)
    levels = ((z + 1) / step).round()
    on_steps = levels * step - 1
    return error(on_steps * (2 / count) ** 0.5, x)


SIDES: dict[str, Any] = {"method": Side(shaped, {}, {"block": [7, 15, 63]}),
                         "baseline": Side(rounded, {}, {"bits": [2, 4, 8]})}
CLAIM = Claim("Condensed bits are closer to the kernel than rounded features.", "mean absolute error of the kernel",
              sides=SIDES)
