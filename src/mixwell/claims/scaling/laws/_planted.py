"""Runs that follow a law with noise, and how well laws fitted to the cheap ones foretell the dear ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixwell.core import registry
from mixwell.scaling.law import Curve, Law

NOISE = 0.005  # of log L: what two seeds of one run differ by
HELD = 0.2  # share of the runs, the dearest, that are foretold
STARTS = 24
Table = dict[str, np.ndarray]


@dataclass(frozen=True)
class Planted:
    """Runs to fit to, dearer ones to foretell, and the law that they follow."""

    truth: Curve
    seen: Table
    dear: Table

    def error(self, law: Law) -> float:
        """Root mean square error of log L on the dear runs, in percent, by a fit to the others."""
        fit = law.fit(self.seen)
        told_N = fit.predict(self.dear)
        true_N = self.truth.predict(self.dear)
        ratio_N = told_N / true_N
        off_N = np.log(ratio_N)
        square = np.mean(off_N**2)
        share = float(np.sqrt(square))
        return 100 * share


def law_of(name: str) -> Law:
    """A law of the catalogue with as many starts as all here."""
    law: Law = registry.find(f"scaling.laws.{name}").load()(starts=STARTS)
    return law


def planted(name: str, seed: int) -> Planted:
    """The runs of a law's own example, drawn anew at each seed, with its parameters."""
    rng = np.random.default_rng([seed, 11])
    entry = registry.find(f"scaling.laws.{name}")
    given = entry.module().example(rng)
    law = law_of(name)
    truth = law.curve(given["parameters"])
    runs = given["runs"]
    clean_N = truth.predict(runs)
    count = len(clean_N)
    noise_N = NOISE * rng.standard_normal(count)
    noisy_N = clean_N * np.exp(noise_N)
    table = {**runs, "loss": noisy_N}
    cost_N = cost(law, runs)
    order_N = np.argsort(cost_N)
    seen = count - round(HELD * count)
    cheap = rows(table, order_N[:seen])
    dear = rows(table, order_N[seen:])
    return Planted(truth, cheap, dear)


def cost(law: Law, runs: Table) -> np.ndarray:
    """Training FLOPs of the runs, or what else orders them: [N]."""
    each_N = law.flops_per_token(runs)
    return each_N * runs.get("d", 1.0)


def rows(table: Table, places: np.ndarray) -> Table:
    """Some of a table's rows."""
    return {name: column_N[places] for name, column_N in table.items()}


def against_chinchilla(name: str, seed: int) -> dict[str, float]:
    """The law and Chinchilla's, which knows size and data alone, on the same runs."""
    runs = planted(name, seed)
    return {"method": runs.error(law_of(name)), "baseline": runs.error(law_of("chinchilla"))}
