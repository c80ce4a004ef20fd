"""Pruning-aware tuning: nothing changes at the start, mask and terms by hand, the folded model is the masked one."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator as seeded
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel, load
from mixwell.precision.sparse.pruning_aware import Config, PruningAware, example
from tests.contracts._conversions import VOCAB
from tests.contracts._tools import fresh

TOKENS = torch.randint(0, VOCAB, (2, 9), generator=fresh(3))
MIXTURE = {"method": "experts.layers.moe", "num_experts": 3, "hidden_dim": 8, "shared_experts": 1}
SMALL = Config(share=0.5, rank=4, steps=40)


def model(**changes):
    arch = {"vocab_size": VOCAB, "dim": 16, "num_layers": 2, "num_heads": 2, "norm_eps": 1e-3,
            "channel_mixer": MIXTURE} | changes
    made = LanguageModel(ModelConfig(**arch), seeded(5), dtype=torch.float64)
    drawn = fresh(6)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=drawn) * 0.2)
    return made.eval()


def moved(made, config=SMALL):
    method = PruningAware(made, config, fresh(1))
    drawn = fresh(2)
    method.thinned.double()
    with torch.no_grad():
        for parameter in [method.theta, *method.thinned.parameters()]:
            parameter.add_(torch.randn(parameter.shape, generator=drawn) * 0.3)
    return method


def test_nothing_changes_at_the_start():
    made = model()
    before = made(TOKENS).logits_BTV
    method = PruningAware(made, SMALL, fresh(1))
    method.advance(0.0)
    torch.testing.assert_close(made(TOKENS).logits_BTV, before)
    assert bool((method.mask() == 1).all()) and method.width == 8
    for hook in method.hooks:
        hook.remove()
    assert torch.equal(made(TOKENS).logits_BTV, before)


@pytest.mark.parametrize("changes", [
    {}, {"tie_embeddings": True, "embed_scale": 3.0},
    {"sequence_mixer": {"method": "sequence.attention", "qk_norm": "head", "out_bias": True}, "num_kv_heads": 1},
    {"channel_mixer": {"method": "experts.layers.swiglu", "hidden_dim": 12}, "residual_scale": 0.5}])
def test_the_folded_model_is_the_masked_one(changes, tmp_path):
    made = model(**changes)
    method = moved(made)
    method.harden()
    masked = made(TOKENS).logits_BTV
    narrow = LanguageModel.from_checkpoint(method.finish(), dtype=torch.float64).eval()
    torch.testing.assert_close(narrow(TOKENS).logits_BTV, masked)
    assert narrow.config.dim == 8 and narrow.num_parameters() < 0.7 * made.num_parameters()
    again = load(narrow.save(tmp_path / "m"))
    torch.testing.assert_close(again(TOKENS).logits_BTV.double(), masked, rtol=1e-3, atol=1e-3)


def test_the_mask_sharpens_and_stays():
    method = moved(model(), Config(share=0.25, rank=2, steps=100, held=0.6))
    theta = method.theta.detach()
    for done in (0.1, 0.4):
        method.advance(done)
        tau = 1 / (1 - math.log(100 * done) / math.log(100) + 1e-6)
        torch.testing.assert_close(method.mask(), torch.sigmoid(tau * theta) + (0.5 - done))
    method.advance(0.6)
    kept = method.mask()
    method.advance(0.9)
    assert torch.equal(method.mask(), kept) and not method.mask().requires_grad
    assert method.width == 8  # twelve are no multiple of eight
    assert method.kept().tolist() == sorted(theta.topk(8).indices.tolist())


def test_terms_of_the_loss_by_hand():
    method = moved(model(), Config(share=0.5, rank=2, steps=100, pressure=3.0, multiple=4))
    theta = method.theta.detach().tolist()
    found = method.losses()
    above, below = [t for t in theta if t > 0], [t for t in theta if t <= 0]
    assert float(found["channels"].detach()) == pytest.approx(3.0 * abs(len(above) - 8) / 8)
    parting = sum((t - 0.5) ** 2 for t in above) / len(above) + sum((t + 0.5) ** 2 for t in below) / len(below)
    assert float(found["parting"].detach()) == pytest.approx(parting, rel=1e-5)
    eye = torch.eye(2, dtype=torch.float64)
    into = [one.A.detach() for one in method.thinned]
    away = sum(float((A @ A.T - eye).square().mean()) for A in into)
    assert float(found["identity"].detach()) == pytest.approx(away, rel=1e-5)
    found["channels"].backward()
    sign = math.copysign(1, len(above) - 8) if len(above) != 8 else 0
    torch.testing.assert_close(method.theta.grad, torch.full((16,), 3.0 * sign / 8))
    with torch.no_grad():
        method.theta.fill_(-1.0)
    assert float(method.losses()["parting"].detach()) == pytest.approx(0.25)  # none is above


def test_tuning_lowers_the_loss_and_parts_the_channels():
    made = model().float()
    made.cast(torch.float32)
    method = PruningAware(made, SMALL, fresh(1))
    optimizer = torch.optim.Adam(method.trained(), lr=2e-2)
    nats = []
    for step in range(16):
        method.advance(step / 16)
        loss = made.loss(TOKENS[:, :-1], TOKENS[:, 1:]).nats
        nats.append(float(loss.detach()))
        optimizer.zero_grad()
        (loss + sum(method.losses().values())).backward()
        optimizer.step()
    assert nats[-1] < nats[0] and int((method.theta > 0).sum()) < 16
    assert len(method.kept()) == 8 and float(method.theta.detach().std()) > 0


def test_refusals():
    with pytest.raises(MixwellError, match="rank is 200 and the model 16 wide"):
        PruningAware(model(), Config(), fresh())
    with pytest.raises(MixwellError, match="learned positions"):
        PruningAware(model(learned_positions=True), SMALL, fresh())
    with pytest.raises(MixwellError, match="pruning-aware tuning changes what RMS norms before each mixer give"):
        PruningAware(model(norm="layer"), SMALL, fresh())
    with pytest.raises(ValueError, match=r"share is 1.0; expected above 0 and below 1"):
        Config(share=1.0)
    with pytest.raises(ValueError, match=r"held is 2; expected above 0, up to 1"):
        Config(held=2)
    assert example(fresh())["config"] == SMALL
