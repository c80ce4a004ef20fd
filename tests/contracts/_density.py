"""What the contract suites of density share: cases, everything that a method says, inputs taken apart and put together.

The tags that choose checks. Every method has one of `estimator` (scikit-learn's conventions), `value` (a pure function,
or a value with methods) and `module` (a network). Beside it: `mixture` (on the EM driver: promises all that follow but
`differentiable`), `em` (its bound never falls), `density` (integrates to one), `responsibilities` (rows of
probabilities), `relabel` (names of components do not count), `float32` (agrees with float64), `sklearn` (scikit-learn's
own checks), `online` (`partial_fit`), `missing` (NaN is integrated out), `differentiable` (finite differences agree).
What a density is over, where not rows of numbers: `counts`, `categories`, `directions`, `positive`, `shares`, `mixed`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from torch import nn

from mixwell.core import registry
from mixwell.density import GaussianMixtureDensity
from tests.contracts._tools import fresh

METHODS = registry.family("density")
CONTRACTS = {"estimator", "value", "module"}
PROMISES = {"mixture", "em", "density", "responsibilities", "relabel", "float32", "sklearn", "online", "missing",
            "differentiable", "counts", "categories", "directions", "positive", "shares", "mixed"}
OF_A_MIXTURE = {"em", "density", "responsibilities", "relabel", "float32", "sklearn"}
SECONDS = ("local_s_", "reduction_s_")  # measured times, which differ from run to run


def promises(entry):
    """A method's tags, those that `mixture` stands for written out."""
    return entry.tags | (OF_A_MIXTURE if "mixture" in entry.tags else set())


def cases(contract, *tags):
    """pytest parameters: the methods of a contract that promise all of `tags`."""
    return [pytest.param(e, id=e.name.removeprefix("density.")) for e in METHODS
            if contract in e.tags and set(tags) <= promises(e)]


def given(entry):
    """A method's own example, made anew."""
    return dict(entry.module().example(fresh()))


def fit(estimator, inputs):
    """Fit an estimator in silence to what an example holds beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimator.fit(**inputs)


@functools.cache
def fitted(entry):
    """An estimator fitted to its example, once for all tests that only read it; and the example's inputs."""
    inputs = given(entry)
    estimator = inputs.pop("estimator")
    return fit(clone(estimator), inputs), inputs


@functools.cache
def refitted(entry):
    """A mixture fitted anew to what `fitted` draws, until it converges, once for all; and those rows."""
    model, _ = fitted(entry)
    drawn, labels = model.sample(1500)
    assert len(drawn) == len(labels) == 1500
    return fit(clone(model).set_params(tol=1e-5, max_iter=300), {"X": drawn}), drawn


@functools.cache
def answered(entry):
    """What a method says of its example, once for all tests that only read it."""
    return answer(entry, given(entry))


def answer(entry, inputs, refit=False):
    """Everything that a method says of an example's inputs; `refit`: the estimator is fitted as it stands."""
    inputs = dict(inputs)
    if "estimator" in entry.tags:
        estimator = inputs.pop("estimator")
        return fit(estimator if refit else clone(estimator), inputs)
    if "module" in entry.tags:
        return inputs.pop("module").eval()(**inputs)
    return entry.load()(**inputs)


def leaves(value, path=""):
    """(path, array) of all numbers in nested results, fitted attributes of estimators included."""
    if isinstance(value, torch.Tensor):
        yield path, value.detach().numpy()
    elif isinstance(value, (np.ndarray, int, float, np.number)):
        yield path, np.asarray(value)
    elif isinstance(value, (BaseEstimator, nn.Module)):
        named = vars(value) if isinstance(value, BaseEstimator) else value.state_dict()
        for name, part in named.items():
            if name not in SECONDS:
                yield from leaves(part, f"{path}.{name}")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, (dict, list, tuple)):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{path}[{name}]")


def same(one, other, **tolerance):
    """Compare all numbers of two results: the same bits, or within a tolerance."""
    ours, theirs = dict(leaves(one)), dict(leaves(other))
    assert ours.keys() == theirs.keys() and ours
    for path, value in ours.items():
        if tolerance and value.dtype.kind == "f":
            np.testing.assert_allclose(value, theirs[path], err_msg=path, **tolerance)
        else:
            np.testing.assert_array_equal(value, theirs[path], err_msg=path)


def converted(value, dtype):
    """A copy of inputs with all floating tensors and arrays in another precision."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(dtype, copy=True) if value.is_floating_point() else value.detach().clone()
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to(dtype)
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype(str(dtype).removeprefix("torch."))
    if isinstance(value, dict):
        return {name: converted(part, dtype) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(converted(part, dtype) for part in value))
    return copy.deepcopy(value)


def relabelled(value, order):
    """A copy whose components have other places: component k comes to where `order` names it."""
    K = len(order)
    if isinstance(value, GaussianMixtureDensity):
        return GaussianMixtureDensity(value.weights_K[order], value.means_KD[order], value.covariances_KDD[order])
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value[order] if value.ndim and len(value) == K else value
    if isinstance(value, BaseEstimator):
        moved = copy.copy(value)
        for name, part in vars(value).items():
            fixed = name in value.get_params(deep=False) or name.startswith(("n_", "feature_names", "categories"))
            setattr(moved, name, part if fixed else relabelled(part, order))
        return moved
    if isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):  # blocks
        return [dataclasses.replace(b, estimator=relabelled(b.estimator, order)) for b in value]
    if isinstance(value, list) and len(value) == K and isinstance(value[0], BaseEstimator):
        return [value[k] for k in order]
    if isinstance(value, list):
        return [relabelled(part, order) for part in value]
    return value


def scored(model, inputs):
    """The arguments of `fit` that a scoring method takes."""
    return {name: value for name, value in inputs.items() if name in inspect.signature(model).parameters}
