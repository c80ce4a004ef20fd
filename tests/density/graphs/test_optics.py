"""Likelihoods and posteriors against all paths, in every way of putting brackets, along chains and trees."""

import itertools
import math

import numpy as np
import pytest
import torch

from mixwell.density.graphs.optics import (
    Beside,
    Config,
    Copy,
    Stay,
    Step,
    Then,
    brackets,
    chain,
    smooth_by_optics,
    watched,
)

DRAWS = torch.Generator().manual_seed(0)


def kernel(X, Y, zeros=False):
    table = torch.rand(X, Y, generator=DRAWS, dtype=torch.float64) + 0.05
    if zeros:
        table = table * (torch.rand(X, Y, generator=DRAWS) < 0.6) + torch.eye(X, Y, dtype=torch.float64)
    return table / table.sum(1, keepdim=True)


def h(Y):
    return torch.rand(Y, generator=DRAWS, dtype=torch.float64) + 0.1


START = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def enumerated(parents, tables, leaves, start):
    """Likelihood and posteriors of all nodes of a tree, from every joint state."""
    total, found = 0.0, [np.zeros(len(start)), *(np.zeros(t.shape[1]) for t in tables[1:])]
    for states in itertools.product(*(range(len(f)) for f in found)):
        p = float(start[states[0]])
        for node in range(1, len(parents)):
            p *= float(tables[node][states[parents[node]], states[node]])
        for node, likelihood in leaves.items():
            p *= float(likelihood[states[node]])
        total += p
        for node, state in enumerate(states):
            found[node][state] += p
    return math.log(total), [f / total for f in found]


def agree(found, wanted, order):
    log_likelihood, posteriors = wanted
    assert float(found.log_likelihood) == pytest.approx(log_likelihood, abs=1e-10)
    np.testing.assert_allclose(found.start_X.numpy(), posteriors[0], atol=1e-10)
    assert len(found.measures) == len(order)
    for measure, node in zip(found.measures, order):
        np.testing.assert_allclose(measure.numpy(), posteriors[node], atol=1e-10)


@pytest.mark.parametrize("zeros", [False, True])
def test_every_bracketing_of_a_chain_is_the_posterior(zeros):
    tables = [None, *(kernel(3, 3, zeros) for _ in range(6))]
    end = h(3)
    wanted = enumerated([-1, 0, 1, 2, 3, 4, 5], tables, {6: end}, START)
    ways = brackets([Step(table) for table in tables[1:]])
    assert len(ways) == 42  # Catalan
    for way in ways:
        agree(smooth_by_optics(way, START, end.log()), wanted, range(1, 7))
    turned = smooth_by_optics(chain(*[Step(table) for table in tables[:0:-1]]), START, end.log())
    assert abs(float(turned.log_likelihood) - wanted[0]) > 1e-4


def test_a_tree_fuses_what_its_branches_say():
    """0 - 1 - (2, 3 - (4, 5)), spaces of other sizes, and the same tree with other brackets and idle parts."""
    parents, sizes = [-1, 0, 1, 1, 3, 3], [3, 2, 4, 2, 3, 2]
    tables = [None, *(kernel(sizes[parents[n]], sizes[n]) for n in range(1, 6))]
    ends = {n: h(sizes[n]) for n in (2, 4, 5)}
    wanted = enumerated(parents, tables, ends, START)
    k = [None, *(Step(table) for table in tables[1:])]
    tree = chain(k[1], Copy(), Beside(k[2], chain(k[3], Copy(), Beside(k[4], k[5]))))
    log_h = (ends[2].log(), (ends[4].log(), ends[5].log()))
    agree(smooth_by_optics(tree, START, log_h), wanted, range(1, 6))
    other = Then(k[1], Then(Copy(), Then(Beside(k[2], Then(k[3], Copy())), Beside(Stay(), Beside(k[4], k[5])))))
    agree(smooth_by_optics(other, START, log_h), wanted, range(1, 6))


def test_what_is_emitted_is_a_branch():
    """A hidden Markov model: an observation fuses its likelihood, which is the emission's column."""
    moves, signs = [kernel(3, 3) for _ in range(3)], [kernel(3, 2) for _ in range(3)]
    seen = [0, 1, 1]
    model = watched([Step(t) for t in moves], [Step(t) for t in signs])
    marks = [torch.eye(2, dtype=torch.float64)[y].log() for y in seen]
    free = torch.zeros(3, dtype=torch.float64)
    found = smooth_by_optics(model, START, (marks[0], (marks[1], (marks[2], free))))
    leaves = {t + 1: signs[t][:, seen[t]] for t in range(3)}
    wanted = enumerated([-1, 0, 1, 2], [None, *moves], leaves, START)
    assert float(found.log_likelihood) == pytest.approx(wanted[0], abs=1e-12)
    for t, (state, sign) in enumerate(zip(found.measures[::2], found.measures[1::2], strict=True)):
        np.testing.assert_allclose(state.numpy(), wanted[1][t + 1], atol=1e-12)
        np.testing.assert_allclose(sign.numpy(), np.eye(2)[seen[t]], atol=1e-12)


def test_without_likelihoods_nothing_is_tilted():
    table = kernel(3, 4)
    found = smooth_by_optics(Step(table), START, torch.zeros(4, dtype=torch.float64))
    assert float(found.log_likelihood) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(found.measures[0].numpy(), (START @ table).numpy())


def test_the_slope_passes_states_that_cannot_lead_on():
    table = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.2, 0.3, 0.5]], dtype=torch.float64)
    seen = torch.tensor([-torch.inf, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    start = START.clone().requires_grad_()
    found = smooth_by_optics(chain(Step(table), Step(table)), start, seen)
    found.log_likelihood.backward()
    assert found.start_X[0] == 0 and not any(m.isnan().any() for m in found.measures)
    assert start.grad.isfinite().all() and float(start.grad[0]) == 0
    assert seen.grad.isfinite().all() and float(seen.grad[0]) == 0
    assert torch.autograd.gradcheck(lambda t, e: smooth_by_optics(Step(table), t / t.sum(), e)[:2],
                                    (START.clone().requires_grad_(), h(3).log().requires_grad_()))


def test_a_model_cut_in_two_goes_on_from_what_its_first_half_says():
    """The first half's measure times its likelihood is a start of any sum, and only where that is allowed."""
    first, second, end = kernel(3, 3), kernel(3, 2), h(2)
    whole = smooth_by_optics(chain(Step(first), Step(second)), START, end.log())
    half = 0.5 * (START @ first)
    found = smooth_by_optics(Step(second), half, end.log(), Config(tol=float("inf")))
    assert float(found.log_likelihood) == pytest.approx(float(whole.log_likelihood) + math.log(0.5))
    np.testing.assert_allclose(found.measures[0].numpy(), whole.measures[1].numpy(), atol=1e-12)
    with pytest.raises(ValueError, match="no probability of sum one"):
        smooth_by_optics(Step(second), half, end.log())
    with pytest.raises(ValueError, match="tol is -1"):
        Config(tol=-1.0)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Step(torch.ones(2, 2)), "no probabilities"),
    (lambda: smooth_by_optics(chain(Step(kernel(3, 2)), Step(kernel(3, 2))), START, h(2).log()), r"meets h \(3,\)"),
    (lambda: smooth_by_optics(Beside(Step(kernel(3, 2)), Stay()), START, h(6).log()), r"meet \(6,\); expected a pair"),
    (lambda: smooth_by_optics(Copy(), START, (h(3).log(), h(2).log())), "two of one shape"),
    (lambda: smooth_by_optics(Step(kernel(2, 2)), START, h(2).log()), r"starts from \(2,\), the start is \(3,\)"),
    (lambda: smooth_by_optics(Step(kernel(3, 2)), START, torch.full((2,), -torch.inf)), "no probability"),
    (lambda: watched([Stay()], []), "1 steps for 0 emissions")])
def test_refuses(make, words):
    with pytest.raises(ValueError, match=words):
        make()
