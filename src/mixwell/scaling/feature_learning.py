"""What a network becomes when its layers widen, by the exponents of width of its multipliers, starts and steps.

**Equation:** W_l = n^-a_l w_l, w_l ~ N(0, n^(-2 b_l)), step eta n^-c. Features move by n^-r a step,
    r = min(a_L + b_L, 2 a_L + c) + c - 1 + min over l < L of (2 a_l + [l = 1]), L the last layer. Stable where
    a_1 + b_1 = 0, a_l + b_l = 1/2 between, a_L + b_L >= 1/2, r >= 0, 2 a_L + c >= 1 and a_L + b_L + r >= 1; trivial
    where both last ones are above 1. Stable and not trivial: features are learned at r = 0, a kernel at r > 0.
    (a + t, b - t, c - 2 t) is the same network.
**Shapes:** exponents a, b [L] in; the regime, or multiplier, deviation and rate of a layer at a width, out.
**Reference:** Yang and Hu 2020 (2011.14522), sections 3 and 4.
**Differs:** the limits themselves are not computed; `slope` checks the exponents on trained networks of several widths.
**Fails when:** used for Adam (other exponents), for width of a few dozen units, or on one small step from a random last
    layer, which hides what grows.
**Cost:** O(L).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """Exponents of a network of two layers and more, the first first; `ValueError` for other shapes."""

    a: tuple[float, ...] = (-0.5, 0.0, 0.5)  # multipliers
    b: tuple[float, ...] = (0.5, 0.5, 0.5)  # deviations at the start
    c: float = 0.0  # the learning rate of gradient descent

    def __post_init__(self) -> None:
        layers = len(self.a)
        starts = len(self.b)
        if layers != starts or layers < 2:
            raise ValueError(f"a has {layers} exponents and b {starts}; expected one a layer, 2 or more")

    def shifted(self, t: float) -> Config:
        """The same network in other exponents."""
        a = tuple(one + t for one in self.a)
        b = tuple(one - t for one in self.b)
        return Config(a=a, b=b, c=self.c - 2 * t)


MAXIMAL_UPDATE = Config()
TANGENT_KERNEL = Config(a=(0.0, 0.5, 0.5), b=(0.0, 0.0, 0.0))
STANDARD = Config(a=(0.0, 0.0, 0.0), b=(0.0, 0.5, 0.5), c=1.0)  # with the largest rate that is stable


class Regime(NamedTuple):
    """What the limit of infinite width does."""

    r: float  # features move by n^-r
    stable: bool  # nothing grows without bound with width
    trivial: bool  # the output stays where it started

    @property
    def kind(self) -> str:
        """`unstable`, `trivial`, `features` or `kernel`."""
        if not self.stable:
            return "unstable"
        if self.trivial:
            return "trivial"
        return "kernel" if self.r > EXACT else "features"


class Layer(NamedTuple):
    """One layer at one width."""

    multiplier: float
    deviation: float
    rate: float  # of its raw weight


EXACT = 1e-9  # exponents closer than this are equal


@method(title="Feature learning in infinite width", year=2020,
        paper="Feature Learning in Infinite-Width Neural Networks")
def feature_learning(config: Config) -> Regime:
    """The regime of some exponents."""
    r = _slowness(config)
    *before, last = np.add(config.a, config.b)
    even = [0.0] + [0.5] * (len(before) - 1)
    begins = np.allclose(before, even, rtol=0, atol=EXACT)
    own = 2 * config.a[-1] + config.c - 1  # the output moves by n^-own through the last layer's step
    through = last + r - 1  # and through the features'
    bounded = min(last - 0.5, r, own, through) >= -EXACT
    trivial = min(own, through) > EXACT
    return Regime(float(r), bool(begins and bounded), bool(trivial))


def _slowness(config: Config) -> float:
    """r, by the layer whose step moves the features most."""
    *before, last = config.a
    start = last + config.b[-1]
    step = 2 * last + config.c
    backward = min(start, step)
    moved = [2 * exponent for exponent in before]
    moved[0] += 1
    return backward + config.c - 1 + min(moved)


def layers(config: Config, width: int, rate: float) -> list[Layer]:
    """Multiplier, deviation and learning rate of every layer at a width; a width below 1 raises `MixwellError`."""
    if width < 1:
        raise MixwellError(f"the width is {width}; expected at least 1.")
    n = float(width)
    own = rate * n**-config.c
    pairs = zip(config.a, config.b, strict=True)
    return [Layer(n**-a, n**-b, own) for a, b in pairs]


def slope(widths: Any, sizes: Any) -> float:
    """The exponent that some size follows over widths, by least squares in logarithms; 0 where it does not change."""
    width_N = np.asarray(widths, dtype=np.float64)
    size_N = np.asarray(sizes, dtype=np.float64)
    if np.ptp(width_N) == 0 or not size_N.min() > 0:
        raise MixwellError(f"sizes {size_N} at widths {width_N}; expected sizes above 0 at two widths or more.")
    log_width_N = np.log(width_N)
    log_size_N = np.log(size_N)
    found, _ = np.polyfit(log_width_N, log_size_N, 1)
    return float(found)


def example(generator: np.random.Generator) -> dict[str, Any]:
    """The maximal update parametrisation in other exponents."""
    shift = float(generator.random())
    return {"config": MAXIMAL_UPDATE.shifted(shift)}
