"""Growing blocks of templates: what new blocks are made of, what stays, and plain dense blocks at last."""

import pytest
import torch

from mixwell.convert._parts import DENSE
from mixwell.convert.mixture_growth import Config, example, mixture_growth, promises
from mixwell.core.errors import MixwellError
from tests.contracts._conversions import block, dense_model, logits, output, spec, whole

START = "layers.1.channel_mixer."
TOKENS = torch.arange(12).view(1, 12)


def templates_model(generator):
    return whole(example(generator)["checkpoint"])


def block_by_hand(checkpoint, coefficients, x_D):
    """One token through one block of the second layer, template by template."""
    gate_up_n, down_n = (checkpoint.tensors[START + n].double() for n in ("gate_up_proj", "down_proj"))
    a_gate, a_up, a_down = coefficients.double()
    gate = sum(a * t[:4] for a, t in zip(a_gate, gate_up_n))
    up = sum(a * t[4:] for a, t in zip(a_up, gate_up_n))
    down = sum(a * t for a, t in zip(a_down, down_n))
    return block(torch.cat([gate, up]), down, x_D)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("rule", ["orthogonal", "normal"])
def test_new_blocks_add_what_templates_mixed_anew_give(generator, rule, dense):
    before = templates_model(generator)
    seed = torch.Generator().manual_seed(3)
    after = mixture_growth(before, Config(blocks=2, rule=rule, scale=0.5, dense=dense), seed)
    again = torch.Generator().manual_seed(3)
    rows = mixture_growth(before, Config(blocks=2, rule=rule), again).tensors[f"{START}coefficients"].clone()
    assert rows.shape == (3, 3, 3) and torch.equal(rows[:, :1], before.tensors[f"{START}coefficients"])
    rows[2, 1:] *= 0.5
    x = torch.randn(5, 6, generator=generator)
    for x_D, y_D in zip(x, output(after, 1, x)):
        expected = sum(block_by_hand(before, rows[:, b], x_D) for b in range(3))
        torch.testing.assert_close(y_D, expected, rtol=1e-4, atol=1e-4)
    wanted = {"method": DENSE, "hidden_dim": 12} if dense else spec(before, 1) | {"blocks": 3}
    assert spec(after, 1) == wanted


def test_new_coefficients_are_at_right_angles_to_all_before(generator):
    after = mixture_growth(templates_model(generator), Config(blocks=2), generator)
    for rows in after.tensors[f"{START}coefficients"].double():
        first, second, third = rows
        for other, row in ((first, second), (first, third), (second, third)):
            assert abs(float(other @ row)) < 1e-5 and abs(float(row.norm()) - 1) < 1e-6


def test_new_weights_lie_in_the_span_of_trained_templates(generator):
    before = templates_model(generator)
    dense = mixture_growth(before, Config(blocks=2, dense=True), generator).tensors[f"{START}gate_up_proj"]
    templates = before.tensors[f"{START}gate_up_proj"][:, :4].double().flatten(1)
    for gate in dense[:12].double().split(4):
        fit = torch.linalg.lstsq(templates.T, gate.flatten()).solution
        torch.testing.assert_close(fit @ templates, gate.flatten(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [Config(scale=0.0), Config(blocks=0, dense=True), Config(scale=0.0, dense=True)])
def test_where_nothing_is_added_the_function_stays_and_that_is_promised(generator, config):
    before = templates_model(generator)
    after = mixture_growth(before, config, generator)
    torch.testing.assert_close(logits(after, TOKENS), logits(before, TOKENS), rtol=1e-5, atol=1e-5)
    assert promises(config)["max_logit_error"] > 0 and promises(Config()) == {}


def test_some_layers_only(generator):
    after = mixture_growth(templates_model(generator), Config(layers=(1,)), generator)
    assert [spec(after, layer).get("blocks", 1) for layer in range(2)] == [1, 2]


def test_refuses_what_it_cannot_do(generator):
    with pytest.raises(MixwellError, match="no layer of templates to grow"):
        mixture_growth(dense_model(generator), Config(), generator)
    with pytest.raises(MixwellError, match="layers names 2; expected layers of templates"):
        mixture_growth(templates_model(generator), Config(layers=(2,)), generator)
    for options in ({"blocks": 0}, {"blocks": -1}, {"scale": -1.0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**options)
