"""Adapters put beside a model and taken off again: attach, count, merge, unmerge, detach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.adapters.targets import Target, fits
from mixwell.adapters.turns import Turns
from mixwell.core import rng
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.kernels.norm import wide
from mixwell.kernels.packing import CHANGES

TURNS = "turns"  # attribute of a model whose parts are trained in turn, which a training asks before each step
WHOLE = "whole"  # name of the adapter of a layer as a whole among the layer's adapters


class Pass:
    """The forward pass in progress at one mixer, as the adapters there see it.

    Hooks on the mixer keep it: `enter` notes the context that the mixer is called with, `leave` puts the auxiliary
    losses that adapters reported into what the mixer gives back. A pass that is repeated for its gradient is entered
    again, with the same draws.
    """

    def __init__(self) -> None:
        self.context = Context()
        self.losses: dict[str, Tensor] = {}
        self.terms: list[Tensor] = []

    def enter(self, module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """A hook before the mixer's own forward pass."""
        self.context = Context()
        for value in (*arguments, *named.values()):
            if isinstance(value, Context):
                self.context = value
        self.losses, self.terms = {}, []

    def report(self, losses: Mapping[str, Tensor], aux: Tensor | None) -> None:
        """Losses of one adapter; those of one name are added up."""
        for name, loss in losses.items():
            before = self.losses.get(name)
            self.losses[name] = loss if before is None else before + loss
        if aux is not None:
            self.terms.append(aux)

    def leave(self, module: nn.Module, arguments: tuple[Any, ...], result: Any) -> Any:
        """A hook behind it."""
        if not self.losses and not self.terms:
            return result
        if isinstance(result, Tensor):
            named = ", ".join(self.losses)
            raise MixwellError(f"an adapter at {type(module).__name__} has auxiliary losses ({named}), and only a "
                               "mixer's result can carry them; take a router without losses there.")
        terms = self.terms if result.aux is None else [result.aux, *self.terms]
        wide = [term.float() for term in terms]
        aux = torch.stack(wide).sum() if wide else None
        losses = {**result.losses, **self.losses}
        self.losses, self.terms = {}, []
        return result._replace(losses=losses, aux=aux)


@dataclass(frozen=True)
class Known:
    """What a method may look at before it stands beside a model."""

    held: Mapping[str, Tensor] | None = None  # tensors that are loaded next, which say what was drawn or measured
    text: Iterable[Tensor] | None = None  # windows of token ids, int64 [B, T] each
    begin: bool = True  # whether the start is computed, too


@dataclass(frozen=True)
class Standing:
    """What a method puts beside a model, and which of the model's own parameters it trains."""

    method: str  # in full
    config: Any
    adapters: Mapping[str, Any]  # by target
    trained: tuple[str, ...] = ()  # names of the model's parameters
    turns: tuple[tuple[str, ...], ...] = ()  # groups of these, a step each in turn; none = all at every step
    start: Mapping[str, Tensor] = field(default_factory=dict)  # values that some of these begin with


def attach(method: Any, model: nn.Module, targets: Sequence[str] | str | None, config: Any,
           generator: torch.Generator | None = None, *, trained: Sequence[str] = (), begin: bool = True,
           held: Mapping[str, Tensor] | None = None, text: Iterable[Tensor] | None = None) -> Attached:
    """Put adapters of `method` beside the targets of `model`, in place, and freeze everything else.

    targets: patterns of names, see `mixwell.adapters.targets.fits`; None takes the method's own. trained: patterns of
    parameters that are trained as they are (norms, an embedding) and belong to the adapter. generator: default seed 0.
    begin: whether to compute what the start takes of the weights; not where `load_tensors` follows. held: the tensors
    that follow then, for methods that drew or measured what they stand at. text: windows of token ids, for methods
    that look at text.

    Raises `MixwellError` for a pattern that fits nothing, a target that has an adapter already, and values in a target
    that are not finite.
    """
    draws = generator or rng.generator(0)
    there: Standing = method.stands(model, targets, config, draws, Known(held, text, begin))
    for adapter in there.adapters.values():
        if begin:
            adapter.begin()
        adapter.train(model.training)  # a router that draws in training must not where the model does not train
    found = Attached(model, there, trained)
    if begin:
        found.start_over(there.start)
    return found


def check_free(target: Target) -> None:
    """Raise `MixwellError` for a target that has an adapter, or values that are not finite."""
    held: Any = target.owner._modules.get(CHANGES) or ()
    place = target.attribute or WHOLE
    if place in held:
        raise MixwellError(f"{target.name} has an adapter already; merge or detach that one first.")
    if target.attribute and not bool(target.numbers.isfinite().all()):
        raise MixwellError(f"{target.name} has values that are not finite; mend the model first.")


class Attached:
    """The adapters beside one model: by target, in the model's order."""

    def __init__(self, model: nn.Module, there: Standing, trained: Sequence[str] = ()) -> None:
        self.model, self.config, self.adapters = model, there.config, dict(there.adapters)
        self.method = there.method
        self.merged = False
        self._hooks: list[Any] = []
        self._kept: dict[str, Tensor] = {}  # what merging overwrote
        own = dict(model.named_parameters())
        self.trained = {name: own[name] for name in _named(own, [*there.trained, *trained])}  # it may raise
        self._frozen = [parameter for parameter in own.values() if parameter.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        self._start = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        groups = [[own[name] for name in group] for group in there.turns]
        self._turns = Turns(groups) if groups else None
        self._place()

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained."""
        beside = nn.ModuleList(self.adapters.values())
        own = [p for p in beside.parameters() if p.requires_grad]
        counted = *own, *self.trained.values()
        return sum(p.numel() for p in counted)

    @torch.no_grad()
    def start_over(self, values: Mapping[str, Tensor]) -> None:
        """Let some of the parameters that are trained as they are begin with other values than the base's."""
        for name, value in values.items():
            self.trained[name].copy_(value)

    def delta_weight(self, target: str) -> Tensor:
        """The change of one target's weight in float32 or wider; `MixwellError` where it is none of a matrix."""
        if target in self.trained:
            return wide(self.trained[target].detach()) - wide(self._start[target])
        adapter: Any = self.adapters[target]
        found: Tensor = adapter.delta_weight()
        return found

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's own tensors by `<target>/<part>`, and those trained as they are by `<name>/`, once each."""
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for target, adapter in self.adapters.items():
            for part, value in adapter.state_dict(keep_vars=True).items():
                if id(value) not in seen:
                    found[f"{target}/{part}"] = value.detach()
                seen.add(id(value))
        now = self.trained | self._kept  # a merge may have put a change into one, a bias say
        return found | {f"{name}/": now[name].detach() for name in self.trained}

    def base_tensors(self) -> dict[str, Tensor]:
        """The base's tensors by name, as they were before anything was merged or trained."""
        state = self.model.state_dict()
        own = {name: value for name, value in state.items() if CHANGES not in name.split(".")}
        return own | self._kept | self._start

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave; one that is missing, left over, misshapen or not finite raises."""
        own = self.tensors()
        _check_tensors(own, tensors)
        for name, value in tensors.items():
            own[name].copy_(value)

    @torch.no_grad()
    def merge(self) -> None:
        """Put the changes into the weights and the adapters aside; `unmerge` brings both back, to the bit.

        A change that no matrix can hold, and a quantised weight, raise `MixwellError`, and nothing is merged.
        """
        if self.merged:
            raise MixwellError("the adapter is merged already.")
        self._check_beside()
        made: dict[str, Tensor] = {}
        for adapter in self.adapters.values():
            made |= adapter.merged()
        tensors = _all_tensors(self.model)
        self._kept = {name: tensors[name].clone() for name in made}
        for name, value in made.items():
            tensors[name].copy_(value)
        self._take_off()
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the base's own numbers back, and the adapters beside them."""
        if not self.merged:
            raise MixwellError("the adapter is not merged; there is nothing to take out.")
        tensors = _all_tensors(self.model)
        for name, value in self._kept.items():
            tensors[name].copy_(value)
        self._kept = {}
        self._place()
        self.merged = False

    @torch.no_grad()
    def detach(self) -> None:
        """Take the adapters off; what is not merged is gone from the model, and what was trainable is again."""
        if not self.merged:
            self._check_beside()
            self._take_off()
            for name, parameter in self.trained.items():
                parameter.copy_(self._start[name])
        for parameter in self.trained.values():
            parameter.requires_grad_(False)
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    def _place(self) -> None:
        passes: dict[int, Pass] = {}
        for adapter in self.adapters.values():
            target = adapter.target
            site = target.site or target.owner
            if id(site) not in passes:
                passes[id(site)] = self._watched(site)
            adapter.now = passes[id(site)]
            held = _beside(target.owner)
            held[target.attribute or WHOLE] = adapter
            if not target.attribute:
                target.owner.__dict__["forward"] = adapter
        if self._turns is not None:
            self.model.__dict__[TURNS] = self._turns
        self._beside = True

    def _check_beside(self) -> None:
        if not self._beside:
            raise MixwellError("the adapter was detached; attach it anew.")

    def _watched(self, site: nn.Module) -> Pass:
        found = Pass()
        before = site.register_forward_pre_hook(found.enter, with_kwargs=True)
        behind = site.register_forward_hook(found.leave)
        self._hooks += before, behind
        return found

    def _take_off(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._beside = False
        if self._turns is not None:
            del self.model.__dict__[TURNS]
        for adapter in self.adapters.values():
            owner, attribute = adapter.target.owner, adapter.target.attribute
            held = _beside(owner)
            del held[attribute or WHOLE]
            if not len(held):
                del owner._modules[CHANGES]
            if not attribute:
                del owner.__dict__["forward"]


def _check_tensors(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name in [*own, *tensors]:
        if name not in tensors:
            raise MixwellError(f"{name.rstrip('/')} is missing in the file; nothing was loaded.")
        if name not in own:
            raise MixwellError(f"{name.rstrip('/')} has no place in this adapter; nothing was loaded.")
    for name, value in tensors.items():
        found, expected = list(value.shape), list(own[name].shape)
        if found != expected:
            raise MixwellError(f"{name}: the file has {found}, this base takes {expected}; the adapter was made for "
                               "another base.")
        if not bool(value.isfinite().all()):
            raise MixwellError(f"{name} has values that are not finite; nothing was loaded.")


def _beside(owner: nn.Module) -> nn.ModuleDict:
    """The adapters of one layer."""
    if CHANGES not in owner._modules:
        owner.add_module(CHANGES, nn.ModuleDict())
    held: Any = owner._modules[CHANGES]
    return held


def _all_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _named(own: Mapping[str, Tensor], patterns: Sequence[str]) -> list[str]:
    """The parameters that the patterns fit."""
    chosen: set[str] = set()
    for pattern in patterns:
        fitting = [pattern] if pattern in own else [name for name in own if fits(name, pattern)]
        if not fitting:
            raise MixwellError(f"trained: no parameter fits {pattern!r}.")
        chosen.update(fitting)
    return [name for name in own if name in chosen]
