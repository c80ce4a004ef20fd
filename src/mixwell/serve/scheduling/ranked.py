"""Steps of the rows that rank first, none of which may starve."""

from __future__ import annotations

from collections.abc import Sequence

from mixwell.serve.scheduling.simulate import Job, Plan
from mixwell.serve.scheduling.stall_free import Config, StallFree


class Ranked:
    """Plans stall-free steps of the rows that rank first, none of which may starve."""

    def __init__(self, steps: Config, patience: int | None = None, spell: int = 100) -> None:
        """patience: steps that a row may be idle before it has priority (none: for ever); spell: for so many steps."""
        _check_steps("spell", spell)
        if patience is not None:
            _check_steps("patience", patience)
        self.steps, self.patience, self.spell = steps, patience, spell
        self.inner = StallFree(steps)
        self.idle: dict[Job, int] = {}  # steps since a row was served
        self.spells: dict[Job, int] = {}  # steps of its priority that a row has left

    def plan(self, jobs: Sequence[Job]) -> Plan:
        """The rows of a step and the tokens that each has read."""
        ranked = sorted(jobs, key=self._rank)
        plan = self.inner.plan(ranked)
        served = {job for job, _ in plan}
        self._count(jobs, served)
        return plan

    def _rank(self, job: Job) -> tuple[bool, float]:
        return job not in self.spells, -job.score

    def _count(self, jobs: Sequence[Job], served: set[Job]) -> None:
        """Count who was idle, and the steps of those with priority; whoever is gone is forgotten."""
        waiting = [job for job in jobs if job not in served]
        self.idle = {job: self.idle.get(job, 0) + 1 for job in waiting}
        self.spells = {job: self.spells[job] for job in jobs if job in self.spells}
        for job in self.spells.keys() & served:
            self.spells[job] -= 1
            if not self.spells[job]:
                del self.spells[job]
        if self.patience is None:
            return
        for job, steps in self.idle.items():
            if steps > self.patience:
                self.spells[job], self.idle[job] = self.spell, 0


def _check_steps(name: str, value: int) -> None:
    """Raise `ValueError` where a number of steps is below one."""
    if value < 1:
        raise ValueError(f"{name} is {value}; expected 1 or more")
