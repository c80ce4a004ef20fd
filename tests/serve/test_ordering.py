"""Rows that wait are let in by how short their answers will be, once that was learnt, and none waits for ever."""

import pytest

from mixwell.serve.blocks import BlockPool
from mixwell.serve.ordering import Order
from mixwell.serve.request import Options, Row
from mixwell.serve.scheduler import Scheduler
from tests.serve.conftest import engine, row, small_model


def asked(first, said=0):
    """A row whose prompt begins with one of two ids, and which has said so much."""
    made = Row([first, 5, 6], Options(max_tokens=200), None)
    made.ids += [1] * said
    return made


@pytest.fixture
def order():
    """One that has seen that prompts with a 2 have long answers, those with a 3 short ones."""
    made = Order(every=64, patience=20)
    for place in range(64):
        long = place % 2
        made.learn(asked(2 if long else 3, said=150 if long else 10))
    return made


def test_short_answers_go_first_once_that_was_learnt(order):
    rows = [asked(2), asked(3), asked(2), asked(3)]
    assert Order().sort(rows) == rows
    assert order.sort(rows) == [rows[1], rows[3], rows[0], rows[2]]
    begun = asked(2, said=3)
    assert order.sort([*rows, begun])[0] is begun  # it lost its blocks and goes on


def test_a_row_that_waited_too_long_goes_first(order):
    late = asked(2)
    for _ in range(21):
        order.sort([late])
    assert order.sort([asked(3), late, asked(3)])[0] is late


def test_the_scheduler_lets_in_whom_the_order_puts_first(order):
    scheduler = Scheduler(BlockPool(100, 4), 16, 1, order=order)
    long, short = asked(2), asked(3)
    for each in (long, short):
        scheduler.add(each)
    assert [turn.row for turn in scheduler.plan()] == [short]


def test_an_engine_learns_from_answers_that_end_by_themselves():
    model = small_model()
    made = engine(model, shortest_first=True)
    ending = row(model, [3, 5, 7], most=20)
    plain = engine(model)
    plain.submit(ending)
    while plain.busy:
        plain.step()
    stop = frozenset({ending.said[2]})
    first = ending.said.index(ending.said[2])
    for most, learnt in ((20, 1), (first, 1)):  # the second one ends at its limit
        again = row(model, [3, 5, 7], most=most, stop_ids=stop)
        made.submit(again)
        while made.busy:
            made.step()
        assert len(made.order.seen) == learnt
    assert made.order.seen[0][1] == first
