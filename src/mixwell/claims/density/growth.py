"""Growth mixture of experts: estimates without bias, and intervals that cover."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from mixwell.core.evidence import Evidence
from mixwell.core.registry import find

REPEATS, PEOPLE = 4, 300
TIMES = np.arange(10.0)
FACTORS = np.array([[[1.0, 2.0, 0.5], [0.8, 0.0, 0.1]], [[4.0, 1.0, -0.5], [0.8, 0.0, 0.1]]])  # class, covariate
KNOTS, GATE = np.array([4.0, 5.5]), 2.0


def simulate(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """Outcomes, gate covariate and growth covariate of two classes."""
    z, x = rng.normal(size=(PEOPLE, 1)), rng.normal(size=(PEOPLE, 1))
    label = (rng.random(PEOPLE) < 1 / (1 + np.exp(-GATE * z[:, 0]))).astype(int)
    eta = FACTORS[label, 0] + x * FACTORS[label, 1] + rng.normal(size=(PEOPLE, 3)) * [0.5, 0.2, 0.2]
    knot = KNOTS[label][:, None]
    curve = eta[:, :1] + eta[:, 1:2] * np.minimum(TIMES, knot) + eta[:, 2:] * np.maximum(TIMES - knot, 0)
    return curve + 0.5 * rng.normal(size=curve.shape), z, x


def study(rng: np.random.Generator, seed: int) -> tuple[list[float], list[bool]]:
    """Standardised errors of knots and gate slope over repeats, and whether the 95 % intervals cover."""
    errors, covered = [], []
    for _ in range(REPEATS):
        y, z, x = simulate(rng)
        model = find("density.regression.growth").load()(random_state=seed, tol=1e-6).fit(y, TIMES, z, x)
        se = model.standard_errors(y, TIMES, z, x)
        order = np.argsort(model.knots_)
        slope = model.gate_coef_[order[1], 1] - model.gate_coef_[order[0], 1]
        found = [*(model.knots_[order] - KNOTS), slope - GATE]
        spread = [*se["knot"][order], se["gate_coef"][0, 1]]
        errors += [float(f / s) for f, s in zip(found, spread)]
        covered += [bool(abs(f) < 1.96 * s) for f, s in zip(found, spread)]
    return errors, covered


def claim(bench: Any) -> Evidence:
    """Coverage of nominal 95 % intervals of knots and gate slope within 5 points, and no bias beyond half an error."""
    coverage, bias = [], []
    for seed in bench.seeds:
        errors, covered = study(np.random.default_rng(seed), seed)
        coverage.append(statistics.fmean(covered))
        bias.append(statistics.fmean(errors))
    margin = [0.05 - abs(c - 0.95) for c in coverage]
    mean = statistics.fmean(coverage)
    held = abs(mean - 0.95) <= 0.05 and abs(statistics.fmean(bias)) < 0.5
    return Evidence(claim="Estimates of the growth mixture of experts have no bias; 95 % intervals cover as they say",
                    outcome="held" if held else "did not hold", metric="0.05 - |coverage - 0.95|",
                    effect=statistics.fmean(margin), spread=statistics.stdev(margin), seeds=len(coverage),
                    values={"coverage": coverage, "bias in standard errors": bias},
                    note=f"{PEOPLE} people at 10 waves, {REPEATS} repeats a seed, knots and gate slope")
