"""Octavius: low-rank experts at every matrix, and one gate for the whole network that goes by the instruction.

**Equation:** y = W x + sum_e g_e B_e A_e drop(x) at each target; g = the router's weights (top-2 of softmax, summing to
    1) of m, the mean of the embeddings of the instruction's tokens, the same at every target.
    causal: inside the instruction a token's m is the mean up to itself; behind it all tokens have the whole one's.
**Shapes:** x [T, I], W [O, I]; A [E, R, I], B [E, O, R]; the router [E, D], once.
**Reference:** Chen et al. 2023, Octavius (2311.02684), and its released code.
**Differs:** which tokens are the instruction is told by the id that ends it (`until`); there, by the data. With
    `causal` no token sees a later one, so every token may be learned from and text may come piece by piece; without, as
    there, the instruction's own tokens see all of it, and only what follows it may be learned from. The gate starts as
    its router does, there with spread 1. A change counts once: alpha / R is kept there and never used.
**Fails when:** tasks agree, or every instruction is new in kind; then one LoRA of equal size does as well.
**Cost:** 2 E R (I + O) a token at each target, all experts being computed as there, and 2 D E for the gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import check_rank, dropped, uniform
from mixwell.adapters._routed import RoutedWeight, mixed_changes, of_instruction, own_router, report_losses
from mixwell.adapters.targets import Target
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Routing
from mixwell.kernels.norm import wide
from mixwell.mixing import check_least, check_rate


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of Octavius."""

    num_experts: int = 4  # E
    rank: int = 8  # R, of each expert
    dropout: float = 0.0  # of what goes into A, in training; 0 up to 1
    until: int | None = None  # id of the token that ends the instruction; None: every token is of it
    causal: bool = True  # no token sees a later one
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 2})  # method and its options

    def __post_init__(self) -> None:
        check_least(self, num_experts=1, rank=1, until=0)
        check_rate(self, "dropout")


class Seen(NamedTuple):
    """What was read of each row's instruction."""

    sum_BD: Tensor  # of its embeddings
    count_B: Tensor
    over_B: Tensor  # whether it has ended


def means(x_BSD: Tensor, own_BS: Tensor, seen: Seen, causal: bool) -> tuple[Tensor, Seen]:
    """(m of each token [B, S, D], what was read by the end) of embeddings of which `own_BS` belong to instructions."""
    weighed = x_BSD * own_BS[..., None]
    sums = weighed.cumsum(1) + seen.sum_BD[:, None]
    counts = own_BS.long().cumsum(1) + seen.count_B[:, None]
    after = Seen(sums[:, -1], counts[:, -1], seen.over_B)
    if not causal:
        sums = sums[:, -1:].expand_as(sums)
        counts = counts[:, -1:].expand_as(counts)
    at_least_one = counts.clamp_min(1)
    return sums / at_least_one[..., None], after


@method(
    title="Octavius, low-rank experts gated by the instruction",
    paper="Octavius: Mitigating Task Interference in MLLMs via LoRA-MoE",
    year=2023,
)
class Octavius(RoutedWeight):
    """Low-rank experts at a matrix, mixed by the network's gate; see the module's card."""

    parts = ("A", "B")
    targets = ("qkv", "out")
    config: Config

    @classmethod
    def build(cls, targets: Sequence[Target], config: Config, generator: torch.Generator) -> Sequence[Self]:
        """An adapter for each target, one gate for all."""
        gate = _gate(targets[0], config, generator)
        return [cls(target, config, generator, gate) for target in targets]

    def __init__(self, target: Target, config: Config, generator: torch.Generator,
                 gate: nn.Module | None = None) -> None:
        super().__init__(target, config)
        check_rank(config.rank, target)
        self.router = gate or _gate(target, config, generator)
        stack, rank = config.num_experts, config.rank
        bound = (target.inputs * rank) ** -0.5  # as there, sqrt(R) below LoRA's
        self.A = nn.Parameter(uniform((stack, rank, target.inputs), bound, generator))
        self.B = nn.Parameter(self.A.new_zeros(stack, target.outputs, rank))

    def after(self, x: Tensor, y: Tensor, weight: Any, A: Tensor, B: Tensor) -> Tensor:
        """What came out, with the mixture of low-rank changes."""
        draws = self.context.generator if self.training else None
        rows = dropped(x.flatten(0, -2), self.config.dropout, draws)
        change = mixed_changes(rows, self.gates(len(rows)), A, B)
        return y + change.view_as(y)

    def gates(self, rows: int) -> Tensor:
        """g of each token [T, E]; `MixwellError` where the layer is called with other rows than the network's."""
        context = self.context
        ids = context.token_ids_T
        if ids is None or len(ids) != rows:
            raise MixwellError(f"{self.target.name} is not called with the network's tokens row by row, by which "
                               "Octavius finds the instruction; take matrices of attention, such as qkv and out.")
        if context.kept is None:
            raise MixwellError("rows come in pieces side by side here, and Octavius' gate reads whole rows; generate "
                               "as LanguageModel.generate does.")
        before, gates = self._earlier(ids)
        if gates is not None:
            return gates
        means_TD, after = self._read(ids, before)
        routing: Routing = self.router(means_TD, context)
        report_losses(self, routing, context)
        gates = routing.dense_TE()
        reusable = None if torch.is_grad_enabled() else gates  # a gradient may be computed target by target
        context.kept[self.router] = ids, before, after, reusable
        return gates

    def _earlier(self, ids: Tensor) -> tuple[Seen | None, Tensor | None]:
        """(what was read in passes before, the gates of this pass) as far as they are known."""
        kept = self.context.kept or {}
        if self.router not in kept:
            return None, None
        of, before, after, gates = kept[self.router]
        if of is ids:
            return before, gates
        return after, None

    def _read(self, ids: Tensor, before: Seen | None) -> tuple[Tensor, Seen]:
        """(m of each token [T, D], what was read by the end)."""
        context = self.context
        assert context.batch_shape is not None
        ids_BS = ids.view(context.batch_shape)
        model: Any = self.target.model
        x_BSD = wide(model.embed(ids_BS))
        seen = before or _nothing(x_BSD)
        own_BS = of_instruction(ids_BS, self.config.until, seen.over_B)
        if context.mask_T is not None:
            own_BS = own_BS & context.mask_T.view_as(own_BS)
        found, after = means(x_BSD, own_BS, seen, self.config.causal)
        over_B = seen.over_B
        if self.config.until is not None:
            over_B = over_B | (ids_BS == self.config.until).any(1)
        return found.flatten(0, 1), after._replace(sum_BD=after.sum_BD.detach(), over_B=over_B)


def _nothing(x_BSD: Tensor) -> Seen:
    rows = len(x_BSD)
    zeros = torch.zeros(rows, dtype=torch.long, device=x_BSD.device)
    return Seen(x_BSD.new_zeros(rows, x_BSD.shape[-1]), zeros, zeros.bool())


def _gate(target: Target, config: Config, generator: torch.Generator) -> nn.Module:
    model: Any = target.model
    if getattr(model, "embed", None) is None:
        raise MixwellError(f"{target.name} stands in no network with an embedding, which Octavius' gate reads.")
    width = model.embed.weight.shape[-1]
    return own_router(config.router, width, config.num_experts, generator)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A layer of six inputs and five outputs in a network of nine words, three experts of rank two."""
    from mixwell.kernels.linear import Linear

    model = nn.Module()
    words = torch.randn(9, 4, generator=generator)
    model.embed = nn.Embedding(9, 4, _weight=words)
    layer = Linear(6, 5, False, generator)
    target = Target("layer.weight", layer, "weight", model=model)
    return {"target": target, "config": Config(num_experts=3, rank=2)}
