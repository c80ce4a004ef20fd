"""What single weights of a model meet as text goes through it: their inputs and their gradients.

Legend: B rows, S positions of a row, T = B S tokens, D width, F hidden width, E experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.kernels.experts import by_expert, swiglu
from mixwell.kernels.linear import Linear, linear
from mixwell.kernels.packing import weight_of
from mixwell.lm.evaluate import add_loads
from mixwell.lm.model import LanguageModel
from mixwell.lm.network import token_facts

WIDE = torch.float64


class Met:
    """A model whose weights' inputs are kept as text goes through it, one batch at a time."""

    def __init__(self, checkpoint: Checkpoint, names: Sequence[str]) -> None:
        self.model = LanguageModel.from_checkpoint(checkpoint, dtype=torch.float32).eval()
        self.model.requires_grad_(False)
        self.names = names
        self.given: dict[str, Tensor] = {}  # what came into each module named
        self.loads: dict[int, Tensor] = {}  # of each layer with a router, how many tokens each expert got so far
        for owner in {_owner(name) for name in names}:
            module = self.model.get_submodule(owner)
            module.register_forward_pre_hook(self._keeps(owner))

    def _keeps(self, owner: str) -> Any:
        def keep(module: nn.Module, given: tuple[Any, ...]) -> None:
            x = given[0]
            self.given[owner] = x.reshape(-1, x.shape[-1])

        return keep

    @torch.no_grad()
    def read(self, tokens_BS: Tensor) -> dict[str, Tensor]:
        """What each weight named is multiplied with over one batch."""
        self.given = {}
        add_loads(self.loads, self.model(tokens_BS).routings)
        return {name: self._input(name) for name in self.names}

    def _input(self, name: str) -> Tensor:
        owner = _owner(name)
        module = self.model.get_submodule(owner)
        x_TD = self.given[owner]
        attribute = name.removeprefix(f"{owner}.")
        if isinstance(module, Linear) or attribute.endswith("gate_up_proj"):
            return x_TD
        into = attribute.replace("down_proj", "gate_up_proj")
        if not attribute.endswith("down_proj") or not hasattr(module, into):
            raise MixwellError(f"{name}: what {type(module).__name__} multiplies it with is not known; expected gated "
                               "blocks (gate_up_proj and down_proj), or linear maps.")
        return _hidden(module, into, x_TD)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _hidden(module: Any, into: str, x_TD: Tensor) -> Tensor:
    """Activations of a gated block over all tokens: [T, F], or [E, T, F] of a stack."""
    weight: Any = weight_of(module, into)
    if len(weight.shape) == 2:
        return swiglu(linear(x_TD, weight))
    clamped = getattr(module.config, "clamp", None) is not None
    parts = []
    for expert, own in enumerate(by_expert(weight)):
        gate_up = linear(x_TD, own)
        if clamped:
            gate_up = gate_up + module.gate_up_bias[expert]
        parts.append(module._clamped(gate_up) if clamped else swiglu(gate_up))
    return torch.stack(parts)


@torch.no_grad()
def routed(model: LanguageModel, batches: Sequence[Tensor]) -> dict[int, Tensor]:
    """Of each layer with a router, how many tokens it sent to each expert."""
    loads: dict[int, Tensor] = {}
    for tokens_BS in batches:
        add_loads(loads, model(tokens_BS).routings)
    return loads


@torch.no_grad()
def gates(model: LanguageModel, batches: Sequence[Tensor]) -> dict[int, Tensor]:
    """Of each layer with a router, what the weights that it gave each expert sum up to, float64 [E]."""
    sums: dict[int, Tensor] = {}
    for tokens_BS in batches:
        for layer, routing in enumerate(model(tokens_BS).routings):
            if routing is None:
                continue
            own_E = routing.dense_TE().double().sum(0)
            sums[layer] = sums.get(layer, 0) + own_E
    return sums


def slopes(checkpoint: Checkpoint, at: Mapping[str, Tensor], tokens_NS: Tensor,
           rows: int) -> Iterator[dict[str, Tensor]]:
    """Gradients of the mean cross-entropy by the tensors `at` in float64, for each `rows` windows or for all."""
    model = LanguageModel.from_checkpoint(checkpoint, dtype=WIDE).eval()
    model.requires_grad_(False)
    placed = {name: value.detach().to(WIDE).requires_grad_() for name, value in at.items()}
    for batch in tokens_NS.split(rows or len(tokens_NS)):
        logits_BSV = functional_call(model, placed, (batch,)).logits_BTV
        nats = F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        grads = torch.autograd.grad(nats, list(placed.values()))
        yield dict(zip(placed, grads))


def through(model: LanguageModel, tokens_BS: Tensor, x_BSD: Tensor | None, layers: Sequence[int],
            moving: Mapping[str, Tensor]) -> Tensor:
    """The residual stream behind some layers, from what comes into the first of them or from the tokens on."""
    length = tokens_BS.shape[1]
    positions_BS = torch.arange(length, device=tokens_BS.device).unsqueeze(0)
    facts = token_facts(tokens_BS, positions_BS, None, None)
    facts["num_layers"] = len(model.layers)
    if x_BSD is None:
        x_BSD = model._embedded(tokens_BS, positions_BS)
    for number in layers:
        start = f"layers.{number}."
        own = {name.removeprefix(start): value.float() for name, value in moving.items() if name.startswith(start)}
        context = Context(layer=number, losses=False, **facts)
        given = (x_BSD, positions_BS, None, None, context)
        x_BSD, _, mixed = functional_call(model.layers[number], own, given)
        if mixed.routing is not None and mixed.routing.state is not None:
            raise MixwellError(f"layer {number} hands a state on to the next layer's router; its layers do not run by "
                               "themselves. Take a method that looks at one matrix at a time, such as precision.gptq.")
    assert x_BSD is not None
    return x_BSD
