"""One layer of a decoder: a sequence mixer and a channel mixer around the residual stream, with norms in four places.

    before             x + f(norm(x)), for each mixer f in turn (most decoders)
    after              x + norm(f(x)) (OLMo 2)
    around             x + norm(f(norm(x))) (Gemma 2 and 3)
    parallel           x + f(norm_1(x)) + g(norm_2(x)) (GPT-NeoX)
    parallel_shared    x + f(norm(x)) + g(norm(x)) (Cohere)

Legend: B rows, T positions, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.kernels.norm import build_norm
from mixwell.lm.config import ModelConfig
from mixwell.mixing import Mixed, SequenceMixed

Results = tuple[Tensor, SequenceMixed, Mixed]


class Layer(nn.Module):
    """x + sequence_mixer(norm(x)), then x + channel_mixer(norm(x))."""

    sequence_mixer: Any
    channel_mixer: Any
    sequence_norm: nn.Module
    channel_norm: nn.Module
    norms: ClassVar[tuple[str, ...]] = ("sequence_norm", "channel_norm")

    def __init__(self, config: ModelConfig, index: int, generator: torch.Generator | None) -> None:
        super().__init__()
        where = f"layer {index}"
        self.residual_scale = config.residual_scale
        self._add_norms("sequence", config)
        self.sequence_mixer = _build(config.sequence(index), config.dim, generator, where)
        self._add_norms("channel", config)
        self.channel_mixer = _build(config.channel(index), config.dim, generator, where)

    def _add_norms(self, mixer: str, config: ModelConfig) -> None:
        """The norms of one mixer, which stand in front of it."""
        for name in self.norms:
            if name.startswith(mixer):
                self.add_module(name, build_norm(config.norm, config.dim, config.norm_eps))

    def forward(self, x_BTD: Tensor, positions_BT: Tensor, cache: Any, mask_BT: Tensor | None,
                context: Context) -> Results:
        """[B, T, D] -> [B, T, D], and what the two mixers gave."""
        h_BTD = self.sequence_norm(x_BTD)
        across = self.sequence_mixer(h_BTD, positions_BT, cache, mask_BT, context)
        x_BTD = self._add(x_BTD, across.y_BTD)
        h_BTD = self.channel_norm(x_BTD)
        mixed = self._channels(h_BTD, context)
        y_BTD = mixed.y_TD.view_as(x_BTD)
        return self._add(x_BTD, y_BTD), across, mixed

    def _channels(self, h_BTD: Tensor, context: Context) -> Mixed:
        """The channel mixer on every token."""
        return self.channel_mixer(h_BTD.flatten(0, 1), context)

    def _add(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        return torch.add(x_BTD, y_BTD, alpha=self.residual_scale)

    def flops_per_token(self, context_length: int) -> float:
        """Forward FLOPs per token, mean over a row of `context_length` tokens."""
        across = self.sequence_mixer.flops_per_token(context_length)
        return across + self.channel_mixer.flops_per_token()


class NormedAfter(Layer):
    """x + norm(f(x)) for each mixer."""

    sequence_norm_after: nn.Module
    channel_norm_after: nn.Module
    norms: ClassVar[tuple[str, ...]] = ("sequence_norm_after", "channel_norm_after")

    def forward(self, x_BTD: Tensor, positions_BT: Tensor, cache: Any, mask_BT: Tensor | None,
                context: Context) -> Results:
        """[B, T, D] -> [B, T, D], and what the two mixers gave."""
        h_BTD = self._before("sequence_norm", x_BTD)
        across = self.sequence_mixer(h_BTD, positions_BT, cache, mask_BT, context)
        y_BTD = self.sequence_norm_after(across.y_BTD)
        x_BTD = self._add(x_BTD, y_BTD)
        h_BTD = self._before("channel_norm", x_BTD)
        mixed = self._channels(h_BTD, context)
        y_BTD = mixed.y_TD.view_as(x_BTD)
        y_BTD = self.channel_norm_after(y_BTD)
        return self._add(x_BTD, y_BTD), across, mixed

    def _before(self, name: str, x_BTD: Tensor) -> Tensor:
        return x_BTD


class NormedAround(NormedAfter):
    """x + norm(f(norm(x))) for each mixer."""

    norms: ClassVar[tuple[str, ...]] = (*Layer.norms, *NormedAfter.norms)

    def _before(self, name: str, x_BTD: Tensor) -> Tensor:
        return self.get_submodule(name)(x_BTD)


class Parallel(Layer):
    """x + sequence_mixer(norm_1(x)) + channel_mixer(norm_2(x))."""

    def forward(self, x_BTD: Tensor, positions_BT: Tensor, cache: Any, mask_BT: Tensor | None,
                context: Context) -> Results:
        """[B, T, D] -> [B, T, D], and what the two mixers gave."""
        h_BTD = self.sequence_norm(x_BTD)
        across = self.sequence_mixer(h_BTD, positions_BT, cache, mask_BT, context)
        second_BTD = self._second(x_BTD, h_BTD)
        mixed = self._channels(second_BTD, context)
        y_BTD = mixed.y_TD.view_as(x_BTD)
        both_BTD = across.y_BTD + y_BTD
        return self._add(x_BTD, both_BTD), across, mixed

    def _second(self, x_BTD: Tensor, h_BTD: Tensor) -> Tensor:
        return self.channel_norm(x_BTD)


class ParallelShared(Parallel):
    """x + sequence_mixer(norm(x)) + channel_mixer(norm(x))."""

    norms: ClassVar[tuple[str, ...]] = ("sequence_norm",)

    def _second(self, x_BTD: Tensor, h_BTD: Tensor) -> Tensor:
        return h_BTD


PLACES = {"before": Layer, "after": NormedAfter, "around": NormedAround, "parallel": Parallel,
          "parallel_shared": ParallelShared}


def build_layer(config: ModelConfig, index: int, generator: torch.Generator | None) -> Layer:
    """Layer number `index` of a decoder."""
    return PLACES[config.norm_place](config, index, generator)


def _build(method: tuple[Any, Any], dim: int, generator: torch.Generator | None, where: str) -> Any:
    entry, config = method
    build = entry.load()
    try:
        return build(dim, config, generator)
    except MixwellError:
        raise
    except ValueError as error:
        raise MixwellError(f"{where}, {entry.name}: {error}") from error
