"""Conditional routing: each condition against a loop, what folds, and how a new task begins."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.routers.conditioned import Conditioned, Config, running_mean

CODES = ((1, 0, 1), (0, 1, 1), (1, 1, 0))
LABELS = torch.tensor([0, 2, 1, 1, 0, 2])
OPTIONS = {
    "token": {}, "context": {}, "label": {"labels": 3}, "attribute": {"codes": CODES}, "token_label": {"labels": 3},
    "gate_per_label": {"labels": 3},
}


def built(condition, generator, **options):
    return Conditioned(5, 4, Config(condition=condition, **OPTIONS[condition], **options), generator).double()


def tokens(generator):
    return torch.randn(6, 5, generator=generator, dtype=torch.float64)


def logits_loop(router, condition, x):
    rows = []
    for t in range(6):
        label = int(LABELS[t])
        if condition == "token":
            rows.append(router.weight @ x[t])
        elif condition == "context":
            row = x[t // 3 * 3 : t + 1]
            rows.append(router.weight @ x[t] + router.condition_weight @ (row.sum(0) / len(row)))
        elif condition == "label":
            rows.append(router.weight @ router.embedding[label])
        elif condition == "attribute":
            h = router.attribute_weight @ torch.tensor(CODES[label]).double() + router.attribute_bias
            rows.append(router.weight @ ((h - h.mean()) / (h.var(correction=0) + 1e-5).sqrt()))
        elif condition == "token_label":
            rows.append(router.weight @ x[t] + router.condition_weight @ router.embedding[label])
        else:
            rows.append(router.weight[label] @ x[t])
    return torch.stack(rows)


@pytest.mark.parametrize("condition", OPTIONS)
@pytest.mark.parametrize("k, renormalise", [(1, None), (2, None), (2, False)])
def test_agrees_with_a_loop(generator, condition, k, renormalise):
    router = built(condition, generator, k=k, renormalise=renormalise)
    x = tokens(generator)
    found = router(x, Context(labels_T=LABELS, batch_shape=(2, 3)))
    logits = logits_loop(router, condition, x)
    torch.testing.assert_close(found.logits_TE, logits)
    for t, p in enumerate(logits.softmax(-1).tolist()):
        chosen = sorted(range(4), key=lambda e: -p[e])[:k]
        scale = sum(p[e] for e in chosen) if k > 1 and renormalise is None else 1
        expected = {e: p[e] / scale for e in chosen}
        assert dict(zip(found.indices_TK[t].tolist(), found.weights_TK[t].tolist())) == pytest.approx(expected)


@pytest.mark.parametrize("condition", OPTIONS)
def test_gradient(generator, condition):
    router, x = built(condition, generator), tokens(generator)
    names, values = zip(*router.named_parameters())
    context = Context(labels_T=LABELS, batch_shape=(2, 3))

    def outputs(*parameters):
        return torch.func.functional_call(router, dict(zip(names, parameters)), (x, context)).scores_TE

    assert torch.autograd.gradcheck(outputs, values)


@pytest.mark.parametrize("condition", ["label", "attribute"])
def test_data_independent_gates_fold_into_a_table(generator, condition):
    router = built(condition, generator)
    context = Context(labels_T=LABELS)
    here, there = router(tokens(generator), context), router(tokens(generator), context)
    assert torch.equal(here.weights_TK, there.weights_TK)
    torch.testing.assert_close(router.fold()[LABELS], here.logits_TE)


def test_an_attribute_gate_extends_to_an_unseen_code_and_a_task_id_does_not(generator):
    router = built("attribute", generator)
    wider = Conditioned(5, 4, Config(condition="attribute", codes=(*CODES, (0, 0, 1))), generator).double()
    wider.load_state_dict(router.state_dict())
    routing = wider(tokens(generator)[:1], Context(labels_T=torch.tensor([3])))
    assert torch.isfinite(routing.weights_TK).all()
    torch.testing.assert_close(wider.fold()[:3], router.fold())
    with pytest.raises(ValueError, match="expected 0 to 2"):
        built("label", generator)(tokens(generator)[:1], Context(labels_T=torch.tensor([3])))


@pytest.mark.parametrize("condition", ["label", "token_label", "gate_per_label"])
def test_a_new_task_takes_its_gate_from_related_ones(generator, condition):
    router, x = built(condition, generator), tokens(generator)
    seen = [router.logits(x, Context(labels_T=torch.full((6,), c))) for c in (0, 1)]
    router.adopt(2, [0, 1], [3.0, 1.0])
    new = router.logits(x, Context(labels_T=torch.full((6,), 2)))
    torch.testing.assert_close(new, 0.75 * seen[0] + 0.25 * seen[1])
    router.adopt(2, [1])
    torch.testing.assert_close(router.logits(x, Context(labels_T=torch.full((6,), 2))), seen[1])
    router.adopt(2, [0, 1])  # alike, where no weights are given
    torch.testing.assert_close(router.logits(x, Context(labels_T=torch.full((6,), 2))), (seen[0] + seen[1]) / 2)


def test_the_running_mean_sees_no_later_token_and_no_padding():
    x = torch.arange(8.0).view(8, 1)
    mask = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1]).bool()
    assert running_mean(x, (2, 4))[:, 0].tolist() == [0, 0.5, 1, 1.5, 4, 4.5, 5, 5.5]
    assert running_mean(x, (2, 4), mask)[:, 0].tolist() == pytest.approx([0, 0, 1, 5 / 3, 0, 0, 6, 6.5])


@pytest.mark.parametrize("options, message", [
    ({"condition": "attribute"}, "needs codes"), ({"condition": "attribute", "codes": ((1, 2),)}, "0 and 1"),
    ({"condition": "attribute", "codes": ((1,), (1, 0))}, "one length"), ({"condition": "label"}, "needs labels"),
    ({"condition": "token", "codes": CODES}, "belong to condition attribute"),
    ({"condition": "token", "k": 1, "renormalise": True}, "without a gradient"),
])
def test_config_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_refuses_what_it_needs_and_does_not_get(generator):
    x = tokens(generator)
    with pytest.raises(ValueError, match=r"give Context\.labels_T"):
        built("label", generator)(x, Context())
    with pytest.raises(ValueError, match="batch_shape"):
        built("context", generator)(x, Context())
    with pytest.raises(ValueError, match="only label and attribute gates fold"):
        built("token", generator).fold()
    with pytest.raises(ValueError, match="nothing to adopt"):
        built("attribute", generator).adopt(0, [1])
    with pytest.raises(ValueError, match="expected other labels"):
        built("label", generator).adopt(0, [0])
    with pytest.raises(ValueError, match="expected other labels, 0 to 2"):
        built("label", generator).adopt(0, [1, 3])


def test_codes_of_many_attributes_start_at_the_size_of_few(generator):
    for bits in (4, 64):
        router = Conditioned(200, 2, Config(condition="attribute", codes=((1,) * bits,)), generator)
        assert router.attribute_weight.std().item() == pytest.approx(bits**-0.5, rel=0.1)
