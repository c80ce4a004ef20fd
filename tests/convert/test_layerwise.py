"""Layer-wise distillation: the student's output against a loop, what learning brings, the k of each layer."""

import pytest
import torch

from mixwell.convert.layerwise import Config, Student, layerwise, miss, needs, own_k, promises
from mixwell.core.errors import MixwellError
from tests.contracts._conversions import block, calibration, dense_model, output, spec

GATE, DOWN = "layers.1.channel_mixer.gate_up_proj", "layers.1.channel_mixer.down_proj"


def student(generator, config):
    dense = dense_model(generator)
    return dense, Student(dense.tensors[GATE], dense.tensors[DOWN], config, generator)


def test_the_output_against_a_loop_with_gradient(generator):
    dense, made = student(generator, Config(num_experts=4))
    x = torch.randn(3, 6, generator=generator)
    found = made.output(x, 2)
    for t in range(3):
        logits = made.router_ED.double() @ x[t].double()
        chosen = logits.topk(2).indices.tolist()
        whole = sum(logits[e].exp() for e in chosen)
        wanted = sum(logits[e].exp() / whole * block(made.gate_up_E[e], made.down_E[e], x[t]) for e in chosen)
        torch.testing.assert_close(found[t].double(), wanted, rtol=1e-4, atol=1e-4)
    target = torch.stack([block(dense.tensors[GATE], dense.tensors[DOWN], row) for row in x])
    wanted = (found.double() - target).square().mean() / target.square().mean()
    loss = miss(made, x, (dense.tensors[GATE], dense.tensors[DOWN]), 2)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-4, atol=1e-5)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, made.parameters))


def test_learning_brings_the_layer_closer_to_what_it_gave(generator):
    dense, text = dense_model(generator), calibration(rows=4, length=24)
    errors = []
    for lr in (1e-9, 0.03):
        after = layerwise(dense, Config(num_experts=4, passes=25, lr=lr), generator, text)
        x = torch.cat([seen[1].x_TD for seen in text.seen(dense)])
        missed = output(after, 1, x) - output(dense, 1, x)
        errors.append(missed.detach().square().mean().item())
    assert errors[1] < 0.5 * errors[0]
    assert spec(after, 1)["hidden_dim"] == 2 and spec(after, 1)["router"]["k"] == 2
    assert needs(Config(tokens=7)).tokens == 7 and promises(Config()) == {}


def test_all_experts_with_even_gates_are_the_dense_block(generator):
    """The scale E, without which slices give 1 / E of the block."""
    dense, made = student(generator, Config(num_experts=4))
    with torch.no_grad():
        made.router_ED.zero_()
    x = torch.randn(5, 6, generator=generator)
    torch.testing.assert_close(made.output(x, 4).double(), output(dense, 1, x), rtol=1e-4, atol=1e-4)


def test_a_layer_whose_gates_are_sure_takes_fewer(generator):
    dense, text = dense_model(generator), calibration()
    config = Config(num_experts=4, k=3, mass=0.9)
    students = {layer: Student(dense.tensors[GATE], dense.tensors[DOWN], config, generator) for layer in range(2)}
    with torch.no_grad():
        students[0].router_ED.mul_(1e-6)
        students[1].router_ED.mul_(1e6)
    assert own_k(dense, students, config, text) == {0: 3, 1: 1}
    after = layerwise(dense, Config(num_experts=4, k=3, mass=0.01, passes=1), generator, text)
    assert spec(after, 0)["router"] == {"method": "top_k", "k": 1, "renormalise": True, "constant": True}


def test_some_layers_only(generator):
    after = layerwise(dense_model(generator), Config(num_experts=4, passes=1, layers=(1,)), generator, calibration())
    assert [spec(after, layer)["method"] for layer in range(2)] == ["experts.layers.swiglu", "experts.layers.moe"]


def test_refuses_what_it_cannot_do(generator):
    with pytest.raises(MixwellError, match="8 hidden units; expected num_experts to be a divisor"):
        layerwise(dense_model(generator), Config(num_experts=3), generator, calibration())
    for options in ({"num_experts": 1}, {"k": 9}, {"mass": 1.5}, {"mass": 0.0}, {"passes": 0}, {"lr": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**options)
