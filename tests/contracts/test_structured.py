"""What every structured matrix of the catalogue promises; tag `factorises`: a trained matrix can be brought into it."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.mixing.structured import FACTORISES, factorising
from tests.contracts._tools import cases, double, fresh, poisoned_memory, same_config

FAMILY = "precision.structured"
BOTH = [e for e in cases(FAMILY) if "factorises" in e.values[0].tags]
NOT = [e for e in cases(FAMILY) if "factorises" not in e.values[0].tags]


def build(entry, seed=1, std=None):
    values = entry.module().example(fresh())
    return entry.load()(values["rows"], values["columns"], values["config"], fresh(seed), std).eval(), values["x"]


def model(entry, **mixer):
    config = entry.module().example(fresh())["config"]
    spec = {"method": entry.name, **{name: value for name, value in vars(config).items() if value is not None}}
    channel = {"method": "experts.layers.structured", "hidden_dim": 24, "structure": spec, **mixer}
    sizes = {"vocab_size": 13, "dim": 16, "num_layers": 2, "num_heads": 2}
    return LanguageModel(ModelConfig(**sizes, channel_mixer=channel), fresh(2))


@pytest.mark.parametrize("entry", cases(FAMILY))
def test_the_product_is_that_of_the_matrix_it_stands_for(entry):
    matrix, x = build(entry)
    matrix, x = double(matrix), x.double().requires_grad_()
    W = matrix.dense()
    assert W.shape == (matrix.rows, matrix.columns) and matrix.flops_per_token() > 0
    found, expected = matrix(x, Context()), x @ W.T
    torch.testing.assert_close(found, expected)
    leaves = [x, *matrix.parameters()]
    probe = torch.randn(expected.shape, generator=fresh(3), dtype=torch.float64)
    got, wanted = (torch.autograd.grad((y * probe).sum(), leaves, allow_unused=True) for y in (found, expected))
    assert got[0] is not None
    for one, other in zip(got, wanted):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
    torch.testing.assert_close(matrix(x.view(1, 5, -1), Context())[0], found)


@pytest.mark.parametrize("entry", cases(FAMILY))
def test_form(entry):
    with poisoned_memory():
        matrix, x = build(entry)
        before = x.clone()
        y = matrix(x, Context())
    assert torch.equal(x, before) and torch.isfinite(y).all() and y.dtype == x.dtype
    again, _ = build(entry)
    assert torch.equal(y, again(x, Context()))
    torch.testing.assert_close(double(matrix)(x.double(), Context()), y.double(), rtol=1e-4, atol=1e-6)
    assert same_config(matrix.config)
    assert matrix(x[:0], Context()).shape == (0, matrix.rows)


@pytest.mark.parametrize("entry", cases(FAMILY))
def test_starts_with_the_spread_of_the_dense_matrix_and_follows_its_last_factor(entry):
    for std in (None, 0.02):
        found = [build(entry, seed, std)[0].dense().detach().square().mean() for seed in range(60)]
        wanted = build(entry)[0].columns ** -0.5 if std is None else std
        assert 0.5 * wanted < float(torch.stack(found).mean().sqrt()) < 1.3 * wanted
    matrix, _ = build(entry)
    before = matrix.dense().detach()
    with torch.no_grad():
        matrix.weight.mul_(0.5)
    torch.testing.assert_close(matrix.dense(), 0.5 * before)


@pytest.mark.parametrize("entry", cases(FAMILY))
def test_stands_in_models_trains_every_number_and_is_kept(entry, tmp_path):
    tokens = torch.randint(0, 13, (2, 9), generator=fresh(3))
    made = model(entry, num_experts=2, router={"method": "top_k", "k": 2})
    loss = made.train().loss(tokens, tokens, generator=fresh(4))
    (loss.nats + loss.aux).backward()
    untouched = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().max()]
    fixed = getattr(entry.load(), "fixed", ())  # names of factors that take no gradient
    assert all(name.endswith(fixed) for name in untouched) if fixed else not untouched
    made.after_step([loss.routings])
    made.eval().save(tmp_path / "m")
    again = LanguageModel.from_checkpoint(made.to_checkpoint()).eval()
    assert torch.equal(made(tokens).logits_BTV, again(tokens).logits_BTV)
    assert again.num_parameters() == made.num_parameters() >= made.num_parameters(active=True)
    low = made.cast(torch.bfloat16)(tokens).logits_BTV
    torch.testing.assert_close(low, again(tokens).logits_BTV, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("entry", BOTH)
def test_a_matrix_of_its_own_kind_comes_back(entry):
    matrix, _ = build(entry)
    W = matrix.dense().detach()
    found = entry.load().from_dense(W, matrix.config, fresh(2)).dense().detach()
    least = 0.25 if entry.name.endswith("blast") else 1e-5  # the one that descends, in few rounds here
    assert float((found - W).norm()) < least * float(W.norm())
    any_matrix = torch.randn(W.shape, generator=fresh(5))
    once = entry.load().from_dense(any_matrix, matrix.config, fresh(2)).dense().detach()
    assert float((once - any_matrix).norm()) < float(any_matrix.norm())


@pytest.mark.parametrize("entry", NOT)
def test_others_say_which_methods_factorise(entry):
    matrix, _ = build(entry)
    with pytest.raises(MixwellError, match="factorises no matrix; methods that do: blast"):
        entry.load().from_dense(matrix.dense(), matrix.config, fresh())


def test_the_tag_says_who_factorises():
    for entry in cases(FAMILY):
        own = entry.values[0]
        assert (FACTORISES in own.tags) == own.load().factorises == (own.name.rpartition(".")[2] in factorising())
