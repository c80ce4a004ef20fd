"""Experts with copies give what experts give, gradients too; copies even the work out."""

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.parallel.sharded_experts import Config, destinations, placed, sharded, sharded_experts
from mixwell.parallel.wire import in_threads

COUNTS = torch.tensor([[9, 0, 1, 2], [6, 1, 0, 0], [7, 0, 2, 1], [8, 0, 0, 1]])


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_copies_give_what_experts_give(slots):
    draws = generator(0)
    weight = torch.randn(4, 2, 3, generator=draws, dtype=torch.float64)
    rows = [torch.randn(int(n), 3, generator=draws, dtype=torch.float64) for n in COUNTS.sum(1)]
    there = placed(COUNTS.sum(0), 4, slots)

    def work(wire):
        mine = rows[wire.rank].clone().requires_grad_()
        own = weight.chunk(4)[wire.rank].clone().requires_grad_()
        y = sharded(mine, COUNTS[wire.rank], own, there, wire, lambda part, w: torch.tanh(part @ w.T))
        y.square().sum().backward()
        return y.detach(), mine.grad, own.grad, wire.sent["exchange"]

    found = in_threads(4, work)
    whole = weight.clone().requires_grad_()
    for rank, (y, grad, _, _) in enumerate(found):
        leaf = rows[rank].clone().requires_grad_()
        experts = torch.arange(4).repeat_interleave(COUNTS[rank]).tolist()
        expected = torch.stack([torch.tanh(whole[e] @ row) for e, row in zip(experts, leaf)])
        expected.square().sum().backward()
        torch.testing.assert_close(y, expected.detach())
        torch.testing.assert_close(grad, leaf.grad)
    torch.testing.assert_close(torch.cat([own for _, _, own, _ in found]), whole.grad)
    copies = int(there.sum()) - 4
    goes = destinations(COUNTS, there)
    away = int(COUNTS[goes != torch.arange(4)[:, None]].sum())
    expected_bytes = 8 * (2 * 6 * copies + 2 * (3 + 2) * away)
    assert sum(sent for *_, sent in found) == expected_bytes, "copies to and fro, rows there and results back, twice"


def test_copies_go_where_tokens_are_expected():
    there = placed(torch.tensor([40, 4, 2, 1]), 4, 2)
    assert there.tolist() == [[True, True, False, False], [True, True, False, False], [True, False, True, False],
                              [True, False, False, True]]
    assert (there.sum(1) <= 2).all() and there.any(0).all()
    assert placed(torch.ones(4), 2, 2).sum() == 4, "no slot is free"


def test_tokens_stay_where_a_copy_is_and_else_go_to_the_least_loaded():
    there = torch.tensor([[True, False], [True, True], [False, True]])
    counts = torch.tensor([[5, 3], [4, 4], [6, 1]])
    goes = destinations(counts, there)
    assert goes.tolist() == [[0, 2], [1, 1], [0, 2]]


def test_the_work_is_evened_out():
    """Largest share of a worker over the mean, of experts alone and with a copy each."""
    def uneven(slots):
        goes = destinations(COUNTS, placed(COUNTS.sum(0), 4, slots))
        work = torch.zeros(4, dtype=torch.int64).index_add(0, goes.flatten(), COUNTS.flatten())
        return float(work.max() / work.double().mean())

    assert uneven(1) > 3 and uneven(2) < 1.4


def test_refusals():
    with pytest.raises(ValueError, match="4 experts over 3 workers of 2 slots; expected a number of workers that"):
        placed(torch.ones(4), 3, 2)
    with pytest.raises(ValueError, match="4 experts over 2 workers of 1 slots"):
        sharded_experts(torch.ones(2, 1, 2), COUNTS[:2], torch.ones(4), torch.ones(4, 2, 2), Config(workers=2, slots=1))
    with pytest.raises(ValueError, match="slots is 0; expected at least 1"):
        Config(slots=0)
