"""Learning curves with a known best configuration, for examples."""

from __future__ import annotations

import numpy as np

from mixwell.scaling.trials import Trials


def power_curves(count: int, most: int, generator: np.random.Generator) -> Trials:
    """Losses floor + t^-1/2 over epochs t that never cross; the floor grows with the distance from a point."""
    features_ND = generator.random((count, 2))
    off_ND = features_ND - 0.4
    floor_N = (off_ND**2).sum(1)
    epochs_R = np.arange(1, most + 1)
    fall_R = epochs_R**-0.5
    losses_NR = floor_N[:, None] + fall_R
    return Trials.tabulated(losses_NR, features_ND)
