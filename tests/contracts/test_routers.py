"""What every router of the catalogue promises.

Tags choose the checks and speak of inference: `token-choice` (tokens choose alone, in any order), `batch-invariant`
(a token's routing does not depend on its neighbours), `exact-k` (every token gets exactly k experts), `simplex` (its
weights sum to 1), `dense-at-full-k` (K = E gives the scores back as weights), `static` (nothing to learn).
"""

import contextlib
import dataclasses

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from tests.contracts._tools import cases, double, example, fresh, poisoned_memory, same_config, seeded, widen

ROUTERS = "experts.routers"


def build(entry, **changes):
    values = example(entry, **changes)
    router = entry.load()(values["dim"], values["num_experts"], values["config"], fresh(1))
    if "responses" in values:  # a router by competition, which a layer would bind to its experts
        router.bind(values["responses"])
    return router.eval(), values["x_TD"], values["context"], values


def tagged(tag, without=()):
    return [p for p in cases(ROUTERS, without) if tag in p.values[0].tags]


def take(context: Context, rows: torch.Tensor) -> Context:
    """The context of some of the tokens."""
    names = [f.name for f in dataclasses.fields(context) if f.name.endswith("_T")]
    picked = {n: getattr(context, n)[rows] for n in names if getattr(context, n) is not None}
    if context.state is not None:
        picked["state"] = context.state[rows]
    return dataclasses.replace(context, batch_shape=None, **picked)


@pytest.mark.parametrize("entry", cases(ROUTERS))
@pytest.mark.parametrize("training", [False, True])
def test_form(entry, training):
    router, x, context, values = build(entry)
    router.train(training)
    if training:
        context = dataclasses.replace(context, generator=fresh(2))
    before = x.clone()
    with poisoned_memory():
        routing = router(x, context)
    experts, tokens = values["num_experts"], x.shape[0]
    assert torch.equal(x, before)
    assert routing.indices_TK.dtype == torch.int64 and routing.indices_TK.shape == routing.weights_TK.shape
    assert routing.indices_TK.shape[0] == tokens and routing.scores_TE.shape == (tokens, experts)
    assert routing.weights_TK.dtype in (torch.float32, torch.float64)
    assert routing.indices_TK.min() >= -1 and routing.indices_TK.max() < experts
    empty = routing.indices_TK < 0
    assert (routing.weights_TK[empty] == 0).all()
    for tensor in (routing.weights_TK, routing.scores_TE, *routing.losses.values()):
        assert torch.isfinite(tensor).all()
    assert routing.load_E().sum() == (~empty).sum()
    for row in routing.indices_TK.tolist():
        chosen = [i for i in row if i >= 0]
        assert len(chosen) == len(set(chosen)), "an expert stands twice in one token's slots"
    for name, loss in routing.losses.items():
        assert loss.ndim == 0, f"{name} is no scalar"


@pytest.mark.parametrize("entry", cases(ROUTERS))
def test_without_a_generator_nothing_is_drawn_in_secret(entry):
    values = example(entry)
    noisy = {"jitter": 0.5} if hasattr(values["config"], "jitter") else {}
    router, x, context, _ = build(entry, **noisy)
    context = dataclasses.replace(context, generator=None)
    with poisoned_memory(), contextlib.suppress(MixwellError):
        router.train()(x, context)


@pytest.mark.parametrize("entry", cases(ROUTERS))
def test_same_generator_same_bits(entry):
    outcomes = []
    for _ in range(2):
        router, x, context, _ = build(entry)
        routing = router.train()(x, dataclasses.replace(context, generator=fresh(2)))
        outcomes.append(routing)
    assert torch.equal(outcomes[0].indices_TK, outcomes[1].indices_TK)
    assert torch.equal(outcomes[0].weights_TK, outcomes[1].weights_TK)


@pytest.mark.parametrize("entry", cases(ROUTERS))
def test_config_round_trips(entry):
    assert same_config(example(entry)["config"])


@pytest.mark.parametrize("entry", cases(ROUTERS))
def test_float32_agrees_with_float64(entry):
    router, x, context, _ = build(entry)
    single = router(x, seeded(context))
    wide = double(router)(x.double(), seeded(widen(context)))
    assert torch.equal(single.indices_TK, wide.indices_TK)
    torch.testing.assert_close(single.weights_TK.double(), wide.weights_TK.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("entry", tagged("exact-k"))
def test_no_token_is_lost(entry):
    router, x, context, values = build(entry)
    routing = router(x, context)
    assert (routing.indices_TK >= 0).sum(1).eq(values["config"].k).all()


@pytest.mark.parametrize("entry", tagged("simplex"))
def test_weights_lie_on_the_simplex(entry):
    router, x, context, _ = build(entry)
    weights = router(x, context).weights_TK
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(x.shape[0]))


@pytest.mark.parametrize("entry", tagged("token-choice"))
def test_permuting_tokens_permutes_the_routing(entry):
    router, x, context, _ = build(entry)
    order = torch.randperm(x.shape[0], generator=fresh(5))
    straight, shuffled = router(x, context), router(x[order], take(context, order))
    assert torch.equal(straight.indices_TK[order], shuffled.indices_TK)
    torch.testing.assert_close(straight.weights_TK[order], shuffled.weights_TK)


@pytest.mark.parametrize("entry", tagged("batch-invariant"))
def test_a_token_routes_alone_as_in_company(entry):
    router, x, context, _ = build(entry)
    whole = router(x, context)
    for t in range(x.shape[0]):
        one = torch.tensor([t])
        alone = router(x[one], take(context, one))
        torch.testing.assert_close(alone.dense_TE(), whole.dense_TE()[one], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("entry", tagged("dense-at-full-k"))
def test_all_experts_chosen_gives_the_dense_mixture(entry):
    router, x, context, _ = build(entry, k=example(entry)["num_experts"])
    routing = router(x, context)
    torch.testing.assert_close(routing.dense_TE(), routing.scores_TE)


@pytest.mark.parametrize("entry", cases(ROUTERS, without={"static"}))
def test_gradient_reaches_the_router_even_at_k_1(entry):
    values = example(entry)
    names = {f.name for f in dataclasses.fields(values["config"])}
    router, x, context, values = build(entry, **({"k": 1} if "k" in names else {}))
    routing = router.train()(x, dataclasses.replace(context, generator=fresh(2)))
    outputs = torch.randn(x.shape[0], values["num_experts"], generator=fresh(9))  # what each expert would answer
    objective = (routing.dense_TE() * outputs).sum() + sum(routing.losses.values(), torch.zeros(()))
    parameters = [p for p in router.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(objective, parameters, allow_unused=True)
    assert all(g is None or torch.isfinite(g).all() for g in gradients)
    assert any(g is not None and g.abs().max() > 1e-8 for g in gradients)
