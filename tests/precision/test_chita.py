"""CHITA: the objective and its slope against autograd, steps that never rise, all supports tried, stages, rows of G."""

import itertools

import pytest
import torch

from mixwell.core import machine
from mixwell.core.errors import MixwellError
from mixwell.precision import chita as module
from mixwell.precision.chita import (
    Config,
    Problem,
    chita,
    example,
    first_change,
    flattened,
    gradients,
    improved,
    promises,
    solved,
    sparse,
    sparsities,
    top_k,
)
from tests.contracts._conversions import calibration, logits, whole

GATE, DOWN = "layers.0.channel_mixer.gate_up_proj", "layers.0.channel_mixer.down_proj"


def problem(generator, rows=6, count=9, ridge=0.05):
    mixing = torch.randn(count, count, generator=generator, dtype=torch.float64)
    G = torch.randn(rows, count, generator=generator, dtype=torch.float64) @ mixing
    start = torch.randn(count, generator=generator, dtype=torch.float64)
    return Problem(G, start, ridge, torch.randn(count, generator=generator, dtype=torch.float64) * 0.1)


def by_hand(one, w):
    y = one.gradients @ one.start
    missed = y - one.gradients @ w
    return 0.5 * (missed * missed).sum() + one.ridge * (w - one.start).square().sum() + (one.linear * w).sum()


def test_value_slope_and_curvature_are_those_of_the_quadratic(generator):
    one = problem(generator)
    w = torch.randn(9, generator=generator, dtype=torch.float64).requires_grad_()
    by_hand(one, w).backward()
    assert one.value(w.detach()) == pytest.approx(float(by_hand(one, w.detach())))
    torch.testing.assert_close(one.slope(w.detach()), w.grad)
    H = one.gradients.T @ one.gradients + 2 * one.ridge * torch.eye(9, dtype=torch.float64)
    assert one.curvature() == pytest.approx(1.05 * float(torch.linalg.eigvalsh(H)[-1]))
    torch.testing.assert_close(2 * one.diagonal(), H.diagonal())


def test_a_support_is_solved_as_normal_equations_would(generator):
    one = problem(generator)
    support = torch.tensor([1, 0, 0, 1, 1, 0, 0, 1, 0]).bool()
    G = one.gradients[:, support]
    left = G.T @ G + 2 * one.ridge * torch.eye(4, dtype=torch.float64)
    right = G.T @ (one.gradients @ one.start) + 2 * one.ridge * one.start[support] - one.linear[support]
    found = solved(one, support)
    torch.testing.assert_close(found[support], torch.linalg.solve(left, right))
    assert bool((found[~support] == 0).all())


def test_no_step_raises_the_objective_and_supports_change(generator):
    one = problem(generator, rows=30, count=60, ridge=1e-3)
    w, everything = solved(one, top_k(one.start, 20) != 0), torch.ones(60, dtype=torch.bool)
    begun, values = w != 0, [one.value(w)]
    for _ in range(8):
        w = improved(one, w, 20, everything)
        values.append(one.value(w))
        assert int((w != 0).sum()) <= 20
    assert all(after <= before for before, after in itertools.pairwise(values)) and values[-1] < 0.8 * values[0]
    assert not torch.equal(begun, w != 0)


def test_the_first_change_of_support_is_where_magnitudes_meet(generator):
    w = torch.tensor([2.0, -1.0, 0.5, 0.0, 0.0])
    slope = torch.tensor([0.3, -0.4, 0.2, 0.7, -0.1])
    found = first_change(w, slope, w != 0)
    before, after = (set(top_k(w - t * slope, 3).nonzero().flatten().tolist()) for t in (0.999 * found, 1.001 * found))
    assert before == {0, 1, 2} and after == {0, 1, 3}


def test_between_the_best_of_all_supports_and_that_of_magnitude(generator):
    for _ in range(4):
        one, k = problem(generator, rows=12), 4
        best = min(one.value(solved(one, torch.tensor([i in kept for i in range(9)])))
                   for kept in itertools.combinations(range(9), k))
        plain = one.value(solved(one, top_k(one.start, k) != 0))
        assert best - 1e-9 <= one.value(sparse(one, k)) <= plain + 1e-9


def test_a_joint_choice_beats_magnitude_and_diagonal_ones_on_their_own_best_weights(generator):
    """Fewer rows than weights, as where gradients are few: what several weights do together decides."""
    for _ in range(3):
        spread = torch.rand(200, generator=generator, dtype=torch.float64).square()
        G = torch.randn(20, 200, generator=generator, dtype=torch.float64) * spread
        start = torch.randn(200, generator=generator, dtype=torch.float64)
        one = Problem(G, start, 0.05, torch.zeros(200, dtype=torch.float64))
        diagonal = G.square().sum(0) / 2 + 0.05
        others = [top_k(start, 60), top_k(start * diagonal.sqrt(), 60)]
        least = min(one.value(solved(one, other != 0)) for other in others)
        assert one.value(sparse(one, 60)) < 0.9 * least


def test_where_weights_do_not_meet_the_choice_is_exact(generator):
    """With orthogonal columns Q is a sum over weights, and the k that lower it most are known."""
    G = torch.diag(torch.rand(8, generator=generator, dtype=torch.float64) + 0.1)
    start = torch.randn(8, generator=generator, dtype=torch.float64)
    one = Problem(G, start, 1e-6, torch.zeros(8, dtype=torch.float64))
    found = sparse(one, 3)
    wanted = (G.diagonal() * start).abs().topk(3).indices.sort().values
    assert torch.equal(found.nonzero().flatten(), wanted)
    torch.testing.assert_close(found[wanted], start[wanted])


@pytest.mark.parametrize("rows", [1, 2])
def test_a_row_of_gradients_is_the_mean_over_its_windows(generator, rows):
    checkpoint, text = whole(example(generator)["checkpoint"]), calibration(rows=3)
    found = gradients(checkpoint, [GATE, DOWN], text, rows)
    assert found.shape == (-(-3 // rows), 3 * 16 * 16 + 3 * 16 * 8)
    tokens, step = torch.cat(list(text.batches))[:rows], 1e-5
    place = 3 * 16 * 16 + 100
    nats = []
    for sign in (1, -1):
        moved = checkpoint.tensors[DOWN].double().clone()
        moved.view(-1)[100] += sign * step
        out = logits(checkpoint.derive(tensors={**checkpoint.tensors, DOWN: moved}), tokens)[:, :-1]
        nats.append(float(-out.log_softmax(-1).gather(-1, tokens[:, 1:, None]).mean()))
    assert float(found[0, place]) == pytest.approx((nats[0] - nats[1]) / (2 * step), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("schedule, middle", [("exponential", 1 - (0.9 * 0.2) ** 0.5), ("linear", 0.45),
                                              ("polynomial", 0.8 - 0.7 / 8)])
def test_sparsity_rises_from_a_tenth_to_what_was_asked(schedule, middle):
    assert sparsities(Config(share=0.8, stages=3, schedule=schedule)) == pytest.approx([0.1, middle, 0.8])
    assert sparsities(Config(share=0.3)) == [0.3]


def test_stages_take_gradients_of_the_model_pruned_so_far(generator, monkeypatch):
    checkpoint, text, met = whole(example(generator)["checkpoint"]), calibration(rows=2, length=6), []

    def watched(now, names, *rest):
        met.append(float((flattened(now.tensors, names) == 0).double().mean()))
        return gradients(now, names, *rest)

    monkeypatch.setattr(module, "gradients", watched)
    after = chita(checkpoint, Config(share=0.6, stages=3, schedule="linear", first_order=True, ridge=1e-3), generator,
                  text)
    assert met == pytest.approx([0.0, 0.1, 0.35], abs=1e-3)
    plain = chita(checkpoint, Config(share=0.6, ridge=1e-3), generator, text)
    assert not torch.equal(after.tensors[DOWN], plain.tensors[DOWN])


def test_refusals(generator, monkeypatch):
    checkpoint = whole(example(generator)["checkpoint"])
    with pytest.raises(ValueError, match=r"share is 1.0; expected above 0 and below 1"):
        Config(share=1.0)
    with pytest.raises(ValueError, match="ridge is 0"):
        Config(ridge=0.0)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 1000)
    with pytest.raises(MixwellError, match=r"6 gradients of 1664 weights take .* GiB; this machine has"):
        gradients(checkpoint, [GATE, DOWN, "layers.0.sequence_mixer.qkv.weight", "layers.0.sequence_mixer.out.weight"],
                  calibration(), 1)
    assert promises(Config()) == {}
