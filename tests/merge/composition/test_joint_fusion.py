"""Joint fusion: the twins' own functions at the start, causal reading after it, wide maps that keep each parent."""

import pytest
import torch
from torch import nn

from mixwell.merge.composition.joint_fusion import Config, JointFusion, wide_head, wide_map, wide_rows


def twins(generator, every=1):
    layers = [[nn.Linear(4, 4) for _ in range(3)] for _ in range(2)]
    return layers, JointFusion(*layers, 4, Config(every=every), generator)


@pytest.mark.parametrize("every", [1, 2])
def test_both_stacks_answer_as_before_until_a_gate_opens(every, generator):
    (first, second), fused = twins(generator, every)
    x = torch.randn(2, 5, 4, generator=generator)
    one, other = x, x
    for a, b in zip(first, second):
        one, other = a(one), b(other)
    found = fused(x, x)
    torch.testing.assert_close(found[0], one)
    torch.testing.assert_close(found[1], other)
    torch.testing.assert_close(fused.joined(*found), (one + other) / 2)
    assert len(fused.into_first) == 3 // every
    sum(part.sum() for part in found).backward()
    assert float(fused.into_first[0].gate.grad.abs()) > 0  # the gate learns from the first step on


def test_an_open_gate_reads_the_other_stack_and_no_later_position(generator):
    _, fused = twins(generator)
    with torch.no_grad():
        fused.into_first[0].gate.fill_(1.0)
    x, y = (torch.randn(1, 5, 4, generator=generator) for _ in range(2))
    found, untouched = fused(x, y)
    changed = y.clone()
    changed[0, 3] += 1
    moved, _ = fused(x, changed)
    torch.testing.assert_close(moved[0, :3], found[0, :3])
    assert float((moved[0, 3:] - found[0, 3:]).abs().min()) > 0
    alone, _ = fused(x, torch.zeros_like(y))
    assert not torch.allclose(alone, found) and untouched.shape == x.shape


def test_a_wide_model_answers_the_mean_of_its_parents(generator):
    embeds, maps, heads = ([torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)]
                           for _ in range(3))
    maps = [torch.randn(4, 4, generator=generator) for _ in range(2)]
    tokens = torch.tensor([0, 3, 5])
    wide = torch.relu(wide_rows(*embeds)[tokens] @ wide_map(*maps).T) @ wide_head(*heads).T
    own = [torch.relu(e[tokens] @ w.T) @ h.T for e, w, h in zip(embeds, maps, heads)]
    torch.testing.assert_close(wide, (own[0] + own[1]) / 2)
    with pytest.raises(ValueError, match="twins of one depth"):
        JointFusion([torch.tanh], [], 4, Config(), generator)
    with pytest.raises(ValueError, match="every is 0"):
        Config(every=0)
