"""Gaussian mixtures as values: condition on what is known, multiply two beliefs, add two errors."""

import torch

from mixwell.density import GaussianMixtureDensity

belief = GaussianMixtureDensity(
    weights_K=torch.tensor([0.6, 0.4]),
    means_KD=torch.tensor([[0.0, 0.0], [3.0, 2.0]]),
    covariances_KDD=torch.tensor([[[1.0, 0.8], [0.8, 1.0]], [[0.5, 0.0], [0.0, 2.0]]]))

given = belief.condition([0], torch.tensor([2.5]))  # the first coordinate was measured
print(f"first coordinate is 2.5: weights {[round(w, 3) for w in given.weights_K.tolist()]}, "
      f"second has mean {given.mean().item():.2f} and variance {given.covariance().item():.2f}")

sensor = GaussianMixtureDensity(torch.ones(1), torch.tensor([[2.0, 1.0]]), torch.eye(2)[None])
posterior, log_evidence = belief.product(sensor)  # Bayes' rule, exact
print(f"with a sensor at (2, 1): mean {[round(m, 2) for m in posterior.mean().tolist()]}, "
      f"log evidence {log_evidence.item():.2f} nats")

noise = GaussianMixtureDensity(torch.ones(1), torch.zeros(1, 2), 0.25 * torch.eye(2)[None])
blurred = belief.convolve(noise)  # density of a sum of independent draws
gained = blurred.covariance() - belief.covariance()
print(f"with noise the variances grow by {[round(v, 2) for v in gained.diagonal().tolist()]}")
print("marginal of the second coordinate:", [round(m, 2) for m in belief.marginal([1]).means_KD[:, 0].tolist()])
