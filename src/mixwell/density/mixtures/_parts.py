"""What all mixture estimators share: options, the fit by EM from several starts, and online EM.

N rows, D columns, S starts, K components.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from torch import Tensor

from mixwell.density.mixtures._scores import Scores
from mixwell.density.mixtures.em.inputs import checked_weights, spread_over
from mixwell.density.mixtures.em.loop import Family, Fixed, Params, Run, best, climb, select, step
from mixwell.density.mixtures.em.online import Online, epochs
from mixwell.density.mixtures.em.processes import Alone, Group
from mixwell.density.mixtures.em.progress import Progress
from mixwell.density.mixtures.em.rows import Rows, locate_infinite
from mixwell.density.mixtures.em.starts import METHODS, assignment, starting_rows
from mixwell.density.mixtures.em.workers import Workers


@dataclass(frozen=True)
class MixtureConfig:
    """Options of every mixture."""

    n_components: int = 1  # K
    _: KW_ONLY
    tol: float = 1e-3  # stop when a step gains less, in nats a row
    max_iter: int = 100  # steps, or with batch_size passes over the rows
    n_init: int = 1  # starts; the one with the highest bound is kept
    init_params: str = "kmeans"  # or "k-means++", "random", "random_from_data"
    random_state: Any = None  # of starts, batches and draws
    warm_start: bool = False  # start from the last fit
    verbose: int = 0  # 1: messages, 2: with times and gains
    verbose_interval: int = 10  # iterations from one message to the next
    fixed: Any = None  # name or names of parameters that stay at their starting values; or {name: components}
    batch_size: int | None = None  # rows of a batch of online EM; None: EM over all rows
    learning_decay: float = 0.7  # of online EM, above 0.5 up to 1
    learning_offset: float = 10.0  # batches that online EM's first rate is worth, 1 or more
    init_size: int | None = None  # random rows that the start is computed from; None: all, of a stream 50,000


class MixtureEstimator(Scores):
    """A mixture with scikit-learn's conventions, fitted by EM. Subclasses say what their components are.

    X may be an array, a DataFrame, a torch tensor (also on a GPU; results are then tensors there), or data larger than
    memory that are read in pieces at every pass: a numpy memory map (from 256 MiB), the path of a `.npy` or Parquet
    file, a list of Parquet files or a folder of them.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "init_params": [StrOptions(set(METHODS))],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
        "verbose_interval": [Interval(Integral, 1, None, closed="left")],
        "fixed": [None, str, dict, "array-like"],
        "batch_size": [None, Interval(Integral, 1, None, closed="left")],
        "learning_decay": [Interval(Real, 0.5, 1.0, closed="right")],
        "learning_offset": [Interval(Real, 1.0, None, closed="left")],
        "init_size": [None, Interval(Integral, 1, None, closed="left")],
    }
    _fixable: tuple[str, ...] = ("weights",)
    _partly: tuple[str, ...] = ("weights",)  # those that may stay for some components alone
    _distributable = True  # whether nothing but sums has to be known of all rows
    _by_size = False  # whether a fit names its components by their size
    _averages = True  # whether sums mean the same at other parameters, so that online EM may average them

    @abstractmethod
    def _build_family(self, rows: Rows, weights_N: Tensor | None) -> Family:
        """The family for rows to fit."""

    @abstractmethod
    def _warm(self, family: Family) -> Params:
        """Parameters (one start) in the family's coordinates from the fitted attributes."""

    @abstractmethod
    def _publish(self, family: Family, params: Params, like: Any) -> None:
        """Set the fitted attributes from the parameters of one start."""

    def _order(self, weights_K: Tensor) -> Tensor:
        """Components (K,) in the order in which `_publish` names them."""
        return torch.arange(len(weights_K))

    def _check_start(self, rows: Rows) -> None:
        """Refuse starting values of a wrong shape."""

    def _refine_start(self, family: Family, params: Params) -> Params:
        """Put given starting values in place of computed ones."""
        return params

    def _start_is_given(self) -> bool:
        return False

    def _start_points(self, x_ND: np.ndarray) -> np.ndarray:
        """Coordinates in which k-means makes sense."""
        return x_ND

    def _fixed(self) -> Fixed:
        """Names of the parameters that stay at their starting values, for all components or some.

        Raises a `ValueError` where a name, or what is given for it, is none that can stay.
        """
        if self.fixed is None:
            return Fixed()
        if isinstance(self.fixed, dict):
            some = {name: self._components(name, places) for name, places in self.fixed.items()}
            K = self.n_components
            whole = [name for name, places in some.items() if len(places) == K]
            partly = {name: places for name, places in some.items() if 0 < len(places) < K}
            return Fixed(whole, partly)
        names: Sequence[str] = [self.fixed] if isinstance(self.fixed, str) else self.fixed
        for name in names:
            self._refuse_unfixable(name)
        return Fixed(names)

    def _refuse_unfixable(self, name: Any) -> None:
        if name not in self._fixable:
            raise ValueError(f"fixed names {name!r}; expected some of {', '.join(self._fixable)}.")

    def _components(self, name: str, places: Any) -> list[int]:
        """The components for which a parameter stays, from numbers of components, or True for all."""
        self._refuse_unfixable(name)
        K = self.n_components
        if places is True:
            return list(range(K))
        listed = isinstance(places, (list, tuple, range, np.ndarray))
        if not listed or not all(_is_component(number, K) for number in places):
            raise ValueError(f"fixed[{name!r}] is {places!r}; expected True, or a list of components from 0 to "
                             f"{K - 1}.")
        chosen = sorted({int(number) for number in places})
        if 0 < len(chosen) < K and name not in self._partly:
            raise ValueError(f"fixed[{name!r}] names some components; {name} of this {type(self).__name__} can only "
                             "stay for all of them.")
        return chosen

    def _count_free(self, numbers: dict[str, int]) -> int:
        """How many numbers a fit is free to choose, from how many each parameter holds."""
        fixed = self._fixed()
        free = 0
        for name, number in numbers.items():
            stay = len(fixed.some.get(name, ()))
            own = 1 if name == "weights" else number // self.n_components
            free += 0 if name in fixed else number - stay * own
        return free

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Estimate the parameters from X (N, D), rows weighted by `sample_weight` (N,); returns self.

        Runs `n_init` starts and keeps the one with the highest bound; a `ConvergenceWarning` says when it did not
        converge. `y` is ignored. Raises a `ValueError` where options, rows or weights are none that can be fitted to,
        or components collapse; a `MixwellError` where a file cannot be read.
        """
        self._fit(X, sample_weight, Alone())
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return the most probable component of every row (N,); raises as `fit`."""
        rows = self._fit(X, sample_weight, Alone())
        labels_N = self._labels(rows)
        return self._emit(labels_N, X)

    def fit_distributed(self, X: Any, y: Any = None, sample_weight: Any = None, group: Any = None) -> Any:
        """Fit to rows that are spread over the processes of a torch.distributed group (None: all); returns self.

        Each process passes its own rows X (N, D), with the same columns and number type, and ends with the same model.
        Starts that are not given are computed from the first process's rows; parameters must agree. Where one process
        refuses its rows all of them raise. Raises as `fit`, and a `ValueError` where more than sums must be known of
        all rows.
        """
        if not self._distributable or self.batch_size is not None:
            way = "" if self.batch_size is None else " with batch_size"
            raise ValueError(f"{type(self).__name__}{way} cannot be fitted to rows spread over processes; fit it in "
                             "one, or the batches by partial_fit.")
        self._fit(X, sample_weight, Group(group))
        return self

    def _fit(self, X: Any, sample_weight: Any, processes: Alone) -> Rows:
        with processes.together():
            self._validate_params()
            self._refuse_batches()
            rows, weights_N = self._read(X, sample_weight, reset=True)
            self._refuse_few(rows)
        spread_over(processes, rows)
        with Workers(rows.device) as workers:
            family = self._build_family(rows, weights_N)
            run = best(self._runs(workers, family, rows, weights_N))
        if not run.converged and self.max_iter > 0:
            warnings.warn("Best performing initialization did not converge. Try different init parameters, or increase "
                          "max_iter, tol, or check for degenerate data.", ConvergenceWarning, stacklevel=3)
        self._conclude(family, run, X, rows)
        return rows

    def _read(self, X: Any, sample_weight: Any, reset: bool) -> tuple[Rows, Tensor | None]:
        """Rows and weights to fit, checked."""
        rows = self._open(X, reset=reset)
        self._check_input(rows)
        self._check_start(rows)
        return rows, checked_weights(sample_weight, rows)

    def _refuse_batches(self) -> None:
        if self.batch_size is not None and not self._averages:
            raise ValueError(f"{type(self).__name__} has no online EM; leave batch_size=None, which reads all rows at "
                             "every step.")

    def _refuse_few(self, rows: Rows) -> None:
        if rows.n_rows < self.n_components:
            raise ValueError(f"Expected n_samples >= n_components but got n_components = {self.n_components}, "
                             f"n_samples = {rows.n_rows}")

    def _runs(self, workers: Workers, family: Family, rows: Rows, weights_N: Tensor | None) -> list[Run]:
        """EM from every start."""
        rng = check_random_state(self.random_state)
        warm = self.warm_start and hasattr(self, "converged_")
        with rows.processes.together():
            if warm:
                own = [self._warm_start(family)]
            else:
                own = [self._start(workers, family, rows, weights_N, rng) for _ in range(self.n_init)]
        starts = [_agreed(rows.processes, start) for start in own]
        if self.batch_size is not None:
            return self._online_runs(workers, family, rows, weights_N, starts, rng)
        previous = self.lower_bound_ if warm else -math.inf
        return self._climb(workers, family, rows, weights_N, starts, previous)

    def _online_runs(self, workers: Workers, family: Family, rows: Rows, weights_N: Tensor | None,
                     starts: list[Params], rng: np.random.RandomState) -> list[Run]:
        """Online EM in batches from every start."""
        assert self.batch_size is not None
        weight = rows.n_rows if weights_N is None else weights_N.sum()
        runs = []
        for start in starts:
            online = self._online_em(family, start, float(weight))
            run = epochs(workers, online, rows, weights_N, self.batch_size, tol=self.tol, max_iter=self.max_iter,
                         rng=rng)
            runs.append(run)
        return runs

    def _climb(self, workers: Workers, family: Family, rows: Rows, weights_N: Tensor | None, starts: list[Params],
               previous: float) -> list[Run]:
        """EM over all rows from every start."""
        def one_step(params: Params) -> tuple[Params, Tensor]:
            batch = params["weights"].numel()
            new, bounds_S = step(workers, family, rows, weights_N, params, batch=batch)
            if not bool(bounds_S.isfinite().all()):
                locate_infinite(rows)
            return new, bounds_S

        batches = starts if self.verbose else [_together(starts)]  # messages are about one start at a time
        runs: list[Run] = []
        for number, batch in enumerate(batches):
            progress = Progress(self.verbose, self.verbose_interval, number)
            found = climb(one_step, batch, tol=self.tol, max_iter=self.max_iter, previous=previous,
                          report=progress.iteration)
            progress.end(found[0])
            runs += found
        return runs

    def _conclude(self, family: Family, run: Run, X: Any, rows: Rows) -> None:
        """Set everything that a fit leaves behind."""
        self._dtype = rows.dtype
        self._device = rows.device
        self._publish(family, run.params, X)
        self.converged_ = run.converged
        self.lower_bounds_ = run.lower_bounds
        self.lower_bound_ = run.lower_bound
        self.n_iter_ = len(run.lower_bounds)
        self._online: Any = None

    def _warm_start(self, family: Family) -> Params:
        """Parameters of the last fit, with a leading axis of length one."""
        params = self._warm(family)
        return {name: value[None] for name, value in params.items()}

    def _start(self, workers: Workers, family: Family, rows: Rows, weights_N: Tensor | None,
               rng: np.random.RandomState) -> Params:
        """Parameters of one start, with a leading axis of length one."""
        params: Params = {}
        if not self._start_is_given():
            params = self._computed_start(workers, family, rows, weights_N, rng)
        params = self._refine_start(family, params)
        most_careful = family.levels(None)[-1]
        if not family.trusts(params, most_careful):
            family.refuse(params)
        return params

    def _computed_start(self, workers: Workers, family: Family, rows: Rows, weights_N: Tensor | None,
                        rng: np.random.RandomState) -> Params:
        """Parameters of one start from some of the rows, by `init_params`."""
        K = self.n_components
        first, weights_N = starting_rows(rows, weights_N, self.init_size, K, rng)
        few, assign, weights_N = assignment(self.init_params, first, weights_N, K, self._start_points, rng)
        params, _ = step(workers, family, few, weights_N, None, assign, K)
        if self.init_params in ("k-means++", "random_from_data"):  # each point stands for itself alone
            weights_SK = params["weights"]
            params["weights"] = weights_SK * K / first.n_rows
        return params

    @available_if(lambda self: self._averages)
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Update the model with one batch of rows, by online EM; the first batch also makes the start.

        Batch t moves the running sufficient statistics by `(t + learning_offset) ** -learning_decay`. Returns self;
        raises as `fit`.
        """
        self._validate_params()
        first = getattr(self, "_online", None) is None
        unfitted = first and not hasattr(self, "converged_")
        rows, weights_N = self._read(X, sample_weight, reset=unfitted)
        if first:
            self._refuse_few(rows)
            self._dtype, self._device = rows.dtype, rows.device
        with Workers(rows.device) as workers:
            if first:
                self._online = self._begin_online(workers, rows, weights_N)
            bound = self._online.update(workers, rows, weights_N)
        params = select(self._online.params, 0)
        self._publish(self._online.family, params, X)
        before = [] if first else self.lower_bounds_
        self.lower_bounds_ = [*before, bound]
        self.lower_bound_ = bound
        self.n_iter_ = self._online.steps
        self.converged_ = False
        return self

    def _begin_online(self, workers: Workers, rows: Rows, weights_N: Tensor | None) -> Online:
        """Online EM from the last fit where there is one, else from a start that this batch gives."""
        family = self._build_family(rows, weights_N)
        if hasattr(self, "converged_"):
            start = self._warm_start(family)
        else:
            rng = check_random_state(self.random_state)
            start = self._start(workers, family, rows, weights_N, rng)
        return self._online_em(family, start)

    def _online_em(self, family: Family, params: Params, rows: float = math.inf) -> Online:
        return Online(family, params, self.learning_decay, self.learning_offset, rows)


def _is_component(number: Any, components: int) -> bool:
    whole = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    return whole and 0 <= number < components


def _agreed(processes: Alone, params: Params) -> Params:
    """The first process's parameters."""
    agreed = {}
    for name, value in params.items():
        agreed[name] = processes.first(value)
    return agreed


def _together(starts: list[Params]) -> Params:
    """Parameters of several starts as one batch."""
    batch = {}
    for name in starts[0]:
        values = [start[name] for start in starts]
        batch[name] = torch.cat(values)
    return batch
