"""Several adapters on one base in one pass, a token its own: the base's products are made once for all of them.

Legend: T tokens, N rows sorted by expert, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import Bound, WeightAdapter
from mixwell.adapters.attached import Attached
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Routing, plan
from mixwell.kernels.packing import CHANGES

NONE = -1  # the number of no adapter: the base alone


class Many:
    """The adapters beside one model, none of which is attached there any more; see `choose`."""

    def __init__(self, model: nn.Module, adapters: Mapping[str, Attached]) -> None:
        """adapters: by name; each was attached to `model` and detached. What cannot be told by token raises
        `MixwellError`: a change of activations or routing, of a bias, or parameters trained as they are."""
        self.names = list(adapters)
        self.rows = Rows(torch.tensor([NONE]))
        self.sites: dict[int, Site] = {}  # of layers with stacks
        targets: dict[str, list[Any]] = {}
        for number, (name, there) in enumerate(adapters.items()):
            for target, adapter in _checked(name, there).items():
                held = targets.setdefault(target, [None] * len(adapters))
                held[number] = adapter
        for held in targets.values():
            self._put(held)
        model.eval()

    def choose(self, numbers_T: Tensor) -> None:
        """The adapter of each token of the next pass by its place among `names`, int64 [T]; -1 is none."""
        self.rows = Rows(numbers_T)

    def _put(self, adapters: Sequence[WeightAdapter | None]) -> None:
        target = next(adapter.target for adapter in adapters if adapter is not None)
        owner = target.owner
        if CHANGES not in owner._modules:
            owner.add_module(CHANGES, nn.ModuleDict())
        held: Any = owner._modules[CHANGES]
        if target.attribute in held:
            raise MixwellError(f"{target.name} has an adapter already; merge or detach that one first.")
        site = self._site(owner) if target.stack else None
        held[target.attribute] = _Beside(self, adapters, site)

    def _site(self, layer: Any) -> Site:
        """What is known of where a layer's rows came from: its router says so."""
        if id(layer) not in self.sites:
            found = Site(self)
            layer.router.register_forward_hook(found.note)
            self.sites[id(layer)] = found
        return self.sites[id(layer)]


def _checked(name: str, there: Attached) -> Mapping[str, Any]:
    """The adapters by target, all of which are rules of a matrix."""
    if there.trained:
        raise MixwellError(f"{name} brings whole parameters ({', '.join(there.trained)}), which rows cannot choose; "
                           "merge it into a model of its own.")
    for target, adapter in there.adapters.items():
        if not isinstance(adapter, WeightAdapter):
            raise MixwellError(f"{name}: {there.method} stands in the place of {target}, so it cannot be one of "
                               "several; serve its model by itself.")
        _check_bias(name, adapter)
        _check_router(name, adapter)
    for adapter in islice(there.adapters.values(), 1):
        adapter.delta_weight()  # one that no matrix holds asks for more of a token than its row: its domain, say
    return there.adapters


def _check_bias(name: str, adapter: WeightAdapter) -> None:
    bias = getattr(adapter.target.owner, "bias", None)
    if bias is None or adapter.target.attribute != "weight":
        return
    changed = adapter.bound().bias(bias, adapter.target.tensor)
    if not torch.equal(changed, bias):
        raise MixwellError(f"{name} changes the bias beside {adapter.target.name}, which rows cannot choose; merge it "
                           "into a model of its own.")


def _check_router(name: str, adapter: WeightAdapter) -> None:
    router = getattr(adapter.target.owner, "router", None)
    if adapter.target.stack and not isinstance(router, nn.Module):
        raise MixwellError(f"{name} stands inside {adapter.target.name}, whose layer has no router that tells the "
                           "tokens of its rows; merge it into a model of its own.")


ALL = slice(None)


class Rows:
    """The adapter of each row of a product: worked out once, and asked at every weight that the rows come to."""

    def __init__(self, numbers_T: Tensor) -> None:
        self.numbers_T = numbers_T

    @cached_property
    def groups(self) -> list[tuple[int, Any]]:
        """(an adapter's number, which rows are its), without those of the base alone."""
        numbers = self.numbers_T.tolist()
        there = sorted(set(numbers) - {NONE})
        return [(number, _rows_of(numbers, number)) for number in there]


def _rows_of(numbers: Sequence[int], number: int) -> Any:
    """The places of a number: a slice where they follow each other."""
    places = [place for place, own in enumerate(numbers) if own == number]
    if len(places) == len(numbers):
        return ALL
    first, last = places[0], places[-1]
    if last - first + 1 == len(places):
        return slice(first, last + 1)
    return torch.tensor(places)


class Site:
    """The rows of one mixture's pass, sorted by expert."""

    def __init__(self, many: Many) -> None:
        self.many = many
        self._routing: Routing | None = None
        self._rows: list[Rows] | None = None

    def note(self, module: nn.Module, arguments: Any, routing: Routing) -> None:
        """A hook behind the router."""
        self._routing, self._rows = routing, None

    @property
    def rows_E(self) -> list[Rows]:
        """By expert: its rows."""
        if self._rows is None:
            assert self._routing is not None
            order = plan(self._routing.indices_TK, self._routing.num_experts)
            numbers_N = self.many.rows.numbers_T[order.tokens_N]
            parts = numbers_N.split(order.counts_E.tolist())
            self._rows = [Rows(part) for part in parts]
        return self._rows


class _Beside(nn.Module):
    """What stands beside one weight."""

    def __init__(self, many: Many, adapters: Sequence[WeightAdapter | None], site: Site | None) -> None:
        super().__init__()
        self.many, self.site = many, site
        self.rules = nn.ModuleList(adapter for adapter in adapters if adapter is not None)
        self.bounds = tuple(None if adapter is None else adapter.bound() for adapter in adapters)

    def bound(self) -> ByRow | ByExpert:
        """The change that stands around a product of the pass in progress."""
        if self.site is not None:
            return ByExpert(self.bounds, self.site)
        return ByRow(self.bounds, self.many.rows)


@dataclass(frozen=True, eq=False)
class ByRow:
    """A change of a matrix whose rows have adapters of their own."""

    bounds: tuple[Bound | None, ...]  # by number
    rows: Rows
    requires_grad = False

    @property
    def maps_input(self) -> bool:
        """Whether one of them maps what goes into the product."""
        return _one_maps(self.bounds)

    def before(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., I], each row by its adapter."""
        if not self.maps_input:
            return x
        mapped = x.flatten(0, -2).clone()
        for bound, rows in self._groups():
            mapped[rows] = bound.before(mapped[rows])
        return mapped.view_as(x)

    def after(self, x: Tensor, y: Tensor, weight: Any) -> Tensor:
        """The adapted result [..., O], each row by its adapter."""
        groups = self._groups()
        if len(groups) == 1 and groups[0][1] is ALL:
            return groups[0][0].after(x, y, weight)
        x_TI, y_TO = x.flatten(0, -2), y.flatten(0, -2).clone()
        for bound, rows in groups:
            y_TO[rows] = bound.after(x_TI[rows], y_TO[rows], weight)
        return y_TO.view_as(y)

    def bias(self, bias: Tensor, weight: Any) -> Tensor:
        """The bias as it is."""
        return bias

    def __getitem__(self, expert: int | None) -> ByRow:
        bounds = tuple(None if bound is None else bound[expert] for bound in self.bounds)
        return ByRow(bounds, self.rows)

    def unbind(self) -> list[ByRow]:
        """Of a stack of one."""
        return [self[0]]

    def _groups(self) -> list[tuple[Bound, Any]]:
        """The adapters here that have rows, and which."""
        found = []
        for number, rows in self.rows.groups:
            bound = self.bounds[number]
            if bound is not None:
                found.append((bound, rows))
        return found


def _one_maps(bounds: Sequence[Bound | None]) -> bool:
    there = [bound for bound in bounds if bound is not None]
    return any(bound.maps_input for bound in there)


@dataclass(frozen=True, eq=False)
class ByExpert:
    """The same for a stack of experts, whose rows come sorted by expert."""

    bounds: tuple[Bound | None, ...]
    site: Site
    requires_grad = False

    @property
    def maps_input(self) -> bool:
        """Whether one of them maps what goes into the product."""
        return _one_maps(self.bounds)

    def before(self, x: Tensor) -> Tensor:
        """Asked of an expert's own change alone."""
        raise NotImplementedError

    def after(self, x: Tensor, y: Tensor, weight: Any) -> Tensor:
        """Asked of an expert's own change alone."""
        raise NotImplementedError

    def bias(self, bias: Tensor, weight: Any) -> Tensor:
        """The biases as they are."""
        return bias

    def __getitem__(self, expert: int) -> ByRow:
        rows = self.site.rows_E[expert]
        bounds = tuple(None if bound is None else bound[expert] for bound in self.bounds)
        return ByRow(bounds, rows)

    def unbind(self) -> list[ByRow]:
        """The experts' changes."""
        experts = range(len(self.site.rows_E))
        return [self[expert] for expert in experts]
