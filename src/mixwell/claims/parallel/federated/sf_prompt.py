"""SFPrompt: a split model tuned by prompts and its tail comes near full tuning for fewer bytes.

Paper: SFPrompt: Communication-Efficient Split Federated Fine-Tuning for Large Pre-Trained Models over Resource-Limited
Devices.
Tried: a transformer of three blocks of width 48 that reads digits as rows of patches, trained on upright ones, then
tuned on digits turned by 90 degrees by six clients, Dirichlet(0.5), eight rounds; bytes both ways, and accuracy on
held-out digits. Against it: less than 30 % of the bytes of federated averaging of the whole model saved, or an accuracy
more than three points lower. Beside: averaging of the tail alone, the cheap rival. The bytes of activations count here,
beside a model so small, for more than beside the paper's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.parallel.federated._digits import dealt, digits, right, turned
from mixwell.core.rng import generator
from mixwell.parallel.federated.clients import Table, Tensors, batches
from mixwell.parallel.federated.fed_avg import Config as Plain
from mixwell.parallel.federated.fed_avg import FedAvg
from mixwell.parallel.federated.learning import Task, descended
from mixwell.parallel.federated.sf_prompt import Config, Parts, SFPrompt
from mixwell.parallel.federated.simulation import Federated, Setting, simulate

WIDTH, BLOCKS, ROUNDS = 48, 3, 8


def fresh(seed: int) -> dict[str, Tensor]:
    """A transformer of one attention head and a hidden layer a block."""
    draws = generator(seed, "net")

    def drawn(*shape: int) -> Tensor:
        return shape[-1] ** -0.5 * torch.randn(shape, generator=draws)

    found = {"embed": drawn(WIDTH, 8), "places": drawn(8, WIDTH), "head": drawn(10, WIDTH)}
    for block in range(BLOCKS):
        found[f"{block}.qkv"] = drawn(3 * WIDTH, WIDTH)
        found[f"{block}.out"] = 0.3 * drawn(WIDTH, WIDTH)
        found[f"{block}.up"] = drawn(2 * WIDTH, WIDTH)
        found[f"{block}.down"] = 0.3 * drawn(WIDTH, 2 * WIDTH)
    return found


def norm(x: Tensor) -> Tensor:
    """Rows at root mean square 1."""
    return F.rms_norm(x, x.shape[-1:])


def read(tensors: Tensors, block: int, x: Tensor) -> Tensor:
    """One block."""
    q, k, v = F.linear(norm(x), tensors[f"{block}.qkv"]).chunk(3, -1)
    seen = F.scaled_dot_product_attention(q, k, v)
    x = x + F.linear(seen, tensors[f"{block}.out"])
    hidden = F.linear(norm(x), tensors[f"{block}.up"]).relu()
    return x + F.linear(hidden, tensors[f"{block}.down"])


def entered(tensors: Tensors, x: Tensor) -> Tensor:
    """Rows of ink as vectors, through the first block [N, 8, D]."""
    rows = x.view(len(x), 8, 8)
    embedded = F.linear(rows, tensors["embed"]) + tensors["places"]
    return read(tensors, 0, embedded)


def left(tensors: Tensors, y: Tensor) -> Tensor:
    """Logits from the last block's input."""
    seen = read(tensors, BLOCKS - 1, y)
    return norm(seen).mean(1) @ tensors["head"].T


def loss(tensors: Tensors, rows: Table) -> Tensor:
    """Of the whole model."""
    h = entered(tensors, rows.x)
    middle = read(tensors, 1, h)
    return F.cross_entropy(left(tensors, middle), rows.y)


def split(base: Tensors) -> Parts:
    """Embedding and first block, the block between, and the last with the head."""
    names = [name for name in base if name == "head" or name.startswith(f"{BLOCKS - 1}.")]
    tail = {name: base[name] for name in names}
    return Parts(lambda x: entered(base, x), lambda h: read(base, 1, h), left, tail)


def rows_of(seed: int) -> tuple[Tensors, Table, Table]:
    """The model trained on upright digits, and turned ones to tune on and to judge by."""
    train, test = digits(seed)
    parts = batches(train, 64, 250, generator(seed, "before"))
    base = descended(loss, fresh(seed), parts, 0.1)
    quarter = [turned(rows, torch.ones_like(rows.y)) for rows in (train, test)]
    return base, quarter[0], quarter[1]


def tuned(own: Federated, train: Table, seed: int) -> tuple[Tensors, float]:
    """The state after all rounds, and the bytes both ways, in millions."""
    clients = dealt(train, 6, 0.5, seed)
    found = simulate(own, clients, Setting(rounds=ROUNDS, seed=seed))
    sent = found.down_bytes + found.up_bytes
    return found.state, sent / 1e6


def prompted(bench: Bench, seed: int, **options: Any) -> dict[str, float]:
    """Bytes and accuracy of SFPrompt."""
    base, train, test = rows_of(seed)
    parts = split(base)
    config = Config(prompts=2, steps=3, batch_size=16, **options)
    state, sent = tuned(SFPrompt(parts, config), train, seed)
    return {"bytes": sent, "accuracy": right(parts.logits(state, test.x), test.y)}


def averaged(bench: Bench, seed: int, *, lr: float, whole: bool = True) -> dict[str, float]:
    """Bytes and accuracy of averaging, of the whole model or of its tail."""
    base, train, test = rows_of(seed)
    free = base if whole else split(base).start
    task = Task(free, lambda tensors, rows: loss({**base, **tensors}, rows))
    own = FedAvg(task, Plain(lr=lr, steps=10, batch_size=16))
    state, sent = tuned(own, train, seed)
    model = {**base, **state}
    middle = read(model, 1, entered(model, test.x))
    return {"bytes": sent, "accuracy": right(left(model, middle), test.y)}


RATES = {"lr": (0.03, 0.1, 0.2)}
CLAIM = Claim(
    "A split model tuned by prompts and tail comes near full tuning for fewer bytes.", "megabytes both ways",
    quantity="bytes", at_least=0.3, relative=True, tuned_by="accuracy",
    provided=(no_worse("accuracy", 0.03, relative=False, lower_is_better=False),),
    sides={"method": Side(prompted, {"local_steps": 7, "keep": 0.5}, RATES),
           "baseline": Side(averaged, {}, RATES),
           "tail alone": Side(averaged, {"whole": False}, RATES)})
