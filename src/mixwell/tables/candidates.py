"""What is tried on a table: families, what the criteria say of each fit, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mixwell.core.errors import MixwellError, suggest
from mixwell.core.registry import family as family_of_methods
from mixwell.core.registry import find
from mixwell.density.mixtures.product import Block
from mixwell.tables.columns import Column, used
from mixwell.tables.kinds import CATEGORY, COUNT, NUMERIC

FAMILIES = {"full": "Gaussian mixture, full covariances", "tied": "Gaussian mixture, one shared covariance",
            "diag": "Gaussian mixture, axis-aligned", "spherical": "Gaussian mixture, round in standard deviations",
            "student_t": "Student-t mixture, full covariances"}
MCLUST = ("EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV")
AS_MEASURED = ("EII", "VII", "EVE", "VVE", "EEV", "VEV")  # other models in other units of a column
DISCRETE = "discrete"  # no numeric column, hence no family to choose
LETTERED = {name: f"Gaussian mixture {name}" for name in MCLUST}
WORDS = {**FAMILIES, **LETTERED, DISCRETE: "counts and categories"}  # what reports and the terminal call them
CRITERIA = {"bic": "BIC", "icl": "ICL", "aic": "AIC", "cv": "minus the held-out log density per row"}
COUNTS = {"poisson": "", "negative_binomial": ", negative binomial counts"}  # families of the counts, and their words
PSEUDO_COUNT = 0.5  # of every category, so that one unseen in a component is rare there, not impossible
Progress = Callable[[int, int, str], None]  # fits done, fits in all, what comes next


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One fit and what the criteria say of it (smaller is better)."""

    family: str
    n_components: int
    counts: str = ""  # family of the counts, where there are some
    log_likelihood: float = math.nan  # nats over all rows, in the data's own units
    n_parameters: int = 0
    bic: float = math.nan
    icl: float = math.nan
    aic: float = math.nan
    cv: float = math.nan
    cv_error: float = math.nan  # standard error over the folds
    converged: bool = False
    refused: str = ""  # why it cannot be chosen

    @property
    def words(self) -> str:
        """What reports and the terminal call its families."""
        return WORDS[self.family] + COUNTS.get(self.counts, "")

    @property
    def form(self) -> tuple[str, str]:
        """Its families, whatever the number of components."""
        return self.family, self.counts


@dataclass(frozen=True, kw_only=True)
class Choice:
    """All candidates, and the one that was taken."""

    best: Candidate
    candidates: tuple[Candidate, ...]
    criterion: str
    planned: int  # fits there would have been
    notes: tuple[str, ...] = ()
    searched: int = 0  # rows, drawn at random, that the candidates were fitted to; 0: all
    final: Candidate | None = None  # the best one, fitted to all rows after a search on some

    @property
    def done(self) -> int:
        """Fits that were made."""
        return len(self.candidates) + (self.final is not None)

    @property
    def stopped(self) -> bool:
        """Whether the search was interrupted."""
        return self.done < self.planned

    @property
    def taken(self) -> Candidate:
        """What the criteria say of the model that was kept."""
        return self.final or self.best

    @property
    def usable(self) -> list[Candidate]:
        """The candidates that could be chosen."""
        return [candidate for candidate in self.candidates if not candidate.refused]

    @property
    def at_edge(self) -> bool:
        """Whether no larger number of components could be compared with the chosen one."""
        K = self.best.n_components
        numbers = [candidate.n_components for candidate in self.usable]
        return K > 1 and max(numbers) == K

    def score(self, candidate: Candidate) -> float:
        """A candidate by the criterion, smaller is better."""
        return float(getattr(candidate, self.criterion))


def blocks_of(columns: Sequence[Column], family: str, counts: str = "poisson") -> list[Block]:
    """Blocks of the encoded columns, unfitted."""
    columns, blocks = used(columns), []
    for kind in (NUMERIC, COUNT, CATEGORY):
        places = tuple(i for i, column in enumerate(columns) if column.kind == kind)
        if not places:
            continue
        own = [columns[i] for i in places]
        bounded = kind == NUMERIC and family not in MCLUST  # which has no least variance
        floors = [column.floor for column in own] if bounded else []
        sizes = [len(column.categories) for column in own] if kind == CATEGORY else []
        estimator = estimator_of(kind, counts if kind == COUNT else family)
        blocks.append(Block(kind, estimator, places, tuple(floors), tuple(sizes)))
    return blocks


def estimator_of(kind: str, family: str) -> Any:
    """An estimator for one block."""
    if kind == CATEGORY:
        return find("density.mixtures.categorical").load()(alpha=PSEUDO_COUNT)
    if kind == COUNT:
        return find(f"density.mixtures.{family}").load()()
    if family == "student_t":
        return find("density.mixtures.student_t").load()()
    return find("density.mixtures.gaussian").load()(covariance_type=family)


def counts_of(columns: Sequence[Column]) -> list[str]:
    """Families to try for the counts, of those that there are; an empty name where no column counts."""
    if not any(column.kind == COUNT for column in columns):
        return [""]
    there = {entry.name for entry in family_of_methods("density.mixtures")}
    return [name for name in COUNTS if f"density.mixtures.{name}" in there]


def families_of(wanted: str, columns: Sequence[Column]) -> list[str]:
    """Families to try for the numeric columns; a name that is none raises `MixwellError`."""
    auto = wanted == "auto"
    several = {"auto": list(FAMILIES), "mclust": list(MCLUST)}
    names = several.get(wanted) or [name.strip() for name in wanted.split(",")]
    known = {**FAMILIES, **LETTERED}
    for name in names:
        if name not in known:
            raise MixwellError(f"unknown family {name!r}.{suggest(name, known)} "
                               f"Expected auto, mclust, {', '.join(known)}.")
    numeric = [column for column in used(columns) if column.kind == NUMERIC]
    if numeric:
        return names
    if not auto:
        raise MixwellError(f"the family {names[0]!r} describes numbers, and no column is numeric; leave it out.")
    return [DISCRETE]
