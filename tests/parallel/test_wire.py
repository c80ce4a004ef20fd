"""Wires: what threads send each other, what is counted, and who ends when one fails."""

import pytest
import torch

from mixwell.parallel.moves import everyone, exchange
from mixwell.parallel.wire import in_threads

COUNTS = torch.tensor([[1, 0, 3], [2, 2, 0], [0, 1, 1]])  # rows from each worker to each


def rows_of(rank):
    return torch.arange(6.0).view(3, 2)[rank].repeat(int(COUNTS[rank].sum()), 1) + torch.arange(4.0)[
        : int(COUNTS[rank].sum()), None] * 100


def test_rows_arrive_in_the_order_of_their_workers_and_gradients_go_back():
    def work(wire):
        sent, received = COUNTS[wire.rank].tolist(), COUNTS[:, wire.rank].tolist()
        rows = rows_of(wire.rank).requires_grad_()
        came = exchange(rows, wire, sent, received)
        weight = torch.arange(1.0, len(came) + 1)[:, None]
        (came * weight * (wire.rank + 1)).sum().backward()
        return came.detach(), rows.grad, dict(wire.sent)

    found = in_threads(3, work)
    for rank, (came, grad, sent) in enumerate(found):
        parts = [rows_of(source).split(COUNTS[source].tolist())[rank] for source in range(3)]
        assert torch.equal(came, torch.cat(parts))
        expected = []
        for target in range(3):
            first = int(COUNTS[:rank, target].sum())
            expected += [(first + i + 1) * (target + 1.0) for i in range(int(COUNTS[rank, target]))]
        assert grad[:, 0].tolist() == expected
        away = int(COUNTS[rank].sum() - COUNTS[rank, rank])
        back = int(COUNTS[:, rank].sum() - COUNTS[rank, rank])
        assert sent == {"exchange": (away + back) * 8}


def test_a_gather_brings_all_rows_and_each_its_own_gradient():
    def work(wire):
        own = torch.full((2, 1), float(wire.rank)).requires_grad_()
        whole = everyone(own, wire)
        (whole.square().sum() / wire.size).backward()
        return whole.detach()[:, 0].tolist(), own.grad[:, 0].tolist(), wire.total(torch.ones(2)).tolist(), wire.sent

    for rank, (whole, grad, total, sent) in enumerate(in_threads(4, work)):
        assert whole == [0, 0, 1, 1, 2, 2, 3, 3] and grad == [2.0 * rank] * 2 and total == [4, 4]
        assert sent == {"gather": 3 * 8, "total": 12}


def test_a_part_of_the_workers_has_a_wire_of_its_own():
    def work(wire):
        own = wire.sub([0, 2] if wire.rank % 2 == 0 else [1, 3])
        return own.rank, own.total(torch.tensor(wire.rank)).item()

    assert in_threads(4, work) == [(0, 2), (0, 4), (1, 2), (1, 4)]


def test_one_that_fails_ends_all_with_its_own_error():
    def work(wire):
        if wire.rank == 1:
            raise KeyError("mine")
        wire.total(torch.ones(1))

    with pytest.raises(KeyError, match="mine"):
        in_threads(3, work)
