"""Repeated choices against a loop over rows, chance as Mixtral's table gives it, and padding between neighbours."""

import pytest
import torch

from mixwell.core.routing import Context, Routing
from mixwell.experts.analysis.repetition import Config, repetition


def routing_of(indices, experts=8):
    slots = torch.as_tensor(indices)
    return Routing(slots, torch.ones(slots.shape), torch.ones(len(slots), experts))


def test_agrees_with_a_loop_inside_rows(generator):
    indices = torch.rand(24, 8, generator=generator).topk(2, dim=-1).indices
    found = repetition(routing_of(indices), Config(), Context(batch_shape=(4, 6)))
    pairs = [(indices[r * 6 + s].tolist(), indices[r * 6 + s + 1].tolist()) for r in range(4) for s in range(5)]
    assert found["pairs"] == 20
    assert found["first"] == pytest.approx(sum(a[0] == b[0] for a, b in pairs) / 20)
    assert found["any"] == pytest.approx(sum(bool(set(a) & set(b)) for a, b in pairs) / 20)
    firsts = indices[:, 0].tolist()
    assert found["first_chance_at_load"] == pytest.approx(sum((firsts.count(e) / 24) ** 2 for e in range(8)))


def test_chance_is_what_mixtrals_table_says():
    found = repetition(routing_of([[0, 1], [2, 3]]), Config(), Context())
    assert found["first_chance"] == 0.125 and round(found["any_chance"], 2) == 0.46


def test_random_choices_repeat_at_chance(generator):
    indices = torch.rand(20000, 8, generator=generator).topk(2, dim=-1).indices
    found = repetition(routing_of(indices), Config(), Context())
    assert found["first"] == pytest.approx(0.125, abs=0.01) and found["any"] == pytest.approx(0.464, abs=0.015)


def test_padding_parts_neighbours():
    mask = torch.tensor([True, False, True, True])
    found = repetition(routing_of([[0], [0], [0], [0]]), Config(), Context(mask_T=mask))
    assert found["pairs"] == 1 and found["first"] == 1


def test_empty_slots_repeat_nothing():
    assert repetition(routing_of([[-1], [-1]]), Config(), Context())["any"] == 0


def test_refuses_rows_that_do_not_fit():
    with pytest.raises(ValueError, match="rows times places"):
        repetition(routing_of([[0], [1], [2]]), Config(), Context(batch_shape=(2, 2)))
