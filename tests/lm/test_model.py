"""The language model: its loss and gradient against plain autograd in float64, and what it promises beside."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import mixwell
from mixwell.adapters.lora import Config as LoraConfig
from mixwell.adapters.lora import LoRA
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.kernels.embed import ROWS, embed, mean_nats, row_nats
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel

DENSE = {"method": "swiglu", "hidden_dim": 12}
SPARSE = {"method": "moe", "num_experts": 4, "hidden_dim": 6, "router": {"method": "top_k", "k": 2},
          "balance": {"switch": 0.5, "z_loss": 0.25}}


def config(**options) -> ModelConfig:
    base = {"vocab_size": 23, "dim": 8, "num_layers": 2, "num_heads": 2, "channel_mixer": SPARSE}
    return from_dict(ModelConfig, base | options)


def build(dtype=torch.float64, **options) -> LanguageModel:
    model = LanguageModel(config(**options), torch.Generator().manual_seed(0), dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.ndim > 1 else 1)
    return model


def tokens(B=3, T=5, seed=1, size=23):
    draws = torch.Generator().manual_seed(seed)
    return (torch.randint(0, size, (B, T), generator=draws) for _ in range(2))


def plain(model: LanguageModel, x: torch.Tensor) -> torch.Tensor:
    """The dense decoder written out for one row at a time, with torch's own parts."""
    c, rows = model.config, []
    for row in x:
        h = model.embed.weight[row]
        for layer in model.layers:
            z = F.rms_norm(h, (c.dim,), layer.sequence_norm.weight, c.norm_eps).unsqueeze(0)
            h = h + layer.sequence_mixer(z).y_BTD[0]
            z = F.rms_norm(h, (c.dim,), layer.channel_norm.weight, c.norm_eps)
            gate, up = (z @ layer.channel_mixer.gate_up_proj.T).chunk(2, -1)
            h = h + (F.silu(gate) * up) @ layer.channel_mixer.down_proj.T
        h = F.rms_norm(h, (c.dim,), model.norm.weight, c.norm_eps)
        rows.append(h @ (model.embed.weight if c.tie_embeddings else model.head.weight).T)
    return torch.stack(rows)


@pytest.mark.parametrize("tie", [False, True])
def test_logits_loss_and_gradient_agree_with_plain_autograd(tie):
    model = build(channel_mixer=DENSE, tie_embeddings=tie)
    x, y = tokens()
    expected = plain(model, x)
    torch.testing.assert_close(model(x).logits_BTV, expected)
    loss, wanted = model.loss(x, y), F.cross_entropy(expected.flatten(0, 1), y.flatten())
    torch.testing.assert_close(loss.nats, wanted)
    assert loss.aux is None and loss.losses == {} and loss.routings == [None, None]
    parameters = list(model.parameters())
    for got, grad in zip(torch.autograd.grad(loss.nats, parameters), torch.autograd.grad(wanted, parameters)):
        torch.testing.assert_close(got, grad)


def test_masked_targets_count_in_nothing():
    model = build(channel_mixer=DENSE)
    x, y = tokens()
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[0, 3:] = mask[2, 1:] = False
    wanted = F.cross_entropy(model(x, mask_BT=mask).logits_BTV[mask], y[mask])
    torch.testing.assert_close(model.loss(x, y, mask_BT=mask).nats, wanted)
    torch.testing.assert_close(model.loss(x, y.masked_fill(~mask, -100)).nats,
                               F.cross_entropy(model(x).logits_BTV[mask], y[mask]))
    assert model.loss(x, torch.full_like(y, -100)).nats == 0


def test_losses_are_means_and_aux_is_the_scaled_sum():
    model = build().train()
    x, y = tokens()
    loss = model.loss(x, y)
    parts = [[layer.channel_mixer.balance[i](r, _context(x)) for layer, r in zip(model.layers, loss.routings)]
             for i in range(2)]
    torch.testing.assert_close(loss.losses["switch"], torch.stack(parts[0]).mean().float())
    torch.testing.assert_close(loss.losses["z_loss"], torch.stack(parts[1]).mean().float())
    torch.testing.assert_close(loss.aux, (0.5 * sum(parts[0]) + 0.25 * sum(parts[1])).float())
    (loss.nats + loss.aux).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def _context(x):
    from mixwell.core.routing import Context

    return Context(token_ids_T=x.flatten())


def test_layers_learn_their_place_and_the_tokens_their_domain(monkeypatch):
    model, seen = build(), []
    for layer in model.layers:
        monkeypatch.setattr(layer.channel_mixer.router, "forward",
                            lambda h, c, f=layer.channel_mixer.router.forward: (seen.append(c), f(h, c))[1])
    x, _ = tokens(B=2, T=3)
    draws = torch.Generator()
    model.train()(x, labels_B=torch.tensor([4, 7]), step=9, generator=draws)
    model.eval()(x, generator=draws)
    assert [c.layer for c in seen] == [0, 1, 0, 1] and seen[0].num_layers == 2 and seen[0].step == 9
    assert seen[0].labels_T.tolist() == [4, 4, 4, 7, 7, 7] and seen[0].positions_T.tolist() == [0, 1, 2, 0, 1, 2]
    assert seen[0].token_ids_T.tolist() == x.flatten().tolist() and seen[0].batch_shape == (2, 3)
    assert seen[0].generator is draws and seen[2].generator is None


def test_losses_are_made_only_where_they_are_given_back(monkeypatch):
    model, made = build(), []
    for layer in model.layers:
        forward = layer.channel_mixer.forward
        monkeypatch.setattr(layer.channel_mixer, "forward", lambda h, c, f=forward: (made.append(f(h, c)), made[-1])[1])
    x, y = tokens(B=2, T=3)
    model(x)
    model.loss(x, y)
    assert all(mixed.losses and mixed.aux is not None for mixed in made)
    made.clear()
    model.token_nats(x, y)
    model.next_logits(x, model.new_cache())
    assert len(made) == 4 and not any(mixed.losses or mixed.aux is not None for mixed in made)


def test_a_cache_and_left_padding_change_no_logit():
    model = build(dtype=torch.float32, channel_mixer=DENSE).eval()
    x, _ = tokens(B=2, T=6)
    whole = model(x).logits_BTV
    cache = model.new_cache()
    parts = [model(piece, cache=cache).logits_BTV for piece in x.split([3, 1, 2], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    padded = torch.cat((torch.zeros(2, 2, dtype=torch.long), x), 1)
    mask = torch.tensor([[False] * 2 + [True] * 6] * 2)
    torch.testing.assert_close(model(padded, mask_BT=mask).logits_BTV[:, 2:], whole)
    cache = model.new_cache()
    model(padded[:, :5], cache=cache, mask_BT=mask[:, :5])
    torch.testing.assert_close(model(padded[:, 5:], cache=cache).logits_BTV, whole[:, 3:])


def test_token_nats_are_the_loss_token_by_token():
    model = build(dtype=torch.float32)
    x, y = tokens()
    nats = model.token_nats(x, y)
    assert nats.shape == x.shape and not nats.requires_grad
    torch.testing.assert_close(nats.mean(), model.loss(x, y).nats.detach())


def test_capped_logits_in_the_loss_and_out_of_it():
    model = build(channel_mixer=DENSE, logit_softcap=0.7, logit_scale=3.0, embed_scale=2.0)
    x, y = tokens(B=3, T=ROWS // 2)  # more rows than one chunk
    out = model(x).logits_BTV
    assert out.abs().max() < 0.7
    nats = F.cross_entropy(out.flatten(0, 1), y.flatten())
    torch.testing.assert_close(model.loss(x, y).nats, nats)
    torch.testing.assert_close(model.token_nats(x, y).mean(), nats)
    found = torch.autograd.grad(model.loss(x, y).nats, list(model.parameters()))
    wanted = torch.autograd.grad(nats, list(model.parameters()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("count", [0, 1, ROWS + 3])
def test_the_head_agrees_with_torch_across_chunks(count):
    draws = torch.Generator().manual_seed(3)
    h = torch.randn(count, 4, generator=draws, dtype=torch.float64).requires_grad_()
    w = torch.randn(9, 4, generator=draws, dtype=torch.float64).requires_grad_()
    y = torch.randint(0, 9, (count,), generator=draws)
    nats = mean_nats(h, w, y)
    expected = F.cross_entropy(h @ w.T, y) if count else (h * 0).sum() + (w * 0).sum()
    torch.testing.assert_close(nats, expected)
    for got, wanted in zip(torch.autograd.grad(3 * nats, (h, w)), torch.autograd.grad(3 * expected, (h, w))):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(row_nats(h, w, y), F.cross_entropy(h @ w.T, y, reduction="none").detach())


def test_the_embedding_sums_a_frequent_words_gradient_in_float32():
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    embed(weight, torch.zeros(1000, dtype=torch.long)).sum().backward()
    assert weight.grad.flatten().tolist() == [1000, 0]  # bfloat16 alone would stop at 256


def test_norms_and_routers_stay_float32():
    model = build(dtype=torch.bfloat16)
    kept = {n for n, p in model.named_parameters() if p.dtype == torch.float32}
    assert kept == {n for n, _ in model.named_parameters() if "norm" in n or "router" in n}
    x, y = tokens()
    loss = model.loss(x, y)
    assert loss.nats.dtype == torch.float32 and model(x).logits_BTV.dtype == torch.float32
    loss.nats.backward()
    assert abs(loss.nats.item() - build().loss(x, y).nats.item()) < 0.05
    assert model.cast(torch.float64).dtype == torch.float64
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_initialisation_follows_the_generator_and_the_depth():
    options = {"dim": 64, "num_layers": 8, "channel_mixer": {"method": "swiglu", "hidden_dim": 64}}
    one, two = (LanguageModel(config(**options), torch.Generator().manual_seed(2)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    for name, parameter in one.named_parameters():
        wanted = 0.02 / 4 if name.endswith(("out.weight", "down_proj")) else 0.02
        assert "norm" in name or parameter.std().item() == pytest.approx(wanted, rel=0.1)


def test_an_untrained_model_guesses_evenly():
    model = LanguageModel(config(vocab_size=64))
    x, y = tokens(B=8, T=16, size=64)
    assert model.loss(x, y).nats.item() == pytest.approx(math.log(64), abs=0.05)


def test_parameters_and_flops_follow_their_formulas():
    V, D, E, width, k, S = 23, 8, 4, 6, 2, 10
    model = build()
    rest = 2 * V * D + D + 2 * (2 * D + 4 * D * D + E * D)
    assert model.num_parameters() == rest + 2 * E * 3 * D * width
    assert model.num_parameters(active=True) == rest + 2 * k * 3 * D * width
    LoRA.attach(model, ["gate_up_proj", "down_proj"], LoraConfig(rank=1), generator(1))
    thin = 2 * E * (D + 2 * width + width + D)
    assert model.num_parameters() == rest + 2 * E * 3 * D * width + thin
    assert model.num_parameters(active=True) == rest + 2 * k * 3 * D * width + thin
    attention = 2 * 4 * D * D + 4 * D * (S + 1) / 2
    assert model.flops_per_token(S) == 2 * (attention + 6 * k * D * width + 2 * D * E) + 2 * V * D


def test_layers_may_differ():
    model = build(channel_mixer=[DENSE, SPARSE],
                  sequence_mixer=[{"method": "sequence.attention", "sliding_window": 2}, {"method": "attention"}])
    assert model.layers[0].sequence_mixer.config.sliding_window == 2
    assert model.layers[1].sequence_mixer.config.sliding_window is None
    out = model(next(tokens()))
    assert out.routings[0] is None and out.routings[1].num_experts == 4


@pytest.mark.parametrize(("options", "message"), [
    ({"num_heads": 3}, "num_heads = 3 does not divide dim = 8"),
    ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads = 3 does not divide num_heads = 4"),
    ({"num_layers": 0}, "num_layers is 0"),
    ({"norm_eps": 0.0}, "norm_eps is 0.0"),
    ({"channel_mixer": [DENSE]}, "channel_mixer has 1 entries for 2 layers"),
    ({"channel_mixer": {"hidden_dim": 3}}, "channel_mixer: expected a method"),
    ({"channel_mixer": DENSE | {"method": "swiglo"}}, "Did you mean 'swiglu'"),
    ({"channel_mixer": DENSE | {"hiden_dim": 3}}, "channel_mixer: unknown key 'hiden_dim'. Did you mean 'hidden_dim'"),
    ({"channel_mixer": SPARSE | {"router": {"method": "top_k", "k": 9}}}, "k = 9 experts per token of 4"),
    ({"rope_scaling": {"type": "ntk"}}, "'ntk' is not supported"),
])
def test_refuses(options, message):
    with pytest.raises(MixwellError, match=message):
        LanguageModel(config(**options))


def test_config_round_trips():
    one = config(eos_token_id=[1, 2], channel_mixer=[DENSE, SPARSE])
    assert from_dict(ModelConfig, to_dict(one)) == one


@pytest.mark.parametrize("router", [{"method": "recurrent"}, {"method": "loss_free_bias"},
                                    {"method": "hash", "vocab_size": 64, "table": "balanced"}])
def test_routers_with_a_memory_share_follow_and_come_back(router, tmp_path):
    """What a router keeps over depth is one tensor; what it learns from loads and text is saved with the model."""
    mixer = {"method": "moe", "num_experts": 4, "hidden_dim": 8, "router": router}
    config = from_dict(ModelConfig, {"vocab_size": 64, "dim": 16, "num_layers": 2, "num_heads": 2,
                                     "channel_mixer": mixer})
    model = LanguageModel(config).eval()
    tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(3))
    if model.needs_tokens:
        model.fit_tokens(tokens.flatten(), torch.Generator().manual_seed(4))
    before = model.loss(tokens, tokens)
    model.after_step([before.routings, before.routings])
    if router["method"] == "loss_free_bias":
        load = before.routings[0].load_E()
        assert model.routers()[0].bias[load.argmax()] < 0 < model.routers()[0].bias[load.argmin()]
    if router["method"] == "recurrent":
        first, second = ({n.split(".router.")[1] for n in model.state_dict() if n.startswith(f"layers.{i}.") and
                          ".router." in n} for i in range(2))
        assert second < first
    model.save(tmp_path / "model")
    again = mixwell.load(tmp_path / "model").eval()
    torch.testing.assert_close(again(tokens).logits_BTV, model(tokens).logits_BTV)


def test_a_router_that_follows_the_load_is_refused_where_it_would_hear_nothing():
    mixer = {"method": "cartesian", "num_experts": 4, "hidden_dim": 8, "router": {"method": "loss_free_bias", "k": 1}}
    with pytest.raises(MixwellError, match="does not report"):
        LanguageModel(from_dict(ModelConfig, {"vocab_size": 64, "dim": 16, "num_layers": 1, "num_heads": 2,
                                              "channel_mixer": mixer}))


@pytest.mark.parametrize("mixer", [{"method": "mixture_of_attention_heads", "num_experts": 4},
                                   {"method": "mixture_of_mamba", "num_modalities": 2}])
def test_sequence_mixers_read_the_context_and_give_back_their_losses(mixer):
    config = {"vocab_size": 64, "dim": 16, "num_layers": 2, "num_heads": 2, "sequence_mixer": mixer,
              "channel_mixer": {"method": "swiglu", "hidden_dim": 8}}
    model = LanguageModel(from_dict(ModelConfig, config))
    tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(3))
    loss = model.loss(tokens, tokens, labels_B=torch.tensor([0, 1]))
    if "num_experts" in mixer:
        assert loss.aux is not None and loss.losses
    loss.nats.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
