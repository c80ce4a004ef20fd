"""RegMean: the least squares over all models' inputs, the mean as a limit, inputs noted in a forward pass."""

import pytest
import torch
from torch import nn

from mixwell.merge.regmean import Config, damped, grams, regmean, solved


def test_it_is_the_least_squares_over_all_inputs(generator):
    seen = [torch.randn(30, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    maps = [torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    gram = [x.T @ x / 30 for x in seen]
    outputs = torch.cat([x @ w.T for x, w in zip(seen, maps)])
    expected = torch.linalg.lstsq(torch.cat(seen), outputs).solution.T
    found = solved(maps, gram, [1.0, 1.0], a=1.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_inputs_that_nobody_saw_stay_as_in_the_mean_and_one_model_stays(generator):
    maps = [torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    nothing = torch.zeros(5, 5)
    torch.testing.assert_close(solved(maps, [nothing, nothing], [1.0, 3.0], 0.9), (maps[0] + 3 * maps[1]) / 4)
    one = torch.zeros(5, 5)
    one[0, 0] = 1.0  # a single input was seen
    found = solved(maps, [one, one], [1.0, 1.0], 1.0)
    torch.testing.assert_close(found, (maps[0] + maps[1]) / 2, rtol=1e-6, atol=1e-6)
    gram = torch.eye(5) + 0.1
    torch.testing.assert_close(solved(maps[:1], [gram], [2.0], 0.9), maps[0], rtol=1e-5, atol=1e-5)


def test_damping_keeps_the_diagonal():
    gram = torch.tensor([[2.0, 1.0], [1.0, 4.0]])
    assert torch.equal(damped(gram, 0.0), torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    torch.testing.assert_close(damped(gram, 0.5), torch.tensor([[2.0, 0.5], [0.5, 4.0]]))


def test_grams_are_noted_and_the_rest_is_averaged(generator):
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    batches = [torch.randn(2, 5, 4, generator=generator) for _ in range(3)]
    found = grams(model, model, batches)
    rows = torch.cat([batch.reshape(-1, 4) for batch in batches])
    torch.testing.assert_close(found["0.weight"], rows.T @ rows / 30)
    hidden = torch.tanh(model[0](rows))
    torch.testing.assert_close(found["2.weight"], hidden.T.detach() @ hidden.detach() / 30)
    assert not model[0]._forward_pre_hooks
    state = model.state_dict()
    moved = {name: tensor + 1 for name, tensor in state.items()}
    merged = regmean([state, moved], [found, found], Config())
    torch.testing.assert_close(merged["0.bias"], state["0.bias"] + 0.5)
    torch.testing.assert_close(merged["0.weight"], state["0.weight"] + 0.5, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="a is 2"):
        Config(a=2)
    with pytest.raises(ValueError, match="the weights sum to 0"):
        regmean([state, moved], [found, found], Config(weight=(1.0, -1.0)))
