"""Fits of every family with every number of components, weighed by one criterion; an interruption keeps the best."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold

from mixwell.core.errors import MixwellError
from mixwell.core.machine import memory_bytes
from mixwell.core.units import counted, si, whole
from mixwell.density.mixtures.product import ProductMixture
from mixwell.parallel.pools import results
from mixwell.tables.candidates import Candidate, Choice, Progress, blocks_of, counts_of
from mixwell.tables.columns import Column
from mixwell.tables.rows import Rows

MOST_PARAMETERS = 0.5  # of the number of values that there are
TOLERANCE, MOST_STEPS = 1e-5, 1000  # of EM, in nats a row: criteria are to be the papers' to a tenth
TIED = ("tied", "EEE")
USUAL = range(1, 9)  # numbers of components that are tried where none are named
SEARCHED = 50_000  # rows that the search looks at; the choice is then fitted to all of them
STEPS = 10  # of EM on all rows from one word of progress to the next
STEP, MOST = 4, 24  # how many more are tried at a time where the largest is the best, and the largest of all


@dataclass(kw_only=True)
class Search:
    """What is tried, and how each fit is made and judged."""

    rows: Rows
    criterion: str = "bic"
    folds: int = 5
    starts: int = 4
    seed: int = 0
    progress: Progress | None = None
    pool: Executor | None = None  # where fits are made; None: here, one after the other
    later: int = 0  # fits after the search

    def __post_init__(self) -> None:
        self.plan: list[Candidate] = []
        self.tried: list[Candidate] = []
        self.best: tuple[Candidate, ProductMixture] | None = None

    def run(self, plan: Iterable[Candidate]) -> None:
        """Fit what is planned, in order."""
        self.plan += plan
        ahead = self.plan[len(self.tried) :]
        asked = self.criterion, self.folds, self.starts, self.seed
        found = results(self.pool, weighed, ahead, self.rows, *asked)
        for candidate in ahead:
            self.tell(f"{candidate.words}, {counted(candidate.n_components, 'component')}")
            self._judge(*next(found))

    def tell(self, words: str) -> None:
        """Say what comes next."""
        if self.progress:
            self.progress(len(self.tried), len(self.plan) + self.later, words)

    def done(self) -> None:
        """Say that nothing comes any more."""
        if self.progress:
            fits = len(self.plan) + self.later
            self.progress(fits, fits, "done")

    def _judge(self, candidate: Candidate, model: ProductMixture | None) -> None:
        self.tried.append(candidate)
        if model is None or candidate.refused:
            return
        best, _ = self.best or (None, None)
        if best is None or self.score(candidate) < self.score(best):
            self.best = candidate, model

    def score(self, candidate: Candidate) -> float:
        """A candidate by the criterion, smaller is better."""
        return float(getattr(candidate, self.criterion))

    def at_edge(self) -> list[tuple[str, str]]:
        """Families whose best fit has the largest number of components tried, if the best of all is one of them."""
        largest = max(candidate.n_components for candidate in self.plan)
        if self.best is None or self.best[0].n_components < largest:
            return []
        usable = [candidate for candidate in self.tried if not candidate.refused]
        best_of: dict[tuple[str, str], Candidate] = {}
        for candidate in sorted(usable, key=self.score):
            best_of.setdefault(candidate.form, candidate)
        return [form for form, candidate in best_of.items() if candidate.n_components == largest]


def choose_mixture(x_ND: np.ndarray, columns: Sequence[Column], *, components: Iterable[int] | None = None,
                   families: Sequence[str], criterion: str = "bic", folds: int = 5, starts: int = 4, seed: int = 0,
                   weights_N: np.ndarray | None = None, search_rows: int | None = SEARCHED,
                   progress: Progress | None = None, pool: Executor | None = None) -> tuple[ProductMixture, Choice]:
    """Fit all candidates to encoded rows (N, D) and keep the best. Ctrl-C ends the search once one is there.

    components: the numbers to try; None: 1 to 8, and more as long as the largest is the best. search_rows: how many
    rows, drawn at random, the candidates are fitted to before the best is fitted to all of them; None: all.
    """
    every = Rows(x_ND, columns, weights_N)
    rows = every.some(search_rows, seed)
    numbers = sorted(set(USUAL if components is None else components))
    possible = [k for k in numbers if k < len(rows)]
    if not possible:
        raise MixwellError(f"{len(rows)} rows are too few for {numbers[0]} components; expected fewer components "
                           "than rows.")
    notes = []
    if possible != numbers:
        notes.append(f"More than {possible[-1]} components were not tried: there are {len(rows)} rows.")
    forms = [(family, counts) for family in families for counts in counts_of(columns)]
    search = Search(rows=rows, criterion=criterion, folds=folds, starts=starts, seed=seed, progress=progress, pool=pool,
                    later=int(rows is not every))
    final = None
    try:
        search.run(_planned(possible, forms))
        if components is None:
            notes += _extended(search)
        if rows is not every:
            final = _on_all(every, search)
        search.done()
    except KeyboardInterrupt:
        if search.best is None:
            raise
    best, model = _found(search)
    if rows is not every:
        notes.append(_of_some(len(rows), len(every), seed, final is not None))
    choice = Choice(best=best, candidates=tuple(search.tried), criterion=criterion,
                    planned=len(search.plan) + search.later, notes=tuple(notes),
                    searched=len(rows) if search.later else 0, final=final)
    return model, choice


def _found(search: Search) -> tuple[Candidate, ProductMixture]:
    """The best candidate and its model; a `MixwellError` where none could be used."""
    if search.best is None:
        raise MixwellError(f"no candidate could be used; the last: {search.tried[-1].refused}. Try --family diag or "
                           "fewer components.")
    return search.best


def _on_all(every: Rows, search: Search) -> Candidate:
    """The best candidate of a search on some rows, its model fitted to all of them from where the search left it."""
    best, model = _found(search)
    trained = copy.deepcopy(model)
    trained.set_params(warm_start=True, max_iter=STEPS)
    trained.lower_bound_ = -math.inf  # that of other rows says nothing
    for done in range(0, MOST_STEPS, STEPS):
        search.tell(f"the choice on all {whole(len(every))} rows, {done} steps done")
        try:
            _quietly(trained, every)
        except MixwellError:
            raise
        except ValueError as error:  # components collapsed
            raise MixwellError(f"the choice cannot be fitted to all rows ({error}) Pass --search-rows all.") from error
        if trained.converged_:
            break
    final = _judged(every, best, trained)
    search.best = best, trained
    return final


def _of_some(rows: int, every: int, seed: int, fitted: bool) -> str:
    """That a search looked at some rows."""
    then = "the choice was then fitted to all of them" if fitted else "the fit of the choice to all of them was stopped"
    return (f"The candidates were fitted to {whole(rows)} of the {whole(every)} rows, drawn at random (seed {seed}); "
            f"{then}. --search-rows N looks at other numbers of rows, --search-rows all at all.")


def _planned(numbers: Iterable[int], forms: Sequence[tuple[str, str]]) -> list[Candidate]:
    """Fits in an order in which an interruption leaves all families tried."""
    plan = []
    for k in numbers:
        plan += [Candidate(family=family, counts=counts, n_components=k) for family, counts in forms]
    return plan


def _extended(search: Search) -> list[str]:
    """Try more components as long as the largest number is the best; a note that says so."""
    first = largest = max(candidate.n_components for candidate in search.plan)
    most = min(MOST, len(search.rows) - 1)
    while largest < most and (forms := search.at_edge()):
        more = range(largest + 1, min(largest + STEP, most) + 1)
        search.run(_planned(more, forms))
        largest = more[-1]
    if largest == first:
        return []
    return [f"Up to {largest} components were tried, since of 1 to {first} the largest number was the best."]


def weighed(candidate: Candidate, rows: Rows, criterion: str, folds: int, starts: int,
            seed: int) -> tuple[Candidate, ProductMixture | None]:
    """The candidate fitted and judged, and its model where there is one."""
    found, model = _try(rows, candidate, starts, seed)
    if criterion == "cv" and not found.refused:
        found = _held_out(found, rows, folds, starts, seed)
    return found, model


def _fitted(rows: Rows, candidate: Candidate, starts: int, seed: int) -> ProductMixture:
    blocks = blocks_of(rows.columns, candidate.family, candidate.counts)
    model = ProductMixture(candidate.n_components, blocks=blocks, n_init=starts, random_state=seed, tol=TOLERANCE,
                           max_iter=MOST_STEPS)
    return _quietly(model, rows)


def _quietly(model: ProductMixture, rows: Rows) -> ProductMixture:
    """The model fitted without the warnings of which a report says more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` says it
        warnings.filterwarnings("ignore", message=".*is constant|.*below reg_covar|.*distinct clusters")
        return model.fit(rows.x_ND, sample_weight=rows.weights_N)


def _try(rows: Rows, candidate: Candidate, starts: int, seed: int) -> tuple[Candidate, ProductMixture | None]:
    """The candidate judged, and its model where there is one."""
    hopeless = _hopeless(rows, candidate.family, candidate.n_components)
    if hopeless:
        return replace(candidate, refused=hopeless), None
    try:
        model = _fitted(rows, candidate, starts, seed)
    except MixwellError:
        raise
    except ValueError as error:  # components collapsed
        return replace(candidate, refused=" ".join(str(error).split())), None
    return _judged(rows, candidate, model), model


def _judged(rows: Rows, candidate: Candidate, model: ProductMixture) -> Candidate:
    """The candidate with what the criteria say of its fit."""
    P = model._n_parameters()
    log_likelihood = float(rows.log_density(model) @ rows.each_N)
    resp_NK = model.predict_proba(rows.x_ND)
    log_resp_NK = np.log(np.maximum(resp_NK, 1e-300))
    entropy_N = -np.sum(resp_NK * log_resp_NK, 1)
    entropy = float(entropy_N @ rows.each_N)
    bic = -2 * log_likelihood + P * math.log(rows.total)
    aic = -2 * log_likelihood + 2 * P
    return replace(candidate, log_likelihood=log_likelihood, n_parameters=P, bic=bic, icl=bic + 2 * entropy, aic=aic,
                   converged=bool(model.converged_), refused=_refusal(model, rows, candidate.family))


def _hopeless(rows: Rows, family: str, K: int) -> str:
    """Why a fit would be refused whatever came out of it; "" where it may not."""
    D = rows.numeric
    if not D:
        return ""
    N = len(rows)
    if family in TIED and N < D + K:
        return _few_for_tied(N, D, K)
    needed = _needed_rows(family, D)
    if needed * K > N:
        return f"{N} rows are too few for {K} components that need {needed} each"
    numbers = D * D if family in TIED else _numbers_of_each(family, D) * K
    taken, memory = 3 * 8 * numbers, memory_bytes()  # covariances, precisions, and their roots, in float64
    return f"its covariances take {si(taken, 'B')}, this machine has {si(memory, 'B')}" if taken > memory else ""


def _few_for_tied(N: int, D: int, K: int) -> str:
    return f"{N} rows are too few for a covariance of {D} columns around {K} means"


def _numbers_of_each(family: str, D: int) -> int:
    """How many numbers a component's covariance is kept as."""
    if family in ("spherical", "EII", "VII"):
        return 1
    on_axes = family == "diag" or family.endswith("I")
    return D if on_axes else D * D


def _needed_rows(family: str, D: int) -> int:
    """Rows that a component's covariance needs."""
    own_shape = family in ("full", "student_t", "VVV", "EVV", "VEV")
    return D + 1 if own_shape else 2


def _refusal(model: ProductMixture, rows: Rows, family: str) -> str:
    """Why a fit cannot be trusted: the criteria hold for parameters that are few beside the data, and a component
    with fewer rows than its covariance needs fits them perfectly."""
    K = len(model.weights_)
    parameters = model._n_parameters()
    values = rows.values
    if K > 1 and parameters > MOST_PARAMETERS * values:
        return f"{parameters} parameters are too many for {values:.0f} values"
    D = rows.numeric
    if not D:
        return ""
    smallest = float(model.weights_.min()) * rows.total
    if family in TIED and len(rows) < D + K:
        return _few_for_tied(len(rows), D, K)
    needed = _needed_rows(family, D)
    if smallest < needed:
        return f"a component holds {smallest:.1f} rows, fewer than the {needed} that its covariance needs"
    return ""


def _held_out(candidate: Candidate, rows: Rows, folds: int, starts: int, seed: int) -> Candidate:
    """The candidate with its held-out log density per row."""
    folds = min(folds, len(rows))
    scores: list[float] = []
    splits = KFold(folds, shuffle=True, random_state=seed).split(rows.x_ND)
    for number, (train, test) in enumerate(splits, start=1):
        try:
            model = _fitted(rows.part(train), candidate, starts, seed)
        except ValueError as error:
            words = " ".join(str(error).split())
            return replace(candidate, refused=f"without fold {number}: {words}")
        held = rows.part(test)
        score = -float(np.average(held.log_density(model), weights=held.each_N))
        scores.append(score)
    mean = float(np.mean(scores))
    scored = replace(candidate, cv=mean)
    if folds == 1:
        return scored
    uncertainty = np.std(scores, ddof=1) / math.sqrt(folds)
    return replace(scored, cv_error=float(uncertainty))
