"""Sliced experts give what whole ones give, gradients too; tokens travel once for a tensor group."""

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.parallel.tensor_experts import Config, mesh_of, own_slices, shares, sliced, tensor_experts
from mixwell.parallel.wire import in_threads

COUNTS = torch.tensor([[3, 0, 3, 1], [1, 0, 0, 6]])  # one expert gets none, and some counts are odd


def inputs():
    draws = generator(0)
    sizes = (2, 7, 3), (4, 6, 3), (4, 3, 6)
    return [torch.randn(size, generator=draws, dtype=torch.float64) for size in sizes]


def alone(rows, up, down):
    """Each row by itself."""
    out = []
    for worker, counts in enumerate(COUNTS.tolist()):
        experts = [e for e, count in enumerate(counts) for _ in range(count)]
        found = [down[e] @ torch.nn.functional.gelu(up[e] @ row) for e, row in zip(experts, rows[worker])]
        out.append(torch.stack(found))
    return torch.stack(out)


@pytest.mark.parametrize("drop_duplicates", [True, False])
@pytest.mark.parametrize("tensor, expert", [(1, 2), (2, 2), (3, 2)])
def test_slices_give_what_whole_experts_give(tensor, expert, drop_duplicates):
    config = Config(tensor=tensor, expert=expert, drop_duplicates=drop_duplicates)
    rows, up, down = inputs()

    def work(wire):
        group = wire.rank // tensor
        own = [x.clone().requires_grad_() for x in (rows[group], *own_slices(wire.rank, up, down, config))]
        y = sliced(own[0], COUNTS[group], own[1], own[2], mesh_of(wire, config), config)
        y.square().sum().backward()
        return y.detach(), [x.grad for x in own]

    found = in_threads(tensor * expert, work)
    leaves = [x.clone().requires_grad_() for x in (rows, up, down)]
    expected = alone(*leaves)
    expected.square().sum().backward()
    for rank, (y, (of_rows, of_up, of_down)) in enumerate(found):
        torch.testing.assert_close(y, expected[rank // tensor].detach())
        torch.testing.assert_close(of_rows, leaves[0].grad[rank // tensor])
        for own, whole in zip((of_up, of_down), own_slices(rank, leaves[1].grad, leaves[2].grad, config)):
            torch.testing.assert_close(own, whole)
    torch.testing.assert_close(tensor_experts(rows, COUNTS, up, down, config), expected.detach())


def test_what_travels_between_experts_is_divided_by_the_tensor_group():
    """Bytes of rows between expert workers, all of a tensor group together, and those of its gathers beside."""
    rows, up, down = inputs()

    def sent(drop_duplicates):
        config = Config(drop_duplicates=drop_duplicates)

        def work(wire):
            mesh, group = mesh_of(wire, config), wire.rank // 2
            own = own_slices(wire.rank, up, down, config)
            sliced(rows[group], COUNTS[group], *own, mesh, config)
            return mesh.expert.sent["exchange"], mesh.tensor.sent["exchange"], mesh.tensor.sent["total"]

        return torch.tensor(in_threads(4, work)).sum(0)

    table = 4 * 2 * 8  # counts, which every worker sends
    away = int(COUNTS[0, 2:].sum() + COUNTS[1, :2].sum())
    row = 3 * 8
    with_all, once = sent(False), sent(True)
    assert with_all[0] - table == 2 * 2 * away * row and once[0] - table == 2 * away * row
    assert with_all[1] == 0 and once[1] == 2 * COUNTS.sum() * row, "the gathers: rows there, results back"
    assert once[2] == with_all[2]


def test_shares_are_even_for_each_expert():
    first, second = shares(torch.tensor([3, 0, 4]), 2)
    assert first.tolist() == [0, 1, 3, 4] and second.tolist() == [2, 5, 6]


def test_refusals():
    rows, up, down = inputs()
    with pytest.raises(ValueError, match="4 experts of 6 hidden units over 2 times 4 workers; expected numbers"):
        tensor_experts(rows, COUNTS, up, down, Config(tensor=4))
    with pytest.raises(ValueError, match="rows of 2 workers; expected 4, as in the config"):
        tensor_experts(rows, COUNTS, up, down, Config(expert=4))
    with pytest.raises(ValueError, match="tensor is 0; expected at least 1"):
        Config(tensor=0)
