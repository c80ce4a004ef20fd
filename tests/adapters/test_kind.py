"""KIND against a loop over tokens, gates by domain, starts, and components that are handed on."""

import pytest
import torch

from mixwell.adapters.kind import KIND, Config, for_domain, gates, inherit
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from tests.contracts._adapters import TOKENS, logits, model, moved
from tests.contracts._tools import fresh

NAME = "layers.0.channel_mixer.down_proj"
LABELS = torch.tensor([2, 0, 1])


def beside(network=None, targets="down_proj", **options):
    config = Config(**{"common": 3, "tailors": 2, "domains": 3} | options)
    there = KIND.attach(network or model(), targets, config, fresh(1))
    return there, there.adapters[NAME]


def test_each_token_has_the_components_of_its_domain_and_the_gradient_of_a_loop():
    there, adapter = beside()
    moved(there, size=0.2).model.double()
    x = torch.randn(5, 24, generator=fresh(2), dtype=torch.float64)
    labels = torch.tensor([1, 0, 2, 1, 1])
    adapter.now.context = Context(labels_T=labels)
    found = adapter.after(x, x, adapter.target.tensor, *adapter.bound().parts)
    rows = []
    for token, label in zip(x, labels.tolist()):
        y = sum(adapter.U[:, i] * adapter.s[i] * (adapter.Vh[i] @ token) for i in range(3))
        own = range(2 * label, 2 * label + 2)
        y = y + sum(adapter.tailor_U[:, i] * adapter.tailor_s[i] * (adapter.tailor_Vh[i] @ token) for i in own)
        rows.append(y)
    expected = torch.stack(rows)
    torch.testing.assert_close(found, expected)
    parts = list(adapter.parameters())
    assert len(parts) == 6
    for one, other in zip(torch.autograd.grad(found.square().sum(), parts),
                          torch.autograd.grad(expected.square().sum(), parts)):
        torch.testing.assert_close(one, other)


def test_a_domain_trains_the_common_components_and_its_own_tailors_alone():
    there, adapter = beside()
    network = there.model.train()
    network.loss(TOKENS[:1, :-1], TOKENS[:1, 1:], labels_B=LABELS[:1]).nats.backward()
    assert adapter.U.grad.any() and adapter.s.grad.all()
    assert adapter.tailor_s.grad.ne(0).tolist() == [False] * 4 + [True] * 2
    assert gates(torch.tensor([1]), adapter.config).tolist() == [[0, 0, 1, 1, 0, 0]]


def test_whole_decompositions_start_as_the_base_for_every_domain():
    there, _ = beside(common=12, tailors=4)
    base = model()
    with torch.no_grad():
        for label in range(3):
            labels = torch.full((3,), label)
            torch.testing.assert_close(there.model(TOKENS, labels_B=labels).logits_BTV, logits(base))


def test_the_weights_of_a_domain_make_the_model_that_it_sees():
    there, _ = beside()
    moved(there)
    expected = there.model(TOKENS[:1], labels_B=LABELS[:1]).logits_BTV.detach()
    found, common = for_domain(there, 2), for_domain(there)
    for outside in (3, -1):
        with pytest.raises(MixwellError, match=f"domain is {outside}; KIND knows the domains 0 to 2"):
            for_domain(there, outside)
    network = model()
    for name, weight in found.items():
        assert torch.linalg.matrix_rank(common[name]) == 3 and torch.linalg.matrix_rank(weight) == 5
        with torch.no_grad():
            network.get_parameter(name).copy_(weight)
    torch.testing.assert_close(logits(network)[:1], expected)


@pytest.mark.parametrize("sparse", [False, True])
def test_starts(sparse):
    network, weight = model(sparse), model(sparse).get_parameter(NAME)
    values = torch.linalg.svdvals(weight)
    _, fresh_ones = beside(network, domains=1, start="fresh", train="tailors")
    torch.testing.assert_close(fresh_ones.s, values[..., :3])
    torch.testing.assert_close(fresh_ones.tailor_s.detach(), values[..., 3:5])
    assert [name for name, _ in fresh_ones.named_parameters()] == ["tailor_U", "tailor_s", "tailor_Vh"]
    there, _ = beside(model(sparse, dim=64, num_heads=4), domains=1, start="random", common=20, tailors=4)
    for name, made in for_domain(there, 0).items():
        length = there.adapters[name].target.tensor.flatten(-2).norm(dim=-1)
        torch.testing.assert_close(made.flatten(-2).norm(dim=-1), length, rtol=0.35, atol=0)


def test_common_components_are_handed_on_to_new_tailors():
    source, before = beside()
    moved(source)
    there, adapter = beside(domains=1, start="fresh", train="tailors")
    inherit(there, source)
    for part in ("U", "s", "Vh"):
        assert torch.equal(getattr(adapter, part), getattr(before, part))
    assert there.num_parameters == 2 * 2 * (16 + 1 + 24)
    torch.testing.assert_close(for_domain(there)[NAME], for_domain(source)[NAME])
    apart = logits(there.model)
    there.merge()
    torch.testing.assert_close(logits(there.model), apart)
    with pytest.raises(MixwellError, match="no common components of this shape"):
        inherit(beside(common=4)[0], source)


def test_what_is_not_known_is_refused():
    there, _ = beside()
    with pytest.raises(MixwellError, match="tailors for 3 domains and got no labels"):
        logits(there.model)
    with pytest.raises(MixwellError, match="knows the domains 0 to 2 and got 0 to 3"):
        there.model(TOKENS, labels_B=torch.tensor([0, 3, 1]))
    with pytest.raises(MixwellError, match="no matrix holds it"):
        there.merge()
    with pytest.raises(MixwellError, match="inside which the domains of tokens are not known"):
        beside(model(sparse=True))
    with pytest.raises(MixwellError, match="rank is 17"):
        beside(common=15)
    for name in ("common", "tailors", "domains"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            Config(**{name: 0})
