"""The stratified mixture against a loop that follows each token through the strata."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.layers.moe import Config as PlainConfig
from mixwell.experts.layers.moe import MoE
from mixwell.experts.layers.stratified import Config, StratifiedMoE
from tests.experts.layers._loops import enlarged, same_forward_and_gradient, swiglu, tokens


def build(generator, **options):
    return enlarged(StratifiedMoE(6, Config(**{"strata": (1, 2, 2), "hidden_dim": 5, **options}), generator), 5)


def stratum_of(layer, expert):
    passed = 0
    for s, count in enumerate(layer.config.strata):
        passed += count
        if expert < passed:
            return s
    raise AssertionError


def loop(layer, x_TD, k=1):
    """One token at a time, gate after gate; returns the outputs and the path of each token."""
    rows, paths = [], []
    for x in x_TD:
        total, gate, path = torch.zeros_like(x), 0, []
        while gate < len(layer.config.strata):
            v = x
            if gate:
                v = x + total
                v = v / torch.sqrt((v * v).mean() + layer.config.norm_eps) * layer.norms[gate - 1].weight
            before = sum(layer.config.strata[:gate])
            e = torch.exp(layer.gates[gate].weight @ v)
            p = e / e.sum()
            best = p.topk(k).indices.tolist()
            share = sum(p[i] for i in best) if k > 1 else 1
            total = total + sum(p[i] / share * swiglu(v, layer.gate_up_proj[before + i], layer.down_proj[before + i])
                                for i in best)
            path += [before + i for i in best]
            gate = stratum_of(layer, before + best[0]) + 1
        rows.append(total)
        paths.append(path)
    return torch.stack(rows), paths


@pytest.mark.parametrize("strata", [(5,), (1, 2, 2), (2, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("k", [1, 2])
def test_agrees_with_a_loop_forward_and_gradient(generator, strata, k):
    if k > strata[-1]:
        strata = (*strata[:-1], k)
    layer, x = build(generator, strata=strata, router={"k": k}, norm_eps=1e-3), tokens(generator, 12)
    mixed = layer(x, Context())
    expected, paths = loop(layer, x, k)
    same_forward_and_gradient(mixed.y_TD, expected, [x, *layer.parameters()], generator)
    found = [sorted(e for e in row if e >= 0) for row in mixed.routing.indices_TK.tolist()]
    assert found == [sorted(path) for path in paths]


def test_one_stratum_is_the_plain_mixture(generator):
    layer = StratifiedMoE(6, Config(strata=(4,), hidden_dim=5), generator)
    plain = MoE(6, PlainConfig(num_experts=4, hidden_dim=5, router={"k": 1}), generator)
    plain.load_state_dict({k.replace("gates.0", "router"): v for k, v in layer.state_dict().items()})
    x = torch.randn(9, 6, generator=generator)
    ours, theirs = layer(x, Context()), plain(x, Context())
    torch.testing.assert_close(ours.y_TD, theirs.y_TD)
    torch.testing.assert_close(ours.aux, theirs.aux)


def test_capacity_is_dynamic(generator):
    """Gates that prefer their own stratum give a token as many experts as strata, those that prefer the last, one."""
    layer, x = build(generator), torch.randn(40, 6, generator=generator, dtype=torch.float64).abs()
    counts = {}
    for name, place in (("own", 0), ("last", -1)):
        with torch.no_grad():
            for gate in layer.gates:
                gate.weight.zero_()
                gate.weight[place] = 1.0
        mixed = layer(x, Context())
        counts[name] = (mixed.routing.indices_TK >= 0).sum(1)
        assert layer.flops_of(mixed) == 6 * 6 * 5 * counts[name].float().mean().item()
    assert counts["own"].tolist() == [3] * 40 and counts["last"].tolist() == [1] * 40
    assert layer.flops_per_token() == 3 * 6 * 6 * 5 + 2 * 6 * (5 + 4 + 2)


def test_tokens_take_paths_of_their_own_and_never_go_back(generator):
    layer = build(generator)
    routing = layer(torch.randn(60, 6, generator=generator, dtype=torch.float64), Context()).routing
    lengths = set()
    for row in routing.indices_TK.tolist():
        strata = [stratum_of(layer, e) for e in row if e >= 0]
        assert strata == sorted(set(strata)) and strata[-1] == 2
        lengths.add(len(strata))
    assert len(lengths) > 1


def test_balance_is_averaged_over_the_gates(generator):
    layer, x = build(generator, balance={"switch": 0.5, "z_loss": 0.0}), tokens(generator, 12)
    mixed, (_, paths) = layer(x, Context()), loop(layer, x)
    assert set(mixed.losses) == {"switch", "z_loss"}
    torch.testing.assert_close(mixed.aux, 0.5 * mixed.losses["switch"].float())
    assert min(map(len, paths)) < 3
    plain = build(torch.Generator().manual_seed(7), strata=(5,), balance={})
    assert plain(x, Context()).aux is None


def test_padding_counts_in_no_gate_s_balance(generator):
    layer, x = build(generator), tokens(generator, 12)
    mask = torch.tensor([True] * 8 + [False] * 4)
    torch.testing.assert_close(layer(x, Context(mask_T=mask)).aux, layer(x[:8], Context()).aux)


def test_gates_may_be_any_router(generator):
    layer = build(generator, router={"method": "threshold", "threshold": 0.7}, balance={})
    x = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    alone = torch.cat([layer(x[t : t + 1], Context()).y_TD for t in range(9)])
    torch.testing.assert_close(layer(x, Context()).y_TD, alone)
    assert layer(x[:0], Context()).y_TD.shape == (0, 6)


@pytest.mark.parametrize(("options", "message"), [
    ({"strata": ()}, "strata is \\[\\]; expected at least one stratum"), ({"strata": (2, 0)}, "at least one expert"),
    ({"hidden_dim": 0}, "hidden_dim is 0"), ({"norm_eps": 0.0}, "norm_eps is 0.0"),
])
def test_refuses(generator, options, message):
    with pytest.raises(ValueError, match=message):
        build(generator, **options)


def test_refuses_more_choices_than_the_last_stratum_has(generator):
    with pytest.raises(MixwellError, match="k = 2 experts per token of 1; choose 1 to 1"):
        build(generator, strata=(3, 1), router={"k": 2})
