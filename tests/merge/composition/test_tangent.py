"""Tangent composition: linear exactly, averages are ensembles, forgetting is exact, training lowers the loss."""

import pytest
import torch

from mixwell.merge.composition.tangent import Config, composed, fitted, forgotten, tangent


def net(parameters, x):
    return torch.relu(x @ parameters["a"].T) @ parameters["b"].T


@pytest.fixture
def parts(generator):
    start = {"a": torch.randn(6, 4, generator=generator, dtype=torch.float64),
             "b": torch.randn(3, 6, generator=generator, dtype=torch.float64)}
    changes = [{name: torch.randn(t.shape, generator=generator, dtype=torch.float64) for name, t in start.items()}
               for _ in range(3)]
    return start, changes, torch.randn(5, 4, generator=generator, dtype=torch.float64)


def test_it_is_the_first_order_term(parts):
    start, (change, *_), x = parts
    jacobians = torch.autograd.functional.jacobian(lambda a, b: net({"a": a, "b": b}, x), (start["a"], start["b"]))
    expected = net(start, x) + sum((j * change[name]).sum((-2, -1)) for name, j in zip("ab", jacobians))
    torch.testing.assert_close(tangent(net, start, change, x), expected)
    nothing = {name: torch.zeros_like(t) for name, t in start.items()}
    torch.testing.assert_close(tangent(net, start, nothing, x), net(start, x))


def test_the_mean_of_changes_answers_the_mean_of_answers(parts):
    start, changes, x = parts
    together = tangent(net, start, composed(changes), x)
    answers = [tangent(net, start, change, x) for change in changes]
    torch.testing.assert_close(together, torch.stack(answers).mean(0))
    weighted = tangent(net, start, composed(changes, [0.5, 0.2, 0.3]), x)
    torch.testing.assert_close(weighted, 0.5 * answers[0] + 0.2 * answers[1] + 0.3 * answers[2])


def test_what_was_added_is_taken_out_exactly(parts):
    start, changes, _ = parts
    left = forgotten(composed(changes), changes[1], 3)
    never = composed([changes[0], changes[2]])
    for name in start:
        torch.testing.assert_close(left[name], never[name])
    with pytest.raises(ValueError, match="count is 1"):
        forgotten(never, changes[0], 1)
    with pytest.raises(ValueError, match="no change came"):
        composed([])


def test_a_part_learns_its_labels(generator):
    start = {"a": torch.randn(16, 4, generator=generator), "b": torch.randn(3, 16, generator=generator)}
    x = torch.randn(30, 4, generator=generator)
    labels = x[:, :3].argmax(-1)
    change = fitted(net, start, x, labels, Config(lr=0.05, steps=150))
    before = float((net(start, x).argmax(-1) == labels).float().mean())
    after = float((tangent(net, start, change, x).argmax(-1) == labels).float().mean())
    assert after > 0.9 > before
    small = fitted(net, start, x, labels, Config(lr=0.05, steps=150, target=5.0, penalty=10.0))
    assert small["a"].norm() < change["a"].norm()
    with pytest.raises(ValueError, match="steps 0"):
        Config(steps=0)
