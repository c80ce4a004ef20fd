"""Dense training, sparse inference: against a loop, and what the paper promises of the two modes."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.moe import Config as LayerConfig
from mixwell.experts.layers.moe import MoE
from mixwell.experts.routers.dense_train import Config, DenseTrain

DIM, EXPERTS = 6, 4


def build(**options):
    router = DenseTrain(DIM, EXPERTS, Config(**options), torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        router.weight.mul_(30)
    return router


def tokens(generator):
    return torch.randn(9, DIM, generator=generator, dtype=torch.float64, requires_grad=True)


def gates(router, x):
    rows = []
    for token in x:
        e = torch.stack([torch.exp(router.weight[i] @ token) for i in range(EXPERTS)])
        rows.append(e / e.sum())
    return torch.stack(rows)


def same_gradients(router, x, found, expected, generator):
    probe = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad((v * probe).sum(), [x, router.weight]) for v in (found, expected))):
        torch.testing.assert_close(a, b)


def test_training_is_dense(generator):
    router, x = build().train(), tokens(generator)
    routing, p = router(x, Context()), gates(router, x)
    assert routing.load_E().tolist() == [9] * EXPERTS
    torch.testing.assert_close(routing.dense_TE(), p)
    same_gradients(router, x, routing.dense_TE(), p, generator)


@pytest.mark.parametrize("options", [
    {"k": 1}, {"k": 2}, {"k": 4}, {"k": 2, "renormalise": True}, {"threshold": 0.3},
    {"threshold": 0.3, "renormalise": True}, {"threshold": 0.0}, {"threshold": 0.9},
])
def test_inference_is_sparse(options, generator):
    router, x = build(**options).eval(), tokens(generator)
    p, rows = gates(router, x), []
    for row in p:
        kept = torch.zeros(EXPERTS, dtype=torch.float64)
        threshold = options.get("threshold")
        for e in range(EXPERTS):
            rank = int((row > row[e]).sum())
            kept[e] = rank < options["k"] if threshold is None else float(row[e] > threshold or rank == 0)
        weights = row * kept
        rows.append(weights / weights.sum() if options.get("renormalise") else weights)
    found = router(x, Context()).dense_TE()
    torch.testing.assert_close(found, torch.stack(rows))
    same_gradients(router, x, found, torch.stack(rows), generator)


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"k": EXPERTS}])
def test_leaving_nothing_out_gives_the_model_that_was_trained(options, generator):
    layer = MoE(DIM, LayerConfig(num_experts=EXPERTS, hidden_dim=5, balance={},
                                 router={"method": "dense_train", **options}), generator)
    x = torch.randn(9, DIM, generator=generator)
    torch.testing.assert_close(layer.train()(x, Context()).y_TD, layer.eval()(x, Context()).y_TD)


def test_sharp_gates_make_sparse_inference_nearly_dense(generator):
    """What the mutual-information loss is for: the error of leaving experts out falls with the gates' entropy."""
    errors = []
    for sharpness in (1.0, 10.0):
        layer = MoE(DIM, LayerConfig(num_experts=EXPERTS, hidden_dim=5, balance={"entropy": 0.1},
                                     router={"method": "dense_train", "k": 1}), torch.Generator().manual_seed(3))
        with torch.no_grad():
            layer.router.weight.mul_(50 * sharpness)
        x = torch.randn(40, DIM, generator=torch.Generator().manual_seed(4))
        whole, part = layer.train()(x, Context()), layer.eval()(x, Context())
        errors.append(((whole.y_TD - part.y_TD).norm() / whole.y_TD.norm(), whole.losses["entropy"]))
    assert errors[1][0] < 0.5 * errors[0][0] and errors[1][1] < errors[0][1]


def test_every_expert_gets_a_gradient_from_every_batch(generator):
    router = {"method": "dense_train", "k": 1}
    layer = MoE(DIM, LayerConfig(num_experts=EXPERTS, hidden_dim=5, balance={}, router=router), generator)
    layer.train()(torch.randn(1, DIM, generator=generator), Context()).y_TD.sum().backward()
    assert layer.down_proj.grad.abs().amax((1, 2)).min() > 0


def test_experts_per_token_speaks_of_inference():
    assert build(k=3).experts_per_token == 3 and build(threshold=0.2).experts_per_token == EXPERTS


@pytest.mark.parametrize(("options", "message"), [
    ({"k": 0}, "k is 0"), ({"k": 9}, "choose 1 to 4"), ({"threshold": 1.0}, "threshold is 1.0; expected 0 up to 1"),
    ({"threshold": -0.1}, "threshold is -0.1"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
