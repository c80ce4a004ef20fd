"""Spherical mean: the exponential map of the published form never acts, limits, and directions that cancel."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.merge.merging import Model, merged
from mixwell.merge.multislerp import Config, multislerp


def published(vectors, weights):
    """The form with a tangent step, in float64."""
    norms = torch.stack([vector.norm() for vector in vectors])
    units = torch.stack([vector / norm for vector, norm in zip(vectors, norms)])
    mean = (units * weights[:, None]).sum(0)
    mean = mean / mean.norm()
    tangents = units - (units @ mean)[:, None] * mean
    step = (tangents * weights[:, None]).sum(0)
    length = step.norm() + 1e-12
    return (length.cos() * mean + length.sin() / length * step) * (norms * weights).sum()


def test_the_tangent_step_is_nothing(generator):
    vectors = [torch.randn(30, generator=generator, dtype=torch.float64) for _ in range(4)]
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    found = multislerp(vectors, None, Config(weight=tuple(weights.tolist())), generator)
    torch.testing.assert_close(found, published(vectors, weights), rtol=1e-6, atol=1e-6)


def test_the_length_is_the_mean_length_and_one_model_stays(generator):
    vectors = [torch.randn(3, 4, generator=generator) for _ in range(3)]
    found = multislerp(vectors, None, Config(), generator)
    assert float(found.norm()) == pytest.approx(sum(float(v.norm()) for v in vectors) / 3, rel=1e-5)
    assert torch.equal(multislerp(vectors[:1], vectors[2], Config(weight=7.0), generator), vectors[0])
    doubled = multislerp(vectors, None, Config(weight=2.0, normalize_weights=False), generator)
    torch.testing.assert_close(doubled, 6 * found)


def test_directions_that_cancel_are_told_or_merged_where_two(generator):
    a = torch.randn(3, 4, generator=generator)
    other = torch.randn(3, 4, generator=generator)
    torch.testing.assert_close(multislerp([a, -a], None, Config(), generator), torch.zeros(3, 4))
    models = [Model({"w": tensor}, "m") for tensor in (a, -a, other, -other)]
    with pytest.raises(MixwellError, match=r"merge\.multislerp, w: the models' directions cancel"):
        merged("multislerp", models, None, Config())["w"]
    with pytest.raises(MixwellError, match="weights sum to 0"):
        merged("multislerp", models, None, Config(weight=(1.0, -1.0, 1.0, -1.0)))["w"]
    with pytest.raises(ValueError, match="eps is 0"):
        Config(eps=0)
