"""MoSA: an adapter cut into disjoint modules, one of which is drawn for each training pass; merged, it is one adapter.

**Equation:** y = F(x) + s U' gelu(V x + b) + s c, F the frozen block, s `scale`; in training U' = U * [module = n] with
    n drawn from 1 to N for each block and pass, otherwise U' = U / N.
**Shapes:** x [T, D]; down (V) [R, D]; up (U) [D, R]; module [D, R], numbers from 0 to N - 1; biases [R] and [D].
**Reference:** Zhang et al. 2023, Split & Merge (2312.02923), with V shared.
**Differs:** one U holds all modules: theirs are copies of one start whose gradients are masked apart, and their mean is
    U / N where that start is zero. The second pass of a training step and the divergence between the two passes
    belong to the loop that trains, and are not here. No norm of its own: the block's input is normed already.
**Fails when:** trained without a generator: nothing is drawn then, and it is a plain adapter of scale s / N.
**Cost:** 4 D R a token, as a plain adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.adapters._parts import LayerAdapter, dropped, product, thin_pair
from mixwell.adapters._routed import check_width, width_of
from mixwell.adapters.targets import Target
from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers.swiglu import Config as Block
from mixwell.experts.layers.swiglu import SwiGLU
from mixwell.mixing import Mixed, check_above, check_least, check_rate


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of MoSA."""

    modules: int = 4  # N, at most 255
    rank: int = 8  # R, hidden width of the adapter
    scale: float = 0.1  # s
    dropout: float = 0.0  # of the hidden units, in training; 0 up to 1

    def __post_init__(self) -> None:
        check_least(self, modules=1, rank=1)
        check_above(self, scale=0)
        if self.modules > 255:
            raise ValueError(f"modules is {self.modules}; expected at most 255")
        check_rate(self, "dropout")


def cut(shape: tuple[int, int], modules: int, generator: torch.Generator) -> Tensor:
    """The module of each entry, uint8, drawn so that no two modules differ by more than one entry."""
    rows, columns = shape
    count = rows * columns
    drawn = torch.randperm(count, generator=generator, device=generator.device)
    numbers = drawn % modules
    return numbers.view(shape).to(torch.uint8)


@method(
    title="MoSA, an adapter of modules drawn at random",
    paper="Split & Merge: Unlocking the Potential of Visual Adapters via Sparse Training",
    year=2023,
)
class MoSA(LayerAdapter):
    """A sparsely trained adapter; see the module's card."""

    targets = ("channel_mixer",)
    config: Config
    module: Tensor

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        width = width_of(target)
        check_width(config.rank, width, target)
        self.down, self.up = thin_pair((), width, width, config.rank, generator)
        self.down_bias = nn.Parameter(self.down.new_zeros(config.rank))
        self.up_bias = nn.Parameter(self.down.new_zeros(width))
        self.register_buffer("module", cut((width, config.rank), config.modules, generator))

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]."""
        mixed: Mixed = self.base(x_TD, context)
        draws = context.generator if self.training else None
        up = self.active(draws)
        hidden = F.gelu(product(x_TD, self.down) + self.down_bias.to(x_TD.dtype))
        kept = dropped(hidden, self.config.dropout, draws)
        out = product(kept, up) + self.up_bias.to(x_TD.dtype)
        return mixed._replace(y_TD=mixed.y_TD + self.config.scale * out)

    def active(self, draws: torch.Generator | None) -> Tensor:
        """U': one module drawn, or the mean of all."""
        modules = self.config.modules
        if draws is None:
            return self.up / modules
        drawn = torch.randint(modules, (), generator=draws, device=draws.device)
        chosen = self.module == drawn.to(self.module.device)
        return self.up * chosen


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two modules of an adapter of width two at a block of width six."""
    owner = SwiGLU(6, Block(hidden_dim=5), generator)
    return {"target": Target("channel_mixer", owner), "config": Config(modules=2, rank=2, scale=1.0)}
