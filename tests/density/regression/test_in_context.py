"""Exponential weights against a loop, causality and gradients of the transformer, and that it learns."""

import math

import pytest
import torch

from mixwell.density.regression.in_context import (
    Config,
    InContextRegression,
    draw_prompts,
    exponential_weights,
    ridge_predictions,
    train,
)

TASKS = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_exponential_weights_agree_with_a_loop(generator):
    x, y = draw_prompts(2, 5, TASKS, 0.5, generator)
    found = exponential_weights(x, y, TASKS, 0.5)
    for b in range(2):
        for t in range(5):
            losses = [sum(float(y[b, i] - w @ x[b, i]) ** 2 for i in range(t)) for w in TASKS]
            weights = [math.exp(-loss / (2 * 0.5**2)) for loss in losses]
            expected = sum(a * float(w @ x[b, t]) for a, w in zip(weights, TASKS)) / sum(weights)
            assert abs(float(found[b, t]) - expected) < 1e-10


def test_exponential_weights_have_the_right_gradient(generator):
    x, y = draw_prompts(1, 4, TASKS, 0.5, generator)
    y.requires_grad_()
    assert torch.autograd.gradcheck(lambda y: exponential_weights(x, y, TASKS, 0.7), (y,))


def test_no_predictor_beats_the_exponential_weights(generator):
    x, y = draw_prompts(3000, 6, TASKS, 0.5, generator)
    oracle = ((exponential_weights(x, y, TASKS, 0.5) - y) ** 2).mean(0)
    ridge = ((ridge_predictions(x, y, 0.25) - y) ** 2).mean(0)
    colder = ((exponential_weights(x, y, TASKS, 0.1) - y) ** 2).mean(0)
    assert (oracle < ridge).all() and oracle.sum() < colder.sum()
    assert float(oracle[-1]) < 0.4  # noise alone costs 0.25


def test_one_task_is_known_at_once(generator):
    x, y = draw_prompts(2, 3, TASKS[:1], 0.5, generator)
    torch.testing.assert_close(exponential_weights(x, y, TASKS[:1], 0.5), x @ TASKS[0])


def test_ridge_agrees_with_a_loop(generator):
    x, y = draw_prompts(1, 5, TASKS, 0.5, generator)
    found = ridge_predictions(x, y, 0.3)
    for t in range(5):
        before = x[0, :t]
        w = torch.linalg.solve(before.T @ before + 0.3 * torch.eye(2, dtype=torch.float64), before.T @ y[0, :t])
        torch.testing.assert_close(found[0, t], w @ x[0, t])


def test_the_transformer_reads_nothing_that_comes_later(generator):
    model = InContextRegression(Config(dim=2, max_examples=6, width=16, heads=2), generator).double()
    x, y = draw_prompts(2, 6, TASKS, 0.5, generator)
    before = model(x, y)
    y2, x2 = y.clone(), x.clone()
    y2[:, 3], x2[:, 4] = 9.0, -9.0
    after = model(x2, y2)
    torch.testing.assert_close(after[:, :4], before[:, :4])  # y_3 itself is not read when it is predicted
    assert (after[:, 4:] - before[:, 4:]).abs().min() > 1e-6


def test_a_block_agrees_with_attention_written_out(generator):
    block = InContextRegression(Config(dim=2, max_examples=2, width=4, heads=2), generator).double().blocks[0]
    h = torch.randn(1, 3, 4, generator=generator, dtype=torch.float64)
    q, k, v = block.qkv(block.attend_norm(h))[0].split(4, -1)
    out = torch.zeros(3, 4, dtype=torch.float64)
    for head in range(2):
        part = slice(2 * head, 2 * head + 2)
        for t in range(3):
            weights = torch.softmax(k[: t + 1, part] @ q[t, part] / math.sqrt(2), 0)
            out[t, part] = weights @ v[: t + 1, part]
    expected = h[0] + block.out(out)
    expected = expected + block.down(torch.nn.functional.gelu(block.up(block.mlp_norm(expected))))
    torch.testing.assert_close(block(h)[0], expected)


def test_training_lowers_the_error_and_repeats(generator):
    config = Config(dim=2, max_examples=4, width=16, heads=2, layers=1)

    def run():
        g = torch.Generator().manual_seed(0)
        model = InContextRegression(config, g)
        return list(train(model, TASKS.float(), 0.3, steps=40, batch=16, lr=5e-3, generator=g))

    losses = run()
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10]) and losses == run()


def test_refuses(generator):
    model = InContextRegression(Config(dim=2, max_examples=3, width=8, heads=2), generator)
    with pytest.raises(ValueError, match="expected at most 3 pairs with 2"):
        model(torch.zeros(1, 4, 2), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="multiple of heads, 3"):
        Config(heads=3)
    with pytest.raises(ValueError, match="layers is 0"):
        Config(layers=0)
