"""Linear-chain conditional random field: labels of a sequence's rows, given all of its features at once.

**Equation:** p(y | x) = exp(s(y, x)) / Z(x), s(y, x) = start_y1 + sum_t u_t(y_t) + sum_t>1 A(y_t-1, y_t), with
u_t = W x_t + b. Forward: alpha_t(j) = log sum_i exp(alpha_t-1(i) + A_ij) + u_t(j), log Z = log sum_j exp alpha_T(j);
backward the same from the end. Fit: maximise sum_n log p(y_n | x_n) - |theta|^2 / (2 variance), which is concave, with
gradient observed minus expected features minus theta / variance.

**Shapes:** X (N, F), dense or sparse, the rows of all sequences one after another; `lengths` of the sequences; y (N,)
of K classes. `coef_` (K, F), `intercept_` and `start_` (K,), `transitions_` (K, K) from row to column.

**Reference:** Sutton, McCallum (2012), An Introduction to Conditional Random Fields, arXiv:1011.4088, sections 2.3, 4.1
and 5.1; the steps of "sgd" as in section 5.2.

**Differs:** chains alone; the survey's loopy graphs are not here. All parameters are penalised, biases included. Sums
go through probabilities scaled by each row's largest term, so that a transition e^-690 times another counts as that.

**Fails when:** labels depend on each other beyond neighbours; rows are few beside features (lower `variance`).

**Cost:** O(N K (F + K)) a gradient; `max_iter` gradients, or passes over the sequences, at most.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from mixwell.core.method import method
from mixwell.density._gaussian import Array, log_positive
from mixwell.density._options import Configured
from mixwell.density.chains import likeliest_path


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of a chain; `ValueError` for one out of range."""

    variance: float = 10.0  # sigma^2 of the normal prior on every parameter
    solver: Literal["lbfgs", "sgd"] = "lbfgs"  # all sequences at once, or one by one in random order
    max_iter: int = 200  # iterations, or passes over the sequences
    tol: float = 1e-4  # lbfgs ends where no entry of the gradient, in nats a row, is larger
    lr: float = 0.1  # eta of sgd, whose m-th step is eta / (1 + eta m / (sequences variance))
    decode: Literal["path", "row"] = "path"  # predict the likeliest path, or each row's likeliest label
    random_state: Any = None  # of sgd's order

    def __post_init__(self) -> None:
        for name in ("variance", "max_iter", "lr"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} is {value}; expected above 0")
        if self.tol < 0:
            raise ValueError(f"tol is {self.tol}; expected 0 or more")
        if self.solver not in ("lbfgs", "sgd"):
            raise ValueError(f"solver is {self.solver!r}; expected 'lbfgs' or 'sgd'")
        if self.decode not in ("path", "row"):
            raise ValueError(f"decode is {self.decode!r}; expected 'path' or 'row'")


class Weights(NamedTuple):
    """What a chain is made of."""

    coef_KF: Array
    intercept_K: Array
    start_K: Array
    transitions_KK: Array


class Posterior(NamedTuple):
    """What a chain says of sequences whose labels are not known."""

    log_partition_B: Array
    label_BTK: Array  # p(y_t = k | x), zero beyond a sequence's end
    pair_KK: Array  # expected numbers of transitions, summed over all sequences


def passed_on(log_BK: Array, step_KK: Array) -> Array:
    """log sum_i exp(log_i) step_ij (B, K)."""
    top_B1 = log_BK.max(1, keepdims=True)
    scaled_BK = np.exp(log_BK - top_B1)
    return log_positive(scaled_BK @ step_KK) + top_B1


def forward(start_K: Array, transitions_KK: Array, unary_BTK: Array, inside_BT: Array) -> Array:
    """alpha (B, T, K); beyond a sequence's end it stays as it was there."""
    step_KK = np.exp(transitions_KK)
    alpha_BTK = np.empty_like(unary_BTK)
    alpha_BTK[:, 0] = start_K + unary_BTK[:, 0]
    for t in range(1, unary_BTK.shape[1]):
        before_BK = alpha_BTK[:, t - 1]
        new_BK = passed_on(before_BK, step_KK) + unary_BTK[:, t]
        alpha_BTK[:, t] = np.where(inside_BT[:, t, None], new_BK, before_BK)
    return alpha_BTK


def backward(transitions_KK: Array, unary_BTK: Array, inside_BT: Array) -> Array:
    """beta (B, T, K): zero at a sequence's last row and beyond."""
    step_KK = np.exp(transitions_KK).T
    beta_BTK = np.zeros_like(unary_BTK)
    for t in range(unary_BTK.shape[1] - 2, -1, -1):
        ahead_BK = unary_BTK[:, t + 1] + beta_BTK[:, t + 1]
        new_BK = passed_on(ahead_BK, step_KK)
        beta_BTK[:, t] = np.where(inside_BT[:, t + 1, None], new_BK, 0.0)
    return beta_BTK


def posterior(start_K: Array, transitions_KK: Array, unary_BTK: Array, inside_BT: Array) -> Posterior:
    """Marginals of labels and of transitions, from scores of rows (B, T, K) and where the sequences are (B, T)."""
    alpha_BTK = forward(start_K, transitions_KK, unary_BTK, inside_BT)
    beta_BTK = backward(transitions_KK, unary_BTK, inside_BT)
    log_partition_B = logsumexp(alpha_BTK[:, -1], axis=1)
    total_B11 = log_partition_B[:, None, None]
    log_label_BTK = alpha_BTK + beta_BTK - total_B11
    label_BTK = np.exp(log_label_BTK) * inside_BT[..., None]
    left_BTK = alpha_BTK[:, :-1]
    right_BTK = unary_BTK[:, 1:] + beta_BTK[:, 1:]
    left_top = left_BTK.max(2, keepdims=True)
    right_top = right_BTK.max(2, keepdims=True)
    log_scale_BT1 = left_top + right_top - total_B11
    scale_BT1 = np.exp(log_scale_BT1) * inside_BT[:, 1:, None]
    from_BTK = np.exp(left_BTK - left_top) * scale_BT1
    to_BTK = np.exp(right_BTK - right_top)
    together_KK = np.einsum("bti,btj->ij", from_BTK, to_BTK)
    pair_KK = together_KK * np.exp(transitions_KK)
    return Posterior(log_partition_B, label_BTK, pair_KK)


class Sequences:
    """Rows of features with the places (B, T) that they have in sequences of unequal lengths."""

    def __init__(self, X: Any, lengths: Array) -> None:
        self.X = X
        self.lengths = lengths
        places_T = np.arange(lengths.max())
        self.inside_BT = places_T < lengths[:, None]
        ends_B = np.cumsum(lengths)
        self.first_B = ends_B - lengths

    def unary(self, weights: Weights) -> tuple[Array, Array]:
        """Scores of labels, row by row (N, K), and laid out in sequences (B, T, K), zero beyond their ends."""
        seen_NK = self.X @ weights.coef_KF.T
        scores_NK = seen_NK + weights.intercept_K
        _, K = scores_NK.shape
        laid_out = *self.inside_BT.shape, K
        unary_BTK = np.zeros(laid_out)
        unary_BTK[self.inside_BT] = scores_NK
        return scores_NK, unary_BTK

    def posterior(self, weights: Weights) -> Posterior:
        """What the chain says of these rows."""
        _, unary_BTK = self.unary(weights)
        return posterior(weights.start_K, weights.transitions_KK, unary_BTK, self.inside_BT)

    def moved(self) -> Array:
        """Rows (M,) that follow another of their sequence."""
        first_N = np.zeros(self.X.shape[0], dtype=bool)
        first_N[self.first_B] = True
        return np.flatnonzero(~first_N)

    def path_scores(self, weights: Weights, codes_N: Array) -> Array:
        """s(y, x) of every sequence (B,)."""
        scores_NK, _ = self.unary(weights)
        every_N = np.arange(len(codes_N))
        row_N = scores_NK[every_N, codes_N]
        first_B = codes_N[self.first_B]
        row_N[self.first_B] += weights.start_K[first_B]
        to_M = self.moved()
        before_M = codes_N[to_M - 1]
        after_M = codes_N[to_M]
        row_N[to_M] += weights.transitions_KK[before_M, after_M]
        return np.add.reduceat(row_N, self.first_B)

    def each(self) -> Iterator[tuple[Sequences, slice]]:
        """Every sequence alone, and its rows."""
        end = 0
        for length in self.lengths.tolist():
            first = end
            end = first + length
            rows = slice(first, end)
            own = self.X[rows]
            only_1 = np.array([length])
            yield Sequences(own, only_1), rows


def climb(sequences: Sequences, codes_N: Array, weights: Weights) -> tuple[float, Weights]:
    """sum_n log p(y_n | x_n) in nats, and its gradient: observed minus expected features."""
    K = len(weights.start_K)
    found = sequences.posterior(weights)
    observed_NK = np.eye(K)[codes_N]
    expected_NK = found.label_BTK[sequences.inside_BT]
    left_NK = observed_NK - expected_NK
    coef_FK = sequences.X.T @ left_NK
    first_BK = left_NK[sequences.first_B]
    to_M = sequences.moved()
    before_MK = observed_NK[to_M - 1]
    after_MK = observed_NK[to_M]
    pairs_KK = before_MK.T @ after_MK
    moves_KK = pairs_KK - found.pair_KK
    slope = Weights(coef_FK.T, left_NK.sum(0), first_BK.sum(0), moves_KK)
    scores_B = sequences.path_scores(weights, codes_N)
    log_p_B = scores_B - found.log_partition_B
    return float(log_p_B.sum()), slope


@method(title="Linear-chain conditional random field", paper="An Introduction to Conditional Random Fields", year=2012,
        tags={"estimator", "responsibilities"})
class ChainCRF(Configured, ClassifierMixin, BaseEstimator, config=Config):
    """Conditional random field over sequences of rows; see the card and `Config`."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Any, y: Any, lengths: Any = None) -> ChainCRF:
        """Fit to rows X (N, F) with labels y (N,) of sequences of `lengths` (None: one sequence); returns self.

        `ValueError` for rows, labels or lengths that do not match, labels that are no classes, or fewer than two.
        """
        config = self._config()
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        check_classification_targets(y)
        sequences = Sequences(X, _lengths(lengths, X.shape[0]))
        self.classes_, codes_N = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class, {self.classes_[0]!r}; expected two or more")
        solve = self._by_sgd
        if config.solver == "lbfgs":
            solve = self._by_lbfgs
        weights = solve(config, sequences, codes_N)
        self.coef_ = weights.coef_KF
        self.intercept_ = weights.intercept_K
        self.start_ = weights.start_K
        self.transitions_ = weights.transitions_KK
        return self

    def _by_lbfgs(self, config: Config, sequences: Sequences, codes_N: Array) -> Weights:
        zero = _zeros(len(self.classes_), sequences.X.shape[1])
        N = len(codes_N)
        self.log_posteriors_: list[float] = []

        def loss(flat: Array) -> tuple[float, Array]:
            weights = _unpacked(flat, zero)
            total, slope = climb(sequences, codes_N, weights)
            pull = flat / config.variance
            penalty = 0.5 * float(flat @ pull)
            uphill = _packed(slope) - pull
            return (penalty - total) / N, -uphill / N

        def noted(intermediate_result: Any) -> None:
            self.log_posteriors_.append(-intermediate_result.fun)

        found = minimize(
            loss,
            _packed(zero),
            jac=True,
            method="L-BFGS-B",
            callback=noted,
            options={"maxiter": config.max_iter, "gtol": config.tol, "ftol": 0.0},
        )
        self.n_iter_ = found.nit
        if found.nit >= config.max_iter:
            warnings.warn("the fit did not converge; raise max_iter or tol.", ConvergenceWarning, stacklevel=3)
        return _unpacked(found.x, zero)

    def _by_sgd(self, config: Config, sequences: Sequences, codes_N: Array) -> Weights:
        rng = check_random_state(config.random_state)
        alone = [(one, codes_N[rows]) for one, rows in sequences.each()]
        B, N = len(alone), len(codes_N)
        zero = _zeros(len(self.classes_), sequences.X.shape[1])
        flat = _packed(zero)
        decay = 1 / (B * config.variance)
        self.log_posteriors_ = []
        step = 0
        for _ in range(config.max_iter):
            total = 0.0
            for place in rng.permutation(B):
                own, codes_T = alone[place]
                weights = _unpacked(flat, zero)
                value, slope = climb(own, codes_T, weights)
                slowed = 1 + config.lr * decay * step
                uphill = _packed(slope) - decay * flat
                flat = flat + config.lr / slowed * uphill
                total += value
                step += 1
            penalty = 0.5 * decay * B * flat @ flat
            height = total - penalty
            self.log_posteriors_.append(height / N)
        self.n_iter_ = config.max_iter
        return _unpacked(flat, zero)

    def _weights(self) -> Weights:
        return Weights(self.coef_, self.intercept_, self.start_, self.transitions_)

    def _sequences(self, X: Any, lengths: Any) -> Sequences:
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return Sequences(X, _lengths(lengths, X.shape[0]))

    def predict_proba(self, X: Any, lengths: Any = None) -> Array:
        """Probability of every label at every row (N, K), all rows of its sequence known; an error before `fit`."""
        sequences = self._sequences(X, lengths)
        found = sequences.posterior(self._weights())
        return found.label_BTK[sequences.inside_BT]

    def predict(self, X: Any, lengths: Any = None) -> Array:
        """Labels (N,) of the likeliest paths, or row by row where `decode` says so; an error before `fit`."""
        if self._config().decode == "row":
            return self.classes_[self.predict_proba(X, lengths).argmax(1)]
        sequences = self._sequences(X, lengths)
        scores_NK, _ = sequences.unary(self._weights())
        found = [likeliest_path(self.start_, self.transitions_, scores_NK[rows]) for _, rows in sequences.each()]
        codes_N = np.concatenate([path_T for _, path_T in found])
        return self.classes_[codes_N]

    def log_likelihood(self, X: Any, y: Any, lengths: Any = None) -> Array:
        """log p(y | x) of every sequence (B,), in nats; `ValueError` for labels not seen in `fit`, or not one a row."""
        sequences = self._sequences(X, lengths)
        y_N = column_or_1d(y)
        check_consistent_length(sequences.X, y_N)
        place_N = np.searchsorted(self.classes_, y_N)
        last = len(self.classes_) - 1
        codes_N = np.minimum(place_N, last)
        unknown_N = self.classes_[codes_N] != y_N
        if unknown_N.any():
            first = y_N[unknown_N].tolist()[0]
            raise ValueError(f"label {first!r} was not seen in fit")
        weights = self._weights()
        found = sequences.posterior(weights)
        return sequences.path_scores(weights, codes_N) - found.log_partition_B

    def score(self, X: Any, y: Any, sample_weight: Any = None, lengths: Any = None) -> float:
        """Share of rows with the right label; an error before `fit`."""
        right_N = self.predict(X, lengths) == np.asarray(y)
        return float(np.average(right_N, weights=sample_weight))


def _lengths(lengths: Any, rows: int) -> Array:
    """Lengths of the sequences (B,), checked."""
    found = np.array([rows]) if lengths is None else np.asarray(lengths)
    whole = np.issubdtype(found.dtype, np.integer) and found.ndim == 1
    if not whole or found.min(initial=1) < 1 or found.sum() != rows:
        raise ValueError(f"lengths {found.tolist()} for {rows} rows; expected whole numbers above 0 with this sum")
    return found


def _zeros(K: int, F: int) -> Weights:
    shapes = (K, F), (K,), (K,), (K, K)
    return Weights(*map(np.zeros, shapes))


def _packed(weights: Weights) -> Array:
    return np.concatenate([part.ravel() for part in weights])


def _unpacked(flat: Array, like: Weights) -> Weights:
    sizes = [part.size for part in like]
    ends = np.cumsum(sizes)
    pieces = np.split(flat, ends[:-1])
    shaped = [piece.reshape(part.shape) for piece, part in zip(pieces, like)]
    return Weights(*shaped)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Ten sequences of eight rows, whose labels stay for four rows and show faintly."""
    label_N = torch.arange(80) // 4 % 2
    noise_N2 = torch.randn(80, 2, generator=generator, dtype=torch.float64)
    x_N2 = noise_N2 + label_N[:, None]
    return {
        "estimator": ChainCRF(),
        "X": x_N2.numpy(),
        "y": label_N.numpy(),
        "lengths": [8] * 10,
    }
