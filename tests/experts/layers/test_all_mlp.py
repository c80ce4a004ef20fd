"""The sparse all-MLP against loops over channels and positions, and against MLP-Mixer."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.layers.all_mlp import AllMLP, Config
from tests.experts.layers._loops import enlarged, mixture, same_forward_and_gradient, tokens

ROWS = Context(batch_shape=(3, 4))


def build(generator, factor=8, **options):
    sizes = {"seq_len": 4, "token_experts": 2, "channel_experts": 3, "token_hidden_dim": 5, "channel_hidden_dim": 7}
    return enlarged(AllMLP(6, Config(**{**sizes, **options}), generator), factor)


def gelu_mlp(v, up, down):
    hidden = up @ v
    return down @ (hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))


def loop(layer, x_TD):
    """Row by row: channels one by one, then positions one by one."""
    c, outs = layer.config, []
    for x in x_TD.split(c.seq_len):
        u = x
        if c.inner_dim:
            u = torch.stack([layer.dim_in @ token for token in u])
        if c.inner_len:
            u = torch.stack([layer.len_in @ column for column in u.unbind(1)], 1)
        w = layer.token_router(u.T, Context()).dense_TE()
        a = mixture(u.T, w, lambda e, v: gelu_mlp(v, layer.token_up_proj[e], layer.token_down_proj[e])).T
        n = torch.stack([v / torch.sqrt((v * v).mean() + c.norm_eps) * layer.norm.weight for v in u + a])
        w = layer.router(n, Context()).dense_TE()
        y = a + mixture(n, w, lambda e, v: gelu_mlp(v, layer.up_proj[e], layer.down_proj[e]))
        if c.inner_dim:
            y = torch.stack([layer.dim_out @ token for token in y])
        if c.inner_len:
            y = torch.stack([layer.len_out @ column for column in y.unbind(1)], 1)
        outs.append(y)
    return torch.cat(outs)


@pytest.mark.parametrize("options", [
    {}, {"router": {"k": 2}}, {"inner_len": 3}, {"inner_dim": 5}, {"inner_len": 2, "inner_dim": 8}, {"norm_eps": 0.1},
])
def test_agrees_with_loops_forward_and_gradient(generator, options):
    layer, x = build(generator, **options), tokens(generator, 12)
    same_forward_and_gradient(layer(x, ROWS).y_TD, loop(layer, x), [x, *layer.parameters()], generator)


def test_one_expert_a_stage_is_an_mlp_mixer_block(generator):
    layer, x = build(generator, token_experts=1, channel_experts=1), tokens(generator, 12)
    u = x.view(3, 4, 6)
    gelu = torch.nn.functional.gelu
    u = u + (gelu(u.transpose(1, 2) @ layer.token_up_proj[0].T) @ layer.token_down_proj[0].T).transpose(1, 2)
    n = torch.nn.functional.rms_norm(u, (6,), layer.norm.weight, layer.config.norm_eps)
    u = u + gelu(n @ layer.up_proj[0].T) @ layer.down_proj[0].T
    torch.testing.assert_close(x + layer(x, ROWS).y_TD, u.view(12, 6))


def test_short_capacity_drops_the_lowest_scores_first(generator):
    layer, x = build(generator, capacity_factor=0.5), tokens(generator, 12)
    free = build(torch.Generator().manual_seed(7))
    free.load_state_dict(layer.state_dict())
    wished, kept = free(x, ROWS).routing, layer(x, ROWS).routing
    n, served, dropped = 0, {}, {}
    for t, e in enumerate(wished.indices_TK[:, 0].tolist()):
        (served if kept.indices_TK[t, 0] == e else dropped).setdefault(e, []).append(wished.weights_TK[t, 0].item())
    for e, scores in dropped.items():
        assert len(served[e]) == 2 and max(scores) <= min(served[e])
        n += len(scores)
    assert n >= 6


def test_ranking_of_a_full_expert_is_an_option(generator):
    """With two choices a token the three rankings keep different slots."""
    x, found = tokens(generator, 60), {}
    for priority in ("own", "max", "sum"):
        layer = build(torch.Generator().manual_seed(3), router={"k": 2, "renormalise": False}, capacity_factor=0.5,
                      priority=priority)
        routing = layer(x, Context(batch_shape=(15, 4))).routing
        assert routing.load_E().max() <= 20
        found[priority] = routing.indices_TK.tolist()
    assert found["own"] != found["max"] and found["max"] != found["sum"]


def test_positions_of_a_row_mix_and_rows_do_not(generator):
    layer, x = build(generator), tokens(generator, 12).detach()
    changed = x.clone()
    changed[5] += 1
    moved = (layer(x, ROWS).y_TD - layer(changed, ROWS).y_TD).abs().amax(1)
    assert moved[4:8].min() > 0 and moved[:4].max() < 1e-12 and moved[8:].max() < 1e-12


def test_losses_of_both_stages_are_outputs(generator):
    layer, x = build(generator, balance={"switch": 0.5}), tokens(generator, 12)
    mixed = layer(x, ROWS)
    assert set(mixed.losses) == {"switch", "mixing.switch"}
    torch.testing.assert_close(mixed.aux, 0.5 * sum(mixed.losses.values()).float())
    assert build(generator, balance={})(x, ROWS).aux is None
    assert mixed.routing.indices_TK.shape == (12, 1) and build(generator, inner_len=3)(x, ROWS).routing is None


def test_maps_between_the_sizes_start_with_unit_gain(generator):
    config = Config(seq_len=40, token_experts=1, channel_experts=1, token_hidden_dim=2, channel_hidden_dim=2,
                    inner_len=90, inner_dim=60)
    layer = AllMLP(50, config, generator)
    for weight, reads in ((layer.len_in, 40), (layer.len_out, 90), (layer.dim_in, 50), (layer.dim_out, 60)):
        assert weight.shape[1] == reads and weight.std().item() == pytest.approx(reads**-0.5, rel=0.1)


def test_flops_are_those_of_mixer_at_one_choice(generator):
    assert build(generator).flops_per_token() == 6 * (4 * 5 + 4 * 7 + 2 * 2 + 2 * 3)
    inner = build(generator, inner_len=2, inner_dim=8)
    assert inner.flops_per_token() == 8 * 2 / 4 * (4 * 5 + 4 * 7 + 2 * 2 + 2 * 3) + 4 * 8 * 6 + 4 * 2 * 8


def test_refuses(generator):
    layer, x = build(generator), tokens(generator, 12)
    with pytest.raises(MixwellError, match="rows of 4 positions and got 12 tokens in rows of 6"):
        layer(x, Context(batch_shape=(2, 6)))
    with pytest.raises(MixwellError, match="rows of 4 positions and got 10 tokens"):
        layer(x[:10], Context())
    with pytest.raises(MixwellError, match="got padding; give full rows"):
        layer(x, Context(mask_T=torch.arange(12) < 11))
    layer(x, Context(mask_T=torch.ones(12, dtype=torch.bool)))
    for name in ("seq_len", "token_experts", "channel_experts", "token_hidden_dim", "channel_hidden_dim", "inner_len",
                 "inner_dim", "capacity_factor", "norm_eps"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            build(generator, **{name: 0})
