"""A small federation for examples: five clients, three classes, a softmax regression with a bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.parallel.federated.clients import Client, Table, Tensors
from mixwell.parallel.federated.learning import Task

CLIENTS, COLUMNS, CLASSES = 5, 4, 3


def federation(generator: torch.Generator) -> dict[str, Any]:
    """A task and clients with 8, 10, ... rows whose classes have centres of their own, moved a little by client."""
    centre_CD = 2 * torch.randn(CLASSES, COLUMNS, generator=generator)
    clients = []
    for number in range(CLIENTS):
        count = 8 + 2 * number
        y_N = torch.randint(CLASSES, (count,), generator=generator)
        moved_D = 0.3 * torch.randn(COLUMNS, generator=generator)
        noise_ND = torch.randn(count, COLUMNS, generator=generator)
        x_ND = centre_CD[y_N] + moved_D + noise_ND
        rows = Table(x_ND, y_N)
        clients.append(Client(number, rows))
    weight = 0.1 * torch.randn(CLASSES, COLUMNS, generator=generator)
    start = {"weight": weight, "bias": torch.zeros(CLASSES)}
    return {"task": Task(start, cross_entropy, cross_entropies), "clients": clients}


def logits(tensors: Tensors, x_ND: Tensor) -> Tensor:
    """Of softmax regression [N, C]."""
    return F.linear(x_ND, tensors["weight"], tensors["bias"])


def cross_entropy(tensors: Tensors, rows: Table) -> Tensor:
    """The mean loss in nats."""
    return cross_entropies(tensors, rows).mean()


def cross_entropies(tensors: Tensors, rows: Table) -> Tensor:
    """The loss of each row in nats [N]."""
    said_NC = logits(tensors, rows.x)
    return F.cross_entropy(said_NC, rows.y, reduction="none")
