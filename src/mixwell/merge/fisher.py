"""Fisher merging: each parameter's mean over models, weighted by how sure each model's likelihood is of it.

**Equation:** F_i = mean_x E_{y ~ p_i(y|x)} (d log p_i(y|x) / d w)^2; w = sum_i l_i F_i w_i / sum_i l_i F_i, F_i
    divided by the norm of the whole of it first (`normalize`); the floor is added to F of the first model alone, which
    wins where nothing is known.
**Shapes:** F_i is like w_i.
**Reference:** Matena and Raffel 2022 (2111.09832), equations 4 and 6, and the authors' code for norm and floor.
**Differs:** the expectation over labels is exact where `log_probabilities` gives few classes (`most_classes`), else one
    label is drawn from the model an example, as for language models.
**Fails when:** models have drifted far apart: curvature at each end says little of what lies between.
**Cost:** a backward pass an example (and class); O(models) a number to merge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mixwell.core.method import method
from mixwell.merge._parts import MANY, Each, drawn, each

MODELS = range(1, MANY)
Tensors = Mapping[str, Tensor]
LogProbabilities = Callable[[Tensors, Tensor], Tensor]  # (parameters, one example) -> log p [outputs, classes]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of Fisher merging."""

    weight: Each = 1.0  # l_i
    normalize: bool = True  # divide each model's Fisher by its norm over all parameters
    floor: float = 1e-6  # added to the first model's Fisher
    most_classes: int = 64  # up to which the expectation over labels is exact

    def __post_init__(self) -> None:
        if self.floor < 0 or self.most_classes < 1:
            raise ValueError(f"floor is {self.floor}, most_classes {self.most_classes}; expected 0 or more, and 1 or "
                             "more")


def diagonal(log_probabilities: LogProbabilities, parameters: Tensors, examples: Iterable[Tensor], config: Config,
             generator: torch.Generator) -> dict[str, Tensor]:
    """F: mean squared gradients of log p, one example at a time.

    Outputs of an example are independent given it; their gradients add up before they are squared.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    totals = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    count = 0
    for example in examples:
        logs = log_probabilities(leaves, example)
        for share, log in _labelled(logs, config, generator):
            grads = torch.autograd.grad(log, list(leaves.values()), retain_graph=True, allow_unused=True)
            for name, grad in zip(leaves, grads):
                if grad is not None:
                    totals[name].add_(grad.square(), alpha=share)
        count += 1
    if count == 0:
        raise ValueError("no example came; a Fisher needs one or more")
    return {name: total / count for name, total in totals.items()}


def measured(model: nn.Module, examples: Iterable[Tensor], config: Config,
             generator: torch.Generator) -> dict[str, Tensor]:
    """F of a module that answers an example with log probabilities [outputs, classes], by its parameters' names."""
    def log_probabilities(parameters: Tensors, example: Tensor) -> Tensor:
        return functional_call(model, dict(parameters), (example,))

    return diagonal(log_probabilities, dict(model.named_parameters()), examples, config, generator)


def _labelled(logs: Tensor, config: Config, generator: torch.Generator) -> list[tuple[float, Tensor]]:
    """(probability, log likelihood) of labels that stand for all: each class, or one draw."""
    outputs, classes = logs.shape
    shares = logs.detach().exp()
    if outputs == 1 and classes <= config.most_classes:
        pairs = zip(shares[0].tolist(), logs[0])
        return list(pairs)
    labels = torch.multinomial(shares, 1, generator=generator)
    chosen = logs.gather(1, labels)
    return [(1.0, chosen.sum())]


@method(title="Fisher merging", paper="Merging Models with Fisher-Weighted Averaging", year=2022, tags={"statistics"})
def fisher(models: Sequence[Tensors], statistics: Sequence[Tensors], config: Config) -> dict[str, Tensor]:
    """The mean of `models` weighted by their Fishers, which are `statistics`, under the same names."""
    weights = each(config.weight, len(models), "weight")
    scales = [weight * _scale(own, config) for weight, own in zip(weights, statistics)]
    merged = {}
    for name in models[0]:
        tensors = torch.stack([model[name] for model in models])
        if name not in statistics[0]:  # no parameter
            merged[name] = tensors.mean(0)
            continue
        sure = torch.stack([scale * own[name] for scale, own in zip(scales, statistics)])
        sure[0] += config.floor
        merged[name] = _mean(tensors, sure)
    return merged


def _mean(tensors: Tensor, sure: Tensor) -> Tensor:
    """The weighted mean over the first axis; the plain one where all weights are nothing."""
    products = sure * tensors
    total, divisor = products.sum(0), sure.sum(0)
    return torch.where(divisor > 0, total / divisor, tensors.mean(0))


def _scale(statistics: Tensors, config: Config) -> float:
    """1 over the norm of the whole Fisher."""
    if not config.normalize:
        return 1.0
    square = sum(float(tensor.square().sum()) for tensor in statistics.values())
    return square**-0.5 if square > 0 else 0.0


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two models of one tensor, and what they are sure of."""
    models = [{"w": tensor} for tensor in drawn(generator, 2)]
    statistics = [{"w": tensor.square()} for tensor in drawn(generator, 2)]
    return {"models": models, "statistics": statistics, "config": Config()}
