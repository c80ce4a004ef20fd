"""MoSA against masked copies, its modules, its merging, what it refuses."""

import pytest
import torch
from torch.nn.functional import gelu

from mixwell.adapters.mosa import Config, MoSA, cut
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from tests.contracts._adapters import model, moved
from tests.contracts._tools import fresh

NAME = "layers.0.channel_mixer"


def beside(size=0.3, **options):
    config = Config(**{"modules": 3, "rank": 4, "scale": 0.5} | options)
    there = moved(MoSA.attach(model(), None, config, fresh()), size=size)
    there.model.double()
    return there.model.layers[0].channel_mixer, there.adapters[NAME]


def test_modules_are_disjoint_and_cover_all_evenly():
    module = cut((16, 5), 3, fresh())
    sizes = torch.bincount(module.flatten().long(), minlength=3)
    assert sizes.sum() == 80 and sizes.max() - sizes.min() <= 1
    assert not torch.equal(module, cut((16, 5), 3, fresh(1)))


def test_training_by_gradient_descent_is_that_of_masked_copies():
    mixer, own = beside(size=0.0)
    x = torch.randn(6, 16, generator=fresh(3), dtype=torch.float64)
    own.train()
    copies = [torch.zeros(16, 4, dtype=torch.float64) for _ in range(3)]
    base = own.base(x, Context()).y_TD.detach()
    draws, same = fresh(7), fresh(7)
    seen = set()
    for _ in range(6):
        n = int(torch.randint(3, (), generator=same))
        seen.add(n)
        own.up.grad = None
        (mixer(x, Context(generator=draws)).y_TD - 1).square().sum().backward()
        hidden = gelu(x @ own.down.detach().T)
        error = base + 0.5 * hidden @ copies[n].T - 1
        copies[n] -= 0.01 * (2 * 0.5 * error.T @ hidden) * (own.module == n)
        with torch.no_grad():
            own.up -= 0.01 * own.up.grad
    assert len(seen) > 1
    own.eval()
    merged = sum(copies) / 3
    torch.testing.assert_close(mixer(x, Context(generator=draws)).y_TD, base + 0.5 * hidden @ merged.T)


def test_a_single_module_is_a_plain_adapter_and_dropout_is_drawn():
    mixer, own = beside(modules=1)
    x = torch.randn(6, 16, generator=fresh(3), dtype=torch.float64)
    hidden = gelu(x @ own.down.T + own.down_bias)
    expected = own.base(x, Context()).y_TD + 0.5 * (hidden @ own.up.T + own.up_bias)
    own.train()
    torch.testing.assert_close(mixer(x, Context(generator=fresh(1))).y_TD, expected)
    mixer, own = beside(modules=1, dropout=0.5)
    own.train()
    first, second = (mixer(x, Context(generator=fresh(seed))).y_TD for seed in (1, 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("options, message", [
    ({"modules": 0}, "modules is 0"), ({"modules": 256}, "expected at most 255"), ({"dropout": 1.0}, "expected 0 up")])
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
    with pytest.raises(MixwellError, match=r"rank is 17 at layers\.0\.channel_mixer"):
        MoSA.attach(model(), None, Config(rank=17), fresh())
