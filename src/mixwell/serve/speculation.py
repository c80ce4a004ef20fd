"""Drafts that keep the model's law: what is accepted is distributed as if the model had drawn each token itself.

Legend: V vocabulary, G drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Law = Callable[[Sequence[int]], Tensor]  # the distribution [V] of what follows some ids


def draw(law_V: Tensor, generator: torch.Generator) -> int:
    """A token of a distribution."""
    return int(torch.multinomial(law_V, 1, generator=generator))


def residual(wanted_V: Tensor, drafted_V: Tensor) -> Tensor:
    """The distribution of what stands in for a draft that was turned down: max(0, p - q), made to sum to 1."""
    rest_V = (wanted_V - drafted_V).clamp(min=0)
    total = rest_V.sum()
    return rest_V / total if total > 0 else wanted_V  # the laws are the same: nothing is ever turned down


def verified(wanted_V: Tensor, drafted_V: Tensor, token: int, generator: torch.Generator) -> tuple[int, bool]:
    """(the token that stands, whether it is the draft): a draft of the law q holds with chance min(1, p / q)."""
    chance = torch.rand((), generator=generator, dtype=wanted_V.dtype)
    if chance * drafted_V[token] < wanted_V[token]:
        return token, True
    return draw(residual(wanted_V, drafted_V), generator), False


def read_at_once(ids: Sequence[int], whole: Law, drafts: Sequence[int], laws: Sequence[Tensor],
                 generator: torch.Generator) -> list[int]:
    """The tokens of one pass of `whole` over drafts of these laws: those that hold, and the model's own behind them."""
    found: list[int] = []
    for draft, drafted_V in zip(drafts, laws):
        wanted_V = whole([*ids, *found])
        token, held = verified(wanted_V, drafted_V, draft, generator)
        found.append(token)
        if not held:
            return found
    last_V = whole([*ids, *found])
    return [*found, draw(last_V, generator)]


def agreeing(drafts: Sequence[int], told: Sequence[int]) -> int:
    """How many drafts are right before the first that is not."""
    count = 0
    for draft, token in zip(drafts, told):
        if draft != token:
            break
        count += 1
    return count
