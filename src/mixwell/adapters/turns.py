"""Groups of a model's parameters that are trained one after another, a step each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

Group = Sequence[nn.Parameter]


class Turns:
    """Which group is trained at which step: step s trains group s modulo their number, and no other has gradients.

    A training opens the turns before it looks for what it trains, begins each step with one, and closes them. Groups
    of which nothing was to be trained as they were opened have no turn.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        self._open: list[Group] = []

    @property
    def length(self) -> int:
        """Steps in which every open group comes once; also the steps that share one learning rate."""
        return len(self._open)

    def open(self) -> None:
        """Take note of what is trained."""
        there = [[p for p in group if p.requires_grad] for group in self._groups]
        self._open = [group for group in there if group]

    def begin(self, step: int) -> None:
        """Let the step's group alone have gradients."""
        now = step % self.length
        for place, group in enumerate(self._open):
            for parameter in group:
                parameter.requires_grad_(place == now)

    def close(self) -> None:
        """Let all of them be trained again."""
        for group in self._open:
            for parameter in group:
                parameter.requires_grad_(True)
        self._open = []
