"""Largest sums under continual observation: renewal errs by the third root of the rows, whatever the columns.

Paper: The Price of Differential Privacy under Continual Observation.
Tried: streams whose first column is always one and whose others are fair coins, epsilon 1, delta 1e-6; largest error of
any answer, mean of five runs, with the number of rows between renewals that has the smallest bound. Distance of its
slope in log rows, from 256 to 16,384, from a third. Conditions: renewal errs less than the tree on 4,096 rows of 1,024
columns ("wide"), and the tree less than renewal on 131,072 rows of one ("long"). Against it: a slope further than a
tenth from a third, or a condition that fails. A simulation speaks for the upper bounds alone, never for the lower ones.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from mixwell.claims._series import mean
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.core.rng import generator
from mixwell.density.robust.continual import Config, continual_max

ROWS, RUNS = (256, 1024, 4096, 16384), 5
WIDE, LONG = (4096, 1024), (131072, 1)

CLAIM = Claim("Renewed maxima err by the third root of the rows, trees by powers of their logarithm and the columns.",
              "distance of the slope from 1/3", quantity="distance", baseline=0.1,
              provided=(Comparison(quantity="wide"), Comparison(quantity="long")))


def error(mechanism: Literal["tree", "recompute"], size: tuple[int, int], draws: torch.Generator) -> float:
    """The largest error of any answer on one stream."""
    coins = torch.rand(size, generator=draws)
    bits = (coins < 0.5).double()
    bits[:, 0] = 1.0
    config = Config(mechanism=mechanism)
    found = continual_max(bits, config, draws)
    sums = bits.cumsum(0).amax(1)
    gap = found.answers_T - sums
    return float(gap.abs().max())


def trial(bench: Bench, seed: int) -> dict[str, float | dict[str, float]]:
    """The slope's distance; on the wide stream renewal against the tree, on the long one the tree against renewal."""
    draws = generator(seed, "continual")
    errors = []
    for rows in ROWS:
        runs = [error("recompute", (rows, 2), draws) for _ in range(RUNS)]
        errors.append(mean(runs))
    log_rows, log_errors = np.log(ROWS), np.log(errors)
    slope, _ = np.polyfit(log_rows, log_errors, 1)
    slope = float(slope)
    ours = {"distance": abs(slope - 1 / 3)}
    theirs = {}
    ours["wide"] = error("recompute", WIDE, draws)
    ours["long"] = error("tree", LONG, draws)
    theirs["wide"] = error("tree", WIDE, draws)
    theirs["long"] = error("recompute", LONG, draws)
    return {"method": ours, "baseline": theirs, "slope": slope}
