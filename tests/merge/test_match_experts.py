"""Expert matching: shuffled experts and units are recovered exactly, routers with them; what each option does."""

import pytest
import torch

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.merge.match_experts import Config, centred, match_experts, match_layer, matched_units

STEM = "layers.{}.channel_mixer."


def mixture(generator, router="top_k"):
    config = ModelConfig(vocab_size=20, dim=8, num_layers=2, num_heads=2,
                         channel_mixer={"method": "moe", "num_experts": 4, "hidden_dim": 6,
                                        "router": {"method": router, "k": 2}})
    return LanguageModel(config, generator).to_checkpoint()


def shuffled(checkpoint, generator):
    """The same function with experts and their units in another order."""
    tensors = dict(checkpoint.tensors)
    for layer in range(2):
        stem = STEM.format(layer)
        experts = torch.randperm(4, generator=generator)
        gate_up, down = tensors[f"{stem}gate_up_proj"][experts].clone(), tensors[f"{stem}down_proj"][experts].clone()
        for e in range(4):
            units = torch.randperm(6, generator=generator)
            gate_up[e] = torch.cat([gate_up[e][:6][units], gate_up[e][6:][units]])
            down[e] = down[e][:, units]
        tensors |= {f"{stem}gate_up_proj": gate_up, f"{stem}down_proj": down}
        for name in checkpoint.tensors:
            if name.startswith(f"{stem}router."):
                tensors[name] = tensors[name][experts]
    return checkpoint.derive(tensors=tensors)


def noisy(checkpoint, generator):
    return checkpoint.derive(tensors={name: tensor + 0.002 * torch.randn(tensor.shape, generator=generator)
                                      for name, tensor in checkpoint.tensors.items()})


@torch.no_grad()
def logits(checkpoint):
    tokens = torch.arange(14).view(2, 7)
    return LanguageModel.from_checkpoint(checkpoint)(tokens).logits_BTV


@pytest.mark.parametrize("router", ["top_k", "loss_free_bias"])
def test_a_shuffled_copy_is_recovered(router, generator):
    first = mixture(generator, router)
    second = shuffled(first, generator)
    torch.testing.assert_close(logits(first), logits(second), rtol=1e-4, atol=1e-5)
    found = match_experts([first, second], None, Config(t=1.0, centre=False), generator)
    for name, tensor in first.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name


def test_the_mean_of_a_shuffled_fine_tune_is_that_of_the_one_in_order(generator):
    first = mixture(generator)
    tuned = noisy(first, generator)
    plain = match_experts([first, tuned], None, Config(), generator)
    found = match_experts([first, shuffled(tuned, generator)], None, Config(), generator)
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-5, atol=1e-6)
    naive = {name: (tensor + shuffled(tuned, generator).tensors[name]) / 2 for name, tensor in first.tensors.items()}
    ruined = float((logits(first.derive(tensors=naive)) - logits(first)).abs().max())
    kept = float((logits(found) - logits(first)).abs().max())
    assert kept < ruined


def test_centred_routers_choose_as_before(generator):
    first = mixture(generator)
    alone = match_experts([first, first], None, Config(), generator)
    torch.testing.assert_close(logits(alone), logits(first), rtol=1e-4, atol=1e-5)
    name = f"{STEM.format(0)}router.weight"
    assert float(alone.tensors[name].sum(0).abs().max()) < 1e-5 < float(first.tensors[name].sum(0).abs().max())
    torch.testing.assert_close(alone.tensors[name], centred(first.tensors[name]))


def test_units_and_routers_count_as_asked(generator):
    rows = torch.randn(5, 6, generator=generator)
    order, left = matched_units(rows, rows.flip(0), permute=True)
    assert left == 0 and order.tolist() == [4, 3, 2, 1, 0]
    order, left = matched_units(rows, rows.flip(0), permute=False)
    assert left > 0 and order.tolist() == [0, 1, 2, 3, 4]
    twins = {"gate_up_proj": torch.ones(2, 4, 3), "down_proj": torch.ones(2, 3, 2),
             "router.weight": torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])}
    turned = {**twins, "router.weight": twins["router.weight"].flip(0)}
    assert match_layer(twins, turned, Config(router_weight=1.0))[0].tolist() == [1, 0]  # by the routers alone


def test_refusals(generator):
    dense = Checkpoint({"num_layers": 1}, {"layers.0.channel_mixer.gate_up_proj": torch.ones(4, 3)})
    with pytest.raises(MixwellError, match="no layer has experts"):
        match_experts([dense, dense], None, Config(), generator)
    first = mixture(generator)
    strange = first.derive(tensors={**first.tensors, f"{STEM.format(0)}router.other": torch.ones(3, 4)})
    with pytest.raises(MixwellError, match="has no axis of 4 experts in front"):
        match_experts([strange, strange], None, Config(), generator)
    with pytest.raises(ValueError, match="t 2"):
        Config(t=2)
