"""Shared arrays against entries read one by one in Python; the divided gradient; no sharing at ratio one."""

import copy

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.mixing import build_structured
from mixwell.precision.structured.parameter_sharing import PRIME, Config, ParameterSharing, signs, slots
from tests.contracts._tools import fresh

SHAPES = [(4, 6), (6, 4), (3, 5)]


def slot(place, size, hashed):
    r0, r1, r2 = hashed[:3]
    chunk = place // size
    h = ((chunk * r0 + chunk * chunk * r1 + r2) % PRIME) % size
    return (h + place % size) % size


def by_hand(matrices):
    """Each matrix entry by entry, in Python's integers."""
    first = matrices[0]
    hashed, size = first.hashed.tolist(), len(first.array)
    place, found = 0, []
    for matrix in matrices:
        entries = []
        for _ in range(matrix.rows * matrix.columns):
            sign = float(signs(place, 1, first.hashed))
            entries.append(matrix.weight.detach()[0] * sign * first.array[slot(place, size, hashed)])
            place += 1
        found.append(torch.stack(entries).view(matrix.rows, matrix.columns))
    return found


def test_every_entry_is_the_one_that_the_hash_names(generator):
    made = ParameterSharing.build(SHAPES, Config(ratio=0.3), generator, None)
    assert len(made[0].array) == 19  # 63 places, rounded up
    for matrix, expected in zip(made, by_hand(made)):
        torch.testing.assert_close(matrix.dense(), expected)
    assert sum(p.numel() for m in made for p in m.parameters()) == 19 + 3
    hashed = torch.tensor([PRIME - 1, PRIME - 2, PRIME - 3, 5, 7])
    expected = [slot(place, 1000, hashed.tolist()) for place in range(10**8, 10**8 + 40)]
    assert slots(10**8, 40, 1000, hashed).tolist() == expected
    both = signs(0, 4000, made[0].hashed)
    assert set(both.tolist()) == {-1.0, 1.0} and abs(float(both.mean())) < 0.1


def test_each_chunk_takes_every_number_once_and_at_ratio_one_none_is_shared(generator):
    """The paper's promise: sharing is even, and without compression the matrices are free."""
    hashed = ParameterSharing.build(SHAPES, Config(ratio=0.3), generator, None)[0].hashed
    found = slots(0, 57, 19, hashed).view(3, 19)
    assert all(sorted(chunk) == list(range(19)) for chunk in found.tolist())
    free = ParameterSharing.build(SHAPES, Config(ratio=1), generator, None)
    assert sorted(slots(0, 63, 63, free[0].hashed).tolist()) == list(range(63))


def stepped(bound, lr=0.1, scaled=True):
    """How far one step of plain descent moves the matrices, the array's scale being `bound`."""
    made = ParameterSharing.build(SHAPES[:2], Config(ratio=0.3, bound=bound, scaled=scaled), fresh(1), 0.5)
    x = torch.randn(5, 6, generator=fresh(2))
    before = [m.dense().detach() for m in made]
    loss = made[1](made[0](x, Context()).relu(), Context()).square().mean()
    loss.backward()
    array = made[0].array
    with torch.no_grad():
        array -= lr * array.grad
    return [m.dense().detach() - b for m, b in zip(made, before)], made, before


def test_a_step_moves_the_matrices_by_the_mean_gradient_of_each_numbers_uses():
    found, made, before = stepped(0.05)
    dense = [b.clone().requires_grad_() for b in before]
    x = torch.randn(5, 6, generator=fresh(2))
    ((x @ dense[0].T).relu() @ dense[1].T).square().mean().backward()
    size, hashed = len(made[0].array), made[0].hashed.tolist()
    slopes = torch.cat([w.grad.flatten() for w in dense])
    signed = signs(0, 48, made[0].hashed) * slopes
    sums, uses = torch.zeros(size), torch.zeros(size)
    for place in range(48):
        own = slot(place, size, hashed)
        sums[own] += signed[place]
        uses[own] += 1
    places = [slot(place, size, hashed) for place in range(48)]
    expected = -0.1 * signs(0, 48, made[0].hashed) * (sums / uses)[places]
    torch.testing.assert_close(torch.cat([f.flatten() for f in found]), expected, rtol=2e-3, atol=1e-6)


def test_the_divisor_is_made_once_and_anew_where_lambda_changes(monkeypatch):
    def slope(made):
        (found,) = torch.autograd.grad(made[1].dense().square().sum(), made[0].array)
        return found

    made, other = (ParameterSharing.build(SHAPES, Config(ratio=0.3), fresh(1), 0.5) for _ in range(2))
    made[0].dense(), slope(made)
    with monkeypatch.context() as patched:
        patched.setattr(made[0].group, "_summed", None)
        slope(made)
    for matrices in (made, other):
        with torch.no_grad():
            matrices[2].weight.mul_(3)
    assert torch.equal(slope(made), slope(other))


def test_the_arrays_scale_does_not_count_with_the_division_and_does_without():
    small, large = (torch.cat([f.flatten() for f in stepped(bound)[0]]) for bound in (0.01, 1.0))
    torch.testing.assert_close(small, large, rtol=5e-3, atol=1e-5)
    small, large = (torch.cat([f.flatten() for f in stepped(bound, 1e-4, False)[0]]) for bound in (0.01, 1.0))
    assert float(small.norm()) > 1000 * float(large.norm())


def test_copies_and_states_keep_one_array(generator):
    net = torch.nn.ModuleList(build_structured({"method": "parameter_sharing", "ratio": 0.3}, SHAPES, generator))
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin[0].array.mul_(2)
    torch.testing.assert_close(twin[2].dense(), 2 * net[2].dense())
    assert [name for name in net.state_dict() if "array" in name] == ["0.array"]
    other = torch.nn.ModuleList(build_structured({"method": "parameter_sharing", "ratio": 0.3}, SHAPES, fresh(9)))
    assert not torch.equal(other[2].dense(), net[2].dense())
    other.load_state_dict(net.state_dict())  # with another hash than before
    torch.testing.assert_close(other[2].dense(), net[2].dense())


def test_refuses():
    with pytest.raises(ValueError, match="ratio is 2; expected at most 1"):
        Config(ratio=2)
    with pytest.raises(ValueError, match="bound is 0"):
        Config(bound=0)
