"""Language models trained by clients that keep their text: windows of domains dealt out, rounds of a federated method.

Legend: N windows, S tokens of each, C clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixwell.core import registry
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.lm.data import TokenData
from mixwell.lm.model import LanguageModel
from mixwell.lm.network import IGNORED
from mixwell.mixing import check_above, check_least
from mixwell.parallel.federated.clients import Client, Table, Tensors, by_dirichlet, clients_of
from mixwell.parallel.federated.learning import Task
from mixwell.parallel.federated.simulation import Federated, Outcome, Setting, Watch, simulate

FAMILY = "parallel.federated"
METHODS = ("fed_avg", "curriculum", "fed_amd", "monna", "prowd")  # that learn one model from a task of tensors


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """How text is dealt out to clients."""

    clients: int = 8
    alpha: float = 0.5  # of the Dirichlet draws of each domain's shares: small, and clients read few domains each
    seq_len: int = 128  # tokens of a window
    max_windows: int | None = None  # of each domain, the first ones; None: all

    def __post_init__(self) -> None:
        check_least(self, clients=1, seq_len=1, max_windows=1)
        check_above(self, alpha=0)


@dataclass(frozen=True, eq=False)
class Windows(Table):
    """Windows x [N, S], the tokens y [N, S] that follow, and the place [N] of each one's domain."""

    domains: Tensor

    def of(self, places_N: Tensor) -> Windows:
        """Some of the windows."""
        own = super().of(places_N)
        return Windows(own.x, own.y, self.domains[places_N])


class _Reading(nn.Module):
    """A model's loss as a call, so that tensors can stand in for its parameters; its routers draw in one stream."""

    def __init__(self, model: LanguageModel, draws: torch.Generator | None = None) -> None:
        super().__init__()
        self.model = model
        self.draws = draws

    def forward(self, rows: Windows, each: bool) -> Tensor:
        if each:
            return self._by_row(rows)
        found = self.model.loss(rows.x, rows.y, labels_B=rows.domains, generator=self.draws)
        return found.nats if found.aux is None else found.nats + found.aux

    def _by_row(self, rows: Windows) -> Tensor:
        nats_NS = self.model.token_nats(rows.x, rows.y.clamp_min(0), rows.domains, self.draws)
        counts_NS = rows.y != IGNORED
        total_N = (nats_NS * counts_NS).sum(1)
        return total_N / counts_NS.sum(1).clamp_min(1)


def task_of(model: LanguageModel, seed: int = 0) -> Task:
    """What clients learn: the model's parameters, the loss with its auxiliary losses, and each window's mean nats.

    seed: of the routers that draw. Raises `MixwellError` for a model whose weights are not all floating-point numbers
    that may be trained.
    """
    reading = _Reading(model, generator(seed, "routers"))
    start = {name: parameter.detach().clone() for name, parameter in reading.named_parameters()}
    packed = [name for name, tensor in start.items() if not tensor.is_floating_point()]
    if packed:
        first = packed[0].removeprefix("model.")
        raise MixwellError(f"{first} holds codes; expected a model whose weights are numbers that can be trained.")

    def loss(tensors: Tensors, rows: Windows) -> Tensor:
        return torch.func.functional_call(reading, dict(tensors), (rows, False))

    def losses(tensors: Tensors, rows: Windows) -> Tensor:
        return torch.func.functional_call(reading, dict(tensors), (rows, True))

    return Task(start, loss, losses)


def windows(data: TokenData, seq_len: int, most: int | None = None) -> Windows:
    """Training windows of `seq_len` tokens, the first `most` of each domain.

    Raises `MixwellError` where a domain holds no window.
    """
    rows, labels, domains = [], [], []
    for place, domain in enumerate(data.domains):
        count = (data.count(domain, "train") - 1) // seq_len
        if count < 1:
            raise MixwellError(f"{domain} holds {data.count(domain, 'train')} training tokens; expected more than "
                               f"seq_len={seq_len}.")
        kept = min(count, most or count)
        end = kept * seq_len
        stream = data.tokens(domain, "train")[:end].astype(np.int64)
        rows.append(stream.reshape(kept, seq_len))
        labels.append(data.labels(domain, "train", 1, end + 1).reshape(kept, seq_len))
        domains += [place] * kept
    x_NS = torch.from_numpy(np.concatenate(rows))
    y_NS = torch.from_numpy(np.concatenate(labels))
    return Windows(x_NS, y_NS, torch.tensor(domains))


def dealt(data: TokenData, dealing: Dealing, seed: int) -> list[Client]:
    """Clients with windows of text, each domain's shared out by a Dirichlet draw."""
    rows = windows(data, dealing.seq_len, dealing.max_windows)
    draws = generator(seed, "clients")
    parts = by_dirichlet(rows.domains, dealing.clients, dealing.alpha, draws)
    return clients_of(rows, parts)


def method_of(name: str, options: Mapping[str, Any], where: str = "") -> tuple[registry.Entry, Any]:
    """A method of `METHODS` by its name, and its config.

    Raises `MixwellError` for another one, or options that it has not.
    """
    entry = registry.find(name, within=FAMILY)
    last = entry.name.rpartition(".")[2]
    if last not in METHODS:
        known = ", ".join(METHODS)
        raise MixwellError(f"{entry.name} is no method for a whole language model; expected one of {known}.")
    return entry, from_dict(entry.module().Config, options, where)


def federate(model: LanguageModel, data: TokenData, method: str = "fed_avg", options: Mapping[str, Any] | None = None,
             *, dealing: Dealing | None = None, setting: Setting | None = None, watch: Watch | None = None) -> Outcome:
    """Train `model` in place by clients among whom the training text is dealt out; returns what all rounds cost.

    options: of the method (`lr`, `steps`, `aggregation`, ...); setting: rounds, who is absent, who lies; watch: sees
    the state after each round. Steps are plain descent in the model's own number type; routers that follow the load of
    their experts are not updated.
    """
    world = setting or Setting()
    entry, config = method_of(method, options or {})
    task = task_of(model, world.seed)
    learner: Federated = entry.load()(task, config)
    clients = dealt(data, dealing or Dealing(), world.seed)
    model.train()
    try:
        found = simulate(learner, clients, world, watch)
    finally:
        model.eval()
    learnt = learner.model(found.state)
    with torch.no_grad():
        for name, parameter in _Reading(model).named_parameters():
            parameter.copy_(learnt[name])
    return found
