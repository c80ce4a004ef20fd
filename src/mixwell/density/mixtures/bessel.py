"""Logarithms of modified Bessel functions of the first kind, without overflow for any order or argument.

Orders from 80 up use Olver's uniform expansion, whose terms fall like order^-n; smaller ones are reached from there by
the downward recurrence I_{v-1} = I_{v+1} + (2 v / x) I_v, in ratios, which is stable. float64 throughout.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Olver's polynomials u_n(p) / p^n in powers of p^2 (NIST Digital Library of Mathematical Functions, 10.41.10-12).
_OLVER = (
    (1 / 8, -5 / 24),
    (9 / 128, -77 / 192, 385 / 1152),
    (75 / 1024, -4563 / 5120, 17017 / 9216, -85085 / 82944),
    (3675 / 32768, -96833 / 40960, 144001 / 16384, -7436429 / 663552, 37182145 / 7962624),
    (59535 / 262144, -67608983 / 9175040, 250881631 / 5898240, -108313205 / 1179648, 5391411025 / 63700992,
     -5391411025 / 191102976),
)
_GAUSS = [(0.5 * (t + 1), 0.5 * w) for t, w in ((-0.9061798459386640, 0.2369268850561891),
                                                 (-0.5384693101056831, 0.4786286704993665),
                                                 (0.0, 0.5688888888888889),
                                                 (0.5384693101056831, 0.4786286704993665),
                                                 (0.9061798459386640, 0.2369268850561891))]
_SMALLEST = 80.0  # order from which five terms give full double precision


def log_bessel_i(order: float, x: Tensor) -> Tensor:
    """log I_order(x) for order >= 0 and x > 0; -inf at x = 0 (0 where the order is 0).

    x: any shape, float64. Reference: DLMF 10.41.3 and 10.29.1; Plesner, Sorensen, Hauberg (2024), arXiv:2409.08729,
    compute the same on a logarithmic scale with other regions.
    """
    x = x.double()
    positive = x > 0
    safe = torch.where(positive, x, 1.0)
    steps = _steps_down(order)
    log_i = _uniform(order + steps, safe)
    if steps:
        ratio = _uniform_ratio(order + steps, safe)
    inverse = safe.reciprocal()
    for step in range(steps, 0, -1):
        v = order + step
        gain = ratio + inverse * (2 * v)  # I_{v-1} / I_v
        log_i = log_i + gain.log()
        ratio = gain.reciprocal()
    at_zero = 0.0 if order == 0 else -torch.inf
    return torch.where(positive, log_i, at_zero)


def _steps_down(order: float) -> int:
    """How far above an order the expansion for large ones is taken."""
    short = math.ceil(_SMALLEST - order)
    return max(0, short)


def bessel_ratio(order: float, x: Tensor) -> Tensor:
    """I_{order+1}(x) / I_order(x), between 0 and 1."""
    x = x.double()
    safe = x.clamp(min=1e-300)
    steps = _steps_down(order)
    ratio = _uniform_ratio(order + steps, safe)
    inverse = safe.reciprocal()
    for step in range(steps, 0, -1):
        v = order + step
        gain = ratio + inverse * (2 * v)
        ratio = gain.reciprocal()
    return torch.where(x > 0, ratio, 0.0)


def _uniform(v: float, x: Tensor) -> Tensor:
    """log I_v(x) = v eta - log(2 pi v) / 2 - log(1 + z^2) / 4 + log sum_n u_n(p) / v^n, z = x / v."""
    z = x / v
    root = torch.hypot(z, torch.ones_like(x))
    eta = root + torch.log(z) - torch.log1p(root)
    half_log = 0.5 * math.log(2 * math.pi * v)
    return v * eta - half_log + _correction(v, x)


def _uniform_ratio(v: float, x: Tensor) -> Tensor:
    """I_{v+1}(x) / I_v(x); the leading terms, which nearly cancel, by the integral of -asinh(t / x) from v to v + 1."""
    terms = [weight * torch.asinh((v + t) / x) for t, weight in _GAUSS]
    leading = sum(terms)
    half_log = 0.5 * math.log1p(1 / v)
    log_ratio = -leading - half_log + _correction(v + 1, x)
    return torch.exp(log_ratio - _correction(v, x))


def _correction(v: float, x: Tensor) -> Tensor:
    """log sum_n u_n(p) / v^n - log(1 + z^2) / 4."""
    root = torch.hypot(x / v, torch.ones_like(x))
    p = 1 / root
    series = torch.zeros_like(x)
    for n, row in enumerate(_OLVER, start=1):
        polynomial = torch.zeros_like(x)
        for coefficient in reversed(row):
            polynomial = polynomial * p**2 + coefficient
        power = (p / v) ** n
        series = series + polynomial * power
    log_root = root.log()
    return torch.log1p(series) - 0.5 * log_root

