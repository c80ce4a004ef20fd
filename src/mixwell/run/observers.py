"""Those who hear how a run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mixwell.report.records import StageRecord
from mixwell.run.planning import Planned
from mixwell.run.sizing import Size


class Observer(Protocol):
    """Hears how a run goes on."""

    def fitted(self, about: str, size: Size) -> None:
        """What is learnt from the run, and how it was fitted to the machine; only where the recipe asked for it."""

    def preparing(self, words: str) -> None:
        """What is done to know what the run will do and take."""

    def planned(self, stages: Sequence[Planned]) -> None:
        """The stages of the run, before the first one starts."""

    def started(self, planned: Planned) -> None:
        """A stage begins; cached ones do not. `planned.damage` says why one that was there is made again."""

    def advanced(self, planned: Planned, share: float, words: str) -> None:
        """Share of the stage that is done, 0 to 1."""

    def finished(self, planned: Planned, record: StageRecord) -> None:
        """A stage is there."""


class Silent:
    """An observer that says nothing."""

    def fitted(self, about: str, size: Size) -> None:
        pass

    def preparing(self, words: str) -> None:
        pass

    def planned(self, stages: Sequence[Planned]) -> None:
        pass

    def started(self, planned: Planned) -> None:
        pass

    def advanced(self, planned: Planned, share: float, words: str) -> None:
        pass

    def finished(self, planned: Planned, record: StageRecord) -> None:
        pass
