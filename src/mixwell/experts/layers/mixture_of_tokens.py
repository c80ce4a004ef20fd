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
from mixwell.experts.layers._parts import ChannelMixer, Gate, check_least, normal_parameter
from mixwell.kernels.experts import expert_mlp
from mixwell.kernels.packing import weight_of
from mixwell.mixing import Mixed


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
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; expected 0 or more")


def sharpened(logits: Tensor, temperature: float, dim: int, alive: Tensor) -> Tensor:
    """softmax(logits / temperature) over `dim` among the living, zeros elsewhere; the largest alone at 0."""
    scaled = (logits / (temperature or 1.0)).masked_fill(~alive, torch.finfo(logits.dtype).min)
    if temperature == 0:
        return torch.zeros_like(scaled).scatter_(dim, scaled.argmax(dim, keepdim=True), 1.0) * alive
    return scaled.softmax(dim) * alive


def groups(rows_BSD: Tensor, size: int) -> Tensor:
    """[B, S, ...] -> [G S, size, ...]: the tokens of `size` consecutive examples at one position, padded with zeros."""
    B, S, *rest = rows_BSD.shape
    padded = torch.cat([rows_BSD, rows_BSD.new_zeros(-B % size, S, *rest)])
    return padded.unflatten(0, (-1, size)).transpose(1, 2).flatten(0, 1)


def ungrouped(rows_MgD: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse of `groups`, padding left out: [G S, g, D] -> [B, S, D]."""
    return rows_MgD.unflatten(0, (-1, shape[1])).transpose(1, 2).flatten(0, 1)[: shape[0]]


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
        self.dim, self.config = dim, config
        self.controller = Gate(dim, config.num_experts, generator)
        self.gate_up_proj = normal_parameter((config.num_experts, 2 * config.hidden_dim, dim), generator)
        self.down_proj = normal_parameter((config.num_experts, dim, config.hidden_dim), generator)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]; needs `context.batch_shape`, raises `MixwellError` without."""
        shape, size, tau = context.batch_shape, self.config.group_size, self.config.temperature
        if shape is None:
            raise MixwellError("MixtureOfTokens mixes the examples of a batch; give Context(batch_shape=(B, S)).")
        if not x_TD.shape[0]:
            return Mixed(x_TD.clone())
        mask_T = x_TD.new_ones(x_TD.shape[0], dtype=torch.bool) if context.mask_T is None else context.mask_T
        x, alive = groups(x_TD.view(*shape, -1), size), groups(mask_T.view(*shape, 1), size)
        logits = groups(self.controller(x_TD).view(*shape, -1), size)
        merge = sharpened(logits, tau, 1, alive)
        emit = merge if self.config.emit == "same" else sharpened(logits, tau, 2, alive)
        out = self.experts(torch.bmm(merge.to(x.dtype).transpose(1, 2), x))
        return Mixed(ungrouped(torch.bmm(emit.to(x.dtype), out), shape).flatten(0, 1))

    def experts(self, mixed_MED: Tensor) -> Tensor:
        """Each expert on its own row of every group: [M, E, D] -> [M, E, D]."""
        M, E, _ = mixed_MED.shape
        counts = torch.full((E,), M, device=mixed_MED.device)
        rows = expert_mlp(mixed_MED.transpose(0, 1).flatten(0, 1), counts, weight_of(self, "gate_up_proj"),
                          weight_of(self, "down_proj"))
        return rows.unflatten(0, (E, M)).transpose(0, 1)

    def flops_per_token(self) -> float:
        """6 D F E / g for the experts, 6 D E for controller, mixing and handing back; whole groups."""
        return 6.0 * self.dim * self.config.num_experts * (self.config.hidden_dim / self.config.group_size + 1)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five examples of two tokens of width six, in groups of two, so that the last is alone; three experts."""
    config = Config(num_experts=3, hidden_dim=5, group_size=2)
    x_TD = torch.randn(10, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD,
            "context": Context(batch_shape=(5, 2))}
