"""A small federation in float64."""

import pytest
import torch

from mixwell.parallel.federated._example import federation
from mixwell.parallel.federated.clients import Client, Table
from mixwell.parallel.federated.learning import Task


@pytest.fixture(scope="package")
def world():
    """(task, clients): five clients with 8 to 16 rows of four columns and three classes."""
    given = federation(torch.Generator().manual_seed(5))
    start = {name: tensor.double() for name, tensor in given["task"].start.items()}
    clients = [Client(c.number, Table(c.rows.x.double(), c.rows.y)) for c in given["clients"]]
    return Task(start, given["task"].loss), clients
