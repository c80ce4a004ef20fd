"""Mixture of tokens: experts see one weighted mean of a group of tokens each, taken across the examples of a batch.

**Equation:** for each group of tokens x_1, ..., x_g at one position of g examples and each expert e:
    w_et = softmax_t(c_e . x_t / tau);  z_e = E_e(sum_t w_et x_t);  y_t = sum_e v_et z_e,
    v = w (same), or v_et = softmax_e(c_e . x_t / tau) (experts). tau = 0 keeps the largest only, with weight 1.
**Shapes:** x [T, D], T = B S; gate_up_proj [E, 2 F, D]; down_proj [E, D, F]; controller.weight [E, D].
**Reference:** Antoniak et al. 2023, Mixture of Tokens (2310.15961), section 3, and the authors' code.
**Differs:** SwiGLU experts where the authors have ReLU. The last group of a batch may be smaller; padding has no part
    in any mean and gets zeros.
**Fails when:** examples must not see each other, or the batch at inference is not made as in training: a lone example
    is a group of one, and y is then the sum of all experts.
**Cost:** 6 D F E / g FLOPs per token for the experts, 6 D E for controller, mixing and handing back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers._parts import ChannelMixer, Gate
from mixwell.kernels.experts import expert_mlp
from mixwell.kernels.packing import weight_of
from mixwell.mixing import Mixed, check_least, check_not_negative, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the mixture of tokens."""

    num_experts: int  # E
    hidden_dim: int  # F, of each expert
    group_size: int = 8  # g, examples that are mixed
    temperature: float = 1.0  # tau, 0 or more; 0 is discrete, and leaves the controller without a gradient
    emit: Literal["same", "experts"] = "same"  # weights that hand results back: those of the mean, or over experts

    def __post_init__(self) -> None:
        check_least(self, num_experts=1, hidden_dim=1, group_size=1)
        check_not_negative(self, "temperature")


def sharpened(logits: Tensor, temperature: float, dim: int, alive: Tensor) -> Tensor:
    """softmax(logits / temperature) over `dim` among the living, zeros elsewhere; the largest alone at 0."""
    lowest = torch.finfo(logits.dtype).min
    scaled = logits / (temperature or 1.0)
    scaled = scaled.masked_fill(~alive, lowest)
    if temperature:
        return scaled.softmax(dim) * alive
    best = scaled.argmax(dim, keepdim=True)
    return torch.zeros_like(scaled).scatter_(dim, best, 1.0) * alive


def groups(rows_BSD: Tensor, size: int) -> Tensor:
    """[B, S, ...] -> [G S, size, ...]: the tokens of `size` consecutive examples at one position, padded with zeros."""
    examples, positions, *rest = rows_BSD.shape
    missing = rows_BSD.new_zeros(-examples % size, positions, *rest)
    padded = torch.cat([rows_BSD, missing])
    by_group = padded.unflatten(0, (-1, size))
    return by_group.transpose(1, 2).flatten(0, 1)


def ungrouped(rows_MgD: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse of `groups`, padding left out: [G S, g, D] -> [B, S, D]."""
    examples, positions = shape
    by_group = rows_MgD.unflatten(0, (-1, positions))
    return by_group.transpose(1, 2).flatten(0, 1)[:examples]


@method(
    title="Mixture of tokens",
    paper="Mixture of Tokens: Efficient LLMs through Cross-Example Aggregation",
    year=2023,
    tags={"cross-example"},
)
class MixtureOfTokens(ChannelMixer):
    """Experts on weighted means over examples; see the module's card."""

    config: Config
    packable = ("gate_up_proj", "down_proj")

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        experts = config.num_experts
        hidden = config.hidden_dim
        self.controller = Gate(dim, experts, generator)
        self.gate_up_proj = normal_parameter((experts, 2 * hidden, dim), generator)
        self.down_proj = normal_parameter((experts, dim, hidden), generator)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]; needs `context.batch_shape`, raises `MixwellError` without."""
        shape = context.batch_shape
        size = self.config.group_size
        if shape is None:
            raise MixwellError("MixtureOfTokens mixes the examples of a batch; give Context(batch_shape=(B, S)).")
        if not len(x_TD):
            return Mixed(x_TD.clone())
        mask_T = context.mask_T
        if mask_T is None:
            mask_T = x_TD.new_ones(len(x_TD), dtype=torch.bool)
        x = groups(x_TD.view(*shape, -1), size)
        alive = groups(mask_T.view(*shape, 1), size)
        logits = self.controller(x_TD).view(*shape, -1)
        logits = groups(logits, size)
        merge, emit = self._weights(logits, alive)
        merge = merge.to(x.dtype).transpose(1, 2)
        means = torch.bmm(merge, x)
        emit = emit.to(x.dtype)
        y = torch.bmm(emit, self.experts(means))
        return Mixed(ungrouped(y, shape).flatten(0, 1))

    def _weights(self, logits_MgE: Tensor, alive_Mg1: Tensor) -> tuple[Tensor, Tensor]:
        """(weights of the means, weights that hand results back), both [M, g, E]."""
        tau = self.config.temperature
        merge = sharpened(logits_MgE, tau, 1, alive_Mg1)
        if self.config.emit == "same":
            return merge, merge
        return merge, sharpened(logits_MgE, tau, 2, alive_Mg1)

    def experts(self, mixed_MED: Tensor) -> Tensor:
        """Each expert on its own row of every group: [M, E, D] -> [M, E, D]."""
        M, E, _ = mixed_MED.shape
        counts = torch.full((E,), M, device=mixed_MED.device)
        by_expert = mixed_MED.transpose(0, 1)
        rows = by_expert.flatten(0, 1)
        gate_up = weight_of(self, "gate_up_proj")
        down = weight_of(self, "down_proj")
        out = expert_mlp(rows, counts, gate_up, down)
        by_expert = out.unflatten(0, (E, M))
        return by_expert.transpose(0, 1)

    def flops_per_token(self) -> float:
        """6 D F E / g for the experts, 6 D E for controller, mixing and handing back; whole groups."""
        c = self.config
        each = c.hidden_dim / c.group_size + 1
        return 6.0 * self.dim * c.num_experts * each


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five examples of two tokens of width six, in groups of two, so that the last is alone; three experts."""
    config = Config(num_experts=3, hidden_dim=5, group_size=2)
    x_TD = torch.randn(10, 6, generator=generator)
    context = Context(batch_shape=(5, 2))
    return {"dim": 6, "config": config, "x_TD": x_TD, "context": context}
