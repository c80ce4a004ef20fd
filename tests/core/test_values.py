"""Generators and receipts."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator, spawn
from mixwell.lm.receipt import Receipt


def test_the_same_keys_give_the_same_stream():
    draw = lambda *keys: torch.rand(4, generator=generator(*keys))  # noqa: E731
    assert torch.equal(draw(0, "data"), draw(0, "data"))
    assert not torch.equal(draw(0, "data"), draw(1, "data"))
    assert not torch.equal(draw(0, "data"), draw(0, "model"))


def test_spawned_generators_differ_and_repeat():
    children = [[torch.rand(3, generator=g) for g in spawn(generator(5), 3)] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*children))
    assert not torch.equal(children[0][0], children[0][1])


def receipt(**changes):
    values = {"method": "m", "max_logit_error": 1e-6, "kl_nats": 0.0, "loss_before_nats": 2.0, "loss_after_nats": 2.0,
              "parameters_before": 1, "parameters_after": 2, "size_before_bytes": 4, "size_after_bytes": 8}
    return Receipt(**(values | changes))


def test_a_kept_promise_passes_and_a_broken_one_is_loud():
    assert receipt(promises={"max_logit_error": 1e-5}).check().to_dict()["kept"] is True
    with pytest.raises(MixwellError, match=r"max_logit_error is 0\.5, promised at most 1e-05"):
        receipt(max_logit_error=0.5, promises={"max_logit_error": 1e-5}).check()
    assert receipt(kl_nats=float("nan"), promises={"kl_nats": 1.0}).broken()
