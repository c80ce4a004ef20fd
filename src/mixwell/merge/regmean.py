"""RegMean: each linear map of the merge answers the models' own inputs as nearly as it can as their own maps do.

**Equation:** G_i = X_i^T X_i / n_i over the inputs of model i's map on its own data, G~ = a G + (1 - a) diag(G);
    W^T = (sum_i l_i G~_i)^-1 sum_i l_i G~_i W_i^T: for a = 1 the least sum over i of |X_i W^T - X_i W_i^T|^2 / n_i. All
    other parameters: the weighted mean.
**Shapes:** W_i [O, I], G_i [I, I].
**Reference:** Jin et al. 2023 (2212.09849), equation 2, and the authors' code.
**Differs:** the system is solved with a ridge of 1e-6 of its mean diagonal instead of inverted; inputs that no example
    reached stay as in the mean. Experts of a mixture are merged over the tokens that reach them where their inputs are
    given (`grams`), else by the mean.
**Fails when:** a = 1 and there are fewer inputs than dimensions.
**Cost:** O(I^3 + models I^2 O) a map; one forward pass an example; I^2 numbers a map and model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.merge._parts import MANY, Each, check_share, drawn, each, weighted_sum

MODELS = range(1, MANY)
Tensors = Mapping[str, Tensor]
RIDGE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of RegMean."""

    a: float = 0.9  # share of what lies off the diagonal that is kept
    weight: Each = 1.0  # l_i

    def __post_init__(self) -> None:
        check_share(self.a, "a")


def grams(model: nn.Module, forward: Callable[[Any], Any], examples: Iterable[Any]) -> dict[str, Tensor]:
    """G of every linear map of `model`, by its weight's name, while `forward` reads the examples.

    Maps are modules with a weight [O, I] that get inputs [.., I]; what an attention or an expert computes inside of one
    module is none.
    """
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    hooks = [module.register_forward_pre_hook(_noting(f"{name}.weight" if name else "weight", totals, counts))
             for name, module in model.named_modules() if _is_map(module)]
    try:
        with torch.no_grad():
            for example in examples:
                forward(example)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / counts[name] for name, total in totals.items()}


def measured(model: nn.Module, examples: Iterable[Any], config: Config,
             generator: torch.Generator) -> dict[str, Tensor]:
    """`grams` of a module that reads examples; one that shows no map's inputs raises `ValueError`."""
    found = grams(model, model, examples)
    if not found:
        raise ValueError("no linear map of this model shows its inputs; RegMean would be the plain mean")
    return found


def _is_map(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _noting(name: str, totals: dict[str, Tensor], counts: dict[str, int]) -> Callable[..., None]:
    def note(module: Any, given: tuple[Any, ...]) -> None:
        inputs = given[0]
        width = inputs.shape[-1]
        if not inputs.is_floating_point() or width != module.weight.shape[1]:
            return
        rows = inputs.reshape(-1, width).float()
        if name not in totals:
            totals[name] = torch.zeros(width, width)
            counts[name] = 0
        totals[name].addmm_(rows.T, rows)
        counts[name] += len(rows)
    return note


def damped(gram: Tensor, a: float) -> Tensor:
    """G~: what lies off the diagonal times `a`."""
    diagonal = gram.diagonal().diag()
    rest = gram - diagonal
    return diagonal + a * rest


def solved(weights: Sequence[Tensor], gram: Sequence[Tensor], shares: Sequence[float], a: float) -> Tensor:
    """W: the least squares over all models' inputs, in float64."""
    wide = [weight.double() for weight in weights]
    mean = weighted_sum(wide, shares) / sum(shares)
    grams = [share * damped(own.double(), a) for own, share in zip(gram, shares)]
    products = [own @ weight.T for own, weight in zip(grams, wide)]
    total = torch.stack(grams).sum(0)
    ridge = RIDGE * float(total.diagonal().mean())
    if ridge <= 0:
        return mean.to(weights[0].dtype)
    left = total + ridge * torch.eye(len(total), dtype=torch.float64)
    right = torch.stack(products).sum(0) + ridge * mean.T
    found = torch.linalg.solve(left, right)
    return found.T.to(weights[0].dtype)


@method(title="RegMean", year=2023, tags={"statistics"})
def regmean(models: Sequence[Tensors], statistics: Sequence[Tensors], config: Config) -> dict[str, Tensor]:
    """The merge of `models`; `statistics` are their `grams`. A weight without one is averaged."""
    shares = each(config.weight, len(models), "weight")
    if sum(shares) == 0:
        raise ValueError("the weights sum to 0; give others")
    merged = {}
    for name in models[0]:
        tensors = [model[name] for model in models]
        if all(name in own for own in statistics):
            merged[name] = solved(tensors, [own[name] for own in statistics], shares, config.a)
        else:
            merged[name] = weighted_sum(tensors, shares) / sum(shares)
    return merged


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two models of one map, with the inputs that each saw."""
    first, second, *seen = drawn(generator, 4)
    models = [{"w": first}, {"w": second}]
    statistics = [{"w": rows.T @ rows} for rows in seen]
    return {"models": models, "statistics": statistics, "config": Config()}
