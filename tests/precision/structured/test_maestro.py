"""Maestro against loops: cut products, tails, which matrix a step has; columns find their order; what is cut."""

import pytest
import torch
from torch.nn import functional as F

from mixwell.core.routing import Context
from mixwell.precision.structured.maestro import Config, Maestro, distilled_loss, drawn_pair, tail_norms
from tests.contracts._tools import fresh


def test_agrees_with_a_loop_at_every_number_of_columns(generator):
    matrix = Maestro(4, 6, Config(), generator).double()
    x = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert matrix.rank == 4
    for columns in range(1, 5):
        W = sum(torch.outer(matrix.weight[:, b], matrix.right[b]) for b in range(columns))
        with matrix.limited(columns):
            found = matrix(x, Context())
        torch.testing.assert_close(found, x @ W.T)
        leaves = [x, matrix.weight, matrix.right]
        for one, other in zip(torch.autograd.grad(found.sin().sum(), leaves),
                              torch.autograd.grad((x @ W.T).sin().sum(), leaves)):
            torch.testing.assert_close(one, other)
    assert matrix.limit is None


def test_tails_are_norms_of_what_is_behind_each_column(generator):
    U = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    V = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = sum(U[:, b:].norm() + V[b:].norm() for b in range(3))
    torch.testing.assert_close(tail_norms(U, V), expected)
    assert torch.autograd.gradcheck(tail_norms, (U, V))
    matrix = Maestro(4, 6, Config(rank=3, penalty=0.5), generator).double()
    torch.testing.assert_close(matrix.penalty(), 0.5 * tail_norms(matrix.weight, matrix.right))
    with torch.no_grad():
        matrix.weight[:, 1:] = 0
    matrix.penalty().backward()
    assert torch.isfinite(matrix.weight.grad).all()  # the root of an empty tail
    assert Maestro(4, 6, Config(penalty=0), generator).penalty() is None


def test_each_pair_comes_once_a_round():
    first, second = ([drawn_pair(step, 12, 3) for step in steps] for steps in (range(12), range(12, 24)))
    assert sorted(first) == sorted(second) == list(range(12)) and first != second
    assert first != [drawn_pair(step, 12, 4) for step in range(12)]


def test_in_training_one_matrix_of_the_model_is_cut_and_the_others_are_whole(generator):
    seen = set()
    x = torch.eye(6)
    for step in range(24):
        cut = []
        for layer in range(2):
            for place in range(3):
                matrix = Maestro(4, 6, Config(seed=5), fresh(1))
                matrix.place, matrix.places = place, 3
                context = Context(layer=layer, num_layers=2, step=step, generator=fresh(2))
                rank = int(torch.linalg.matrix_rank(matrix(x, context).T))
                whole = matrix.eval()(x, context)
                torch.testing.assert_close(whole, matrix.dense().T)
                if rank < 4:
                    cut.append((layer, place, rank))
        assert len(cut) <= 1
        seen |= set(cut)
    assert len(seen) == 2 * 3 * 3  # ranks 1 to 3 of each; rank 4 cuts nothing
    still = Maestro(4, 6, Config(sampled=False), fresh(1))
    context = Context(generator=fresh(2))
    torch.testing.assert_close(still(x, context), still.dense().T)


def test_columns_find_the_singular_vectors_in_their_order(generator):
    """The paper's promise: trained on a linear map the columns are its singular vectors, largest first."""
    Q, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator))
    P, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator))
    S = torch.tensor([3.0, 2.0, 1.2, 0.5])
    W = P * S @ Q[:, :4].T
    matrix = Maestro(4, 5, Config(penalty=0), generator)
    descent = torch.optim.SGD(matrix.parameters(), lr=0.2)
    for step in range(1200):
        with matrix.limited(drawn_pair(step, 4, 0) + 1):
            found = matrix(torch.eye(5), Context()).T
        descent.zero_grad()
        (0.5 * (found - W).square().sum()).backward()
        descent.step()
    U = F.normalize(matrix.weight.detach(), dim=0)
    assert float((U * P).sum(0).abs().min()) > 0.97
    sizes = matrix.weight.detach().norm(dim=0) * matrix.right.detach().norm(dim=1)
    torch.testing.assert_close(sizes, S, rtol=0.05, atol=0)


def test_columns_below_the_threshold_stay_out_but_for_the_first(generator):
    matrix = Maestro(4, 6, Config(every=2, threshold=1e-3), generator)
    with torch.no_grad():
        matrix.weight[:, [0, 2]] *= 1e-6
    matrix.after_step()
    assert int(matrix.kept.sum()) == 4
    matrix.after_step()
    assert matrix.kept.tolist() == [1, 1, 0, 1] and matrix.flops_per_token() == 2 * 3 * 10
    with torch.no_grad():
        matrix.weight[:, 2] = 1.0
    assert not torch.allclose(matrix.dense(), matrix.weight @ matrix.right)


def test_the_cut_pass_follows_the_whole_one(generator):
    matrices = [Maestro(4, 6, Config(), generator), Maestro(5, 4, Config(), generator)]
    x = torch.randn(7, 6, generator=generator)
    labels = torch.arange(7) % 5

    def run():
        return matrices[1](matrices[0](x, Context()).relu(), Context())

    found = distilled_loss(run, matrices, (0, 2), labels)
    whole = run()
    with matrices[0].limited(2):
        part = run()
    soft = whole.detach().softmax(-1)
    by_hand = F.cross_entropy(whole, labels) - (soft * part.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(found, by_hand)


def test_ranks_and_refusals(generator):
    made = Maestro.build([(4, 6), (6, 4)], Config(ranks=(2, 3)), generator, None)
    assert [m.rank for m in made] == [2, 3]
    with pytest.raises(ValueError, match="rank is 9 for a matrix of 4 x 6"), made[0].limited(9):
        pass
    with pytest.raises(ValueError, match="every is 0"):
        Config(every=0)
    with pytest.raises(ValueError, match="penalty is -1"):
        Config(penalty=-1)
