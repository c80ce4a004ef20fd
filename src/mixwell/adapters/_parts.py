"""The contract of adapters: one target, a few tensors, a rule.

Legend: O outputs, I inputs, R rank, E experts; A [R, I], B [O, R]; a stack has E in front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mixwell.adapters.attached import Attached, Known, Pass, Standing, attach, check_free
from mixwell.adapters.targets import Target, find
from mixwell.core.errors import MixwellError
from mixwell.core.method import card
from mixwell.core.routing import Context
from mixwell.kernels.codes import CodedWeight
from mixwell.kernels.norm import wide
from mixwell.kernels.packing import Int8Weight


class Adapter(nn.Module):
    """What stands beside one target; built as `Method(target, config, generator)`.

    Its parameters stay float32 and are turned into the type of the activations where they meet them.
    """

    keep_float32: ClassVar[bool] = True  # read by whoever casts a model
    targets: ClassVar[tuple[str, ...]] = ()  # patterns taken where none are given
    whole: ClassVar[bool] = False  # whether targets are layers instead of weights
    target: Target
    now: Pass  # the forward pass in progress

    def __init__(self, target: Target, config: Any) -> None:
        super().__init__()
        self.config = config
        self.target = target
        self.now = Pass()  # shared by what stands at one mixer

    @classmethod
    def attach(cls, model: nn.Module, targets: Sequence[str] | str | None, config: Any,
               generator: torch.Generator | None = None, **given: Any) -> Attached:
        """Put adapters beside the targets of `model`, freeze all else; see `mixwell.adapters.attached.attach`."""
        return attach(cls, model, targets, config, generator, **given)

    @classmethod
    def stands(cls, model: nn.Module, targets: Sequence[str] | str | None, config: Any, generator: torch.Generator,
               known: Known) -> Standing:
        """An adapter beside each target that the patterns fit."""
        found = find(model, listed(cls.targets if targets is None else targets), cls.whole)
        for target in found:
            check_free(target)
        names = [target.name for target in found]
        made = cls.build(found, config, generator)
        beside = dict(zip(names, made))
        return Standing(card(cls).name, config, beside)

    @classmethod
    def build(cls, targets: Sequence[Target], config: Any, generator: torch.Generator) -> Sequence[Self]:
        """An adapter for each target. A method that shares tensors between targets, or looks at data, does it here."""
        made: Any = cls
        return [made(target, config, generator) for target in targets]

    def begin(self) -> None:
        """Compute what the start takes of the target's numbers; left out where tensors are loaded instead."""

    @property
    def context(self) -> Context:
        """What is known of the tokens of the forward pass in progress; see `Context`."""
        return self.now.context

    def unmergeable(self) -> MixwellError:
        """What is raised where a matrix is asked for and the change depends on what comes in."""
        return MixwellError(f"{self.target.name}: the change of {type(self).__name__} depends on what comes in, so no "
                            "matrix holds it; keep the adapter beside the model.")

    def report(self, losses: Mapping[str, Tensor], aux: Tensor | None) -> None:
        """Hand auxiliary losses on to the mixer's result; `aux` is their sum times their coefficients."""
        self.now.report(losses, aux)


class WeightAdapter(Adapter):
    """A change of the map x -> W x, by a rule for one matrix that serves the experts of a stack as well.

    The rule reads the tensors that `parts` names, in that order, those of a stack without E; one that is not there is
    None. `before` maps what goes into the product with W, `after` what comes out of it.
    """

    parts: ClassVar[tuple[str, ...]] = ()
    maps_input: bool = False  # whether `before` does anything

    def before(self, x: Tensor, *parts: Any) -> Tensor:
        """[..., I] -> [..., I]."""
        return x

    def after(self, x: Tensor, y: Tensor, weight: Any, *parts: Any) -> Tensor:
        """The adapted result [..., O] of x and y = W before(x); `weight` is W [O, I], plain or int8."""
        return y

    def bias(self, bias: Tensor, weight: Any, *parts: Any) -> Tensor:
        """The bias [O] that is added behind."""
        return bias

    def delta(self, weight: Tensor, *parts: Any) -> Tensor:
        """The change of W [O, I] in its type; `MixwellError` where it is none of W alone."""
        raise NotImplementedError

    def bound(self) -> Bound:
        """The rule with its tensors, to stand around a product."""
        found = [getattr(self, name) for name in self.parts]
        return Bound(self, tuple(found))

    def delta_weight(self) -> Tensor:
        """The change of the target [..., O, I] in float32 or wider, without gradient."""
        weight = self.target.numbers
        with torch.no_grad():
            if not self.target.stack:
                return self.bound().delta(weight)
            bounds = self.bound().unbind()
            changes = [bound.delta(own) for bound, own in zip(bounds, weight)]
            return torch.stack(changes)

    def merged(self) -> dict[str, Tensor]:
        """What the target and its bias are with the change in them, by their names, in their own types."""
        target = self.target
        if target.tensor.dtype in (torch.int8, torch.uint8):
            raise MixwellError(f"{target.name} is quantised; merge into full weights and quantise the result.")
        whole = target.numbers + self.delta_weight()
        found = {target.name: whole}
        bias = getattr(target.owner, "bias", None)
        if bias is not None and target.attribute == "weight":
            name = target.name.removesuffix("weight") + "bias"
            found[name] = self.bound().bias(bias, target.tensor)
        dtype = target.tensor.dtype
        return {name: value.to(dtype) for name, value in found.items()}


class LayerAdapter(Adapter):
    """A change of what a layer as a whole does: `forward` stands in its place, and `base` is what it did."""

    whole = True

    def base(self, *arguments: Any, **named: Any) -> Any:
        """What the layer does without the adapter."""
        layer = self.target.owner
        return type(layer).forward(layer, *arguments, **named)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """What the layer does with it; same arguments, same kind of result."""
        raise NotImplementedError

    def delta_weight(self) -> Tensor:
        """Refused: the change depends on what comes in."""
        raise self.unmergeable()

    def merged(self) -> dict[str, Tensor]:
        """Refused, as `delta_weight` is."""
        return {self.target.name: self.delta_weight()}


@dataclass(frozen=True, eq=False)
class Bound:
    """A rule with its tensors: the `Change` that stands around a product."""

    adapter: WeightAdapter
    parts: tuple[Any, ...]

    @property
    def maps_input(self) -> bool:
        """Whether `before` does anything."""
        return self.adapter.maps_input

    @property
    def requires_grad(self) -> bool:
        """Whether one of its tensors is trained."""
        return any(part.requires_grad for part in self.parts if part is not None)

    def before(self, x: Tensor) -> Tensor:
        """What the product is taken of."""
        return self.adapter.before(x, *self.parts)

    def after(self, x: Tensor, y: Tensor, weight: Any) -> Tensor:
        """The adapted result."""
        return self.adapter.after(x, y, weight, *self.parts)

    def bias(self, bias: Tensor, weight: Any) -> Tensor:
        """The adapted bias."""
        return self.adapter.bias(bias, weight, *self.parts)

    def delta(self, weight: Tensor) -> Tensor:
        """The change of the weight."""
        return self.adapter.delta(weight, *self.parts)

    def __getitem__(self, expert: int | None) -> Bound:
        parts = tuple(None if part is None else part[expert] for part in self.parts)
        return Bound(self.adapter, parts)

    def unbind(self) -> list[Bound]:
        """One for each expert of a stack, the gradient of each tensor gathered once."""
        (count,) = self.adapter.target.stack or (1,)  # a matrix may stand as a stack of one
        columns = [_column(part, count) for part in self.parts]
        return [Bound(self.adapter, parts) for parts in zip(*columns)]


def _column(part: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """A part of a stack's rule by expert."""
    if part is None:
        return [None] * count
    return part.unbind(0)


def listed(patterns: Sequence[str] | str) -> list[str]:
    """Patterns as a list; one may stand by itself."""
    return [patterns] if isinstance(patterns, str) else list(patterns)


def full(weight: Any) -> Tensor:
    """A weight as a plain tensor in float32 or wider, without gradient."""
    if isinstance(weight, (Int8Weight, CodedWeight)):
        return weight.dequantised(torch.float32)
    own: Tensor = weight.detach()
    return wide(own)


def product(x: Tensor, *factors: Tensor) -> Tensor:
    """x [..., I] through one matrix after another, each [outputs, inputs], in the type of x."""
    for factor in factors:
        own = factor.to(x.dtype)
        x = nn.functional.linear(x, own)
    return x


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    """Uniform draws from -bound to bound, float32, on the generator's device."""
    unit = torch.rand(shape, generator=generator, device=generator.device)
    return (2 * unit - 1) * bound


def thin_pair(stack: tuple[int, ...], outputs: int, inputs: int, rank: int,
              generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
    """(A [..., R, I], B [..., O, R]) at their start, where B A does nothing: A uniform within 1 / sqrt(I), B at 0."""
    A = uniform((*stack, rank, inputs), inputs**-0.5, generator)
    B = A.new_zeros(*stack, outputs, rank)
    return nn.Parameter(A), nn.Parameter(B)


def dropped(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """x with entries set to 0 at `rate` and the others scaled up; as it is where nothing draws."""
    if generator is None or not rate:
        return x
    drawn = torch.rand(x.shape, generator=generator, device=generator.device)
    kept = drawn >= rate
    kept = kept.to(x.device, x.dtype)
    return x * kept / (1 - rate)


def check_rank(rank: int, target: Target) -> None:
    """Raise `MixwellError` for a rank above what the target's matrices can have."""
    most = min(target.outputs, target.inputs)
    if not 1 <= rank <= most:
        raise MixwellError(f"rank is {rank} at {target.name}, a matrix of {target.outputs} x {target.inputs}; choose 1 "
                           f"to {most}.")


def example_target(generator: torch.Generator, outputs: int = 5, inputs: int = 6) -> Target:
    """The weight of one linear layer."""
    from mixwell.kernels.linear import Linear

    layer = Linear(inputs, outputs, False, generator)
    return Target("layer.weight", layer, "weight")
