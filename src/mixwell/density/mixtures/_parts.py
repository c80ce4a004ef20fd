"""What all mixture estimators share: input, starts, the EM loop, online EM, scoring, sampling, criteria.

N rows, B rows of a piece, D columns, S starts, K components.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.density.mixtures.em.kernels import posterior
from mixwell.density.mixtures.em.loop import Assign, Family, Params, Run, best, climb, step
from mixwell.density.mixtures.em.online import Online, batches
from mixwell.density.mixtures.em.processes import Alone, Group
from mixwell.density.mixtures.em.progress import Teller
from mixwell.density.mixtures.em.rows import (
    ArrayRows,
    Piece,
    Rows,
    column_name,
    imputed,
    locate_infinite,
    open_rows,
    tensor_rows,
)
from mixwell.density.mixtures.em.workers import Workers

try:
    from sklearn.base import BaseEstimator, DensityMixin
    from sklearn.cluster import KMeans, kmeans_plusplus
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_random_state
    from sklearn.utils._param_validation import Interval, StrOptions
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise MixwellError("mixture models need scikit-learn 1.6 or later: pip install 'mixwell[tables]'.") from error

STREAM_START_ROWS = 50_000  # rows of a stream that the start is computed from


class MixtureEstimator(DensityMixin, BaseEstimator):
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
        "init_params": [StrOptions({"kmeans", "random", "random_from_data", "k-means++"})],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
        "verbose_interval": [Interval(Integral, 1, None, closed="left")],
        "fixed": [None, str, "array-like"],
        "batch_size": [None, Interval(Integral, 1, None, closed="left")],
        "learning_decay": [Interval(Real, 0.5, 1.0, closed="right")],
        "learning_offset": [Interval(Real, 1.0, None, closed="left")],
        "init_size": [None, Interval(Integral, 1, None, closed="left")],
    }
    _fixable: tuple[str, ...] = ("weights",)
    _allow_nan = False
    _distributable = True  # whether nothing but sums has to be known of all rows

    # -- what a family says ------------------------------------------------------------------------------------------

    @abstractmethod
    def _build_family(self, rows: Rows, weights_N: Tensor | None) -> Family:
        """The family for rows to fit."""

    @abstractmethod
    def _scoring(self, dtype: torch.dtype, device: torch.device) -> tuple[Family, Params]:
        """Family and parameters (one start) from the fitted attributes."""

    @abstractmethod
    def _warm(self, family: Family) -> Params:
        """Parameters (one start) in the family's coordinates from the fitted attributes."""

    @abstractmethod
    def _publish(self, family: Family, params: Params, like: Any) -> None:
        """Set the fitted attributes from the parameters of one start."""

    @abstractmethod
    def _n_parameters(self) -> int:
        """Number of free parameters."""

    @abstractmethod
    def _draw(self, rng: np.random.RandomState, counts_K: np.ndarray) -> np.ndarray:
        """Rows drawn from the components in order, `counts_K` from each."""

    def _check_input(self, rows: Rows) -> None:
        """Refuse values outside the family's support."""

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

    # -- input -------------------------------------------------------------------------------------------------------

    def _open(self, X: Any, *, reset: bool) -> Rows:
        rows = open_rows(X)
        if rows is None and isinstance(X, Tensor):
            rows = tensor_rows(X, self._allow_nan)
        if rows is not None:
            rows.allow_nan = self._allow_nan
            self._note_columns(rows, reset)
            minimum = 2 if reset else 1
            if rows.n_rows < minimum:
                raise ValueError(f"Found array with {rows.n_rows} sample(s) (shape=({rows.n_rows}, {rows.n_columns})) "
                                 f"while a minimum of {minimum} is required by {type(self).__name__}.")
            return rows
        finite: Any = "allow-nan" if self._allow_nan else True
        x = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2 if reset else 1,
                          ensure_all_finite=finite, reset=reset)
        names = getattr(self, "feature_names_in_", None)
        return ArrayRows(x, None if names is None else list(names))

    def _note_columns(self, rows: Rows, reset: bool) -> None:
        if reset:
            self.n_features_in_ = rows.n_columns
            if rows.names is not None:
                self.feature_names_in_ = np.asarray(rows.names, dtype=object)
            elif hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
        elif rows.n_columns != self.n_features_in_:
            raise ValueError(f"X has {rows.n_columns} features, but {type(self).__name__} is expecting "
                             f"{self.n_features_in_} features as input.")
        known = getattr(self, "feature_names_in_", None)
        if not reset and rows.names is not None and known is not None and list(rows.names) != list(known):
            raise ValueError("The feature names should match those that were passed during fit: expected "
                             f"{', '.join(map(str, known))}; got {', '.join(map(str, rows.names))}.")

    def _weights(self, sample_weight: Any, rows: Rows) -> Tensor | None:
        if sample_weight is None:
            return None
        weights_N = torch.as_tensor(sample_weight.detach() if isinstance(sample_weight, Tensor)
                                    else np.array(sample_weight, dtype=np.float64)).double().to(rows.device)
        if weights_N.ndim == 0:
            weights_N = weights_N.expand(rows.n_rows).clone()
        if weights_N.shape != (rows.n_rows,):
            raise ValueError(f"sample_weight.shape == {tuple(weights_N.shape)}, expected ({rows.n_rows},)!")
        if not bool(weights_N.isfinite().all()) or float(weights_N.min()) < 0 or float(weights_N.sum()) <= 0:
            raise ValueError("sample_weight must be finite, not negative, and not all zero.")
        return weights_N

    def _held(self) -> tuple[str, ...]:
        held: Sequence[str] = () if self.fixed is None else [self.fixed] if isinstance(self.fixed, str) else self.fixed
        for name in held:
            if name not in self._fixable:
                raise ValueError(f"fixed names {name!r}; expected some of {', '.join(self._fixable)}.")
        return tuple(held)

    # -- fitting -----------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Estimate the parameters from X (N, D), rows weighted by `sample_weight` (N,); returns self.

        Runs `n_init` starts and keeps the one with the highest bound; a `ConvergenceWarning` says when it did not
        converge. `y` is ignored.
        """
        self._fit(X, sample_weight)
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return the most probable component of every row (N,)."""
        rows = self._fit(X, sample_weight)
        return self._emit(self._score_rows(rows, labels=True), X)

    def fit_distributed(self, X: Any, y: Any = None, sample_weight: Any = None, group: Any = None) -> Any:
        """Fit to rows that are spread over the processes of a torch.distributed group (None: all); returns self.

        Each process passes its own rows X (N, D), with the same columns and number type, and ends with the same model.
        Starts that are not given are computed from the first process's rows; parameters must agree. Where one process
        refuses its rows all of them raise.
        """
        if not self._distributable or self.batch_size is not None:
            raise ValueError(f"{type(self).__name__}{'' if self.batch_size is None else ' with batch_size'} cannot be "
                             "fitted to rows spread over processes; fit it in one, or the batches by partial_fit.")
        self._fit(X, sample_weight, Group(group))
        return self

    def _fit(self, X: Any, sample_weight: Any, processes: Alone | None = None) -> Rows:
        processes = processes or Alone()
        with processes.together():
            rows, weights_N = self._checked(X, sample_weight)
        rows.processes = processes
        own = torch.tensor([rows.n_columns, rows.dtype.itemsize])
        first = processes.first(own)
        with processes.together():
            if not torch.equal(own, first):
                raise ValueError(f"{own.tolist()} columns and bytes a number, {first.tolist()} in the first process; "
                                 "expected the same.")
        with Workers(rows.device) as workers:
            family, run = self._fit_rows(workers, rows, weights_N)
        self._conclude(family, run, X, rows)
        return rows

    def _checked(self, X: Any, sample_weight: Any) -> tuple[Rows, Tensor | None]:
        self._validate_params()
        rows = self._open(X, reset=True)
        if rows.n_rows < self.n_components:
            raise ValueError(f"Expected n_samples >= n_components but got n_components = {self.n_components}, "
                             f"n_samples = {rows.n_rows}")
        self._check_input(rows)
        self._check_start(rows)
        return rows, self._weights(sample_weight, rows)

    def _fit_rows(self, workers: Workers, rows: Rows, weights_N: Tensor | None) -> tuple[Family, Run]:
        family = self._build_family(rows, weights_N)
        rng = check_random_state(self.random_state)
        warm = self.warm_start and hasattr(self, "converged_")
        if warm:
            starts = [{name: value[None] for name, value in self._warm(family).items()}]
        else:
            with rows.processes.together():
                starts = [self._start(workers, family, rows, weights_N, rng) for _ in range(self.n_init)]
        starts = [{name: rows.processes.first(value) for name, value in start.items()} for start in starts]
        previous = self.lower_bound_ if warm else -math.inf
        if self.batch_size is None:
            runs = self._run(workers, family, rows, weights_N, starts, previous)
        else:
            runs = [self._run_online(workers, family, rows, weights_N, start, rng) for start in starts]
        return family, best(runs)

    def _run(self, workers: Workers, family: Family, rows: Rows, weights_N: Tensor | None, starts: list[Params],
             previous: float) -> list[Run]:
        together = {name: torch.cat([start[name] for start in starts]) for name in starts[0]}
        batches = starts if self.verbose else [together]  # messages come one start after the other
        runs: list[Run] = []
        for number, batch in enumerate(batches):
            told = Teller(self.verbose, self.verbose_interval, number)

            def one_step(params: Params) -> tuple[Params, Tensor]:
                new, bounds_S = step(workers, family, rows, weights_N, params, batch=params["weights"].numel())
                if not bool(bounds_S.isfinite().all()):
                    locate_infinite(rows)
                return new, bounds_S

            found = climb(one_step, batch, tol=self.tol, max_iter=self.max_iter, previous=previous, told=told.iteration)
            told.end(found[0])
            runs += found
        return runs

    def _conclude(self, family: Family, run: Run, X: Any, rows: Rows) -> None:
        self.converged_ = run.converged
        if not run.converged and self.max_iter > 0:
            warnings.warn("Best performing initialization did not converge. Try different init parameters, or increase "
                          "max_iter, tol, or check for degenerate data.", ConvergenceWarning, stacklevel=4)
        self._dtype, self._device = rows.dtype, rows.device
        self._publish(family, run.params, X)
        self.n_iter_ = len(run.lower_bounds)
        self.lower_bound_ = run.lower_bound
        self.lower_bounds_ = run.lower_bounds
        self._online: Any = None

    # -- starts ------------------------------------------------------------------------------------------------------

    def _start(self, workers: Workers, family: Family, rows: Rows, weights_N: Tensor | None,
               rng: np.random.RandomState) -> Params:
        """Parameters of one start, with a leading axis of length one."""
        params = {} if self._start_is_given() else self._computed_start(workers, family, rows, weights_N, rng)
        params = self._refine_start(family, params)
        if not family.trusts(params, family.levels(None)[-1]):
            family.refuse(params)
        return params

    def _computed_start(self, workers: Workers, family: Family, rows: Rows, weights_N: Tensor | None,
                        rng: np.random.RandomState) -> Params:
        size = self.init_size or (STREAM_START_ROWS if rows.streamed else None)
        if size is not None and size < rows.n_rows:
            chosen = np.sort(rng.choice(rows.n_rows, max(size, self.n_components), replace=False))
            x_ND = rows.take(chosen)
            weights_N = None if weights_N is None else weights_N[torch.as_tensor(chosen)]
        else:
            x_ND = torch.cat([chunk for _, chunk in rows.chunks()])
        empty_D = x_ND.isnan().all(0)
        if bool(empty_D.any()):
            column = int(empty_D.nonzero()[0, 0])
            name = column_name(rows.names, column)
            raise ValueError(f"column {name} has no value in the {len(x_ND)} rows of the start; remove it, or give "
                             "starting values.")
        x_ND = imputed(x_ND)
        few, assign, weights_N = self._assignment(x_ND, weights_N, rng)
        params, _ = step(workers, family, ArrayRows(few), weights_N, None, assign, self.n_components)
        if self.init_params in ("k-means++", "random_from_data"):
            params["weights"] = params["weights"] * self.n_components / len(x_ND)  # each point stands for itself alone
        return params

    def _assignment(self, x_ND: Tensor, weights_N: Tensor | None,
                    rng: np.random.RandomState) -> tuple[Tensor, Assign, Tensor | None]:
        """The rows that the start is computed from, their responsibilities and weights."""
        K, method = self.n_components, self.init_params
        points = self._start_points(x_ND.cpu().numpy())
        weight = None if weights_N is None else weights_N.cpu().numpy()
        if method == "kmeans":
            fitted = KMeans(n_clusters=K, n_init=1, random_state=rng).fit(points, sample_weight=weight)
            labels = torch.as_tensor(fitted.labels_, dtype=torch.long)
            return x_ND, lambda piece: _one_hot(labels[piece.index], K, piece), weights_N
        if method == "random":
            resp_NK = torch.from_numpy(rng.uniform(size=(len(x_ND), K)))
            resp_NK /= resp_NK.sum(1, keepdim=True)
            return x_ND, lambda piece: resp_NK[piece.index].T[None].to(piece.x_BD.device), weights_N
        if method == "random_from_data":
            if weight is not None and (weight > 0).sum() < K:
                raise ValueError(f"{(weight > 0).sum()} rows have a weight above 0; expected n_components={K} or more.")
            chance = None if weight is None else weight / weight.sum()
            index = rng.choice(len(x_ND), size=K, replace=False, p=chance)
        else:
            _, index = kmeans_plusplus(points, K, random_state=rng, sample_weight=weight)
        few = x_ND[torch.as_tensor(index, device=x_ND.device)]
        return few, lambda piece: _one_hot(torch.arange(K)[piece.index], K, piece), None

    # -- online EM ---------------------------------------------------------------------------------------------------

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Update the model with one batch of rows, by online EM; the first batch also makes the start.

        Batch t moves the running sufficient statistics by `(t + learning_offset) ** -learning_decay`. Returns self.
        """
        self._validate_params()
        first = getattr(self, "_online", None) is None
        rows = self._open(X, reset=first and not hasattr(self, "converged_"))
        self._check_input(rows)
        self._check_start(rows)
        weights_N = self._weights(sample_weight, rows)
        if first:
            if rows.n_rows < self.n_components:
                raise ValueError(f"Expected n_samples >= n_components but got n_components = {self.n_components}, "
                                 f"n_samples = {rows.n_rows}")
            self._dtype, self._device = rows.dtype, rows.device
        with Workers(rows.device) as workers:
            if first:
                self._online = self._begin_online(workers, rows, weights_N)
            bound = self._online.update(workers, rows, weights_N)
        self._publish(self._online.family, {n: v[0] for n, v in self._online.params.items()}, X)
        self.lower_bound_, self.n_iter_, self.converged_ = bound, self._online.steps, False
        self.lower_bounds_ = [*([] if first else self.lower_bounds_), bound]
        return self

    def _begin_online(self, workers: Workers, rows: Rows, weights_N: Tensor | None) -> Online:
        family = self._build_family(rows, weights_N)
        if hasattr(self, "converged_"):
            params = {name: value[None] for name, value in self._warm(family).items()}
        else:
            params = self._start(workers, family, rows, weights_N, check_random_state(self.random_state))
        return Online(family, params, self.learning_decay, self.learning_offset)

    def _run_online(self, workers: Workers, family: Family, rows: Rows, weights_N: Tensor | None, start: Params,
                    rng: np.random.RandomState) -> Run:
        """Epochs of online EM over batches, in random order where the rows are in memory."""
        rows_in_all = float(rows.n_rows if weights_N is None else weights_N.sum())
        online = Online(family, start, self.learning_decay, self.learning_offset, rows_in_all)
        run = Run({name: value[0] for name, value in start.items()})
        for _ in range(self.max_iter):
            total, weight = 0.0, 0.0
            for batch, batch_weights in batches(rows, weights_N, self.batch_size, rng):
                share = float(len(batch)) if batch_weights is None else float(batch_weights.sum())
                if share > 0:
                    total += share * online.update(workers, ArrayRows(batch), batch_weights)
                    weight += share
            gain = total / weight - run.lower_bound
            run.lower_bounds.append(total / weight)
            run.params = {name: value[0] for name, value in online.params.items()}
            run.converged = abs(gain) < self.tol
            if run.converged:
                break
        return run

    # -- use ---------------------------------------------------------------------------------------------------------

    def _score_rows(self, rows: Rows, *, labels: bool = False, resp: bool = False) -> Tensor:
        """Log densities (N,), labels (N,) or responsibilities (N, K) of all rows."""
        family, params = self._scoring(rows.dtype, rows.device)
        params = {name: value[None] for name, value in params.items()}
        levels = family.levels(params)
        kernel = family.kernel(params, levels[0])
        K = params["weights"].shape[1]
        kind = torch.long if labels else rows.dtype
        out = torch.empty((rows.n_rows, K) if resp else (rows.n_rows,), dtype=kind, device=rows.device)

        def fill(piece: Piece) -> None:
            _, log_joint_SKB = kernel.joint(piece)
            nowhere_B = None
            if not bool(log_joint_SKB.isfinite().all()):  # rows so far off that squares overflow
                _, log_joint_SKB = family.kernel(params, levels[-1]).joint(piece)
                log_joint_SKB = log_joint_SKB.masked_fill(log_joint_SKB.isnan(), -math.inf)
                nowhere_B = log_joint_SKB[0].amax(0).isneginf()
                log_joint_SKB = log_joint_SKB.masked_fill(nowhere_B, 0.0)
            index = piece.index if isinstance(piece.index, slice) else piece.index.to(rows.device)
            if labels:
                out[index] = log_joint_SKB[0].argmax(0)
                return
            resp_SKB, log_density_SB = posterior(log_joint_SKB)
            if nowhere_B is not None:
                log_density_SB = log_density_SB.masked_fill(nowhere_B, -math.inf)
            out[index] = (resp_SKB[0].T if resp else log_density_SB[0]).to(kind)

        with Workers(rows.device) as workers:
            deque(workers.map(fill, rows.pieces(kernel.rows(K))), maxlen=0)
        return out

    def _use(self, X: Any, **what: bool) -> Any:
        check_is_fitted(self)
        rows = self._open(X, reset=False)
        self._check_input(rows)
        return self._emit(self._score_rows(rows, **what), X)

    def score_samples(self, X: Any) -> Any:
        """Log density of every row (N,), in nats."""
        return self._use(X)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Mean log density of the rows, in nats, weighted by `sample_weight`."""
        check_is_fitted(self)
        rows = self._open(X, reset=False)
        self._check_input(rows)
        weights_N = self._weights(sample_weight, rows)
        log_density_N = self._score_rows(rows).double()
        return float(log_density_N.mean() if weights_N is None else log_density_N @ weights_N / weights_N.sum())

    def predict(self, X: Any) -> Any:
        """The most probable component of every row (N,)."""
        return self._use(X, labels=True)

    def predict_proba(self, X: Any) -> Any:
        """Responsibilities (N, K)."""
        return self._use(X, resp=True)

    def sample(self, n_samples: int = 1) -> tuple[Any, Any]:
        """Rows (n_samples, D) drawn from the mixture, grouped by component, and their components (n_samples,)."""
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples} . The sampling requires at least one sample.")
        rng = check_random_state(self.random_state)
        weights_K = np.asarray(torch.as_tensor(self.weights_).cpu().numpy(), dtype=np.float64)
        counts_K = rng.multinomial(n_samples, weights_K / weights_K.sum())
        x_ND, labels = self._draw(rng, counts_K), np.repeat(np.arange(len(counts_K)), counts_K)
        if isinstance(self.weights_, Tensor):
            device = self.weights_.device
            return torch.as_tensor(x_ND, device=device), torch.as_tensor(labels, device=device)
        return x_ND, labels

    def bic(self, X: Any) -> float:
        """Bayesian information criterion on X; lower is better."""
        n = self._count(X)
        return -2 * self.score(X) * n + self._n_parameters() * math.log(n)

    def aic(self, X: Any) -> float:
        """Akaike information criterion on X; lower is better."""
        return -2 * self.score(X) * self._count(X) + 2 * self._n_parameters()

    def icl(self, X: Any) -> float:
        """Integrated completed likelihood on X: BIC plus twice the entropy of the responsibilities; lower is better."""
        check_is_fitted(self)
        resp_NK = self._score_rows(self._open(X, reset=False), resp=True).double()
        return self.bic(X) - 2 * float(torch.xlogy(resp_NK, resp_NK).sum())

    def _count(self, X: Any) -> int:
        return self._open(X, reset=False).n_rows

    def _emit(self, value: Tensor, like: Any) -> Any:
        return value if isinstance(like, Tensor) else value.cpu().numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._allow_nan
        return tags


def _one_hot(labels_B: Tensor, components: int, piece: Piece) -> Tensor:
    hot_KB = torch.zeros(components, len(labels_B), dtype=torch.float64)
    hot_KB[labels_B, torch.arange(len(labels_B))] = 1
    return hot_KB[None].to(piece.x_BD.device)
