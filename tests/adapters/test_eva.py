"""EVA: its components against scikit-learn's, its ranks against a sorted list, the LoRA that it leaves."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import IncrementalPCA

from mixwell.adapters import files
from mixwell.adapters.eva import EVA, Components, Config, none_yet, shared_out, standing_still, surveyed, updated
from mixwell.adapters.targets import find
from mixwell.core.errors import MixwellError
from tests.contracts._adapters import TOKENS, logits, model, moved
from tests.contracts._tools import fresh

TEXT = [TOKENS, TOKENS.flip(1), TOKENS.flip(0).roll(3, 1)]


def rows(count, width, seed=0):
    draws = fresh(seed)
    mixed = torch.randn(width, width, generator=draws, dtype=torch.float64)
    return torch.randn(count, width, generator=draws, dtype=torch.float64) @ mixed + 3.0


def seen(*batches, most):
    found = none_yet(batches[0].shape[1])
    for batch in batches:
        found = updated(found, batch, most)
    return found


def test_components_are_those_of_incremental_analysis():
    batches = rows(90, 7).split([30, 20, 40])
    known = IncrementalPCA(3)
    for batch in batches:
        known.partial_fit(batch.numpy())
    found = seen(*batches, most=3)
    np.testing.assert_allclose(found.mean_I, known.mean_)
    np.testing.assert_allclose(found.values_K, known.singular_values_)
    np.testing.assert_allclose(found.ratios(), known.explained_variance_ratio_)
    theirs = torch.from_numpy(known.components_)
    torch.testing.assert_close((found.vectors_KI * theirs).sum(1).abs(), torch.ones(3, dtype=torch.float64))


def test_with_all_components_kept_they_are_exact_and_explain_the_most():
    whole = rows(60, 5)
    found = seen(*whole.split(11), most=5)
    centred = whole - whole.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    torch.testing.assert_close(found.ratios(), values.flip(0) / values.sum())
    torch.testing.assert_close((found.vectors_KI @ vectors.flip(1)).abs(), torch.eye(5, dtype=torch.float64),
                               atol=1e-8, rtol=0)
    leading = (centred @ found.vectors_KI[:2].T).square().sum()
    for seed in range(20):
        other = torch.linalg.qr(torch.randn(5, 2, generator=fresh(seed), dtype=torch.float64)).Q
        assert (centred @ other).square().sum() < leading


def test_ranks_go_to_the_largest_ratios():
    ratios = {"a": torch.tensor([0.5, 0.4, 0.05]), "b": torch.tensor([0.3, 0.2, 0.1]), "c": torch.tensor([0.04, 0.01])}
    assert shared_out(ratios, 3) == {"a": 2, "b": 1, "c": 0}
    assert shared_out(ratios, 6) == {"a": 3, "b": 3, "c": 0}


def test_what_stands_still_up_to_its_sign():
    eye = torch.eye(3, dtype=torch.float64)
    before = Components(4, eye[0], eye[0], eye[0], eye)
    turned = Components(4, eye[0], eye[0], eye[0], torch.stack([-eye[0], eye[2], eye[1]]))
    assert [standing_still(before, before, 0.99), standing_still(before, turned, 0.99)] == [3, 1]
    assert standing_still(before, turned, 0.0) == 3 and standing_still(none_yet(3), before, 0.99) == 0


@pytest.mark.parametrize("sparse", [False, True])
def test_it_leaves_a_lora_that_starts_as_the_base_along_the_inputs(sparse, tmp_path):
    network = model(sparse)
    there = EVA.attach(network, None, Config(rank=2, alpha=4.0, tau=1.0), fresh(), text=TEXT)
    assert there.method == "adapters.lora" and torch.equal(logits(network), logits(model(sparse)))
    targets = find(model(sparse), ["all-linear"])
    ranks = {name: adapter.A.shape[-2] for name, adapter in there.adapters.items()}
    assert sum(ranks.values()) == 2 * len(targets) and len(set(ranks.values())) > 1 and max(ranks.values()) <= 4
    assert all(adapter.scale == pytest.approx(2.0) for adapter in there.adapters.values())
    for adapter in there.adapters.values():
        A = adapter.A.detach()
        torch.testing.assert_close(A @ A.mT, torch.eye(A.shape[-2]).expand(*A.shape[:-2], -1, -1), atol=1e-5, rtol=0)
    moved(there)
    files.save(there, tmp_path / "saved")
    again = files.load(tmp_path / "saved", model(sparse))
    assert torch.equal(logits(again.model), logits(network))


def test_the_inputs_are_those_of_the_layer():
    network = model()
    caught = []
    hook = network.layers[1].channel_norm.register_forward_hook(lambda m, given, result: caught.append(result))
    for tokens in TEXT:
        network(tokens)
    hook.remove()
    there = EVA.attach(network, "gate_up_proj", Config(rank=3, rho=1.0, tau=1.0), fresh(), text=iter(TEXT))
    whole = torch.cat(caught).flatten(0, 1).detach().double()
    centred = whole - whole.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    A = there.adapters["layers.1.channel_mixer.gate_up_proj"].A.detach().double()
    caught_share = (centred @ A.T).square().sum() / values.sum()
    assert float(caught_share) > 0.98 * float(values[-3:].sum() / values.sum())
    assert (A @ vectors[:, -1:]).norm() > 0.98


def test_the_survey_stops_where_components_stand_still_and_leaves_the_model_as_it_was():
    network = model().train()
    given = iter([TOKENS] * 9)
    targets = find(network, ["all-linear"])
    surveyed(network, targets, given, Config(rank=1, rho=1.0, tau=0.9))
    assert len(list(given)) == 7 and network.training  # the second time it saw what it had seen
    assert all(p.requires_grad for p in network.parameters())
    assert torch.equal(logits(network.eval()), logits(model()))
    given = iter([TOKENS] * 9)
    surveyed(network, targets, given, Config(rank=1, batches=1))
    assert len(list(given)) == 8


def test_whitening_and_dropout_go_into_the_lora():
    plain, white = (EVA.attach(model(), "qkv", Config(rank=2, rho=1.0, whiten=whiten, dropout=0.25), fresh(), text=TEXT)
                    for whiten in (False, True))
    assert white.config.dropout == 0.25
    for name, adapter in plain.adapters.items():
        lengths = white.adapters[name].A.norm(dim=1)
        assert lengths[0] < lengths[1]
        torch.testing.assert_close(white.adapters[name].A / lengths[:, None], adapter.A)


def test_the_tensors_of_another_say_the_ranks():
    first = moved(EVA.attach(model(), None, Config(rank=2), fresh(), text=TEXT))
    again = EVA.attach(model(), None, Config(rank=2), fresh(), begin=False, held=first.tensors())
    again.load_tensors(first.tensors())
    assert torch.equal(logits(again.model), logits(first.model)) and again.config == first.config


def test_its_size_is_known_before_any_text():
    there = EVA.attach(model(), None, Config(rank=3), fresh(), begin=False)
    assert {adapter.A.shape[-2] for adapter in there.adapters.values()} == {3}


@pytest.mark.parametrize("options, message", [({"rank": 0}, "rank is 0"), ({"rho": 0.5}, r"rho is 0\.5"),
                                              ({"tau": 0.0}, "tau is 0"), ({"batches": 0}, "batches is 0"),
                                              ({"alpha": 0.0}, "alpha is 0")])
def test_refuses_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_refuses_to_start_along_a_text_that_is_empty():
    network = model()
    with pytest.raises(MixwellError, match="EVA looked at no window"):
        EVA.attach(network, None, Config(rank=2), fresh(), text=iter(()))
    assert EVA.attach(network, None, Config(rank=2), fresh(), text=[TOKENS]).num_parameters  # nothing was left there


def test_refuses_to_start_without_text():
    with pytest.raises(MixwellError, match="hand in text, windows of token ids"):
        EVA.attach(model(), None, Config(), fresh())
