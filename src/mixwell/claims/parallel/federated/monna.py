"""MoNNA: with momentum, averaging nearest neighbours stays accurate where liars say little that is wrong.

Paper: Robust Collaborative Learning with Linear Gradient Overhead.
Tried: ten peers with the digits dealt out by Dirichlet(1), three of whom say the honest mean less one and a half
deviations; 80 rounds; mean accuracy of the honest peers' nets on held-out digits. Against it: an accuracy less than two
points above that of the same peers without momentum, or more than five points below where nobody lies.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.parallel.federated._digits import accuracy, dealt, digits, mean, method, task
from mixwell.parallel.federated.learning import unstacked
from mixwell.parallel.federated.simulation import Setting, simulate

PEERS, LIARS = 10, 3


def measure(bench: Bench, seed: int, *, lr: float, momentum: float = 0.0, faulty: int = LIARS,
            liars: int = LIARS) -> float:
    """Mean accuracy of the seven who are honest."""
    train, test = digits(seed)
    clients = dealt(train, PEERS, 1.0, seed)
    options = {"lr": lr, "momentum": momentum, "faulty": faulty}
    peers = method("monna", task(seed), **options)
    setting = Setting(rounds=80, liars=liars, attack="little", factor=1.5, seed=seed)
    state = simulate(peers, clients, setting).state
    honest = unstacked(state)[: PEERS - LIARS]
    right = [accuracy(net, test) for net in honest]
    return mean(right)


RATES = (0.75, 1.5, 3.0)
CLAIM = Claim(
    "Momentum keeps nearest-neighbour averaging accurate under little lies.", "accuracy on held-out digits",
    lower_is_better=False, at_least=0.02,
    provided=(Comparison(baseline="nobody lies", lower_is_better=False, at_least=-0.05),),
    sides={"method": Side(measure, {"momentum": 0.9}, {"lr": RATES}),
           "baseline": Side(measure, {}, {"lr": (0.3, 0.6, 1.2)}),
           "nobody lies": Side(measure, {"momentum": 0.9, "liars": 0, "faulty": 0}, {"lr": RATES})})
