"""Fewer active experts: weights of those left, the k that a share of the weight asks for, the loss agreed to."""

import pytest
import torch

from mixwell.convert._parts import smallest_k
from mixwell.convert.fewer_active import Config, fewer_active, mean_weights, needs, promises
from mixwell.core.errors import MixwellError
from tests.contracts._conversions import block, calibration, output, sparse_model, spec


@pytest.mark.parametrize("renormalise", [None, True, False])
def test_the_best_ones_are_left_with_their_weights(generator, renormalise):
    checkpoint = sparse_model(generator)
    after = fewer_active(checkpoint, Config(k=1, renormalise=renormalise), generator)
    assert all(after.tensors[n] is t for n, t in checkpoint.tensors.items())
    x = torch.randn(5, 6, generator=generator)
    for x_D, y_D in zip(x, output(after, 1, x)):
        p = torch.softmax(checkpoint.tensors["layers.1.channel_mixer.router.weight"].double() @ x_D.double(), 0)
        e = int(p.argmax())
        part = block(checkpoint.tensors["layers.1.channel_mixer.gate_up_proj"][e],
                     checkpoint.tensors["layers.1.channel_mixer.down_proj"][e], x_D)
        torch.testing.assert_close(y_D, part * (p[e] if renormalise is False else 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share, k", [(0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (1.0, 4)])
def test_the_smallest_k_that_carries_the_share(share, k):
    assert smallest_k(torch.tensor([5.0, 3.0, 1.5, 0.5]), share) == k


def test_a_share_of_the_weight_gives_each_layer_its_k(generator):
    checkpoint, text = sparse_model(generator), calibration()
    found = mean_weights(checkpoint, [0, 1], text)
    assert all(w[0] > w[1] and abs(float(w.sum()) - 72) < 1e-3 for w in found.values())
    first = {layer: float(w[0] / w.sum()) for layer, w in found.items()}
    between = sum(first.values()) / 2
    after = fewer_active(checkpoint, Config(mass=between), generator, text)
    for layer in range(2):
        assert spec(after, layer)["router"]["k"] == (1 if first[layer] >= between else 2)


def test_some_layers_only(generator):
    after = fewer_active(sparse_model(generator), Config(k=1, layers=(1,)), generator)
    assert [spec(after, layer)["router"]["k"] for layer in range(2)] == [2, 1]


def test_says_what_it_needs_and_promises():
    assert needs(Config(k=1)).tokens == 0 and needs(Config(mass=0.9, tokens=7)).tokens == 7
    assert promises(Config(k=1)) == {} and promises(Config(k=1, max_kl_nats=0.1)) == {"kl_nats": 0.1}


def test_refuses_what_it_cannot_do(generator):
    with pytest.raises(MixwellError, match="takes 2 experts a token already"):
        fewer_active(sparse_model(generator), Config(k=2), generator)
    for options in ({}, {"k": 1, "mass": 0.5}, {"k": 0}, {"mass": 1.5}, {"k": 1, "max_kl_nats": 0.0}):
        with pytest.raises(ValueError, match=r"expected|one of the two"):
            Config(**options)
