"""SFPrompt: a split model tuned by prompts and its tail comes near full tuning for fewer bytes.

Paper: SFPrompt: Communication-Efficient Split Federated Fine-Tuning for Large Pre-Trained Models over Resource-Limited
Devices.
Tried: a transformer of three blocks of width 48 that reads digits as rows of patches, trained on upright ones, then
tuned on digits turned by 90 degrees by six clients, Dirichlet(0.5), six rounds; bytes both ways, and accuracy on
held-out digits. Against it: less than 30 % of the bytes of federated averaging of the whole model saved, or an accuracy
more than three points lower. Beside: averaging of the tail alone, the cheap rival. The bytes of activations count here,
beside a model so small, for more than beside the paper's.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.parallel.federated._digits import dealt, digits, drawn, quarter, right
from mixwell.core.rng import generator
from mixwell.parallel.federated.clients import Table, Tensors, batches
from mixwell.parallel.federated.fed_avg import Config as Plain
from mixwell.parallel.federated.fed_avg import FedAvg
from mixwell.parallel.federated.learning import Task, descended
from mixwell.parallel.federated.sf_prompt import Config, Parts, SFPrompt
from mixwell.parallel.federated.simulation import Federated, Setting, simulate

WIDTH, BLOCKS, ROUNDS = 48, 3, 6
INSIDE = {"qkv": (3 * WIDTH, WIDTH), "out": (WIDTH, WIDTH), "up": (2 * WIDTH, WIDTH), "down": (WIDTH, 2 * WIDTH)}


def fresh(seed: int) -> dict[str, Tensor]:
    """A transformer of one attention head and a hidden layer a block."""
    draws = generator(seed, "net")
    shapes = {"embed": (WIDTH, 8), "places": (8, WIDTH), "head": (10, WIDTH)}
    for block in range(BLOCKS):
        for name, shape in INSIDE.items():
            shapes[f"{block}.{name}"] = shape
    return {name: drawn(draws, *shape) for name, shape in shapes.items()}


def norm(x: Tensor) -> Tensor:
    """Rows at root mean square 1."""
    return F.rms_norm(x, x.shape[-1:])


def read(tensors: Tensors, block: int, x: Tensor) -> Tensor:
    """One block."""
    qkv, out, up, down = (tensors[f"{block}.{name}"] for name in INSIDE)
    q, k, v = F.linear(norm(x), qkv).chunk(3, -1)
    seen = F.scaled_dot_product_attention(q, k, v)
    x = x + 0.3 * F.linear(seen, out)
    hidden = F.linear(norm(x), up)
    change = F.linear(hidden.relu(), down)
    return x + 0.3 * change


def entered(tensors: Tensors, x: Tensor) -> Tensor:
    """Rows of ink as vectors, through the first block [N, 8, D]."""
    rows = x.view(len(x), 8, 8)
    embedded = F.linear(rows, tensors["embed"]) + tensors["places"]
    return read(tensors, 0, embedded)


def left(tensors: Tensors, y: Tensor) -> Tensor:
    """Logits from the last block's input."""
    seen = read(tensors, BLOCKS - 1, y)
    mean = norm(seen).mean(1)
    return F.linear(mean, tensors["head"])


def answer(tensors: Tensors, x: Tensor) -> Tensor:
    """Logits of the whole model."""
    h = entered(tensors, x)
    middle = read(tensors, 1, h)
    return left(tensors, middle)


def loss(tensors: Tensors, rows: Table) -> Tensor:
    """Its mean cross-entropy."""
    said = answer(tensors, rows.x)
    return F.cross_entropy(said, rows.y)


def split(base: Tensors) -> Parts:
    """Embedding and first block, the block between, and the last with the head."""
    last = f"{BLOCKS - 1}."
    tail = {name: tensor for name, tensor in base.items() if name.startswith(("head", last))}
    head = partial(entered, base)
    body = partial(read, base, 1)
    return Parts(head, body, left, tail)


@cache
def rows_of(seed: int) -> tuple[Tensors, Table, Table]:
    """The model trained on upright digits, and turned ones to tune on and to judge by."""
    train, test = digits(seed)
    draws = generator(seed, "before")
    parts = batches(train, 64, 200, draws)
    start = fresh(seed)
    base = descended(loss, start, parts, 0.1)
    return base, quarter(train), quarter(test)


def tuned(own: Federated, train: Table, seed: int) -> tuple[Tensors, float]:
    """The state after all rounds, and the bytes both ways, in millions."""
    clients = dealt(train, 6, 0.5, seed)
    setting = Setting(rounds=ROUNDS, seed=seed)
    found = simulate(own, clients, setting)
    sent = found.down_bytes + found.up_bytes
    return found.state, sent / 1e6


def prompted(bench: Bench, seed: int, **options: Any) -> dict[str, float]:
    """Bytes and accuracy of SFPrompt."""
    base, train, test = rows_of(seed)
    config = Config(prompts=2, steps=3, batch_size=16, **options)
    parts = split(base)
    own = SFPrompt(parts, config)
    state, sent = tuned(own, train, seed)
    said = parts.logits(state, test.x)
    return {"bytes": sent, "accuracy": right(said, test.y)}


def averaged(bench: Bench, seed: int, *, lr: float, whole: bool = True) -> dict[str, float]:
    """Bytes and accuracy of averaging, of the whole model or of its tail."""
    base, train, test = rows_of(seed)
    free = base if whole else split(base).start
    task = Task(free, lambda tensors, rows: loss({**base, **tensors}, rows))
    config = Plain(lr=lr, steps=10, batch_size=16)
    own = FedAvg(task, config)
    state, sent = tuned(own, train, seed)
    said = answer({**base, **state}, test.x)
    return {"bytes": sent, "accuracy": right(said, test.y)}


RATES = {"lr": (0.05, 0.15, 0.4)}
CLAIM = Claim(
    "A split model tuned by prompts and tail comes near full tuning for fewer bytes.", "megabytes both ways",
    quantity="bytes", at_least=0.3, relative=True, tuned_by="accuracy",
    provided=(no_worse("accuracy", 0.03, relative=False, lower_is_better=False),),
    sides={"method": Side(prompted, {"local_steps": 7, "keep": 0.5}, RATES),
           "baseline": Side(averaged, {}, RATES),
           "tail alone": Side(averaged, {"whole": False}, RATES)})
