"""The recurrent router against torch's own cells, over layers, and with its cell shared."""

import dataclasses
import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.routers.recurrent import Config, Recurrent
from mixwell.experts.routers.top_k import TopK


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def gru_loop(u, h, cell):
    """One token through a GRU in plain Python."""
    r = len(u)
    w, v, a, b = (p.tolist() for p in (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh))
    from_u = [sum(w[i][j] * u[j] for j in range(r)) + a[i] for i in range(3 * r)]
    from_h = [sum(v[i][j] * h[j] for j in range(r)) + b[i] for i in range(3 * r)]
    out = []
    for i in range(r):
        z = sigmoid(from_u[r + i] + from_h[r + i])
        n = math.tanh(from_u[2 * r + i] + sigmoid(from_u[i] + from_h[i]) * from_h[2 * r + i])
        out.append((1 - z) * n + z * h[i])
    return out


def built(generator, **options):
    return Recurrent(6, 4, Config(state_dim=3, **options), generator).double()


def shaken(cell, generator):
    """The cell with biases that are not zero."""
    for bias in (cell.bias_ih, cell.bias_hh):
        bias.data = torch.randn(bias.shape, generator=generator, dtype=torch.float64)
    return cell


def test_agrees_with_a_loop_over_two_layers(generator):
    first, second = built(generator), built(generator)
    second.share(first)
    shaken(first.cell, generator)
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    one = first(x, Context())
    two = second(2 * x, Context(layer=1, state=one.state))
    for t in range(5):
        h = gru_loop((first.projector @ x[t]).tolist(), [0.0] * 3, first.cell)
        h = gru_loop((second.projector @ (2 * x[t])).tolist(), h, first.cell)
        assert two.state[t].tolist() == pytest.approx(h, abs=1e-12)
        logits = (second.weight @ two.state[t]).tolist()
        p = [math.exp(v) / sum(map(math.exp, logits)) for v in logits]
        chosen = sorted(range(4), key=lambda e: -p[e])[:2]
        expected = {e: p[e] / sum(p[c] for c in chosen) for e in chosen}
        assert dict(zip(two.indices_TK[t].tolist(), two.weights_TK[t].tolist())) == pytest.approx(expected)


@pytest.mark.parametrize("cell, reference", [("gru", torch.nn.GRUCell), ("rnn", torch.nn.RNNCell)])
def test_the_cell_is_torchs(generator, cell, reference):
    ours = shaken(built(generator, cell=cell).cell, generator)
    theirs = reference(3, 3).double()
    theirs.load_state_dict(ours.state_dict())
    u, h = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(ours(u, h), theirs(u, h))


def test_gradient_runs_to_the_earlier_layer_and_can_be_stopped(generator):
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    reached = []
    for carry in (True, False):
        first, second = (built(generator, carry_gradient=carry) for _ in range(2))
        second.share(first)
        routing = second(x, Context(state=first(x, Context()).state))
        (gradient,) = torch.autograd.grad(routing.scores_TE[:, 0].sum(), first.projector, allow_unused=True)
        reached.append(gradient is not None and bool(gradient.abs().max() > 0))
    assert reached == [True, False]


def test_gradcheck(generator):
    router = built(generator)
    x, state = (torch.randn(3, n, generator=generator, dtype=torch.float64, requires_grad=True) for n in (6, 3))
    assert torch.autograd.gradcheck(lambda a, h: router(a, Context(state=h)).dense_TE(), (x, state))


def test_history_changes_the_choice_and_without_recurrence_it_does_not(generator):
    router = built(generator, cell="rnn")
    x = torch.randn(16, 6, generator=generator, dtype=torch.float64)
    past = Context(state=torch.randn(16, 3, generator=generator, dtype=torch.float64))
    assert (router(x, Context()).scores_TE - router(x, past).scores_TE).abs().max() > 1e-3
    router.cell.weight_hh.data.zero_()
    with_past = router(x, past)
    torch.testing.assert_close(router(x, Context()).scores_TE, with_past.scores_TE)
    mlp = (x @ router.projector.T @ router.cell.weight_ih.T).tanh() @ router.weight.T  # zeroed: an MLP router
    torch.testing.assert_close(with_past.logits_TE, mlp)


def test_a_shared_cell_is_one_cell_trained_and_saved_once(generator):
    first, second, third = (Recurrent(6, 4, Config(state_dim=3), generator) for _ in range(3))
    for later in (first, second, third):
        later.share(first)
    stack = torch.nn.ModuleList([first, second, third])
    names = [n for n, _ in stack.named_parameters() if "cell" in n]
    assert names == [f"0.cell.{p}" for p in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    assert [n for n in stack.state_dict() if "cell" in n] == names
    x = torch.randn(2, 6, generator=generator)
    before = third(x, Context()).state
    first.cell.bias_ih.data += 1.0
    assert (third(x, Context()).state - before).abs().max() > 0.05


def test_k_1_keeps_the_probability(generator):
    router = built(generator, k=1)
    routing = router(torch.randn(3, 6, generator=generator, dtype=torch.float64), Context())
    torch.testing.assert_close(routing.weights_TK[:, 0], routing.scores_TE.max(-1).values)
    kept = built(generator, renormalise=False)(torch.randn(3, 6, generator=generator).double(), Context())
    assert (kept.weights_TK.sum(1) < 1).all()


def test_refusals(generator):
    router = built(generator)
    with pytest.raises(ValueError, match="at least 1"):
        Config(state_dim=0)
    with pytest.raises(ValueError, match="without a gradient"):
        Config(k=1, renormalise=True)
    with pytest.raises(ValueError, match=r"expected \(2, 3\)"):
        router(torch.zeros(2, 6).double(), Context(state=torch.zeros(2, 5).double()))
    with pytest.raises(ValueError, match="takes the recurrent router"):
        router.share(TopK(6, 4))
    other = Recurrent(6, 4, dataclasses.replace(router.config, cell="rnn"), generator)
    with pytest.raises(ValueError, match="set both alike"):
        other.share(router)
