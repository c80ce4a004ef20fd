"""Which waiting row is let in next where short answers go first: an order that is learnt from the answers given so far.

The ranker is `mixwell.serve.scheduling.learned_order`; until it has seen enough answers rows go in as they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

import torch

from mixwell.core import rng
from mixwell.serve.request import Row
from mixwell.serve.scheduling.learned_order import Config, LearnedOrder, describe

FEATURES = 64
EVERY, KEPT = 128, 512  # answers between two lessons, and answers that a lesson is about
PATIENCE = 400  # steps that a row waits at most before it goes first


class Order:
    """Puts rows that wait in order, and learns from those that are over."""

    def __init__(self, every: int = EVERY, patience: int = PATIENCE) -> None:
        self.every, self.patience = every, patience
        self.seen: deque[tuple[torch.Tensor, int]] = deque(maxlen=KEPT)
        self.since = self.lessons = 0
        self.ranker: LearnedOrder | None = None

    def sort(self, waiting: Iterable[Row]) -> list[Row]:
        """Rows that waited too long or have begun, then those whose answers are foretold to be short."""
        rows = list(waiting)
        for row in rows:
            row.waited += 1
        if self.ranker is None:
            return rows
        self._score(rows, self.ranker)
        return sorted(rows, key=self._place)

    def _place(self, row: Row) -> tuple[bool, float]:
        first = bool(row.said) or row.waited > self.patience
        return not first, 0.0 if first else -row.score

    def _score(self, rows: Collection[Row], ranker: LearnedOrder) -> None:
        fresh = [row for row in rows if row.scored != self.lessons]
        if not fresh:
            return
        features_NF = torch.stack([describe(row.prompt, FEATURES) for row in fresh])
        with torch.inference_mode():
            scores = ranker(features_NF).tolist()
        for row, score in zip(fresh, scores):
            row.score, row.scored = score, self.lessons

    def learn(self, row: Row) -> None:
        """Take in a row that ended by itself, not at its limit of tokens."""
        self.seen.append((describe(row.prompt, FEATURES), len(row.said)))
        self.since += 1
        if self.since < self.every:
            return
        self.since = 0
        self.lessons += 1
        self.ranker = self._taught()

    def _taught(self) -> LearnedOrder:
        """A ranker that knows the answers seen."""
        features, lengths = zip(*self.seen)
        draws = rng.generator(self.lessons, "order")
        fresh = LearnedOrder(FEATURES, Config(epochs=4), draws)
        features_NF = torch.stack(features)
        return fresh.fit(features_NF, torch.tensor(lengths), draws)
