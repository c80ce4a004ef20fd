"""The tree against a recursive loop, soft and hard."""

import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.fast_feedforward import Config, FastFeedforward, descend, leaf_of, masses
from tests.experts.layers._loops import enlarged, same_forward_and_gradient, tokens

ACT = {"relu": torch.relu, "gelu": torch.nn.functional.gelu}


def tree(layer, x, node, depth, hard):
    """Walk down from `node`: a leaf's result, or the mean of both children by the node's choice."""
    first = 2**layer.config.depth - 1
    if depth == 0:
        leaf = node - first
        return layer.down_proj[leaf] @ ACT[layer.config.activation](layer.up_proj[leaf] @ x)
    logit = layer.nodes.weight[node] @ x + layer.nodes.bias[node]
    right = torch.sigmoid(logit) if not hard else (logit >= 0).double()
    return ((1 - right) * tree(layer, x, 2 * node + 1, depth - 1, hard)
            + right * tree(layer, x, 2 * node + 2, depth - 1, hard))


def block(layer, x, hard):
    y = tree(layer, x, 0, layer.config.depth, hard)
    if layer.config.master_dim:
        a = torch.sigmoid(layer.mix)
        h = ACT[layer.config.activation](layer.master_up_proj @ x)
        y = a * y + (1 - a) * (layer.master_down_proj @ h)
    return y


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{"depth": 0}, {"depth": 2, "activation": "gelu"}, {"depth": 3, "master_dim": 4}])
def test_agrees_with_a_recursion_forward_and_gradient(generator, training, options):
    layer = enlarged(FastFeedforward(6, Config(hidden_dim=3, **options), generator), 5).train(training)
    with torch.no_grad():
        layer.nodes.bias.copy_(torch.randn(layer.nodes.bias.shape, generator=generator))
    x = tokens(generator, 12)
    expected = torch.stack([block(layer, z, not training) for z in x])
    same_forward_and_gradient(layer(x, Context()).y_TD, expected, [x, *layer.parameters()], generator)


def test_leaf_masses_sum_to_one_and_paths_agree(generator):
    layer = FastFeedforward(6, Config(hidden_dim=3, depth=4), generator).double()
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    logits = layer.nodes(x)
    torch.testing.assert_close(masses(logits, 4).sum(1), torch.ones(50, dtype=torch.float64))
    assert torch.equal(leaf_of(logits, 4), descend(x, layer.nodes, 4))


def test_hard_nodes_close_the_gap_between_training_and_inference(generator):
    layer = FastFeedforward(6, Config(hidden_dim=3, depth=3), generator)
    x = torch.randn(50, 6, generator=generator)
    gaps, entropies = [], []
    for sharpness in (1.0, 10.0, 1000.0):
        with torch.no_grad():
            layer.nodes.weight.mul_(sharpness)
        soft = layer.train()(x, Context())
        gaps.append(float((soft.y_TD - layer.eval()(x, Context()).y_TD).detach().abs().mean()))
        entropies.append(float(soft.losses["hardening"].detach()))
    assert gaps[0] > gaps[1] > gaps[2] and entropies[0] > entropies[1] > entropies[2]
    assert entropies[0] <= math.log(2)


def test_losses_are_the_entropy_and_the_balance_of_leaves(generator):
    config = Config(hidden_dim=3, depth=2, hardening=0.5, balance={"switch": 2.0})
    layer = FastFeedforward(6, config, generator).double()
    x = tokens(generator, 12)
    mask = torch.arange(12) < 7
    mixed = layer(x, Context(mask_T=mask))
    entropies, mass, hits = [], torch.zeros(4, dtype=torch.float64), [0] * 4
    for z in x[:7]:
        p = torch.sigmoid(layer.nodes.weight @ z + layer.nodes.bias)
        entropies += [-q * q.log() - (1 - q) * (1 - q).log() for q in p]
        leaf = torch.stack([(1 - p[0]) * (1 - p[1]), (1 - p[0]) * p[1], p[0] * (1 - p[2]), p[0] * p[2]])
        mass = mass + leaf / 7
        right = int(p[0] >= 0.5)
        hits[2 * right + int(p[1 + right] >= 0.5)] += 1
    hardening = sum(entropies) / len(entropies)
    balance = 4 * sum(m * n / 7 for m, n in zip(mass, hits))
    torch.testing.assert_close(mixed.losses["hardening"], hardening)
    torch.testing.assert_close(mixed.losses["switch"], balance)
    torch.testing.assert_close(mixed.aux, (0.5 * hardening + 2 * balance.float()), check_dtype=False, rtol=1e-5, atol=0)
    assert FastFeedforward(6, Config(hidden_dim=3, hardening=0.0), generator)(x.float(), Context()).aux is None


def test_the_master_leaf_alone_and_not_at_all(generator):
    layer = FastFeedforward(6, Config(hidden_dim=3, depth=2, master_dim=4), generator)
    plain = FastFeedforward(6, Config(hidden_dim=3, depth=2), generator)
    plain.load_state_dict(layer.state_dict(), strict=False)
    x = torch.randn(9, 6, generator=generator)
    with torch.no_grad():
        layer.mix.fill_(100.0)
    torch.testing.assert_close(layer(x, Context()).y_TD, plain(x, Context()).y_TD)


def test_operations_grow_with_the_logarithm_of_the_leaves(generator):
    flops = [FastFeedforward(6, Config(hidden_dim=3, depth=d), generator).eval().flops_per_token() for d in (2, 4, 6)]
    assert flops[1] - flops[0] == flops[2] - flops[1] == 2 * 2 * 6
    layer = FastFeedforward(6, Config(hidden_dim=3, depth=2, master_dim=4), generator)
    assert layer.train().flops_per_token() == 2 * 6 * 3 + 4 * (2 * 2 * 6 * 3) + 2 * 2 * 6 * 4
    assert layer.eval().flops_per_token() == 2 * 6 * 2 + 2 * 2 * 6 * 3 + 2 * 2 * 6 * 4


def test_refuses():
    with pytest.raises(ValueError, match="depth is -1; expected at least 0"):
        Config(hidden_dim=3, depth=-1)
    with pytest.raises(ValueError, match="hardening is -1"):
        Config(hidden_dim=3, hardening=-1)
