"""The contract of training towards zeros, and what its methods share: which weights, masks, and forms that go again.

Legend: O rows, I columns, M a group of a row, N those of a group that stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mixwell.core.errors import MixwellError


class Sparsifier:
    """A method of this family, built as `Method(model, config, generator)`; it changes how the model reads its weights.

    `advance(done)` before every step tells the share of the training that is done; `trained()` are the parameters that
    an optimiser gets; `losses()` by name, before nothing, are added to the loss; `finish()` leaves the model as it was
    built, its weights those that it last read.
    """

    def __init__(self, model: nn.Module, patterns: Sequence[str]) -> None:
        self.model = model
        self.places = list(weights_of(model, patterns))

    def advance(self, done: float) -> None:
        """Come to this share of the training, 0 to 1."""
        raise NotImplementedError

    def trained(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def losses(self) -> dict[str, Tensor]:
        """Terms of the loss."""
        return {}

    def put(self, forms: Sequence[nn.Module]) -> None:
        """Have each weight read through a form of its own."""
        for (owner, name), form in zip(self.places, forms):
            parametrize.register_parametrization(owner, name, form, unsafe=True)

    def finish(self) -> None:
        """Write what is read last into the weights, and take the forms away."""
        for owner, name in self.places:
            parametrize.remove_parametrizations(owner, name, leave_parametrized=True)


def weights_of(model: nn.Module, patterns: Sequence[str]) -> Iterator[tuple[nn.Module, str]]:
    """Owner and name of every matrix or stack of matrices that a pattern of names fits.

    Raises `MixwellError` where none does, or one is read through another form already.
    """
    found = []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or not any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        path, _, attribute = name.rpartition(".")
        if "parametrizations" in path:
            raise MixwellError(f"{name} is read through another form already; finish that one first.")
        found.append((model.get_submodule(path), attribute))
    if not found:
        raise MixwellError(f"no matrix of the model fits {', '.join(patterns)}; expected names such as *.weight.")
    yield from found


def original(owner: nn.Module, name: str) -> Tensor:
    """The weight behind the form that it is read through."""
    forms: Any = owner.parametrizations
    found: Tensor = forms[name].original
    return found


class _Straight(torch.autograd.Function):
    """A product with a mask whose gradient reaches the weight as if there were none."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight(weight: Tensor, mask: Tensor) -> Tensor:
    """`weight` times `mask`; the gradient passes unscaled."""
    found: Tensor = _Straight.apply(weight, mask)
    return found


def largest_of_groups(weight: Tensor, kept: int, group: int) -> Tensor:
    """1 at the `kept` largest magnitudes of each `group` neighbours of a row, else 0; of equal ones the first.

    Raises `MixwellError` where groups do not divide a row.
    """
    width = weight.shape[-1]
    if width % group:
        raise MixwellError(f"groups of {group} do not divide rows of {width}; expected a divisor.")
    sizes = weight.detach().abs().unflatten(-1, (-1, group))
    order = sizes.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(sizes)
    mask.scatter_(-1, order[..., :kept], 1.0)
    return mask.flatten(-2)


def largest_of_all(scores: Tensor, kept: int) -> Tensor:
    """1 at the `kept` largest of a matrix, else 0; of equal ones the first."""
    flat = scores.detach().flatten()
    order = flat.argsort(descending=True, stable=True)
    first = order[:kept]
    mask = torch.zeros_like(flat)
    mask[first] = 1
    return mask.view(scores.shape)


def largest_share(scores: Tensor, share: float) -> Tensor:
    """1 at this share of the largest of a matrix, or of each matrix of a stack; one at least."""
    if scores.ndim > 2:
        each = [largest_share(own, share) for own in scores]
        return torch.stack(each)
    kept = round(share * scores.numel())
    return largest_of_all(scores, max(1, kept))


def network(generator: torch.Generator) -> nn.Sequential:
    """Two linear maps of eight inputs, sixteen hidden units and four outputs."""
    return drawn((8, 16, 4), generator)


def drawn(widths: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Linear maps of these widths with ReLU between, weights of variance 2 over their inputs, biases at zero."""
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        linear: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
        nn.init.normal_(linear.weight, std=(2 / inputs) ** 0.5, generator=generator)
        nn.init.zeros_(linear.bias)
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def sparsifier_example(generator: torch.Generator, config: Any) -> dict[str, Any]:
    """A small network, and eight rows with the class of each."""
    model = network(generator)
    x = torch.randn(8, 8, generator=generator)
    y = torch.arange(8) % 4
    return {"model": model, "config": config, "generator": generator, "x": x, "y": y}
