"""Likelihood composition: lengths, priors taken away exactly, highlights, means and votes, refusals."""

import pytest
import torch

from mixwell.merge.outputs.likelihood_composition import Config, likelihood_composition, likelihoods, own


def test_candidates_count_by_their_mean_token():
    logs = torch.tensor([[-1.0, -3.0, -9.0], [-2.0, -9.0, -9.0]])
    present = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert likelihoods(logs, present).tolist() == [-2.0, -2.0]
    with pytest.raises(ValueError, match="no token"):
        likelihoods(logs, torch.zeros(2, 3))


def test_a_prior_is_taken_away_exactly(generator):
    evidence = torch.randn(3, 4, generator=generator)
    prior = torch.randn(3, 4, generator=generator)
    found = likelihood_composition(evidence + prior, Config(debias=1.0), without_MC=prior)
    torch.testing.assert_close(found, evidence.softmax(-1).mean(0))
    assert float(found.sum()) == pytest.approx(1)


def test_highlights_votes_and_scales(generator):
    logs, perturbed = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    torch.testing.assert_close(own(logs, None, perturbed, Config(highlight=0.5)), 1.5 * logs - 0.5 * perturbed)
    votes = likelihood_composition(torch.tensor([[3.0, 0.0], [0.1, 0.0], [-9.0, 9.0]]), Config(combine="vote"))
    torch.testing.assert_close(votes, torch.tensor([2 / 3, 1 / 3]))
    shifted = logs + torch.tensor([[5.0], [-3.0], [0.0]])  # one number a model changes nothing
    torch.testing.assert_close(likelihood_composition(shifted, Config()), likelihood_composition(logs, Config()))
    with pytest.raises(ValueError, match=r"debias is 0\.5; give the likelihoods"):
        likelihood_composition(logs, Config(debias=0.5))
