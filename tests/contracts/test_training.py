"""What every product of training in few bits promises (family `precision.training`)."""

import copy

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.experts import MoE
from mixwell.experts.layers.moe import Config as MoEConfig
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.precision.training.attached import attach, detach
from tests.contracts._tools import cases, fresh, poisoned_memory, same_config

ENTRIES = cases("precision.training")


def built(entry):
    values = entry.module().example(fresh())
    module = entry.load()(values["shape"], values["config"], fresh(1))
    return module, values["x"], values["weight"]


def slopes(entry):
    module, x, weight = built(entry)
    leaves = [x.requires_grad_(), weight.requires_grad_(), *module.parameters()]
    y = module(x, weight)
    pulled = torch.linspace(-1, 1, y.numel()).view_as(y)
    return y, torch.autograd.grad((y * pulled).sum(), leaves)


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_product_has_its_shape_the_same_bits_and_leaves_its_inputs(entry):
    module, x, weight = built(entry)
    kept = x.clone(), weight.clone()
    with poisoned_memory():
        first = module(x, weight)
    again, _, _ = built(entry)
    assert first.shape == (*x.shape[:-1], module.shape[0]) and torch.isfinite(first).all()
    assert torch.equal(first, again(x, weight))
    assert torch.equal(kept[0], x) and torch.equal(kept[1], weight)
    assert same_config(entry.module().example(fresh())["config"])


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_gradient_reaches_inputs_weight_and_own_parameters(entry):
    _, found = slopes(entry)
    _, again = slopes(entry)
    for slope, same in zip(found, again):
        assert torch.isfinite(slope).all() and bool(slope.any()) and torch.equal(slope, same)


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_rows_are_a_product_of_none(entry):
    module, x, weight = built(entry)
    none = x[0, :0].requires_grad_()
    y = module(none, weight.requires_grad_())
    dx, dw = torch.autograd.grad(y.sum(), (none, weight))
    assert y.shape == (0, module.shape[0]) and dx.shape == none.shape and not dw.any()


@pytest.mark.parametrize("entry", ENTRIES)
def test_says_whether_it_learns(entry):
    module, _, _ = built(entry)
    assert bool(list(module.parameters())) == entry.load().learns


MIXTURE = {"method": "moe", "num_experts": 3, "hidden_dim": 8, "router": {"method": "top_k", "k": 2}}


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(vocab_size=13, dim=16, num_layers=1, num_heads=2, channel_mixer=MIXTURE)
    made = LanguageModel(config, fresh(2))
    with torch.no_grad():
        for parameter in made.layers.parameters():
            if parameter.ndim > 1:
                parameter.mul_(50)  # to a spread of one, as fixed multipliers ask for
    return made


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_model_runs_with_it_every_expert_and_is_as_before_without(entry, model):
    tokens = torch.arange(8).view(1, 8)
    own = copy.deepcopy(model)
    before = own(tokens).logits_BTV
    config = entry.module().example(fresh())["config"]
    values = {name: getattr(config, name) for name in type(config).__dataclass_fields__}
    assert attach(own, entry.name, values, fresh(3)) == 2 + 2 * 3
    loss = own.loss(tokens, tokens.roll(-1, 1)).nats
    loss.backward()
    for name in ("gate_up_proj", "down_proj"):
        grad = getattr(own.layers[0].channel_mixer, name).grad
        assert torch.isfinite(grad).all() and bool(grad.any())
    assert not torch.equal(own(tokens).logits_BTV, before) or entry.name.endswith("dual_activations")
    with pytest.raises(MixwellError, match="has an adapter beside it"):
        attach(own, entry.name)
    detach(own)
    assert torch.equal(own(tokens).logits_BTV, before)


def test_what_has_no_float32_product_is_refused(model):
    with pytest.raises(MixwellError, match="emulated on float32"):
        attach(copy.deepcopy(model).cast(torch.bfloat16), "float8")
    with pytest.raises(MixwellError, match="no product"):
        attach(MoE(16, MoEConfig(num_experts=2, hidden_dim=8), fresh()), "float8")
