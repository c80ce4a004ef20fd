"""The learning rate and the batch that suit a size and a number of tokens.

**Equation:** lr(N, D) = c N^a D^b, batch(D) = c' D^b' in tokens; published: 1.79 N^-0.713 D^0.307 and 0.58 D^0.571.
**Shapes:** columns `n` (parameters outside embeddings; of a mixture all of them), `d` (tokens), `lr`, `batch` (tokens),
    and the loss, one row a run.
**Reference:** Li et al. 2025 (2503.04715).
**Differs:** least squares on logarithms of the runs near each group's minimum, as in the released tool; averages over
    bootstrap draws are left to `bootstrap`. A schedule that ends at a tenth of the peak follows another law: the
    published one ends at 1e-5, whatever the peak.
**Fails when:** exponents are read for themselves: the plateau around each minimum decides them; compare losses.
**Cost:** O(N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.scaling.runs import Runs, read

COLUMNS = ("n", "d", "lr", "batch")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which runs count; `ValueError` for a value out of range."""

    plateau: float = 0.0025  # runs within this share above the least loss of their size and tokens, 0 or more

    def __post_init__(self) -> None:
        if not self.plateau >= 0:
            raise ValueError(f"plateau is {self.plateau}; expected 0 or more")


@dataclass(frozen=True)
class Steps:
    """Both laws: the logarithm of the prefactor, and the exponents."""

    lr: tuple[float, ...]  # log c, a of N, b of D
    batch: tuple[float, ...]  # log c', b' of D

    def predict(self, table: Any) -> tuple[np.ndarray, np.ndarray]:
        """Learning rates and batches in tokens for the table's `n` and `d`: [N] each."""
        runs = read(table, ("n", "d"))
        log_n, log_d = np.log(runs["n"]), np.log(runs["d"])
        log_c, a, b = self.lr
        log_lr = log_c + a * log_n + b * log_d
        log_c, b = self.batch
        log_batch = log_c + b * log_d
        return np.exp(log_lr), np.exp(log_batch)


PUBLISHED = Steps((float(np.log(1.79)), -0.713, 0.307), (float(np.log(0.58)), 0.571))


@method(title="Step law", year=2025,
        paper="Predictable Scale: Part I -- Optimal Hyperparameter Scaling Law in Large Language Model Pretraining")
def step_law(table: Any, config: Config, *, loss: str = "loss") -> Steps:
    """Both laws fitted to a grid of runs; fewer than three pairs of size and tokens raise `MixwellError`."""
    runs = read(table, [*COLUMNS, loss])
    near_N = _near_minimum(runs, runs[loss], config.plateau)
    log_n, log_d, log_lr, log_batch = (np.log(runs[name][near_N]) for name in COLUMNS)
    one = np.ones_like(log_n)
    rows_lr = np.stack([one, log_n, log_d], 1)
    rows_batch = np.stack([one, log_d], 1)
    lr = _least_squares(rows_lr, log_lr, "n and d")
    batch = _least_squares(rows_batch, log_batch, "d")
    return Steps(lr, batch)


def _near_minimum(runs: Runs, losses_N: np.ndarray, plateau: float) -> np.ndarray:
    """Which runs lie on the plateau of their size and tokens."""
    pairs = np.stack([runs["n"], runs["d"]], 1)
    groups, inverse = np.unique(pairs, axis=0, return_inverse=True)
    count = len(groups)
    if count < 3:
        raise MixwellError(f"the runs have {count} pairs of n and d; the law needs at least 3.")
    group_N = inverse.reshape(-1)
    least_G = np.full(count, np.inf)
    np.minimum.at(least_G, group_N, losses_N)
    least_N = least_G[group_N]
    most_N = (1 + plateau) * least_N
    return losses_N <= most_N


def _least_squares(rows_NP: np.ndarray, y_N: np.ndarray, columns: str) -> tuple[float, ...]:
    found, _, rank, _ = np.linalg.lstsq(rows_NP, y_N, rcond=1e-10)
    parameters = rows_NP.shape[1]
    if rank < parameters:
        raise MixwellError(f"{columns} do not vary apart over the runs; add sizes at other numbers of tokens.")
    return tuple(map(float, found))


def bootstrap(table: Any, config: Config, draws: int, generator: np.random.Generator, *,
              loss: str = "loss") -> list[Steps]:
    """The law of runs drawn with replacement; draws that cannot tell the exponents are drawn again."""
    runs = read(table, [*COLUMNS, loss])
    N = len(runs[loss])
    found: list[Steps] = []
    for _ in range(20 * draws):
        places_N = generator.integers(N, size=N)
        sample = {name: column_N[places_N] for name, column_N in runs.items()}
        try:
            found.append(step_law(sample, config, loss=loss))
        except MixwellError:
            continue
        if len(found) == draws:
            return found
    raise MixwellError(f"of {20 * draws} draws {len(found)} tell the exponents; add runs.")


def example(generator: np.random.Generator) -> dict[str, Any]:
    """A grid around the published law, with a loss that is convex in both logarithms."""
    axes = np.meshgrid([1e8, 3e8, 1e9], [4e9, 2e10, 1e11])
    n, d = (axis.ravel() for axis in axes)
    lr, batch = PUBLISHED.predict({"n": n, "d": d})
    off = np.linspace(-2.0, 2.0, 9)
    axes = np.meshgrid(off, off)
    off_lr, off_batch = (np.tile(axis.ravel(), 9) for axis in axes)
    excess = off_lr**2 + off_batch**2
    table = {
        "n": np.repeat(n, 81),
        "d": np.repeat(d, 81),
        "lr": np.repeat(lr, 81) * np.exp(off_lr),
        "batch": np.repeat(batch, 81) * np.exp(off_batch),
        "loss": 2.0 + 0.02 * excess,
    }
    return {"table": table, "config": Config()}
