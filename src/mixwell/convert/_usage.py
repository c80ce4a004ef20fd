"""What a mixture's experts do on calibration text, added up batch by batch.

Legend: T tokens, E experts, K slots, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixwell.convert._parts import DOWN, GATE_UP, activations, channel
from mixwell.convert.calibration import Calibration, Seen
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.mixing import normalised


def expert_output(x_TD: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """W_down (silu(W_gate x) * (W_up x)) of each token, float32 [T, D]."""
    hidden = activations(x_TD, gate_up)
    return hidden @ down.float().T


@dataclass(eq=False)
class Usage:
    """Sums over the tokens that a layer's experts were chosen for; float64 [E]."""

    count_E: Tensor  # selections
    weight_E: Tensor  # of g: the score over the sum of those chosen for the token
    norm_E: Tensor  # of ||f(x)||, the output before its weight
    weighted_norm_E: Tensor  # of g ||f(x)||
    score_E: Tensor  # of the router's scores, over all tokens
    mass: float = 0.0  # of the weights that the experts were given
    tokens: int = 0
    output_ED: Tensor | None = None  # of f(x), over all tokens, whoever was chosen
    logits_TE: list[Tensor] = field(default_factory=list)  # the router's, of all tokens

    @property
    def mean_mass(self) -> float:
        """What the weights of a token's experts sum to on average."""
        return self.mass / max(1, self.tokens)

    @property
    def share_E(self) -> Tensor:
        """Share of all selections."""
        return self.count_E / self.count_E.sum().clamp_min(1)


def nothing_yet(num_experts: int) -> Usage:
    """No token counted."""
    count, weight, norm, weighted, score = torch.zeros(5, num_experts, dtype=torch.float64)
    return Usage(count, weight, norm, weighted, score)


def usage(checkpoint: Checkpoint, layers: Sequence[int], calibration: Calibration, *, everywhere: bool = False,
          norms: bool = True) -> dict[int, Usage]:
    """What the experts of each layer named do over the text; `everywhere`: outputs on all tokens and logits, too.

    Raises `MixwellError` where a layer chooses no experts.
    """
    found: dict[int, Usage] = {}
    for seen in calibration.seen(checkpoint):
        for layer in layers:
            experts = checkpoint.tensors[channel(layer, GATE_UP)], checkpoint.tensors[channel(layer, DOWN)]
            so_far = found.setdefault(layer, nothing_yet(len(experts[0])))
            _add(so_far, seen[layer], experts, layer, norms)
            if everywhere:
                _add_everywhere(so_far, seen[layer], experts)
    return found


def _add(total: Usage, seen: Seen, experts: tuple[Tensor, Tensor], layer: int, norms: bool) -> None:
    """Count what one batch did."""
    routing = seen.routing
    if routing is None:
        raise MixwellError(f"layer {layer} tells no routing; expected a mixture whose router chooses experts.")
    chosen_TK = routing.indices_TK
    filled_TK = chosen_TK >= 0
    scores_TK = routing.scores_TE.gather(1, chosen_TK.clamp_min(0)).double()
    g_TK = normalised(scores_TK * filled_TK)
    total.tokens += len(chosen_TK)
    total.mass += float(routing.weights_TK.double().sum())
    total.score_E += routing.scores_TE.double().sum(0)
    for e in range(len(total.count_E)):
        rows, slots = (chosen_TK == e).nonzero(as_tuple=True)
        if not len(rows):
            continue
        g = g_TK[rows, slots]
        total.count_E[e] += len(rows)
        total.weight_E[e] += g.sum()
        if norms:
            output = expert_output(seen.x_TD[rows], experts[0][e], experts[1][e])
            norm = output.norm(dim=1).double()
            total.norm_E[e] += norm.sum()
            total.weighted_norm_E[e] += (g * norm).sum()


def _add_everywhere(total: Usage, seen: Seen, experts: tuple[Tensor, Tensor]) -> None:
    """Add every expert's output on every token, and keep the router's logits."""
    outputs = [expert_output(seen.x_TD, gate_up, down) for gate_up, down in zip(*experts)]
    sums = [output_TD.double().sum(0) for output_TD in outputs]
    output_ED = torch.stack(sums)
    if total.output_ED is not None:
        output_ED = output_ED + total.output_ED
    total.output_ED = output_ED
    routing = seen.routing
    assert routing is not None
    logits = routing.scores_TE if routing.logits_TE is None else routing.logits_TE
    total.logits_TE.append(logits)


# what an expert is worth by its usage; the least worthy go first
CRITERIA: Mapping[str, Callable[[Usage], Tensor]] = {
    "frequency": lambda u: u.count_E,
    "weighted_frequency": lambda u: u.weight_E,
    "output_sum": lambda u: u.norm_E,
    "output_mean": lambda u: u.norm_E / u.count_E.clamp_min(1),
    "weighted_output": lambda u: u.weighted_norm_E,
    "reap": lambda u: u.weighted_norm_E / u.count_E.clamp_min(1),
    "score": lambda u: u.score_E,
}


def check_plain_router(spec: Mapping[str, Any], layer: int, doing: str) -> None:
    """Raise `MixwellError` for a router whose experts come in groups, which would be torn."""
    router = spec.get("router") or {}
    if (router.get("groups") or 1) > 1:
        raise MixwellError(f"layer {layer} chooses among groups of experts; {doing} would tear them. Hand in a model "
                           "without groups.")


def kept_rows(router: Mapping[str, Tensor], kept: Tensor, num_experts: int, layer: int) -> dict[str, Tensor]:
    """The tensors of a layer's router with the rows of the experts kept.

    Raises `MixwellError` for a router that has a tensor without one row an expert.
    """
    for name, value in router.items():
        if value.ndim == 0 or value.shape[0] != num_experts:
            raise MixwellError(f"layer {layer}: {name} has shape {tuple(value.shape)}; expected one row for each of "
                               f"{num_experts} experts. Routers such as top_k have that.")
    return {name: value[kept] for name, value in router.items()}
