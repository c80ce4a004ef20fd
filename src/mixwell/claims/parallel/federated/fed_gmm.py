"""FedGMM: Gaussians of the inputs choose the model of the labels, and say which inputs are new.

Paper: Personalized Federated Learning under Mixture of Distributions.
Tried: six clients, digits 0 to 8 in ten principal components, turned by 0, 90 and 180 degrees in shares of each
client's own drawn from Dirichlet(0.5); three softmax regressions, 10 rounds; accuracy on held-out digits turned in the
same shares, and the area under the curve by which log p(x) tells the digit 9 from these. Against it: an accuracy that
is no higher than with one Gaussian, which is FedEM, or an area no larger than that of the largest probability.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.parallel.federated._digits import digits, mean, mixed, right, shares
from mixwell.parallel.federated.clients import Client, Table, Tensors
from mixwell.parallel.federated.fed_gmm import Conditional, Config, FedGMM, density
from mixwell.parallel.federated.learning import below, unstacked
from mixwell.parallel.federated.simulation import Setting, simulate

CLIENTS, COLUMNS, KNOWN, NEW = 6, 10, 9, 9


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


def area(old: Tensor, new: Tensor) -> float:
    """The chance that what is new scores lower than what is not."""
    lower = new[:, None] < old
    return float(lower.float().mean())


def parted(rows: Table) -> tuple[Table, Table]:
    """Rows of known digits, and of the new one."""
    new = rows.y == NEW
    known_N = (~new).nonzero().squeeze(1)
    new_N = new.nonzero().squeeze(1)
    return rows.of(known_N), rows.of(new_N)


class World(NamedTuple):
    """Clients, and held-out rows of each, all in principal components."""

    clients: list[Client]
    held: list[Table]


def world(seed: int) -> World:
    """As the claim has it."""
    train, test = digits(seed)
    known, _ = parted(train)
    share_CK = shares(CLIENTS, 3, 0.5, seed, "shares")
    places = torch.arange(len(known))
    parts, held = [], []
    for number, mine in enumerate(places.chunk(CLIENTS)):
        share_K = share_CK[number]
        own = mixed(known.of(mine), share_K, seed, "rows", number)
        parts.append(own)
        other = mixed(test, share_K, seed, "test", number)
        held.append(other)
    seen = components(parts)
    clients = [Client(number, seen(part)) for number, part in enumerate(parts)]
    return World(clients, list(map(seen, held)))


def components(parts: list[Table]) -> Callable[[Table], Table]:
    """What turns rows into the first principal components of these."""
    every = torch.cat([part.x for part in parts])
    middle = every.mean(0)
    _, _, axes = torch.linalg.svd(every - middle, full_matrices=False)

    def seen(rows: Table) -> Table:
        away = rows.x - middle
        x = away @ axes[:COLUMNS].T
        return Table(x, rows.y)

    return seen


def measure(bench: Bench, seed: int, *, gaussians: int, lr: float) -> dict[str, float]:
    """Accuracy, and both areas, in the mean over the clients."""
    clients, held = world(seed)
    config = Config(gaussians=gaussians, lr=lr, steps=6, reg_covar=0.05)
    own = FedGMM(Conditional(start, log_prob), config)
    setting = Setting(rounds=10, seed=seed)
    found = simulate(own, clients, setting)
    told = []
    for number, rows in enumerate(held):
        weights = found.memories[number]["weights"]
        numbers = judged(own, found.state, weights, rows)
        told.append(numbers)
    means = {}
    for name in numbers:
        values = [one[name] for one in told]
        means[name] = mean(values)
    return means


def judged(own: FedGMM, state: Tensors, weights: Tensor, rows: Table) -> dict[str, float]:
    """The numbers of one client."""
    old, new = parted(rows)
    p = density(state, weights)
    known = p.log_prob(old.x.double())
    strange = p.log_prob(new.x.double())
    novelty = area(known, strange)
    said = predicted(own, state, weights, old.x)
    guessed = predicted(own, state, weights, new.x)
    doubt = area(said.amax(1), guessed.amax(1))
    return {"accuracy": right(said, old.y), "novelty": novelty, "doubt": doubt}


def predicted(own: FedGMM, state: Tensors, weights: Tensor, x: Tensor) -> Tensor:
    """Probabilities of the labels [N, C], the models mixed row by row."""
    share_NM = own.shares(state, weights, x)
    models = unstacked(below("theta", state))
    every = [log_probs(model, x).exp() for model in models]
    said_NMC = torch.stack(every, 1)
    return torch.einsum("nm,nmc->nc", share_NM, said_NMC)


def doubting(bench: Bench, seed: int, **options: Any) -> dict[str, float]:
    """The same with the largest probability in the place of the density."""
    found = measure(bench, seed, **options)
    return {"accuracy": found["accuracy"], "novelty": found["doubt"]}


RATES = {"lr": (0.5, 1.5, 4.0)}
CLAIM = Claim(
    "Gaussians of the inputs choose among the labels' models, and tell what is new.", "accuracy on held-out digits",
    quantity="accuracy", lower_is_better=False,
    provided=(Comparison(quantity="novelty", baseline="largest probability", lower_is_better=False),),
    sides={"method": Side(measure, {"gaussians": 4}, RATES),
           "baseline": Side(measure, {"gaussians": 1}, RATES),
           "largest probability": Side(doubting, {"gaussians": 4}, RATES)})
