"""What has been tried of one claim so far: settings on the tuning seed, then seeds; and what is to be tried next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mixwell.claims.claim import Claim, Side
from mixwell.claims.judging import judged
from mixwell.claims.rule import LOOKS, look, next_look

TUNING_SEED = 1_000_003  # far from the seeds of trials, which are 0 to 31, and from those that trials derive from them
UNTESTABLE, OPEN = "not testable here", "to be run"


@dataclass(frozen=True)
class Try:
    """One setting of one side on the tuning seed."""

    setting: dict[str, Any]
    score: float  # the lower the better
    seconds: float


@dataclass(frozen=True)
class Trial:
    """All sides at one seed."""

    values: dict[str, float]  # by series
    seconds: float


@dataclass(frozen=True)
class Task:
    """A piece of work that runs alone: a setting of one side, or a seed of all sides with the chosen settings."""

    claim: str
    seed: int
    side: str = ""  # of a setting that is tried
    setting: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """What it is called where it goes wrong."""
        part = f"a setting of the {self.side}" if self.side else f"seed {self.seed}"
        return f"{self.claim}, {part}"


@dataclass
class Record:
    """The state of one claim, which grows by tries and trials."""

    name: str
    claim: Claim
    source: str  # digest of what it was tried with
    tries: dict[str, list[Try]] = field(default_factory=dict)
    trials: dict[int, Trial] = field(default_factory=dict)
    untestable: str = ""

    @property
    def seeds(self) -> int:
        """How many seeds from the first one are there without a gap."""
        missing = (seed for seed in range(len(self.trials) + 1) if seed not in self.trials)
        return next(missing)

    @property
    def judged(self) -> dict[str, Any]:
        """The outcome at the last look that was reached, and its figures."""
        if self.untestable:
            return {"outcome": UNTESTABLE, "seeds": 0, "note": self.untestable}
        seeds = look(self.seeds)
        if not seeds:
            return {"outcome": OPEN, "seeds": 0, "note": f"{self.seeds} of {LOOKS[0]} seeds are there."}
        return judged(self.claim, self.values, seeds)

    @property
    def values(self) -> dict[str, list[float]]:
        """Series by name, in the order of the seeds."""
        rows = [self.trials[seed].values for seed in sorted(self.trials)]
        names = rows[0] if rows else {}
        return {name: [row[name] for row in rows] for name in names}

    @property
    def goal(self) -> int:
        """How many seeds the record needs; as many as it has once it is decided or all looks are done."""
        outcome = self.judged["outcome"]
        undecided = outcome in ("undecided", OPEN)
        return next_look(look(self.seeds)) if undecided else self.seeds

    @property
    def done(self) -> bool:
        """Whether nothing is left to try."""
        return bool(self.untestable) or self.seeds >= self.goal

    @property
    def chosen(self) -> dict[str, dict[str, Any]]:
        """The best setting of each side that is tuned."""
        found = {}
        for side, tries in self.tries.items():
            best = min(tries, key=lambda one: one.score)
            found[side] = best.setting
        return found

    @property
    def seconds(self) -> float:
        """All that was computed, in seconds."""
        tuned = [one.seconds for tries in self.tries.values() for one in tries]
        tried = [trial.seconds for trial in self.trials.values()]
        return sum(tuned) + sum(tried)

    def tasks(self) -> list[Task]:
        """What can be done now: settings while some are untried, else the seeds up to the next look."""
        if self.done:
            return []
        tuning = list(self._untried())
        if tuning:
            return tuning
        missing = [seed for seed in range(self.goal) if seed not in self.trials]
        return [Task(self.name, seed, chosen=self.chosen) for seed in missing]

    def _untried(self) -> Iterator[Task]:
        for name, side in self.claim.sides.items():
            known = [one.setting for one in self.tries.get(name, [])]
            for setting in _tuned(side):
                if setting not in known:
                    yield Task(self.name, TUNING_SEED, name, setting)

    def add_try(self, side: str, one: Try) -> None:
        """Keep what a setting came to, in the order of the grid, so that a tie does not hang on who was first."""
        grid = _tuned(self.claim.sides[side])
        tries = [*self.tries.get(side, []), one]
        self.tries[side] = sorted(tries, key=lambda each: grid.index(each.setting))


def _tuned(side: Side) -> list[dict[str, Any]]:
    return side.settings() if side.grid else []


def tuning(tries: Mapping[str, list[Try]], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The choice of each side and all that was tried for it, as an evidence file holds them."""
    found = {}
    for side, each in tries.items():
        rows = [{**one.setting, "score": one.score, "seconds": one.seconds} for one in each]
        found[side] = {"chosen": chosen[side], "tries": rows}
    return found
