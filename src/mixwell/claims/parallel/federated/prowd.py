"""ProWD: where clients train in 2 to 32 bits, lifting and choosing weights beats the mean of what all send.

Paper: Bitwidth Heterogeneous Federated Learning with Progressive Weight Dequantization.
Tried: ten clients of 2, 2, 2, 4, 4, 4, 8, 8, 32 and 32 bits, the digits dealt out by Dirichlet(0.3), 15 rounds;
accuracy of the server's net on held-out digits. Against it: an accuracy that is no higher than that of the plain mean,
or than that of a mean over the clients of 32 bits alone.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.parallel.federated._digits import accuracy, dealt, digits, method, task
from mixwell.parallel.federated.clients import Client
from mixwell.parallel.federated.simulation import Setting, simulate

BITS = (2, 2, 2, 4, 4, 4, 8, 8, 32, 32)
WHOLE = [place for place, bits in enumerate(BITS) if bits == 32]


def measure(bench: Bench, seed: int, *, alone: bool = False, **options: Any) -> float:
    """Accuracy of the server's net."""
    train, test = digits(seed)
    clients = dealt(train, len(BITS), 0.3, seed)
    bits: tuple[int, ...] = BITS
    if alone:
        kept = [clients[place].rows for place in WHOLE]
        clients = [Client(number, rows) for number, rows in enumerate(kept)]
        bits = (32,)
    own = method("prowd", task(seed), bits=bits, steps=8, server_steps=15, **options)
    setting = Setting(rounds=15, seed=seed)
    found = simulate(own, clients, setting)
    return accuracy(found.state, test)


RATES = {"lr": (0.2, 0.4, 0.8)}
CLAIM = Claim(
    "Lifting few-bit weights and choosing among them beats their mean.", "accuracy on held-out digits",
    lower_is_better=False,
    provided=(Comparison(baseline="32 bits alone", lower_is_better=False),),
    sides={"method": Side(measure, {}, RATES),
           "baseline": Side(measure, {"lift": "none", "agreement": 0.0}, RATES),
           "32 bits alone": Side(measure, {"alone": True}, RATES)})
