"""Decoupled adapters (DAMC): text tokens and a modality's tokens have updates of their own, and only text's are merged.

**Equation:** y = W x + [x is text] sum_m c_m B_m A_m x + [x is of modality m] B'_m A'_m x. NaiveMC: one update for all
    tokens, the mean of the A and of the B.
**Shapes:** x [.., I], kinds [..] (-1 text, else the modality's number), A [R, I], B [O, R].
**Reference:** Chen et al. 2024 (2402.12750), sections 3.2 and 3.3, and the authors' code.
**Differs:** the text updates are summed as outputs with coefficients c, as in the released code.
**Fails when:** a modality's tokens are few: its own update is not learned.
**Cost:** O(R (I + O)) a token and update that it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.merge._parts import drawn

TEXT = -1


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the composition."""

    coefficients: tuple[float, ...] | None = None  # c_m; None = 1 over the number of models


class Update(NamedTuple):
    """A low-rank update."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float = 1.0  # alpha over rank

    def __call__(self, x: Tensor) -> Tensor:
        """B A x."""
        inner = x @ self.a_RI.T
        answer = inner @ self.b_OR.T
        return self.scale * answer


class Tuned(NamedTuple):
    """What one model learned at one map."""

    text: Update
    modality: Update


def naive(updates: Sequence[Update]) -> Update:
    """NaiveMC: the mean of the A and of the B, of one scale."""
    scales = {update.scale for update in updates}
    if len(scales) != 1:
        raise ValueError(f"scales {sorted(scales)} came; expected updates of one scale")
    a = torch.stack([update.a_RI for update in updates])
    b = torch.stack([update.b_OR for update in updates])
    (scale,) = scales
    return Update(a.mean(0), b.mean(0), scale)


@method(title="Decoupled adapters (NaiveMC, DAMC)", paper="Model Composition for Multimodal Large Language Models",
        year=2024)
def decoupled_adapters(x: Tensor, kinds: Tensor, weight_OI: Tensor, models: Sequence[Tuned], config: Config) -> Tensor:
    """What the map answers [.., O]: models are the modalities in their order."""
    count = len(models)
    coefficients = config.coefficients or (1 / count,) * count
    if len(coefficients) != count:
        raise ValueError(f"{len(coefficients)} coefficients came for {count} models; expected one a model")
    answer = x @ weight_OI.T
    text = (kinds == TEXT).unsqueeze(-1)
    pairs = enumerate(zip(models, coefficients))
    for number, (model, share) in pairs:
        own = (kinds == number).unsqueeze(-1)
        answer = answer + share * text * model.text(x)
        answer = answer + own * model.modality(x)
    return answer


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two models of rank one on a map from five to four."""
    models = [Tuned(_update(generator), _update(generator)) for _ in range(2)]
    kinds = torch.tensor([-1, 0, 1, -1])
    x, weight = drawn(generator, 2)
    return {"x": x, "kinds": kinds, "weight_OI": weight, "models": models, "config": Config()}


def _update(generator: torch.Generator) -> Update:
    a, b = drawn(generator, 2)
    first = a[:1]
    return Update(first, b[:, :1])
