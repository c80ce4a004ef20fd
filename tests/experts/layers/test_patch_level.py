"""Routed patches against loops over rows, experts and patches, and what the two theories rest on."""

import pytest
import torch

from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.layers.patch_level import Config, PatchMoE, separation_loss
from tests.experts.layers._loops import enlarged, mixture, same_forward_and_gradient, tokens

ROWS = Context(batch_shape=(3, 4))


def build(generator, **options):
    return enlarged(PatchMoE(6, Config(**{"num_experts": 3, "hidden_dim": 5, **options}), generator))


def expert(layer):
    cubic = layer.config.activation == "cubic"

    def apply(e, x):
        z = layer.up_proj[e] @ x
        return layer.down_proj[e] @ (z**3 if cubic else torch.where(z > 0, z, 0 * z))

    return apply


def patch_weights(layer, x_TD, rows=3):
    """G_js / l, row by row and expert by expert."""
    l, weights = layer.config.patches, []
    for x in x_TD.split(len(x_TD) // rows):
        columns = []
        for s in range(layer.config.num_experts):
            logits = x @ layer.gate.weight[s]
            taken = sorted(range(len(x)), key=lambda j: -logits[j].item())[:l]
            e = torch.exp(logits)
            total = sum(e[j] for j in taken)
            gates = [e[j] / total if layer.config.router_training == "joint" else torch.ones_like(e[j]) for j in taken]
            columns.append(torch.stack([gates[taken.index(j)] / l if j in taken else 0 * e[j] for j in range(len(x))]))
        weights.append(torch.stack(columns, 1))
    return torch.cat(weights)


@pytest.mark.parametrize("options", [
    {}, {"patches": 2}, {"patches": 4}, {"patches": 2, "activation": "cubic"},
    {"patches": 2, "router_training": "separate"},
])
def test_patch_routing_agrees_with_a_loop(generator, options):
    layer, x = build(generator, **options), tokens(generator, 12)
    expected = mixture(x, patch_weights(layer, x), expert(layer))
    same_forward_and_gradient(layer(x, ROWS).y_TD, expected, [x, *layer.parameters()], generator)


@pytest.mark.parametrize("activation", ["relu", "cubic"])
def test_sample_routing_agrees_with_a_loop(generator, activation):
    layer, x = build(generator, routing="sample", activation=activation), tokens(generator, 12)
    weights = []
    for row in x.split(4):
        h = sum(layer.gate.weight @ patch for patch in row)
        p, best = h.exp() / h.exp().sum(), h.argmax()
        weights += [torch.where(torch.arange(3) == best, p, 0 * p)] * 4
    expected = mixture(x, torch.stack(weights), expert(layer))
    same_forward_and_gradient(layer(x, ROWS).y_TD, expected, [x, *layer.parameters()], generator)


def test_the_sum_over_patches_is_the_papers_classifier(generator):
    """f = sum_s sum_r (a_rs / l) sum_{j in J_s} relu(w_rs . x_j) G_js."""
    layer, x = build(generator, patches=2), tokens(generator, 12)
    v = torch.randn(6, generator=generator, dtype=torch.float64)
    f = (layer(x, ROWS).y_TD @ v).view(3, 4).sum(1)
    G = patch_weights(layer, x)
    for b in range(3):
        total = 0
        for s in range(3):
            a = v @ layer.down_proj[s]
            for r in range(5):
                for j in range(4 * b, 4 * b + 4):
                    total = total + a[r] * torch.relu(layer.up_proj[s, r] @ x[j]) * G[j, s]
        torch.testing.assert_close(f[b], total)


def test_each_expert_sees_l_patches_of_every_row_whatever_the_others_do(generator):
    layer = build(generator, patches=2)
    routing = layer(tokens(generator, 12), ROWS).routing
    assert routing.load_E().tolist() == [6, 6, 6]
    torch.testing.assert_close(routing.scores_TE.view(3, 4, 3).sum(1), torch.ones(3, 3, dtype=torch.float64))


def test_a_router_along_the_pattern_finds_it_and_drops_the_noise(generator):
    """Discriminative routing: with w along the class pattern, l = 1 of 16 patches keeps the pattern in every row."""
    layer = build(generator, patches=1)
    pattern = torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    x = 0.2 * torch.randn(20, 16, 6, generator=generator, dtype=torch.float64)
    places = torch.randint(0, 16, (20,), generator=generator)
    x[torch.arange(20), places] += pattern
    with torch.no_grad():
        layer.gate.weight.copy_(pattern.expand(3, 6))
    indices = layer(x.flatten(0, 1), Context(batch_shape=(20, 16))).routing.indices_TK.view(20, 16, -1)
    assert torch.equal((indices >= 0).any(-1).long().argmax(1), places)


def test_a_router_trained_apart_goes_along_the_difference_of_the_classes(generator):
    labels = torch.tensor([1.0, -1.0] * 50, dtype=torch.float64)
    pattern = torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    x = 0.3 * torch.randn(100, 5, 6, generator=generator, dtype=torch.float64)
    x[:, 2] += labels.unsqueeze(1) * pattern
    w = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(separation_loss(w, x, labels), w)
    torch.testing.assert_close(grad[0], -(labels.unsqueeze(1) * x.sum(1)).mean(0) / 2)
    torch.testing.assert_close(grad[0], -grad[3])
    assert torch.cosine_similarity(-grad[0], pattern, dim=0) > 0.95
    layer = build(generator, router_training="separate")
    layer(tokens(generator, 12), ROWS).y_TD.sum().backward()
    assert layer.gate.weight.grad is None and layer.up_proj.grad.abs().max() > 0


def test_noise_moves_the_choice_in_training_only_and_not_the_weight(generator):
    layer = build(generator, routing="sample", noise=50.0)
    x = tokens(generator, 12)
    calm = layer.eval()(x, ROWS).routing

    def drawn(seed):
        noisy = Context(batch_shape=(3, 4), generator=torch.Generator().manual_seed(seed))
        return layer.train()(x, noisy).routing

    seen = {tuple(drawn(seed).indices_TK[::4, 0].tolist()) for seed in range(20)}
    assert len(seen) > 5
    torch.testing.assert_close(drawn(3).scores_TE, calm.scores_TE)
    assert torch.equal(drawn(3).indices_TK, drawn(3).indices_TK)
    with pytest.raises(MixwellError, match="draws while training; give Context"):
        layer.train()(x, ROWS)


@pytest.mark.parametrize("routing", ["patch", "sample"])
def test_padding_is_never_taken(generator, routing):
    layer, x = build(generator, routing=routing, patches=2 if routing == "patch" else 1), tokens(generator, 12)
    mask = torch.tensor([True] * 3 + [False] + [True] * 8)
    mixed = layer(x, Context(batch_shape=(3, 4), mask_T=mask))
    alone = layer(x[:3], Context(batch_shape=(1, 3)))
    torch.testing.assert_close(mixed.y_TD[:3], alone.y_TD)
    assert mixed.y_TD[3].abs().max() == 0 and (mixed.routing.indices_TK[3] < 0).all()


def test_one_expert_that_takes_all_patches_is_a_two_layer_network(generator):
    layer, x = build(generator, num_experts=1, routing="sample"), tokens(generator, 12)
    torch.testing.assert_close(layer(x, ROWS).y_TD, torch.relu(x @ layer.up_proj[0].T) @ layer.down_proj[0].T)
    every = build(generator, num_experts=1, patches=4, router_training="separate")
    plain = torch.relu(x @ every.up_proj[0].T) @ every.down_proj[0].T
    torch.testing.assert_close(every(x, ROWS).y_TD, plain / 4)


def test_balance_flops_and_the_router_s_first_values(generator):
    layer, x = build(generator, routing="sample", balance={"switch": 0.5}), tokens(generator, 12)
    mixed = layer(x, ROWS)
    torch.testing.assert_close(mixed.aux, 0.5 * mixed.losses["switch"].float())
    assert layer.flops_per_token() == 4 * 6 * 5 + 2 * 6 * 3 == layer.flops_of(mixed)
    patch = build(generator, patches=2)
    assert patch.flops_of(patch(x, ROWS)) == 4 * 6 * 5 * 1.5 + 2 * 6 * 3
    assert patch.flops_per_token() == 4 * 6 * 5 * 3 + 2 * 6 * 3
    assert build(generator, router_std=0).gate.weight.abs().max() == 0


@pytest.mark.parametrize(("options", "message"), [
    ({"num_experts": 0}, "num_experts is 0"), ({"hidden_dim": 0}, "hidden_dim is 0"), ({"patches": 0}, "patches is 0"),
    ({"router_std": -1.0}, "router_std is -1.0"), ({"noise": 1.0}, "noise is 1.0; it belongs to routing: sample"),
    ({"routing": "sample", "noise": -1.0}, "noise is -1.0"),
    ({"routing": "sample", "patches": 2}, "patches and router_training belong to routing: patch"),
    ({"routing": "sample", "router_training": "separate"}, "belong to routing: patch"),
])
def test_refuses(generator, options, message):
    with pytest.raises(ValueError, match=message):
        build(generator, **options)
    with pytest.raises(MixwellError, match="'row' is not one of patch, sample"):
        from_dict(Config, {"num_experts": 2, "hidden_dim": 3, "routing": "row"})
