"""FedAMD: where few clients are asked at a time, anchors and miners get further in as many rounds than averaging.

Paper: Anchor Sampling for Federated Learning with Partial Client Participation.
Tried: forty clients with the digits dealt out by Dirichlet(0.1), four asked in each of 30 rounds; accuracy on
held-out digits, mean of the last five rounds. Rates are tuned, with the chance to anchor, and for averaging with ten or
twenty steps, the latter as many gradients as ten of a miner. Against it: an accuracy that is no higher.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.parallel.federated._digits import RATES, accuracy, dealt, digits, mean, method, task
from mixwell.parallel.federated.clients import Tensors
from mixwell.parallel.federated.learning import below
from mixwell.parallel.federated.simulation import Setting, Turn, simulate

ROUNDS, LAST = 30, 5


def measure(bench: Bench, seed: int, *, name: str, **options: Any) -> float:
    """Mean accuracy after each of the last rounds."""
    train, test = digits(seed)
    clients = dealt(train, 40, 0.1, seed)
    own = method(name, task(seed), batch_size=16, **options)
    found: list[float] = []

    def watch(turn: Turn, state: Tensors) -> None:
        if turn.number >= ROUNDS - LAST:
            model = below("x", state) or state
            found.append(accuracy(model, test))

    simulate(own, clients, Setting(rounds=ROUNDS, share=0.1, seed=seed), watch)
    return mean(found)


CLAIM = Claim(
    "Anchors and miners get further in as many rounds than averaging.", "accuracy on held-out digits",
    lower_is_better=False,
    sides={"method": Side(measure, {"name": "fed_amd", "steps": 10},
                           {"lr": (0.01, 0.03, 0.06), "anchor": (0.2, 0.6)}),
           "baseline": Side(measure, {"name": "fed_avg"}, {"lr": RATES, "steps": (10, 20)})})
