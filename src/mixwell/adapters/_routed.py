"""What routed adapters share: a router of their own with its balance loss, thin experts, and the refusals.

Legend: T tokens, D width, E experts, R rank, N filled slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import Adapter, LayerAdapter, WeightAdapter, product
from mixwell.adapters.targets import Target
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context, Routing, combine, dispatch, plan
from mixwell.mixing import BalanceRule, apply_balance, build_balance, build_router


def own_router(spec: Mapping[str, Any], dim: int, num_experts: int, generator: torch.Generator) -> nn.Module:
    """The router that `spec` names, for an adapter; `MixwellError` for one that has to be told more than tokens."""
    router = build_router(spec, dim, num_experts, generator)
    asks = getattr(router, "needs_responses", False) or getattr(router, "needs_tokens", False)
    if hasattr(router, "update") or asks:
        raise MixwellError(f"router {spec.get('method', 'top_k')} learns outside the gradient, which nothing does for "
                           "an adapter; take one that goes by tokens alone, such as top_k.")
    return router


def width_of(target: Target) -> int:
    """D of a layer as a whole."""
    owner: Any = target.owner
    width: int = owner.dim
    return width


def check_width(rank: int, most: int, target: Target) -> None:
    """Raise `MixwellError` for a rank above the least width that it stands between."""
    if rank > most:
        raise MixwellError(f"rank is {rank} at {target.name}, which is {most} wide at its least; choose 1 to {most}.")


def report_losses(adapter: Adapter, routing: Routing, context: Context, rules: tuple[BalanceRule, ...] = ()) -> None:
    """Hand on what the rules and the router ask for, where losses are asked for: as `adapter_<name>`.

    A mixture that the adapter stands at may have a loss of the same name, which keeps it.
    """
    if not context.losses:
        return
    losses, aux = apply_balance(rules, routing, context)
    named = {f"adapter_{name}": loss for name, loss in losses.items()}
    adapter.report(named, aux)


class RoutedLayer(LayerAdapter):
    """A layer with a router of the adapter's own beside it; see `report_losses`."""

    router: Any

    def put_router(self, spec: Mapping[str, Any], balance: Mapping[str, Any], num_experts: int,
                   generator: torch.Generator) -> None:
        """Build the router and its balance rules."""
        self.router = own_router(spec, width_of(self.target), num_experts, generator)
        self.balance = build_balance(balance)

    def route(self, x_TD: Tensor, context: Context) -> Routing:
        """The routing of the tokens; its losses are reported where losses are asked for."""
        routing: Routing = self.router(x_TD, context)
        report_losses(self, routing, context, self.balance)
        return routing


class RoutedWeight(WeightAdapter):
    """A change of one matrix that depends on the tokens."""

    def __init__(self, target: Target, config: Any) -> None:
        super().__init__(target, config)
        for experts in target.stack:
            raise MixwellError(f"{target.name} is a stack of {experts} experts, whose rows are sorted away "
                               f"from their tokens; {type(self).__name__} takes single matrices, such as qkv and out.")

    def delta(self, weight: Tensor, *parts: Any) -> Tensor:
        """Refused: the change depends on what comes in."""
        raise self.unmergeable()


def mixed_changes(x: Tensor, p_TE: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """sum_e p_e B_e A_e x of x [T, I]: [T, O], in the type of x."""
    into = A.flatten(0, 1)  # [E R, I]
    thin_TER = product(x, into).unflatten(-1, A.shape[:2])
    p = p_TE.to(x.dtype)
    weighed = thin_TER * p.unsqueeze(-1)
    rows = weighed.flatten(1)
    out_of = B.transpose(0, 1).flatten(1)  # [O, E R]
    return product(rows, out_of)


def of_instruction(ids_BS: Tensor, until: int | None, over_B: Tensor | None = None) -> Tensor:
    """Which tokens are of the instruction, bool [B, S]: those up to the first `until`, with it.

    Nothing more is of one in rows where `over_B` says that it has ended.
    """
    if until is None:
        return torch.ones_like(ids_BS, dtype=torch.bool)
    ends_BS = (ids_BS == until).long()
    before_BS = ends_BS.cumsum(1) - ends_BS
    own_BS = before_BS == 0
    return own_BS if over_B is None else own_BS & ~over_B[:, None]


def through(known: Sequence[Tensor], routing: Routing, expert: Callable[..., Tensor]) -> Tensor:
    """sum_k weights[t, k] expert(*rows_t, indices[t, k]): [T, D], of what is known of the tokens, [T, .] each.

    `expert` takes an expert's rows of each and its number.
    """
    order = plan(routing.indices_TK, routing.num_experts)
    counts = order.counts_E.tolist()
    rows = [dispatch(part, order).split(counts) for part in known]
    done = [expert(*own, e) for e, own in enumerate(zip(*rows))]
    joined = torch.cat(done)
    return combine(joined, order, routing.weights_TK)
