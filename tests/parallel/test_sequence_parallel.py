"""Attention over workers: every mesh gives what one worker gives; bytes and work are those of the formulas."""

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.parallel.sequence_parallel import Config, attention, mesh_of, places, sequence_parallel
from mixwell.parallel.wire import in_threads

S, D = 32, 3


def inputs(groups, heads=8):
    draws = generator(groups)
    return [torch.randn(S, h, D, generator=draws, dtype=torch.float64) for h in (heads, groups, groups)]


def loop(q, k, v):
    """Each place and head by itself."""
    out = torch.zeros_like(q)
    share = q.shape[1] // k.shape[1]
    for s in range(len(q)):
        for h in range(q.shape[1]):
            scores = torch.stack([q[s, h] @ k[t, h // share] for t in range(s + 1)]) / D**0.5
            out[s, h] = sum(w * v[t, h // share] for t, w in enumerate(scores.softmax(0)))
    return out


@pytest.fixture(scope="module")
def expected():
    found = {}
    for groups in (8, 4):
        leaves = [x.requires_grad_() for x in inputs(groups)]
        out = loop(*leaves)
        out.square().sum().backward()
        found[groups] = out.detach(), [x.grad for x in leaves]
    return found


@pytest.mark.parametrize("groups", [8, 4])
@pytest.mark.parametrize("heads, ring", [(1, 1), (4, 1), (1, 4), (2, 2), (4, 2), (2, 4)])
def test_every_mesh_is_one_worker(expected, heads, ring, groups):
    config = Config(heads=heads, ring=ring)
    held, whole = places(S, config), inputs(groups)

    def work(wire):
        parts = [x[held[wire.rank]].requires_grad_() for x in whole]
        out = attention(*parts, mesh_of(wire, config))
        out.square().sum().backward()
        return out.detach(), [part.grad for part in parts]

    found = in_threads(heads * ring, work)
    back = torch.cat(held).argsort()
    out, grads = expected[groups]
    torch.testing.assert_close(torch.cat([part for part, _ in found])[back], out)
    for i, grad in enumerate(grads):
        torch.testing.assert_close(torch.cat([own[i] for _, own in found])[back], grad)


@pytest.mark.parametrize("heads, ring, groups", [(2, 2, 4), (4, 2, 8), (1, 4, 4)])
def test_bytes_are_those_of_the_formula(heads, ring, groups):
    config = Config(heads=heads, ring=ring)
    held, whole = places(S, config), inputs(groups)

    def work(wire):
        mesh = mesh_of(wire, config)
        attention(*(x[held[wire.rank]] for x in whole), mesh)
        return mesh.heads.sent["exchange"], mesh.ring.sent["exchange"]

    n = S // (heads * ring)
    between = (2 * 8 + 2 * groups) * n * D * (heads - 1) // heads
    around = 2 * (groups // heads) * (S // ring) * D * (ring - 1)
    assert in_threads(heads * ring, work) == [(8 * between, 8 * around)] * (heads * ring)


def test_all_rows_have_the_same_work():
    """Pairs of places that each ring row computes, with chunks as they lie and with chunks one after another."""
    held = places(64, Config(heads=1, ring=4))
    zigzag = [sum(int(p) + 1 for p in mine) for mine in held]
    assert max(zigzag) == min(zigzag) == 64 * 65 / 2 / 4
    plain = [sum(int(p) + 1 for p in mine) for mine in torch.arange(64).chunk(4)]
    assert max(plain) / (sum(plain) / 4) > 1.7
    assert torch.cat(held).sort().values.tolist() == list(range(64))


def test_refusals():
    q, k, v = inputs(4)
    with pytest.raises(ValueError, match="32 places; expected a multiple of 24, twice the workers"):
        sequence_parallel(q, k, v, Config(heads=3, ring=4))
    with pytest.raises(ValueError, match="2 heads of keys over 4 workers of a row; expected a number that divides"):
        sequence_parallel(*inputs(2), Config(heads=4, ring=1))
    with pytest.raises(ValueError, match="ring is 0; expected at least 1"):
        Config(ring=0)
