"""Fits of every family with every number of components, weighed by one criterion; an interruption keeps the best."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold

from mixwell.core.errors import MixwellError, suggest
from mixwell.core.machine import memory_bytes
from mixwell.core.registry import find
from mixwell.core.units import counted, si
from mixwell.density.mixtures.product import Block, ProductMixture
from mixwell.tables.columns import CATEGORY, COUNT, NUMERIC, Column, used

FAMILIES = {"full": "Gaussian mixture, full covariances", "tied": "Gaussian mixture, one shared covariance",
            "diag": "Gaussian mixture, axis-aligned", "spherical": "Gaussian mixture, round in standard deviations",
            "student_t": "Student-t mixture, full covariances"}
DISCRETE = "discrete"  # no numeric column, hence no family to choose
WORDS = {**FAMILIES, DISCRETE: "counts and categories"}  # what reports and the terminal call them
CRITERIA = {"bic": "BIC", "icl": "ICL", "aic": "AIC", "cv": "minus the held-out log density per row"}
METHODS = {COUNT: "density.mixtures.poisson", CATEGORY: "density.mixtures.categorical"}
MOST_PARAMETERS = 0.5  # of the number of values that there are
PSEUDO_COUNT = 0.5  # of every category, so that one unseen in a component is rare there, not impossible
Progress = Callable[[int, int, str], None]  # fits done, fits in all, what comes next


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One fit and what the criteria say of it (smaller is better)."""

    family: str
    n_components: int
    log_likelihood: float = math.nan  # nats over all rows, of standardised values
    n_parameters: int = 0
    bic: float = math.nan
    icl: float = math.nan
    aic: float = math.nan
    cv: float = math.nan
    cv_error: float = math.nan  # standard error over the folds
    converged: bool = False
    refused: str = ""  # why it cannot be chosen


@dataclass(frozen=True, kw_only=True)
class Choice:
    """All candidates, and the one that was taken."""

    best: Candidate
    candidates: tuple[Candidate, ...]
    criterion: str
    planned: int  # fits there would have been
    notes: tuple[str, ...] = ()

    @property
    def stopped(self) -> bool:
        """Whether the search was interrupted."""
        return len(self.candidates) < self.planned

    def score(self, candidate: Candidate) -> float:
        """A candidate by the criterion, smaller is better."""
        return float(getattr(candidate, self.criterion))


def blocks_of(columns: Sequence[Column], family: str) -> list[Block]:
    """Blocks of the encoded columns, unfitted."""
    columns, blocks = used(columns), []
    for kind in (NUMERIC, COUNT, CATEGORY):
        places = tuple(i for i, column in enumerate(columns) if column.kind == kind)
        if not places:
            continue
        own = [columns[i] for i in places]
        floors = [column.floor for column in own] if kind == NUMERIC else []
        sizes = [len(column.categories) for column in own] if kind == CATEGORY else []
        estimator = estimator_of(kind, family)
        blocks.append(Block(kind, estimator, places, tuple(floors), tuple(sizes)))
    return blocks


def estimator_of(kind: str, family: str) -> Any:
    """An estimator for one block."""
    if kind == CATEGORY:
        return find(METHODS[kind]).load()(alpha=PSEUDO_COUNT)
    if kind == COUNT:
        return find(METHODS[kind]).load()()
    if family == "student_t":
        return find("density.mixtures.student_t").load()()
    return find("density.mixtures.gaussian").load()(covariance_type=family)


def families_of(wanted: str, columns: Sequence[Column]) -> list[str]:
    """Families to try for the numeric columns; a name that is none raises `MixwellError`."""
    auto = wanted == "auto"
    names = list(FAMILIES) if auto else [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in FAMILIES:
            raise MixwellError(f"unknown family {name!r}.{suggest(name, FAMILIES)} "
                               f"Expected auto, {', '.join(FAMILIES)}.")
    numeric = [column for column in used(columns) if column.kind == NUMERIC]
    if numeric:
        return names
    if not auto:
        raise MixwellError(f"the family {names[0]!r} describes numbers, and no column is numeric; leave it out.")
    return [DISCRETE]


def choose_mixture(x_ND: np.ndarray, columns: Sequence[Column], *, components: Iterable[int],
                   families: Sequence[str], criterion: str = "bic", folds: int = 5, starts: int = 4, seed: int = 0,
                   progress: Progress | None = None) -> tuple[ProductMixture, Choice]:
    """Fit all candidates to encoded rows (N, D) and keep the best. Ctrl-C ends the search once one is there."""
    numbers = sorted(set(components))
    possible = [k for k in numbers if k < len(x_ND)]
    if not possible:
        raise MixwellError(f"{len(x_ND)} rows are too few for {numbers[0]} components; expected fewer components "
                           "than rows.")
    notes = []
    if possible != numbers:
        notes.append(f"More than {possible[-1]} components were not tried: there are {len(x_ND)} rows.")
    plan = [(family, k) for k in possible for family in families]  # so that an interruption leaves all families tried
    tried: list[Candidate] = []
    best: tuple[Candidate, ProductMixture] | None = None
    try:
        for number, (family, k) in enumerate(plan):
            if progress:
                progress(number, len(plan), f"{WORDS[family]}, {counted(k, 'component')}")
            candidate, model = _try(x_ND, columns, family, k, starts, seed)
            if criterion == "cv" and not candidate.refused:
                candidate = _held_out(candidate, x_ND, columns, folds, starts, seed)
            tried.append(candidate)
            if model is not None and not candidate.refused and (
                    best is None or getattr(candidate, criterion) < getattr(best[0], criterion)):
                best = candidate, model
        if progress:
            progress(len(plan), len(plan), "done")
    except KeyboardInterrupt:
        if best is None:
            raise
    if best is None:
        raise MixwellError(f"no candidate could be used; the last: {tried[-1].refused}. Try --family diag or fewer "
                           "components.")
    return best[1], Choice(best=best[0], candidates=tuple(tried), criterion=criterion, planned=len(plan),
                           notes=tuple(notes))


def _fitted(x_ND: np.ndarray, columns: Sequence[Column], family: str, k: int, starts: int, seed: int) -> ProductMixture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` says it
        warnings.filterwarnings("ignore", message=".*is constant|.*below reg_covar|.*distinct clusters")
        return ProductMixture(k, blocks=blocks_of(columns, family), n_init=starts, random_state=seed).fit(x_ND)


def _try(x_ND: np.ndarray, columns: Sequence[Column], family: str, k: int, starts: int,
         seed: int) -> tuple[Candidate, ProductMixture | None]:
    hopeless = _hopeless(x_ND, columns, family, k)
    if hopeless:
        return Candidate(family=family, n_components=k, refused=hopeless), None
    try:
        model = _fitted(x_ND, columns, family, k, starts, seed)
    except MixwellError:
        raise
    except ValueError as error:  # components collapsed
        return Candidate(family=family, n_components=k, refused=" ".join(str(error).split())), None
    N = len(x_ND)
    P = model._n_parameters()
    log_likelihood = float(model.score_samples(x_ND).sum())
    resp_NK = model.predict_proba(x_ND)
    log_resp_NK = np.log(np.maximum(resp_NK, 1e-300))
    entropy = -float(np.sum(resp_NK * log_resp_NK))
    bic = -2 * log_likelihood + P * math.log(N)
    return Candidate(family=family, n_components=k, log_likelihood=log_likelihood, n_parameters=P, bic=bic,
                     icl=bic + 2 * entropy, aic=-2 * log_likelihood + 2 * P, converged=bool(model.converged_),
                     refused=_refusal(model, x_ND, family, columns)), model


def _hopeless(x_ND: np.ndarray, columns: Sequence[Column], family: str, K: int) -> str:
    """Why a fit would be refused whatever came out of it; "" where it may not."""
    D = sum(column.kind == NUMERIC for column in used(columns))
    if not D:
        return ""
    N = len(x_ND)
    if family == "tied" and N < D + K:
        return _few_for_tied(N, D, K)
    needed = _needed_rows(family, D)
    if needed * K > N:
        return f"{N} rows are too few for {K} components that need {needed} each"
    matrices = {"tied": D * D, "diag": K * D, "spherical": K}
    numbers = matrices.get(family, K * D * D)
    taken, memory = 3 * 8 * numbers, memory_bytes()  # covariances, precisions, and their roots, in float64
    return f"its covariances take {si(taken, 'B')}, this machine has {si(memory, 'B')}" if taken > memory else ""


def _few_for_tied(N: int, D: int, K: int) -> str:
    return f"{N} rows are too few for a covariance of {D} columns around {K} means"


def _needed_rows(family: str, D: int) -> int:
    """Rows that a component's covariance needs."""
    return D + 1 if family in ("full", "student_t") else 2


def _refusal(model: ProductMixture, x_ND: np.ndarray, family: str, columns: Sequence[Column]) -> str:
    """Why a fit cannot be trusted: the criteria hold for parameters that are few beside the data, and a component
    with fewer rows than its covariance needs fits them perfectly."""
    K = len(model.weights_)
    parameters = model._n_parameters()
    values = int(np.sum(~np.isnan(x_ND)))
    if K > 1 and parameters > MOST_PARAMETERS * values:
        return f"{parameters} parameters are too many for {values} values"
    D = sum(column.kind == NUMERIC for column in used(columns))
    if not D:
        return ""
    rows = len(x_ND)
    smallest = float(model.weights_.min()) * rows
    if family == "tied" and rows < D + K:
        return _few_for_tied(rows, D, K)
    needed = _needed_rows(family, D)
    if smallest < needed:
        return f"a component holds {smallest:.1f} rows, fewer than the {needed} that its covariance needs"
    return ""


def _held_out(candidate: Candidate, x_ND: np.ndarray, columns: Sequence[Column], folds: int, starts: int,
              seed: int) -> Candidate:
    folds = min(folds, len(x_ND))
    scores: list[float] = []
    splits = KFold(folds, shuffle=True, random_state=seed).split(x_ND)
    for number, (train, test) in enumerate(splits, start=1):
        try:
            model = _fitted(x_ND[train], columns, candidate.family, candidate.n_components, starts, seed)
        except ValueError as error:
            words = " ".join(str(error).split())
            return replace(candidate, refused=f"without fold {number}: {words}")
        log_N = model.score_samples(x_ND[test])
        score = -float(log_N.mean())
        scores.append(score)
    mean = float(np.mean(scores))
    scored = replace(candidate, cv=mean)
    if folds == 1:
        return scored
    uncertainty = np.std(scores, ddof=1) / math.sqrt(folds)
    return replace(scored, cv_error=float(uncertainty))
