"""The contract of rules by which a cache lets positions go, and the cache that follows one.

A rule sees, after each pass, how much the last queries looked at each position that is kept, and says which positions
stay, for each head of keys on its own, the same number for all. One rule object stands behind one layer and one text.

Legend: B rows, G heads of keys and values, T queries of a pass, S positions that are kept, P head width, K positions
that stay.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.kernels.cache import Attend, KVCache
from mixwell.lm.cache import Cache
from mixwell.lm.network import Network
from mixwell.sequence.attention import Attention


class Kept(NamedTuple):
    """Keys and values [B, G, S, P]."""

    keys: Tensor
    values: Tensor

    def at(self, places_BGK: Tensor) -> Kept:
        """Those of some positions."""
        width = self.keys.shape[-1]
        index_BGK1 = places_BGK.unsqueeze(-1)
        index = index_BGK1.expand(-1, -1, -1, width)
        keys = self.keys.gather(2, index)
        values = self.values.gather(2, index)
        return Kept(keys, values)


class Rule(ABC):
    """What stays; see the module's head."""

    asks: ClassVar[bool] = True  # whether it looks at the queries' weights

    @abstractmethod
    def prompt(self, weights_BGTS: Tensor, kept: Kept) -> Kept:
        """After the first pass over T = S positions; weights are 0 for positions that a query does not see."""

    @abstractmethod
    def token(self, weights_BGS: Tensor, kept: Kept) -> Kept:
        """After each further token, whose own weights these are."""


class RuledCache(KVCache):
    """A cache that keeps what a rule says."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def attended(self, k_BGTP: Tensor, v_BGTP: Tensor, mask_BT: Tensor | None, attend: Attend) -> Tensor:
        """Add T positions; returns what `attend` finds for all of them, and lets go of what the rule says."""
        if mask_BT is not None:
            raise MixwellError("a cache that lets positions go takes rows of one length, without padding; give it one "
                               "row at a time.")
        if self.length == 0:
            kept = self._with(k_BGTP, v_BGTP)
            found = attend(slice(None), *kept, None)
            weights = self._weights(kept, slice(None), k_BGTP.shape[2], attend)
            self._hold(kept, self.rule.prompt(weights, kept))
            return found
        parts = [self._one(k_BGTP, v_BGTP, place, attend) for place in range(k_BGTP.shape[2])]
        return torch.cat(parts, 2)

    def _one(self, k_BGTP: Tensor, v_BGTP: Tensor, place: int, attend: Attend) -> Tensor:
        """What one token behind the prompt finds, whatever it came with."""
        span = slice(place, place + 1)
        kept = self._with(k_BGTP[:, :, span], v_BGTP[:, :, span])
        found = attend(span, *kept, None)
        weights = self._weights(kept, span, 1, attend)
        self._hold(kept, self.rule.token(weights.squeeze(2), kept))
        return found

    def _with(self, k_BGTP: Tensor, v_BGTP: Tensor) -> Kept:
        keys, values, _ = self.append(k_BGTP, v_BGTP, None)
        return Kept(keys, values)

    def _weights(self, kept: Kept, span: slice, queries: int, attend: Attend) -> Tensor:
        """How much each query looks at each position, mean over the heads of a group: [B, G, T, S]."""
        B, G, S, P = kept.keys.shape
        if not self.rule.asks:
            return kept.keys.new_zeros(B, G, queries, S)
        padded = -(-S // P) * P
        one_hot = torch.eye(S, padded, dtype=kept.keys.dtype, device=kept.keys.device)
        shown = []
        for mark_SP in one_hot.split(P, 1):  # values that say where they stand give the weights, P positions at a time
            values = mark_SP.expand(B, G, S, P)
            shown.append(attend(span, kept.keys, values, None))
        weights_BHTS = torch.cat(shown, -1)[..., :S]
        return weights_BHTS.unflatten(1, (G, -1)).mean(2)

    def _hold(self, before: Kept, kept: Kept) -> None:
        """Hold these positions and no others."""
        if kept is before:
            return
        self.length = 0
        self._keys = self._values = None
        self.append(kept.keys, kept.values, None)


@contextmanager
def keeping(model: Network, made: Callable[[], Rule]) -> Iterator[None]:
    """A block in which the model's caches follow a rule, made anew for each layer and text.

    Raises `MixwellError` for a model with other layers than plain causal attention.
    """
    for number, layer in enumerate(model.layers):
        check_plain(layer.sequence_mixer, number)
    usual = model.new_cache
    model.new_cache = lambda: Cache([RuledCache(made()) for _ in model.layers])  # type: ignore[method-assign]
    try:
        yield
    finally:
        model.new_cache = usual  # type: ignore[method-assign]


def check_plain(mixer: object, layer: int) -> None:
    """Raise `MixwellError` for a layer whose cache cannot let positions go."""
    if type(mixer) is not Attention:
        raise MixwellError(f"layer {layer} mixes by {type(mixer).__name__}; a cache can let positions go where all "
                           "layers are causal attention.")
    if mixer.config.sliding_window is not None:
        raise MixwellError(f"layer {layer} has a sliding window, which counts positions that are gone; its cache is "
                           "bounded as it is.")


def first_and_last(places: int, first: int, last: int) -> Tensor:
    """Positions [K] of the first and of the last ones, upward; all where they meet."""
    if first + last >= places:
        return torch.arange(places)
    return torch.cat([torch.arange(first), torch.arange(places - last, places)])


def best_and_last(scores_BGS: Tensor, best: int, last: int) -> Tensor:
    """Positions [B, G, K] of the largest scores and of the last ones, upward; all where there are no more."""
    B, G, S = scores_BGS.shape
    if best + last >= S:
        return torch.arange(S).expand(B, G, S)
    chosen = scores_BGS[..., : S - last].topk(best).indices
    recent = torch.arange(S - last, S).expand(B, G, last)
    return torch.cat([chosen.sort().values, recent], -1)
