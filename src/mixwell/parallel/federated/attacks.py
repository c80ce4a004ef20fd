"""What clients that lie say: pure functions of what the honest ones said, which they know.

Legend: H honest clients, P numbers of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Attack = Literal["opposite", "little", "noise", "nothing"]
Said = Callable[[Tensor, Tensor, float, torch.Generator], Tensor]


def opposite(honest_HP: Tensor, before_P: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """A step against the honest mean's, `factor` times as long: far above 1 sign flipping, below it fall of empires."""
    step_P = honest_HP.mean(0) - before_P
    return before_P - factor * step_P


def little(honest_HP: Tensor, before_P: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """The mean moved by `factor` standard deviations of the honest ("a little is enough")."""
    spread_P = honest_HP.std(0, correction=0)
    return honest_HP.mean(0) - factor * spread_P


def noise(honest_HP: Tensor, before_P: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """The mean and a normal draw, `factor` times as long as the honest step in the mean."""
    middle_P = honest_HP.mean(0)
    drawn_P = torch.randn(middle_P.shape, generator=generator, dtype=middle_P.dtype)
    length = (middle_P - before_P).norm()
    size = drawn_P.norm().clamp_min(1e-12)
    times = factor * length / size
    return middle_P + times * drawn_P


def nothing(honest_HP: Tensor, before_P: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """What was there before, as if nothing had been learnt."""
    return before_P.clone()


ATTACKS: dict[str, Said] = {"opposite": opposite, "little": little, "noise": noise, "nothing": nothing}
