"""What a mixer gives back beside its result: the routing it chose and the losses that come of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from mixwell.core.routing import Routing


class Mixed(NamedTuple):
    """What a layer gives back."""

    y_TD: Tensor
    routing: Routing | None = None  # None where the layer routes no discrete choice
    losses: Mapping[str, Tensor] = {}  # auxiliary losses by name, before their coefficients
    aux: Tensor | None = None  # sum of coefficient times loss; None where nothing is to be added


class SequenceMixed(NamedTuple):
    """What a sequence mixer gives back; as `Mixed`, with rows and positions apart."""

    y_BTD: Tensor
    routing: Routing | None = None  # of the B * T tokens
    losses: Mapping[str, Tensor] = {}  # auxiliary losses by name, before their coefficients
    aux: Tensor | None = None  # sum of coefficient times loss; None where nothing is to be added
