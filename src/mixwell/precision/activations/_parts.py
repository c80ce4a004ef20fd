"""What methods of this family give back."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Rounded(NamedTuple):
    """What came out, what would have come out without rounding, and how much is kept."""

    values: Tensor
    exact: Tensor
    bits: float  # of all that is kept, scales and exponents included
