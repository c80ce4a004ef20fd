"""What `evaluate` keeps of a model, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

RECORD = "evaluate.json"  # where it stands, in the folder of an evaluation


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model and what it makes of the text; plain data throughout."""

    name: str
    path: str
    dtype: str  # computed in
    parameters: int
    active_parameters: int
    weights_bytes: int  # in memory
    active_bytes: int  # that a token's products touch
    tokenizer: str  # digest
    tokens: int  # predicted, of all domains
    seconds: float  # of predicting them
    bits: Mapping[str, list[float]] = field(default_factory=dict)  # domain -> of each document
    lost: Mapping[str, int] = field(default_factory=dict)  # domain -> documents that its tokenizer does not give back
