"""What the claims on one matrix share: inputs, and how much of its outputs a rounding loses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def plain(coded: Any) -> Tensor:
    """The numbers that codes stand for, float64."""
    weight = coded.weight()
    found: Tensor = weight.dequantised(torch.float64)
    return found


def squares(change: Tensor, moments_II: Tensor) -> float:
    """tr(D H D^T)."""
    wide = change.double()
    outputs = wide @ moments_II
    products = outputs * wide
    return float(products.sum())


def lost(coded: Any, weight: Tensor, moments_II: Tensor) -> float:
    """The share of the outputs' squares that codes lose over inputs with these second moments."""
    change = plain(coded) - weight
    whole = squares(weight, moments_II)
    return squares(change, moments_II) / whole


def moments(rows: Tensor) -> Tensor:
    """Mean of x x^T."""
    wide = rows.double()
    return wide.T @ wide / len(wide)


def falling(draws: torch.Generator, rows: int, width: int) -> Tensor:
    """Rows of inputs whose variances fall as 1 / k along random directions, float64."""
    mixing = torch.randn(width, width, generator=draws, dtype=torch.float64)
    turned, _ = torch.linalg.qr(mixing)
    x = torch.randn(rows, width, generator=draws, dtype=torch.float64)
    numbers = torch.arange(1, width + 1)
    return (x * numbers.rsqrt()) @ turned
