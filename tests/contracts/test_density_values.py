"""What functions and values of density promise: finite results, gradients, names that do not count; see `_density`."""

import numpy as np
import pytest
import torch

from mixwell.density import GaussianMixtureDensity
from tests.contracts._density import answer, answered, cases, converted, given, leaves, relabelled, same


@pytest.mark.parametrize("entry", cases("value"))
def test_results_are_finite(entry):
    found = dict(leaves(answered(entry)))
    assert found and all(np.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("entry", cases("value", "float32"))
def test_float32_agrees_with_float64(entry):
    single = converted(given(entry), torch.float32)
    same(answer(entry, single), converted(answer(entry, converted(single, torch.float64)), torch.float32),
         rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("entry", cases("value", "relabel"))
def test_names_of_components_do_not_count(entry):
    inputs = {name: GaussianMixtureDensity(**given(entry)) for name in ("self",)} if entry.tags >= {"density"} \
        else given(entry)
    moved = {name: relabelled(value, torch.arange(len(value.weights_K)).roll(1))
             if isinstance(value, GaussianMixtureDensity) else value for name, value in inputs.items()}
    if "density" in entry.tags:
        x_ND = points(inputs["self"])
        torch.testing.assert_close(inputs["self"].log_prob(x_ND), moved["self"].log_prob(x_ND))
        torch.testing.assert_close(inputs["self"].covariance(), moved["self"].covariance())
        return
    ours, theirs = (np.sort(np.concatenate([v.ravel() for _, v in leaves(answer(entry, part))]))
                    for part in (inputs, moved))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("entry", cases("value", "density"))
def test_the_density_integrates_to_one(entry):
    value = answered(entry)
    axis = torch.linspace(-14, 14, 281, dtype=torch.float64)
    total = value.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * 0.1**2
    assert float(total) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("entry", cases("value", "differentiable"))
def test_gradients_agree_with_finite_differences(entry):
    inputs = given(entry)
    if "density" in entry.tags:
        inputs = {"self": answer(entry, inputs)}
    free, build = opened(inputs, weights="density" in entry.tags)
    assert torch.autograd.gradcheck(lambda *flat: outputs(entry, build(flat)), free)


def points(value):
    """A few places where a mixture has density."""
    return value.sample(5, torch.Generator().manual_seed(0))[0]


def outputs(entry, inputs):
    """What is differentiated: floating results, or a value's log densities, scores and moments."""
    if "density" in entry.tags:
        value = inputs["self"]
        x_ND = torch.tensor([[0.5, -0.2], [1.0, 2.0]], dtype=torch.float64)
        return value.log_prob(x_ND), value.score(x_ND), value.covariance(), value.product(value)[1]
    found = answer(entry, inputs)
    if isinstance(found, GaussianMixtureDensity):
        return found.log_prob(torch.zeros(1, found.dim, dtype=torch.float64)), found.mean()
    return tuple(v for v in found if isinstance(v, torch.Tensor) and v.requires_grad)


def opened(inputs, weights):
    """Unconstrained leaves of all tensors and mixtures in `inputs`, and what puts inputs together from such leaves.

    Functions of mixtures promise gradients in means and covariances alone; a value itself in its weights, too.
    """
    free, builders = [], {}
    for name, value in inputs.items():
        if isinstance(value, GaussianMixtureDensity):
            logs = (value.weights_K.log(),) if weights else ()
            parts = (value.means_KD, torch.linalg.cholesky(value.covariances_KDD), *logs)
            builders[name] = (len(free), len(parts))
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            parts, builders[name] = (value,), (len(free), 1)
        else:
            continue
        free += [part.detach().double().clone().requires_grad_() for part in parts]

    def build(flat):
        made = dict(inputs)
        for name, (first, count) in builders.items():
            part = flat[first : first + count]
            if count == 1:
                made[name] = part[0]
                continue
            weights_K = part[2].softmax(0) if weights else inputs[name].weights_K
            made[name] = GaussianMixtureDensity(weights_K, part[0], part[1].tril() @ part[1].tril().mT)
        return made

    return tuple(free), build
