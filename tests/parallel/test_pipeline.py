"""The pipeline gives the unsplit network's gradients, keeps what it says, and waits as long as the formula says."""

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.parallel.pipeline import Config, Pipe, Task, idle_share, pipeline, schedule, step_seconds
from mixwell.parallel.wire import in_threads


def inputs(stages):
    draws = generator(stages)
    rows = torch.randn(7, 4, generator=draws, dtype=torch.float64)
    return rows, torch.randn(stages, 4, 4, generator=draws, dtype=torch.float64)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("stages, micro_batches", [(1, 1), (1, 3), (2, 1), (3, 3), (4, 7), (3, 5)])
def test_gradients_are_those_of_the_unsplit_network(stages, micro_batches, recompute):
    rows, weights = inputs(stages)
    loss, grads = pipeline(rows, weights, Config(micro_batches=micro_batches, recompute=recompute))
    whole = weights.clone().requires_grad_()
    x = rows
    for weight in whole:
        x = torch.tanh(x @ weight.T)
    expected = (x**2).sum() / 14
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, whole.grad, rtol=1e-12, atol=1e-12)


def test_a_stage_keeps_inputs_and_the_inside_of_one_micro_batch():
    """Counted as tensors that autograd holds: of one inside at a time with recomputation, of all without."""
    rows, weights = inputs(3)

    def most_held(recompute):
        def work(wire):
            held, most = [0], [0]

            class Held:
                def __init__(self, tensor):
                    self.tensor = tensor
                    held[0] += 1
                    most[0] = max(most[0], held[0])

                def __del__(self):
                    held[0] -= 1

            weight = weights[wire.rank].clone().requires_grad_()

            def stage(x):
                with torch.autograd.graph.saved_tensors_hooks(Held, lambda kept: kept.tensor):
                    return (x @ weight.mT).tanh()

            pipe = Pipe(stage, wire, Config(micro_batches=7, recompute=recompute))
            pipe.loss(rows, lambda rows, number: rows.square().sum())
            assert not pipe.kept
            return most[0]

        return in_threads(3, work)

    assert most_held(False) == [7 * 2, 7 * 3, 7 * 3], "rows, weight where rows have a gradient, result of the tanh"
    assert most_held(True) == [2, 3, 3]


@pytest.mark.parametrize("stages, micro_batches", [(2, 4), (4, 4), (4, 16), (1, 3)])
def test_the_idle_share_is_the_formulas(stages, micro_batches):
    ticks = list(schedule(stages, micro_batches))
    busy = sum(len(tasks) for tasks in ticks)
    assert busy == stages * micro_batches
    assert 1 - busy / (stages * len(ticks)) == pytest.approx(idle_share(stages, micro_batches))
    assert step_seconds([0.5] * stages, micro_batches) == pytest.approx(0.5 * len(ticks))
    assert step_seconds([0.1] * (stages - 1) + [1.0], 9) == pytest.approx(0.1 * (stages - 1) + 9), "the slowest decides"


def test_each_stage_follows_the_one_before_it():
    assert list(schedule(2, 3)) == [[Task(0, 0)], [Task(1, 0), Task(0, 1)], [Task(2, 0), Task(1, 1)], [Task(2, 1)]]


def test_refusals():
    rows, weights = inputs(2)
    with pytest.raises(ValueError, match="7 rows in 8 micro-batches; expected one row for each at least"):
        pipeline(rows, weights, Config(micro_batches=8))
    with pytest.raises(ValueError, match="micro_batches is 0; expected at least 1"):
        Config(micro_batches=0)
