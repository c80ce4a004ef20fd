"""Standard errors of a mixture's parameters by the information matrix: one fit, no resampling.

**Equation:** s_n = d log p(x_n; theta) / d theta. Empirical information I = sum_n w_n s_n s_n^T (as poLCA), or observed
information I = -sum_n w_n d2 log p(x_n) / d theta d theta^T. Covariance of the estimates V = I^-1, standard errors the
roots of its diagonal. Intervals are theta +- z se; of shares on the logit scale, so that they stay between 0 and 1.

**Shapes:** X (N, D); `standard_errors_` and `intervals_` by the name of each fitted attribute, in its shape, intervals
with an axis of (low, high) before it. Of a `ProductMixture`: `weights_`, and each block's by `block_0.means_`. P free
numbers.

**Reference:** McLachlan, Krishnan (2008), The EM Algorithm and Extensions, section 4.3; Linzer, Lewis (2011), poLCA: An
R Package for Polytomous Variable Latent Class Analysis.

**Differs:** derivatives are central differences of the log density, so that every family has them. Shares that add up
to one move against the largest of them. A share on its edge (below 1e-6) is held there: its error is NaN, and no other
error counts it. Covariances of models that share their shape or orientation only in part (mclust's names other than
EEE, VVI, VII, VVV) are held, too.

**Fails when:** there are more free numbers than rows, or the rows do not tell them apart (`ValueError`): then resample
(`MixtureBootstrap`). Components overlap: the likelihood is then no parabola, and the bootstrap is wider.

**Cost:** 2 P evaluations of the density (scores), 2 P^2 (hessian).
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.base import BaseEstimator, clone
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from mixwell.core.method import method
from mixwell.density._covariances import LAYOUTS, precision_cholesky
from mixwell.density._gaussian import Array
from mixwell.density._options import Configured
from mixwell.density.mixtures.gaussian import GaussianMixture

MATRICES = ("full", "tied")
EDGE = 1e-6  # a share below it is no estimate that a derivative could tell of
STEP, WIDE_STEP = 1e-5, 1e-3  # of first and second differences, as a share of a parameter's own size
SINGULAR = 1e-12  # least eigenvalue of the scaled information, as a share of the largest
WHOLE = ("full", "tied", "diag", "spherical", "VVV", "EEE", "VVI", "VII")  # covariances that nothing else ties together
FREE = ("GaussianMixture", "StudentTMixture")  # of the mixtures with means and covariances
SHARES = ("weights_", "zero_shares_", "_flat_probabilities")


@dataclass(frozen=True)
class Config:
    """Options; `ValueError` for one out of range."""

    estimator: Any = None  # a mixture; None: a Gaussian one
    kind: Literal["scores", "hessian"] = "scores"
    level: float = 0.95  # of the intervals

    def __post_init__(self) -> None:
        if self.kind not in ("scores", "hessian") or not 0 < self.level < 1:
            raise ValueError(f"kind={self.kind!r}, level={self.level}; expected 'scores' or 'hessian', and a level "
                             "between 0 and 1.")


class Direction(NamedTuple):
    """A free number: by what an attribute of an estimator changes with it."""

    owner: Any
    key: str  # name of the attribute in the results
    attribute: str
    change: Array  # in the attribute's shape
    size: float  # of the parameter: differences are small beside it


def directions(model: Any) -> list[Direction]:
    """All free numbers of a fitted mixture; a `ValueError` where its parameters are not known to be free."""
    weights_1K = model.weights_[None]
    found = list(_of_shares(model, "weights_", "weights_", weights_1K, (0,)))
    if not hasattr(model, "blocks_"):
        found += _of_estimator(model, "")
        return found
    for i, block in enumerate(model.blocks_):
        found += _of_estimator(block.estimator, f"block_{i}.")
    return found


def _of_estimator(model: Any, prefix: str) -> Iterator[Direction]:
    """Free numbers of one family beside the weights."""
    own = type(model).__name__
    holds = getattr(model, "fixed", None) is not None
    if holds or (own not in FREE and not hasattr(model, "_attributes")) or hasattr(model, "mean_directions_"):
        raise ValueError(f"{own} holds parameters or ties them together; expected a mixture whose parameters are all "
                         "free. MixtureBootstrap resamples any.")
    if own in FREE:
        yield from _of_normals(model, prefix)
        names = ["dofs_"] if hasattr(model, "dofs_") else []
    else:
        names = list(model._attributes.values())
    for name in names:
        key, value = prefix + name, getattr(model, name)
        if name == "_flat_probabilities":
            yield from _of_shares(model, key, name, value, _starts(model))
        else:
            yield from _of_each(model, key, name, value)


def _starts(model: Any) -> Array:
    """Where each column's categories begin."""
    sizes = [len(categories) for categories in model.categories_]
    return np.cumsum([0, *sizes[:-1]])


def _of_each(model: Any, key: str, name: str, value: Array, sizes: Array | None = None) -> Iterator[Direction]:
    """Every entry of an array by itself; shares on their edge are held."""
    typical = float(np.median(np.abs(value))) or 1.0
    for place in np.ndindex(value.shape):
        own = float(value[place])
        if name in SHARES and not EDGE < own < 1 - EDGE:
            continue
        size = max(abs(own), 1e-3 * typical) if sizes is None else float(sizes[place])
        room = min(own, 1 - own) if name in SHARES else size
        change = np.zeros_like(value)
        change[place] = 1.0
        yield Direction(model, key, name, change, room)


def _of_shares(model: Any, key: str, name: str, value_RC: Array, starts: Any) -> Iterator[Direction]:
    """Entries of rows (R, C) of shares, which add up to one from each start to the next."""
    shape = getattr(model, name).shape
    for row, shares_C in enumerate(value_RC):
        for first, part in zip(starts, np.split(shares_C, starts[1:])):
            largest = int(part.argmax())
            for place, share in enumerate(part):
                if place == largest or share < EDGE:
                    continue
                change_RC = np.zeros_like(value_RC)
                change_RC[row, first + place] = 1.0
                change_RC[row, first + largest] = -1.0
                yield Direction(model, key, name, change_RC.reshape(shape), float(share))


def _of_normals(model: Any, prefix: str) -> Iterator[Direction]:
    """Means and covariances, symmetric where they are matrices."""
    means_KD = model.means_
    K, D = means_KD.shape
    covariances = model.covariances_
    matrices = model._layout in MATRICES
    variances = np.diagonal(covariances, axis1=-2, axis2=-1) if matrices else covariances
    wide = variances[:, None] if model._layout == "spherical" else variances
    spread_KD = np.broadcast_to(np.sqrt(wide), (K, D))
    key = f"{prefix}covariances_"
    yield from _of_each(model, f"{prefix}means_", "means_", means_KD, spread_KD)
    if model.covariance_type not in WHOLE:
        return
    if matrices:
        yield from _of_matrices(model, key, covariances)
    else:
        yield from _of_each(model, key, "covariances_", covariances)


def _of_matrices(model: Any, key: str, covariances: Array) -> Iterator[Direction]:
    """Entries on and above the diagonal, which change those below it."""
    for place in np.ndindex(covariances.shape):
        *front, i, j = place
        if i > j:
            continue
        change = np.zeros_like(covariances)
        change[place] = 1.0
        change[(*front, j, i)] = 1.0
        ends = covariances[(*front, i, i)] * covariances[(*front, j, j)]
        size = float(np.sqrt(ends))
        yield Direction(model, key, "covariances_", change, size)


def _moved(model: Any, X: Any, steps: list[tuple[Direction, float]]) -> Array:
    """Log densities (N,) of rows where some numbers are moved."""
    before = [(each.owner, each.attribute, getattr(each.owner, each.attribute)) for each, _ in steps]
    for each, step in steps:
        _set(each.owner, each.attribute, getattr(each.owner, each.attribute) + step * each.change)
    log_N = np.asarray(model.score_samples(X))
    for owner, name, value in reversed(before):
        _set(owner, name, value)
    return log_N


def _set(owner: Any, name: str, value: Array) -> None:
    setattr(owner, name, value)
    if name == "weights_":
        for block in getattr(owner, "blocks_", ()):
            block.estimator.weights_ = value
    if name == "covariances_":
        root = precision_cholesky(LAYOUTS[owner.covariance_type], torch.as_tensor(value))
        owner.precisions_cholesky_ = root.numpy()


def scores(model: Any, X: Any, found: list[Direction]) -> Array:
    """Derivatives (N, P) of log densities."""
    columns = []
    for each in found:
        h = STEP * each.size
        above_N = _moved(model, X, [(each, h)])
        below_N = _moved(model, X, [(each, -h)])
        rise_N = above_N - below_N
        columns.append(rise_N / (2 * h))
    return np.stack(columns, 1)


def hessian(model: Any, X: Any, weights_N: Array, found: list[Direction]) -> Array:
    """Second derivatives (P, P) of the log likelihood."""
    P = len(found)
    curved_PP = np.empty((P, P))
    for p, one in enumerate(found):
        for q, other in enumerate(found[: p + 1]):
            curved_N = _curvature(model, X, one, other)
            curved_PP[p, q] = weights_N @ curved_N
            curved_PP[q, p] = curved_PP[p, q]
    return curved_PP


def _curvature(model: Any, X: Any, one: Direction, other: Direction) -> Array:
    """Second derivatives (N,) of log densities by two numbers, which may be the same."""
    h = WIDE_STEP * one.size
    g = WIDE_STEP * other.size
    signed = []
    for a, b in product((1, -1), repeat=2):
        log_N = _moved(model, X, [(one, a * h), (other, b * g)])
        signed.append(a * b * log_N)
    total_N: Array = np.sum(signed, axis=0)
    return total_N / (4 * h * g)


def standard_errors(model: Any, X: Any, sample_weight: Any = None, kind: str = "scores") -> dict[str, Array]:
    """Standard errors of a fitted mixture's attributes, by name, at the rows it was fitted to.

    Raises a `ValueError` where rows do not tell the parameters apart.
    """
    model = _double(model)
    tensor = isinstance(X, torch.Tensor)
    if tensor or getattr(X, "dtype", None) == np.float32:
        X = np.asarray(X, dtype=np.float64)
    rows = len(model.score_samples(X))
    numbers = model._n_parameters()
    given = np.ones(rows) if sample_weight is None else sample_weight
    weights_N = np.asarray(given, dtype=float)
    if numbers > rows:
        raise ValueError(f"{numbers} free numbers for {rows} rows; expected more rows. MixtureBootstrap resamples.")
    found = directions(model)
    if kind == "hessian":
        information_PP = -hessian(model, X, weights_N, found)
    else:
        scores_NP = scores(model, X, found)
        information_PP = (scores_NP * weights_N[:, None]).T @ scores_NP
    covariance_PP = _inverse(information_PP)
    return _by_attribute(found, covariance_PP)


def _double(model: Any) -> Any:
    """A copy whose numbers are arrays in float64."""
    own = deepcopy(model)
    estimators = [own, *(block.estimator for block in getattr(own, "blocks_", ()))]
    for estimator in estimators:
        for name, value in list(vars(estimator).items()):
            tensor = isinstance(value, torch.Tensor)
            if tensor:
                value = value.cpu().numpy()
            if tensor or getattr(value, "dtype", None) == np.float32:
                setattr(estimator, name, value.astype(float))
    return own


def _inverse(information_PP: Array) -> Array:
    """Of a matrix whose rows are first brought to one scale; a `ValueError` where it has none."""
    diagonal_P = np.diagonal(information_PP)
    if not (diagonal_P > 0).all():
        raise ValueError("the likelihood has no maximum here in some parameter; fit with more iterations, or resample "
                         "with MixtureBootstrap.")
    scale_P = 1 / np.sqrt(diagonal_P)
    scaled_PP = information_PP * np.outer(scale_P, scale_P)
    values_P, axes_PP = np.linalg.eigh(scaled_PP)
    if values_P[0] < SINGULAR * values_P[-1]:
        raise ValueError("the rows do not tell some parameters apart; resample with MixtureBootstrap.")
    inverse_PP = (axes_PP / values_P) @ axes_PP.T
    return inverse_PP * np.outer(scale_P, scale_P)


def _by_attribute(found: list[Direction], covariance_PP: Array) -> dict[str, Array]:
    """Standard errors of every entry, which is a sum of the free numbers that change it."""
    errors = {}
    places: dict[str, list[int]] = {}
    for p, each in enumerate(found):
        places.setdefault(each.key, []).append(p)
    for key, own in places.items():
        changes = np.stack([found[p].change for p in own])
        changes_PA = changes.reshape(len(own), -1)
        part_PP = covariance_PP[np.ix_(own, own)]
        variance_A = np.einsum("pa,pq,qa->a", changes_PA, part_PP, changes_PA)
        free_A = changes_PA.any(0)
        error_A = np.where(free_A, np.sqrt(variance_A), np.nan)
        errors[key] = error_A.reshape(changes.shape[1:])
    return errors


def estimate(model: Any, key: str) -> Array:
    """The fitted attribute of this name among the results."""
    block, _, attribute = key.rpartition(".")
    owner = model
    if block:
        number = int(block.removeprefix("block_"))
        owner = model.blocks_[number].estimator
    value = torch.as_tensor(getattr(owner, attribute))
    return value.cpu().numpy()


def interval(name: str, value: Array, error: Array, level: float) -> Array:
    """Low and high (2, ...) of estimates; of shares on the logit scale."""
    z = norm.ppf(0.5 + level / 2)
    if not name.endswith(SHARES):
        return np.stack([value - z * error, value + z * error])
    inside = np.clip(value, 1e-300, 1 - 1e-16)
    slope = inside * (1 - inside)
    wide = z * error / slope
    middle = logit(inside)
    ends = np.stack([middle - wide, middle + wide])
    return expit(ends)


@method(title="Information matrix of a mixture", year=2008, tags={"estimator", "sklearn"})
class MixtureInformation(Configured, BaseEstimator, config=Config):
    """Fits `estimator` and tells how sure its parameters are by the curvature of the likelihood; options in `Config`.

    Fitted: `estimator_`, `standard_errors_`, `intervals_`.
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MixtureInformation:
        """Fit, and find the errors; returns self. Raises a `ValueError` as `standard_errors`, and as the estimator."""
        config = self._config()
        base = GaussianMixture() if config.estimator is None else config.estimator
        self.estimator_ = clone(base).fit(X, sample_weight=sample_weight)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self.estimator_, name):
                setattr(self, name, getattr(self.estimator_, name))
        self.standard_errors_ = standard_errors(self.estimator_, X, sample_weight, config.kind)
        self.intervals_ = {}
        for name, error in self.standard_errors_.items():
            value = estimate(self.estimator_, name)
            self.intervals_[name] = interval(name, value, error, config.level)
        return self

    def predict(self, X: Any) -> Any:
        """Labels by the fitted mixture (N,); an error before `fit`."""
        check_is_fitted(self)
        return self.estimator_.predict(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density by the fitted mixture, in nats; an error before `fit`."""
        check_is_fitted(self)
        return self.estimator_.score(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        base = GaussianMixture() if self.estimator is None else self.estimator
        tags.input_tags = get_tags(base).input_tags
        return tags


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups on a line."""
    centres_N1 = 5.0 * (torch.arange(100) % 2)[:, None]
    noise_N1 = torch.randn(100, 1, generator=generator, dtype=torch.float64)
    estimator = MixtureInformation(GaussianMixture(2, random_state=0))
    return {"estimator": estimator, "X": (centres_N1 + noise_N1).numpy()}
