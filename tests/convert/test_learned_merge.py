"""XFT's merge: the weighted sum against a loop, weights that are learnt, the round from dense to dense."""

import pytest
import torch

from mixwell.convert._distil import next_nats
from mixwell.convert.learned_merge import Config, learned_merge, merged, needs, promises
from mixwell.convert.upcycle import Config as UpcycleConfig
from mixwell.convert.upcycle import promises as upcycle_promises
from mixwell.convert.upcycle import upcycle
from mixwell.core.checkpoint import channel_mixers, with_channel_mixers
from mixwell.core.errors import MixwellError
from tests.contracts._conversions import calibration, dense_model, logits, output, sparse_model

DOWN = "layers.1.channel_mixer.down_proj"


@pytest.mark.parametrize("shared", [0, 2])
def test_the_sum_against_a_loop(generator, shared):
    weight, alpha = torch.randn(4, 3, 2, generator=generator), torch.randn(3, generator=generator)
    wanted = 0.6 * weight[shared]
    rest = [e for e in range(4) if e != shared]
    for place, e in enumerate(rest):
        wanted = wanted + 0.4 * alpha[place].exp() / alpha.exp().sum() * weight[e]
    torch.testing.assert_close(merged(weight, alpha, Config(shared=shared, shared_weight=0.6)), wanted)


def test_the_mixture_starts_as_the_dense_model_and_merges_back_into_it(generator):
    dense = dense_model(generator)
    config = UpcycleConfig(num_experts=4, router={"method": "shared_first", "routed": 2})
    sparse = upcycle(dense, config, generator)
    x = torch.randn(7, 6, generator=generator)
    torch.testing.assert_close(output(sparse, 1, x), output(dense, 1, x))
    assert upcycle_promises(config)["max_logit_error"] <= 1e-3
    again = learned_merge(sparse, Config(), generator, calibration())
    assert again.tensors.keys() == dense.tensors.keys() and again.arch["channel_mixer"] == dense.arch["channel_mixer"]
    torch.testing.assert_close(again.tensors[DOWN], dense.tensors[DOWN])


def test_learnt_weights_predict_the_text_better_and_leave_the_rest_alone(generator):
    checkpoint, text = sparse_model(generator), calibration(rows=4)
    tokens = torch.cat(list(text.batches))
    even, learnt = (learned_merge(checkpoint, Config(passes=passes, lr=0.3, shared_weight=0.1), generator, text)
                    for passes in (0, 20))
    assert next_nats(logits(learnt, tokens), tokens) < next_nats(logits(even, tokens), tokens) - 1e-3
    # what came out lies in the span of the experts, with weights that sum to 1
    basis = checkpoint.tensors[DOWN].double().flatten(1).T
    found = torch.linalg.lstsq(basis, learnt.tensors[DOWN].double().flatten()).solution
    torch.testing.assert_close(basis @ found, learnt.tensors[DOWN].double().flatten(), rtol=1e-4, atol=1e-4)
    assert abs(float(found.sum()) - 1) < 1e-4 and abs(float(found[0]) - 0.1) < 1e-4 and (found > 0).all()
    changed = {n for n in learnt.tensors if n in checkpoint.tensors and learnt.tensors[n] is not checkpoint.tensors[n]}
    assert all("channel_mixer" in name for name in changed)


def test_text_is_asked_for_where_weights_are_learnt():
    assert needs(Config(tokens=7)).tokens == 7 and needs(Config(passes=0)).tokens == 0 and promises(Config()) == {}


def test_some_layers_only(generator):
    after = learned_merge(sparse_model(generator), Config(passes=0, layers=(1,)), generator)
    assert [s["method"] for s in channel_mixers(after.arch)] == ["experts.layers.moe", "experts.layers.swiglu"]


def test_refuses_what_it_cannot_do(generator):
    checkpoint = sparse_model(generator)
    with pytest.raises(MixwellError, match="has 4 experts; expected"):
        learned_merge(checkpoint, Config(shared=4, passes=0), generator)
    beside = with_channel_mixers(checkpoint.arch, [dict(s) | {"shared_experts": 1}
                                                   for s in channel_mixers(checkpoint.arch)])
    with pytest.raises(MixwellError, match="shared experts beside the routed ones"):
        learned_merge(checkpoint.derive(arch=beside), Config(passes=0), generator)
    for options in ({"shared": -1}, {"shared_weight": 1.5}, {"passes": -1}, {"lr": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**options)
