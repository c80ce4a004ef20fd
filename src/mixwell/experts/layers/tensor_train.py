"""Experts as matrix product operators: the large central tensor is common to all, the small outer ones are their own.

**Equation:** W_e[(o_1 ... o_n), (i_1 ... i_n)] = A_1^e[o_1, i_1] ... C[o_m, i_m] ... A_n^e[o_n, i_n], a product of n
    tensors [d_(k-1), o_k, i_k, d_k] over their bonds, m = (n + 1) / 2 the central one, d_0 = d_n = 1.
    y = sum_{e in I(x)} w_e(x) E_e(x), E_e a SwiGLU block of such matrices. Gradient mask: in training, the part of C's
    gradient that comes through expert e is dropped with probability p at each step.
**Shapes:** x [T, D]; outer tensors [E, d, o, i, d'], central ones [d, o, i, d']; contracted: gate_up [E, 2 F, D],
    down [E, D, F].
**Reference:** Gao et al. 2022, Parameter-Efficient Mixture-of-Experts Architecture for Pre-trained Language Models
    (2203.01104), section 3, and the authors' code for what is shared.
**Differs:** SwiGLU experts; gate and up are one operator. The mask is drawn for each expert by itself, and is off
    unless asked for: the paper's probability was not to be had. Starts from random tensors; `decompose` gives those of
    a trained matrix.
**Fails when:** the bonds are so narrow that experts cannot differ; then they are copies with other gates.
**Cost:** 6 T k D F FLOPs forward, 2 T D E for the router, and once a pass the contraction of the experts that are hit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context, combine, dispatch, plan
from mixwell.experts.layers._parts import ChannelMixer
from mixwell.kernels.experts import expert_mlp
from mixwell.mixing import (
    Mixed,
    apply_balance,
    build_balance,
    build_router,
    check_least,
    default_balance,
    normal_parameter,
)

STD = 0.02  # of the entries of the contracted matrices at the start


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the mixture of matrix product operators."""

    num_experts: int  # E
    hidden_dim: int  # F, of each expert
    tensors: int = 5  # n, tensors of each matrix, odd, at least 3
    rank: int | None = None  # largest bond; none: full, so that every matrix can be reached
    mask: float = 0.0  # p, probability that an expert leaves the central tensors alone for a step, 0 to 1
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 2})
    # rule -> coefficient; default: switch 0.01 and z_loss 0.001, nothing for routers without logits
    balance: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_least(self, num_experts=1, hidden_dim=1, rank=1)
        if self.tensors < 3 or self.tensors % 2 == 0:
            raise ValueError(f"tensors is {self.tensors}; expected an odd number from 3, so that one is central")
        if not 0 <= self.mask <= 1:
            raise ValueError(f"mask is {self.mask}; expected 0 to 1")


def primes_of(size: int) -> list[int]:
    """The prime factors, smallest first, each as often as it divides."""
    primes = []
    divisor = 2
    while size > 1:
        while size % divisor == 0:
            primes.append(divisor)
            size //= divisor
        divisor += 1
    return primes


def factorise(size: int, parts: int) -> tuple[int, ...]:
    """`parts` factors of `size`, as even as its primes allow, the largest in the middle."""
    factors = [1] * parts
    for prime in reversed(primes_of(size)):  # the largest first, each to the factor that is smallest so far
        smallest = factors.index(min(factors))
        factors[smallest] *= prime
    rising = sorted(factors)
    falling = rising[1::2][::-1]
    return tuple(rising[0::2] + falling)


def shapes(rows: int, columns: int, tensors: int, rank: int | None) -> list[tuple[int, int, int, int]]:
    """[d, o, i, d'] of each tensor of a matrix [rows, columns], with bonds of at most `rank`."""
    outs = factorise(rows, tensors)
    ins = factorise(columns, tensors)
    pairs = zip(outs, ins)
    sizes = [o * i for o, i in pairs]
    most = rank or rows * columns
    bonds = []
    for k in range(tensors + 1):
        left = math.prod(sizes[:k])
        right = math.prod(sizes[k:])
        bonds.append(min(left, right, most))
    before = bonds[:-1]
    after = bonds[1:]
    return list(zip(before, outs, ins, after))


def decompose(matrix: Tensor, tensors: int, rank: int | None = None) -> list[Tensor]:
    """The tensors of `matrix` [rows, columns], by singular value decompositions from the left; exact at full rank."""
    plan_ = shapes(matrix.shape[0], matrix.shape[1], tensors, rank)
    outs = [s[1] for s in plan_]
    ins = [s[2] for s in plan_]
    axes = [axis for k in range(tensors) for axis in (k, tensors + k)]  # output and input of a tensor side by side
    rest = matrix.reshape(*outs, *ins).permute(axes)
    parts = []
    for d, o, i, bond in plan_[:-1]:
        u, s, v = torch.linalg.svd(rest.reshape(d * o * i, -1), full_matrices=False)
        kept = u[:, :bond]
        parts.append(kept.reshape(d, o, i, bond))
        rest = s[:bond, None] * v[:bond]
    return [*parts, rest.reshape(plan_[-1])]


def contract(parts: Sequence[Tensor]) -> Tensor:
    """The matrices [..., rows, columns] of tensors [..., d, o, i, d']; leading dimensions broadcast."""
    whole = parts[0].squeeze(-4)
    for part in parts[1:]:
        joined = torch.einsum("...oid,...dpjc->...opijc", whole, part)
        rows_joined = joined.flatten(-5, -4)
        whole = rows_joined.flatten(-3, -2)
    return whole.squeeze(-1)


class _Operators(nn.Module):
    """One matrix for each of E experts, as tensors of which the central one is common."""

    def __init__(self, experts: int, rows: int, columns: int, config: Config,
                 generator: torch.Generator | None) -> None:
        super().__init__()
        plan_ = shapes(rows, columns, config.tensors, config.rank)
        self.middle = config.tensors // 2
        paths = math.prod(s[3] for s in plan_)
        std = (STD**2 / paths) ** (0.5 / config.tensors)  # an entry is a sum over the paths through the bonds
        own = [s if k == self.middle else (experts, *s) for k, s in enumerate(plan_)]
        self.tensors = nn.ParameterList(normal_parameter(shape, generator, std) for shape in own)

    def forward(self, hit_H: Tensor, masked_H: Tensor | None) -> Tensor:
        """Matrices [H, rows, columns] of the experts `hit_H`; those in `masked_H` give the centre no gradient."""
        parts = [t if k == self.middle else t.index_select(0, hit_H) for k, t in enumerate(self.tensors)]
        if masked_H is not None:
            centre = parts[self.middle]
            masked = masked_H.view(-1, 1, 1, 1, 1)
            parts[self.middle] = torch.where(masked, centre.detach(), centre)
        return contract(parts)


@method(
    title="Matrix product operator experts (MPOE)",
    paper="Parameter-Efficient Mixture-of-Experts Architecture for Pre-trained Language Models",
    year=2022,
    tags={"router", "tokenwise"},
)
class TensorTrainMoE(ChannelMixer):
    """Mixture of experts that share their central tensors; see the module's card."""

    config: Config
    router: Any

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        experts = config.num_experts
        hidden = config.hidden_dim
        self.router = build_router(config.router, dim, experts, generator)
        rules = default_balance(self.router) if config.balance is None else config.balance
        self.balance = build_balance(rules)
        self.gate_up = _Operators(experts, 2 * hidden, dim, config, generator)
        self.down = _Operators(experts, dim, hidden, config, generator)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]; with a mask, training needs `context.generator` and raises `MixwellError` without."""
        routing = self.router(x_TD, context)
        order = plan(routing.indices_TK, self.config.num_experts)
        hit = order.counts_E.nonzero().squeeze(1)
        masked = self._masked(hit, context)
        gate_up = self.gate_up(hit, masked)
        down = self.down(hit, masked)
        rows = dispatch(x_TD, order)
        rows = expert_mlp(rows, order.counts_E[hit], gate_up, down)
        y = combine(rows, order, routing.weights_TK)
        losses, aux = apply_balance(self.balance, routing, context)
        return Mixed(y, routing, losses, aux)

    def _masked(self, hit_H: Tensor, context: Context) -> Tensor | None:
        """Which of the experts `hit_H` give the centre no gradient this time, bool [H]; None where none is masked."""
        if not (self.training and self.config.mask):
            return None
        draws = context.generator
        if draws is None:
            raise MixwellError("TensorTrainMoE draws its gradient mask while training; give Context(generator=...), "
                               "call eval(), or set mask: 0.")
        draw = torch.rand(self.config.num_experts, generator=draws, device=draws.device)
        of_hit = draw.to(hit_H.device)[hit_H]
        return of_hit < self.config.mask

    def flops_per_token(self) -> float:
        """6 k D F for the experts, 2 D E for the router; the contraction is paid once a pass, not for each token."""
        c = self.config
        experts = 6.0 * self.router.experts_per_token * c.hidden_dim
        return self.dim * (experts + 2.0 * c.num_experts)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts in three tensors each."""
    config = Config(num_experts=4, hidden_dim=4, tensors=3, rank=3)
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD}
