"""The soft mixture of adapters against a loop, its padding, its gradients, what it refuses."""

import math

import pytest
import torch

from mixwell.adapters.soft_moa import Config, SoftMoA
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from tests.contracts._adapters import model, moved
from tests.contracts._tools import fresh

OPTIONS = {"num_experts": 3, "slots_per_expert": 2, "rank": 2}
NAME = "layers.0.channel_mixer"


@pytest.fixture
def pair():
    there = moved(SoftMoA.attach(model(), None, Config(**OPTIONS), fresh()), size=0.3)
    there.model.double()
    return there.model.layers[0].channel_mixer, there.adapters[NAME]


def softmax(values):
    top = max(values)
    raised = [math.exp(value - top) for value in values]
    return [value / sum(raised) for value in raised]


def test_it_agrees_with_a_loop_where_a_row_ends_in_padding(pair):
    mixer, own = pair
    x_TD = torch.randn(8, 16, generator=fresh(3), dtype=torch.float64)
    mask_T = torch.tensor([True] * 7 + [False])
    with torch.no_grad():
        y = mixer(x_TD, Context(batch_shape=(2, 4), mask_T=mask_T)).y_TD
        base = own.base(x_TD, Context()).y_TD
        for row in ([0, 1, 2, 3], [4, 5, 6]):
            logits = [[float(x_TD[t] @ phi) for phi in own.slots] for t in row]
            outputs = []
            for s in range(6):
                share = softmax([line[s] for line in logits])
                z = sum(weight * x_TD[t] for weight, t in zip(share, row))
                h = own.down[s // 2] @ z + own.down_bias[s // 2]
                h = torch.tensor([v / 2 * (1 + math.erf(v / 2**0.5)) for v in h.tolist()], dtype=torch.float64)
                outputs.append(own.up[s // 2] @ h + own.up_bias[s // 2])
            for line, t in zip(logits, row):
                more = sum(weight * out for weight, out in zip(softmax(line), outputs))
                torch.testing.assert_close(y[t], base[t] + more)
        assert torch.equal(y[7], base[7])  # padding gets nothing


def test_rows_do_not_see_each_other_and_every_adapter_has_a_gradient(pair):
    mixer, own = pair
    x_TD = torch.randn(8, 16, generator=fresh(3), dtype=torch.float64)
    other = torch.cat((x_TD[:4], torch.randn(4, 16, generator=fresh(4), dtype=torch.float64)))
    first, second = (mixer(x, Context(batch_shape=(2, 4))).y_TD for x in (x_TD, other))
    torch.testing.assert_close(first[:4], second[:4])
    first.square().sum().backward()
    assert own.up.grad.flatten(1).any(1).all() and own.down.grad.flatten(1).any(1).all() and own.slots.grad.any(1).all()


def test_no_token_gives_none_and_a_rank_above_the_width_is_refused(pair):
    mixer, _ = pair
    assert mixer(torch.zeros(0, 16, dtype=torch.float64), Context()).y_TD.shape == (0, 16)
    with pytest.raises(MixwellError, match=r"rank is 17 at layers\.0\.channel_mixer"):
        SoftMoA.attach(model(), None, Config(rank=17), fresh())
    with pytest.raises(ValueError, match="slots_per_expert is 0"):
        Config(slots_per_expert=0)
