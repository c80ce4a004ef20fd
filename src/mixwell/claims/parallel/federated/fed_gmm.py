"""FedGMM: Gaussians of the inputs choose the model of the labels, and say which inputs are new.

Paper: Personalized Federated Learning under Mixture of Distributions.
Tried: ten clients, digits 0 to 8 in ten principal components, turned by 0, 90 and 180 degrees in shares of each
client's own drawn from Dirichlet(0.5); three softmax regressions, 15 rounds; accuracy on held-out digits turned in the
same shares, and the area under the curve by which log p(x) tells the digit 9 from these. Against it: an accuracy that
is no higher than with one Gaussian, which is FedEM, or an area no larger than that of the largest probability.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.parallel.federated._digits import digits, mean, right, turned
from mixwell.core.rng import generator
from mixwell.parallel.federated.clients import Client, Table, Tensors
from mixwell.parallel.federated.fed_gmm import Conditional, Config, FedGMM, density
from mixwell.parallel.federated.learning import below, unstacked
from mixwell.parallel.federated.simulation import Setting, simulate

CLIENTS, COLUMNS, KNOWN, NEW = 10, 10, 9, 9


def start(draws: torch.Generator) -> dict[str, Tensor]:
    """A softmax regression."""
    weight = torch.randn(KNOWN, COLUMNS, generator=draws)
    return {"weight": 0.3 * weight, "bias": torch.zeros(KNOWN)}


def log_probs(tensors: Tensors, x: Tensor) -> Tensor:
    """Of all labels [N, C]."""
    said = F.linear(x, tensors["weight"], tensors["bias"])
    return said.log_softmax(1)


def log_prob(tensors: Tensors, rows: Table) -> Tensor:
    """Of the rows' own labels [N]."""
    own = log_probs(tensors, rows.x).gather(1, rows.y[:, None])
    return own.squeeze(1)


def mixed(rows: Table, share_K: Tensor, *keys: int | str) -> Table:
    """Rows turned in shares."""
    draws = generator(*keys)
    quarters = torch.multinomial(share_K, len(rows), replacement=True, generator=draws)
    return turned(rows, quarters)


def area(old: Tensor, new: Tensor) -> float:
    """The chance that what is new scores lower than what is not."""
    lower = new[:, None] < old
    return float(lower.float().mean())


def shares(seed: int) -> Tensor:
    """Each client's shares [C, 3] of the turns."""
    draws = generator(seed, "shares")
    alpha = torch.full((CLIENTS, 3), 0.5, dtype=torch.float64)
    drawn = torch._standard_gamma(alpha, generator=draws).clamp_min(1e-6)
    total = drawn.sum(1, keepdim=True)
    return drawn / total


def worlds(seed: int) -> tuple[list[Client], list[Table], list[Table]]:
    """Clients, and for each held-out rows of known digits and of the new one, in principal components."""
    train, test = digits(seed)
    share_CK = shares(seed)
    known = train.of((train.y != NEW).nonzero().squeeze(1))
    mine = torch.arange(len(known)).chunk(CLIENTS)
    parts = [mixed(known.of(own), share_CK[c], seed, "rows", c) for c, own in enumerate(mine)]
    held = [mixed(test, share_CK[c], seed, "test", c) for c in range(CLIENTS)]
    every = torch.cat([part.x for part in parts])
    middle = every.mean(0)
    axes = torch.linalg.svd(every - middle, full_matrices=False).Vh[:COLUMNS]
    seen = [Table((part.x - middle) @ axes.T, part.y) for part in (*parts, *held)]
    clients = [Client(c, part) for c, part in enumerate(seen[:CLIENTS])]
    old = [part.of((part.y != NEW).nonzero().squeeze(1)) for part in seen[CLIENTS:]]
    new = [part.of((part.y == NEW).nonzero().squeeze(1)) for part in seen[CLIENTS:]]
    return clients, old, new


def measure(bench: Bench, seed: int, *, gaussians: int, lr: float) -> dict[str, float]:
    """Accuracy, and both areas, in the mean over the clients."""
    clients, old, new = worlds(seed)
    config = Config(gaussians=gaussians, lr=lr, steps=6, reg_covar=0.05)
    own = FedGMM(Conditional(start, log_prob), config)
    found = simulate(own, clients, Setting(rounds=15, seed=seed))
    numbers: dict[str, list[float]] = {"accuracy": [], "novelty": [], "doubt": []}
    for client in clients:
        weights = found.memories[client.number]["weights"]
        known, strange = old[client.number], new[client.number]
        said = [predicted(own, found.state, weights, rows.x) for rows in (known, strange)]
        p = density(found.state, weights)
        dense = [p.log_prob(rows.x.double()) for rows in (known, strange)]
        sure = [one.amax(1) for one in said]
        numbers["accuracy"].append(right(said[0], known.y))
        numbers["novelty"].append(area(*dense))
        numbers["doubt"].append(area(*sure))
    return {name: mean(values) for name, values in numbers.items()}


def predicted(own: FedGMM, state: Tensors, weights: Tensor, x: Tensor) -> Tensor:
    """Probabilities of the labels [N, C], the models mixed row by row."""
    share_NM = own.shares(state, weights, x)
    models = unstacked(below("theta", state))
    every = [log_probs(model, x).exp() for model in models]
    return torch.einsum("nm,nmc->nc", share_NM, torch.stack(every, 1))


def doubting(bench: Bench, seed: int, **options: Any) -> dict[str, float]:
    """The same with the largest probability in the place of the density."""
    found = measure(bench, seed, **options)
    return {"accuracy": found["accuracy"], "novelty": found["doubt"]}


RATES = {"lr": (0.1, 0.3, 1.0), "gaussians": (3, 6)}
CLAIM = Claim(
    "Gaussians of the inputs choose among the labels' models, and tell what is new.", "accuracy on held-out digits",
    quantity="accuracy", lower_is_better=False,
    provided=(Comparison(quantity="novelty", baseline="largest probability", lower_is_better=False),),
    sides={"method": Side(measure, {}, RATES),
           "baseline": Side(measure, {"gaussians": 1}, {"lr": (0.03, 0.1, 0.3, 0.6, 1.0, 2.0)}),
           "largest probability": Side(doubting, {}, RATES)})
