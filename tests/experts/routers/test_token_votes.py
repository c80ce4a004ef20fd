"""Token votes: sums against a loop, text read in pieces, padding, and refusals."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.routers.token_votes import Config, TokenVotes, summed_votes


def test_votes_of_the_last_tokens_against_a_loop(generator):
    votes = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    found = summed_votes(votes, 3, 0.5)
    for b in range(2):
        for s in range(7):
            wanted = sum(0.5**j * votes[b, s - j] for j in range(3) if s - j >= 0)
            torch.testing.assert_close(found[b, s], wanted)


def build(generator):
    router = TokenVotes(6, 3, Config(vocab_size=10, reach=4, decay=0.8), generator)
    ids = torch.randint(10, (2, 8), generator=generator)
    return router, ids, torch.zeros(16, 6)


def test_text_in_pieces_goes_where_the_whole_text_goes(generator):
    router, ids, x = build(generator)
    whole = router(x, Context(token_ids_T=ids.flatten(), batch_shape=(2, 8)))
    best = summed_votes(router.votes_VE[ids], 4, 0.8).argmax(-1)
    assert torch.equal(whole.indices_TK.view(2, 8), best) and (whole.weights_TK == 1).all()
    second = router(x[:10], Context(token_ids_T=ids[:, 3:].flatten(), batch_shape=(2, 5), earlier_ids_BS=ids[:, :3]))
    torch.testing.assert_close(second.scores_TE.view(2, 5, 3), whole.scores_TE.view(2, 8, 3)[:, 3:])
    alone = router(x, Context(token_ids_T=ids.flatten()))
    assert torch.equal(alone.indices_TK[:, 0], router.votes_VE[ids.flatten()].argmax(-1))


def test_padding_does_not_vote(generator):
    router, ids, x = build(generator)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[:, :3] = False
    padded = router(x, Context(token_ids_T=ids.flatten(), batch_shape=(2, 8), mask_T=mask.flatten()))
    plain = router(x[:10], Context(token_ids_T=ids[:, 3:].flatten(), batch_shape=(2, 5)))
    torch.testing.assert_close(padded.scores_TE.view(2, 8, 3)[:, 3:], plain.scores_TE.view(2, 5, 3))
    assert router.experts_per_token == 1


def test_refuses_ids_that_it_does_not_know(generator):
    router, ids, x = build(generator)
    with pytest.raises(MixwellError, match="knows 10 token ids"):
        router(x, Context(token_ids_T=ids.flatten() + 5))
    for options in ({"reach": 0}, {"decay": 0.0}, {"decay": 1.5}, {"vocab_size": 0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**{"vocab_size": 10, **options})
