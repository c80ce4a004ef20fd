"""Experts over workers give what one worker gives, gradients too, with experts and workers that get nothing."""

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.parallel.expert_parallel import Config, expert_parallel, own_experts, spread
from mixwell.parallel.wire import in_threads

COUNTS = torch.tensor([[3, 0, 0, 0], [0, 0, 0, 0], [1, 0, 2, 0], [0, 0, 5, 1]])  # expert 1 gets none, worker 3's one


def alone(rows, counts, weight):
    """A loop over rows, in float64."""
    out, row = [], 0
    for expert, count in enumerate(counts.tolist()):
        for _ in range(count):
            out.append(torch.stack([(rows[row] * weight[expert, o]).sum() for o in range(weight.shape[1])]))
            row += 1
    return torch.stack(out) if out else rows[:0]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_give_what_one_gives(workers):
    weight = torch.randn(4, 3, 3, generator=generator(0), dtype=torch.float64)
    rows = [torch.randn(int(n), 3, generator=generator(1 + i), dtype=torch.float64)
            for i, n in enumerate(COUNTS.sum(1)[:workers])]

    def work(wire):
        own = own_experts(weight, wire).clone().requires_grad_()
        mine = rows[wire.rank].clone().requires_grad_()

        def experts(rows_MD, counts_L):
            assert len(rows_MD) == counts_L.sum()
            parts = rows_MD.split(counts_L.tolist())
            return torch.cat([part @ w.mT for part, w in zip(parts, own)])

        y = spread(mine, COUNTS[wire.rank], wire, experts)
        y.square().sum().backward()
        return y.detach(), mine.grad, own.grad

    found = in_threads(workers, work)
    whole = weight.clone().requires_grad_()
    leaves = [part.clone().requires_grad_() for part in rows]
    expected = [alone(part, COUNTS[i], whole) for i, part in enumerate(leaves)]
    sum(y.square().sum() for y in expected).backward()
    for (y, grad, _), theirs, leaf in zip(found, expected, leaves):
        torch.testing.assert_close(y, theirs.detach())
        torch.testing.assert_close(grad, torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
    torch.testing.assert_close(torch.cat([grad for _, _, grad in found]), whole.grad)


def test_bytes_are_those_of_the_rows_that_leave():
    """The table of counts, and each row to and fro: what FastMoE sends."""
    rows = torch.ones(6, 3)

    def work(wire):
        spread(rows, torch.tensor([1, 2, 2, 1]), wire, lambda rows_MD, counts_L: rows_MD)
        return wire.sent["exchange"]

    counts, there, back = 2 * 8, 3 * 12, 3 * 12
    assert in_threads(2, work) == [counts + there + back] * 2


def test_experts_that_the_workers_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="4 experts over 3 workers; expected a number of workers that divides them"):
        expert_parallel(torch.ones(3, 1, 2), torch.tensor([[1, 0, 0, 0]] * 3), torch.ones(4, 2, 2), Config(workers=3))
    with pytest.raises(ValueError, match="rows of 2 workers; expected 3, as in the config"):
        expert_parallel(torch.ones(2, 1, 2), torch.ones(2, 4), torch.ones(4, 2, 2), Config(workers=3))
    with pytest.raises(ValueError, match="workers is 0; expected at least 1"):
        Config(workers=0)
