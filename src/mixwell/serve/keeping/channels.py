"""Fewer channels: keys and values are kept as their coordinates in a small subspace, the last ones as they are.

**Equation:** a layer's keys of all heads side by side, before they are turned, k = W x of N numbers, are kept as
    c = k U, U [N, r] with orthonormal columns, and read as k' = c U', turned by their positions; values alike.
    weights: U the r leading right singular vectors of W'. scaled: those of diag(a) W', a = sqrt(mean |x| + 1e-6) over
    text. text: the leading directions of keys over text, which leave the least mean of |k - k'|^2 that any x A B of
    rank r leaves.
    The prompt is read exactly. Of what is kept the last 1..w positions stay exact: full blocks of w are shrunk at once.
**Shapes:** x [B, T, D]; U [N, r]; c [B, S, r].
**Reference:** Wang et al. 2024, CSKV (2409.10593), sections 3.1 to 3.3, and the authors' code.
**Differs:** there, A and B are trained by gradient steps on that very mean, from the start that is `scaled` here; as k
    is linear in x its least value is known, and `text` takes it at once. Where keys are normed they are not linear in
    x, and `text` is the only choice. No further rounding to 4 bits.
**Fails when:** keys or values fill their space: look at `left_out` before.
**Cost:** r numbers a position in place of N; N r operations to read a position again, at every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.kernels.cache import Attend, KVCache
from mixwell.kernels.rotary import rotary_angles, rotate
from mixwell.lm.cache import Cache
from mixwell.lm.network import Network
from mixwell.mixing import check_least
from mixwell.sequence.attention import Attention
from mixwell.serve.keeping.rules import check_plain

Basis = Literal["text", "scaled", "weights"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of fewer channels."""

    keys: float = 0.25  # share of the channels that keys keep, above 0 to 1
    values: float = 0.75  # of values
    window: int = 32  # w, positions that stay exact at most
    basis: Basis = "text"

    def __post_init__(self) -> None:
        check_least(self, window=1)
        for name in ("keys", "values"):
            share = getattr(self, name)
            if not 0 < share <= 1:
                raise ValueError(f"{name} is {share}; expected a share above 0 and at most 1")
        if self.basis not in ("text", "scaled", "weights"):
            raise ValueError(f"basis is {self.basis!r}; expected text, scaled or weights")


@dataclass(frozen=True, eq=False)
class Seen:
    """What a layer's attention was given and made of text: rows of N tokens."""

    x_ND: Tensor
    keys_NC: Tensor  # before they are turned, of all heads side by side
    values_NC: Tensor


@dataclass(frozen=True, eq=False)
class Subspaces:
    """The subspaces of one layer [C, r]."""

    keys: Tensor
    values: Tensor


def leading(rows_NC: Tensor, rank: int) -> Tensor:
    """The `rank` directions [C, r] along which rows are largest: right singular vectors."""
    _, _, directions_KC = torch.linalg.svd(rows_NC.double(), full_matrices=False)
    return directions_KC[:rank].T.to(rows_NC.dtype)


def left_out(rows_NC: Tensor, basis_Cr: Tensor) -> float:
    """Share of the rows' squares that lies outside a subspace."""
    inside = (rows_NC @ basis_Cr).square().sum()
    return float(1 - inside / rows_NC.square().sum())


def chosen(mixer: Attention, seen: Seen, config: Config) -> Subspaces:
    """The subspaces of a layer."""
    width = mixer.kv_heads * mixer.width
    q_rows = mixer.heads * mixer.width
    weights = mixer.qkv.weight[q_rows:].detach().split(width)
    found = []
    for weight_CD, rows_NC, share in zip(weights, (seen.keys_NC, seen.values_NC), (config.keys, config.values)):
        rank = max(1, round(share * width))
        found.append(leading(_shown(weight_CD, rows_NC, seen.x_ND, config.basis), rank))
    return Subspaces(*found)


def _shown(weight_CD: Tensor, rows_NC: Tensor, x_ND: Tensor, basis: Basis) -> Tensor:
    """The rows whose leading directions are asked for."""
    if basis == "text":
        return rows_NC
    if basis == "weights":
        return weight_CD.T
    scale_D = (x_ND.abs().mean(0) + 1e-6).sqrt()
    return scale_D.unsqueeze(1) * weight_CD.T


class ChannelCache(KVCache):
    """Coordinates of the old positions, and the last ones as they are."""

    def __init__(self, mixer: Attention, basis: Subspaces, window: int) -> None:
        super().__init__()
        self.mixer, self.basis, self.window = mixer, basis, window
        self.old: tuple[Tensor, Tensor] | None = None  # coordinates [B, S, r] of keys and values

    @property
    def shrunk(self) -> int:
        """Positions of which coordinates are kept."""
        if self.old is None:
            return 0
        codes_BSr, _ = self.old
        return codes_BSr.shape[1]

    def attended(self, k_BGTP: Tensor, v_BGTP: Tensor, mask_BT: Tensor | None, attend: Attend) -> Tensor:
        """Add T positions; returns what `attend` finds for all of them, and shrinks full blocks."""
        if mask_BT is not None:
            raise MixwellError("a cache of fewer channels takes rows of one length, without padding; give it one row "
                               "at a time.")
        keys, values, _ = self.append(k_BGTP, v_BGTP, None)
        seen_keys, seen_values = keys, values
        if self.old is not None:
            read_keys, read_values = self._read()
            seen_keys = torch.cat([read_keys, keys], 2)
            seen_values = torch.cat([read_values, values], 2)
        found = attend(slice(None), seen_keys, seen_values, None)
        self._shrink(keys, values)
        return found

    def _shrink(self, keys: Tensor, values: Tensor) -> None:
        """Take the full blocks of exact positions in, but for the last position."""
        blocks = (keys.shape[2] - 1) // self.window
        count = blocks * self.window
        if not count:
            return
        plain = self._turned(keys[:, :, :count], -1, self.shrunk)
        codes = _coded(plain, self.basis.keys), _coded(values[:, :, :count], self.basis.values)
        if self.old is not None:
            codes = torch.cat([self.old[0], codes[0]], 1), torch.cat([self.old[1], codes[1]], 1)
        self.old = codes
        rest = keys[:, :, count:].clone(), values[:, :, count:].clone()
        self.length = 0
        self._keys = self._values = None
        self.append(*rest, None)

    def _read(self) -> tuple[Tensor, Tensor]:
        """Keys, turned, and values [B, G, S, P] of the old positions."""
        assert self.old is not None
        key_codes, value_codes = self.old
        keys = self._heads(key_codes, self.basis.keys)
        values = self._heads(value_codes, self.basis.values)
        return self._turned(keys, 1, 0), values

    def _heads(self, codes_BSr: Tensor, basis_Cr: Tensor) -> Tensor:
        """[B, G, S, P] of coordinates."""
        flat_BSC = codes_BSr @ basis_Cr.T
        by_position = flat_BSC.unflatten(-1, (self.mixer.kv_heads, self.mixer.width))
        return by_position.transpose(1, 2)

    def _turned(self, k_BGSP: Tensor, way: int, first: int) -> Tensor:
        """Keys turned by their positions from `first` on, forth or back."""
        if not self.mixer.turned:
            return k_BGSP
        config = self.mixer.config
        last = first + k_BGSP.shape[2]
        places_S = torch.arange(first, last)
        angles = rotary_angles(places_S.unsqueeze(0), self.mixer.width, config.rope_theta, config.rope_scaling)
        by_position = k_BGSP.transpose(1, 2)
        return rotate(by_position, way * angles)


def _coded(rows_BGSP: Tensor, basis_Cr: Tensor) -> Tensor:
    """Coordinates [B, S, r]."""
    flat_BSC = rows_BGSP.transpose(1, 2).flatten(2)
    return flat_BSC @ basis_Cr


@torch.no_grad()
def read(model: Network, tokens_BT: Tensor) -> list[Seen]:
    """What each layer's attention is given and makes of text, an entry a layer."""
    found: list[Seen] = []

    def keep(mixer: Attention, given: Sequence[Any], result: Any) -> None:
        x_BTD = given[0]
        _, keys, values = mixer._normed(mixer.qkv(x_BTD))
        flat = [part.flatten(2).flatten(0, 1) for part in (keys, values)]
        found.append(Seen(x_BTD.flatten(0, 1), *flat))

    hooks = [layer.sequence_mixer.register_forward_hook(keep) for layer in model.layers]
    try:
        model.eval()(tokens_BT)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@method(title="Fewer channels of keys and values",
        paper="CSKV: Training-Efficient Channel Shrinking for KV Cache in Long-Context Scenarios", year=2024)
@contextmanager
def channels(model: Network, text_BT: Tensor, config: Config) -> Iterator[list[Subspaces]]:
    """A block in which the model's caches keep fewer channels, chosen by text; gives the subspaces, one a layer.

    Raises `MixwellError` for a model with other layers than plain causal attention, and for a basis by weights where
    keys are normed or only a part of them is turned.
    """
    for number, layer in enumerate(model.layers):
        check_plain(layer.sequence_mixer, number)
        _check_linear(layer.sequence_mixer, number, config)
    mixers = [layer.sequence_mixer for layer in model.layers]
    bases = [chosen(mixer, seen, config) for mixer, seen in zip(mixers, read(model, text_BT))]
    usual = model.new_cache

    def made() -> Cache:
        pairs = zip(mixers, bases)
        return Cache([ChannelCache(mixer, basis, config.window) for mixer, basis in pairs])

    model.new_cache = made  # type: ignore[method-assign]
    try:
        yield bases
    finally:
        model.new_cache = usual  # type: ignore[method-assign]


def _check_linear(mixer: Attention, layer: int, config: Config) -> None:
    if mixer.turned not in (0, mixer.width):
        raise MixwellError(f"layer {layer} turns {mixer.turned} of {mixer.width} channels of a head; fewer channels "
                           "are made for heads that are turned whole or not at all.")
    if mixer.config.qk_norm != "none" and config.basis != "text":
        raise MixwellError(f"layer {layer} norms its keys, which are not linear in their inputs then; set basis: text.")


def example(generator: torch.Generator) -> dict[str, Any]:
    """A decoder of one layer and text for it."""
    from mixwell.lm.config import ModelConfig

    block = {"method": "experts.layers.swiglu", "hidden_dim": 8}
    arch = ModelConfig(vocab_size=20, dim=8, num_layers=1, num_heads=2, max_positions=64, channel_mixer=block)
    text_BT = torch.randint(20, (2, 16), generator=generator)
    return {"model": Network(arch, generator), "text_BT": text_BT, "config": Config(window=4)}
