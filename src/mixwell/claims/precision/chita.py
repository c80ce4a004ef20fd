"""CHITA: a joint choice by a quadratic errs less than curvature weight by weight, both in stages, nothing trained.

Paper: Fast as CHITA: Neural Network Pruning with Combinatorial Optimization.
Tried: a network of 64-40-20-10 on digits, 80 % of its weights gone in eight stages by the gradients of 300 single rows,
against the weights of largest w^2 (F + damping) in as many stages, F their mean square; ridge and damping tuned alike.
Beside: magnitude alone. Against it: an error that is no lower.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.precision._tasks import Task, digits, error, learn
from mixwell.core.rng import generator
from mixwell.precision.chita import Config, quadratic, sparse, sparsities, top_k
from mixwell.precision.sparse.sparsifier import drawn

WIDTHS, ROWS, STEPS = (64, 40, 20, 10), 300, 600
STAGES = sparsities(Config(share=0.8, stages=8))
Weights = dict[str, Tensor]


def _trained(seed: int) -> tuple[nn.Sequential, Task]:
    task = digits(seed)
    draws = generator(seed, "model")
    model = drawn(WIDTHS, draws)
    learn(model, model.parameters(), task, seed, steps=STEPS, lr=3e-3)
    return model, task


def _matrices(model: nn.Module) -> Weights:
    state = model.state_dict()
    return {name: weight for name, weight in state.items() if weight.ndim > 1}


def _slopes(model: nn.Module, task: Task) -> Tensor:
    """The gradient of each row's loss by all matrices, float64 [N, P]."""
    def nats(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(model, weights, (x[None],))
        return cross_entropy(logits, y[None])

    each = vmap(grad(nats), in_dims=(None, 0, 0))
    x, y = task.x[:ROWS], task.y[:ROWS]
    found = each(_matrices(model), x, y)
    parts = [slope.flatten(1).double() for slope in found.values()]
    return torch.cat(parts, 1).detach()


@torch.no_grad()
def _place(model: nn.Module, w: Tensor) -> None:
    own = _matrices(model)
    sizes = [weight.numel() for weight in own.values()]
    for weight, part in zip(own.values(), w.split(sizes)):
        weight.copy_(part.view_as(weight))


def _start(model: nn.Module) -> Tensor:
    parts = [weight.double().flatten() for weight in _matrices(model).values()]
    return torch.cat(parts)


def joint(bench: Bench, seed: int, ridge: float) -> float:
    """Error of CHITA's network."""
    model, task = _trained(seed)
    for gone in STAGES:
        w = _start(model)
        G = _slopes(model, task)
        config = Config(ridge=ridge, first_order=True)
        problem = quadratic(G, w, config)
        left = len(w) - round(gone * len(w))
        _place(model, sparse(problem, left))
    return error(model, task)


def apart(bench: Bench, seed: int, damping: float) -> float:
    """Error of the network that keeps the weights of largest w^2 (F + damping)."""
    model, task = _trained(seed)
    for gone in STAGES:
        w = _start(model)
        bends = _slopes(model, task).square().mean(0)
        level = damping * bends.mean()
        raised = bends + level
        sizes = w * raised.sqrt()
        left = len(w) - round(gone * len(w))
        kept = top_k(sizes, left)
        _place(model, w.masked_fill(kept == 0, 0))
    return error(model, task)


CLAIM = Claim("CHITA's joint choice errs less than one weight by weight.", "share of errors", sides={
    "method": Side(joint, grid={"ridge": (1.0, 10.0, 100.0)}),
    "baseline": Side(apart, grid={"damping": (0.001, 0.01, 0.1)}),
    "magnitude": Side(partial(apart, damping=1e9))})
