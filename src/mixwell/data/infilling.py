"""Span corruption as infilling: spans leave a document for its end, where a decoder learns to write them.

**Equation:** x with spans s_1..s_S becomes x outside the spans with <mask_i> in place of s_i, <eos>, and for each i:
    <sep> <mask_i> s_i <eom>.
**Shapes:** tokens [T], spans [S, 2] (first token and one past the last, in order); tokens and mask of the loss
    [T + 4 S + 1].
**Reference:** Nijkamp et al. 2023 (2305.02309), section on infilling.
**Differs:** the layout is that of the released models' cards for one span; that each of several spans has a <sep> of
    its own is ours. Which spans, and how often a document is corrupted at all, are the caller's.
**Fails when:** losses of arms are compared that count unlike tokens: with `loss="spans"` few tokens are learned from.
**Cost:** O(T).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method

LOSSES = ("all", "spans")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Ids of the signs, and what is learned; `ValueError` for a value out of range."""

    mask: int  # id of <mask_1>; the others follow it
    eos: int
    sep: int
    eom: int
    loss: str = "all"  # every token, or spans with their <eom> alone

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}; expected one of {', '.join(LOSSES)}")
        signs = [self.mask, self.eos, self.sep, self.eom]
        unlike = len(set(signs))
        if min(signs) < 0 or unlike < 4:
            raise ValueError(f"ids of mask, eos, sep and eom are {signs}; expected four different ids of at least 0")


class Infilled(NamedTuple):
    """Tokens, and which of them count in the loss."""

    tokens: Tensor
    counted: Tensor


@method(title="Infilling of spans", year=2023,
        paper="CodeGen2: Lessons for Training LLMs on Programming and Natural Languages")
def infilling(tokens_T: Tensor, spans_S2: Tensor, config: Config) -> Infilled:
    """The document with its spans moved to its end."""
    spans = _checked(spans_S2, len(tokens_T))
    parts: list[Tensor] = []
    counted: list[bool] = []

    def put(tokens: Tensor, learned: bool) -> None:
        parts.append(tokens)
        counted.extend([learned] * len(tokens))

    outside = config.loss == "all"
    one = tokens_T.new_tensor
    after = 0
    for number, (first, end) in enumerate(spans):
        put(tokens_T[after:first], outside)
        put(one([config.mask + number]), outside)
        after = end
    put(tokens_T[after:], outside)
    put(one([config.eos]), outside)
    for number, (first, end) in enumerate(spans):
        put(one([config.sep, config.mask + number]), outside)
        put(tokens_T[first:end], True)
        put(one([config.eom]), True)
    return Infilled(torch.cat(parts), torch.tensor(counted))


def _checked(spans_S2: Tensor, count: int) -> list[tuple[int, int]]:
    """Spans as pairs; `MixwellError` where they are empty, overlap or leave the document."""
    after = 0
    found = []
    for first, end in spans_S2.tolist():
        if not after <= first < end <= count:
            raise MixwellError(f"span {first} to {end} in a document of {count} tokens after one that ends at {after}; "
                               "expected spans in order, with a token each, that do not overlap.")
        found.append((first, end))
        after = end
    return found


def restored(tokens_N: Tensor, config: Config, spans: int) -> Tensor:
    """The document from its infilled form, of so many spans."""
    tokens = tokens_N.tolist()
    end = tokens.index(config.sep) if spans else len(tokens)
    body, rest = tokens[: end - 1], tokens[end:]
    filled = {}
    for _ in range(spans):
        stop = rest.index(config.eom)
        filled[rest[1]] = rest[2:stop]
        rest = rest[stop + 1 :]
    found: list[int] = []
    for token in body:
        found += filled.get(token, [token])
    return tokens_N.new_tensor(found)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twelve tokens with two spans."""
    tokens_T = torch.randint(50, (12,), generator=generator)
    spans_S2 = torch.tensor([[2, 4], [7, 10]])
    return {"tokens_T": tokens_T, "spans_S2": spans_S2, "config": Config(mask=100, eos=97, sep=98, eom=99)}
