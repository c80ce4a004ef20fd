"""Activations of sparse nets: operators by formula, late acceptance against a loop, a planted best, learnt scales."""

import math

import pytest
import torch
from torch import nn

from mixwell.core.errors import MixwellError
from mixwell.precision.sparse.activations import (
    OPERATORS,
    PUBLISHED,
    Config,
    Scaled,
    activations,
    example,
    moved,
    replace,
)
from mixwell.precision.sparse.sparsifier import network
from tests.contracts._tools import fresh


def formulas(x):
    sign, size, sigmoid = math.copysign(1, x), abs(x), 1 / (1 + math.exp(-x))
    soft = math.log1p(math.exp(x))
    return {"relu": max(x, 0), "relu6": min(max(x, 0), 6), "hardswish": x * min(max(x + 3, 0), 6) / 6,
            "swish": x * sigmoid, "tanh_soft": math.tanh(0.87 * x) * soft, "acon": x / (1 + math.exp(-1.702 * x)),
            "gelu": x * (1 + math.erf(x / 2**0.5)) / 2, "srs": x / (x / 5 + math.exp(-x / 3)),
            "elu": x if x > 0 else math.exp(x) - 1, "tanh": math.tanh(x), "softplus": soft,
            "logsigmoid": math.log(sigmoid),
            "symlog": sign * math.log(size + 1), "symexp": sign * (math.exp(size) - 1)}


@pytest.mark.parametrize("x", [-2.3, -0.4, 0.7, 3.1])
def test_operators_by_their_formulas(x):
    wanted = formulas(x)
    assert set(wanted) == set(OPERATORS) and set(PUBLISHED) == set(OPERATORS) - {"relu"}
    value = torch.tensor(x, dtype=torch.float64)
    for name, operator in OPERATORS.items():
        assert float(operator(value)) == pytest.approx(wanted[name], rel=1e-6), name
        far = operator(torch.tensor([-110_130.0, -1e4, 0.0, 1e4]))
        assert bool((far.abs() <= 1.2e5).all()), name


def test_a_move_redraws_one_place_and_swaps_two():
    config = Config(layers=6)
    state = ["relu6", "tanh", "gelu", "elu", "srs", "acon"]
    draws, counts = fresh(), []
    for _ in range(200):
        found = moved(state, config, draws)
        changed = sum(a != b for a, b in zip(state, found))
        counts.append(changed)
        assert len(found) == 6 and changed <= 3
    assert {0, 1, 2, 3} >= set(counts) and 3 in counts and state[0] == "relu6"


def test_late_acceptance_takes_what_is_no_worse_than_now_or_three_moves_ago():
    """A loop over the same draws, with energies that are told in advance."""
    energies = [5.0, 7.0, 6.0, 4.0, 4.5, 6.5, 3.0, 8.0]
    seen, config = [], Config(layers=2, history=3, evaluations=8)

    def energy(state):
        seen.append(tuple(state))
        return energies[len(seen) - 1]

    found = activations(energy, config, fresh(2))
    accepted, now, late = [0], 5.0, {0: 5.0, 1: 5.0, 2: 5.0}
    for number in range(1, 8):
        if energies[number] <= now or energies[number] <= late[number % 3]:
            accepted.append(number)
            now = energies[number]
        late[number % 3] = now
    assert accepted == [0, 3, 4, 6] and found.operators == seen[6] and found.energy == 3.0
    assert found.history == tuple(energies)


def test_a_planted_best_is_found():
    values = example(fresh())
    config = Config(layers=3, operators=("gelu", "tanh", "swish"), evaluations=150)
    found = activations(values["energy"], config, fresh(3))
    assert found.energy == 0 and found.operators == ("gelu", "tanh", "swish")


def test_operators_take_the_places_of_relus_and_their_scales_learn(generator):
    model = network(generator)
    x = torch.randn(5, 8, generator=generator)
    before = model(x)
    replace(model, ["relu"])
    assert torch.equal(model(x), before)
    replace(model, ["tanh"], learnt=True)
    scale = model[1]
    assert isinstance(scale, Scaled) and isinstance(model[0], nn.Linear)
    with torch.no_grad():
        scale.alpha.fill_(2.0)
        scale.beta.fill_(0.5)
    torch.testing.assert_close(scale(x), 2 * torch.tanh(0.5 * x))
    model(x).square().sum().backward()
    assert float(scale.alpha.grad) != 0 and float(scale.beta.grad) != 0
    with pytest.raises(MixwellError, match="2 operators came for a model with 1 activations"):
        replace(model, ["relu", "relu"])


def test_refusals():
    with pytest.raises(ValueError, match=r"operators names \['mish'\]; expected some of relu"):
        Config(layers=1, operators=("mish",))
    with pytest.raises(ValueError, match="layers is 0"):
        Config(layers=0)
