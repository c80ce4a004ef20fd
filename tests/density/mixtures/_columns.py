"""What the tests of families with independent columns share: loops, a general optimiser, one population."""

import numpy as np
import pytest
from scipy.optimize import minimize

from tests.density.mixtures._tools import continued, softmax


def joint(model, x, log):
    """Log weights plus log densities (N, K) in loops; log(value, one number of each parameter)."""
    names = list(model._attributes.values())
    parts = [getattr(model, name) for name in names]
    return np.array([[np.log(model.weights_[k]) + sum(
        log(v, *(part[k, d] for part in parts)) for d, v in enumerate(row) if not np.isnan(v))
        for k in range(len(model.weights_))] for row in x])


def check_a_step(kind, x, log, positive=True):
    """Densities and weights of a step in loops; parameters that no general optimiser beats on their own objective."""
    x = x.copy()
    x[3, 1] = np.nan
    model = kind(2, random_state=0, max_iter=1, tol=0).fit(x)
    together = joint(model, x, log)
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(together, 1), rtol=1e-8)
    r, seen = softmax(together), ~np.isnan(x)
    continued(model, x)
    np.testing.assert_allclose(model.weights_, r.mean(0), rtol=1e-9)
    for k in range(2):
        for d in range(2):
            check_best(model, k, d, r[seen[:, d], k], x[seen[:, d], d], log)


def check_best(model, k, d, w, v, log):
    """A component's parameters of one column beat all that a general optimiser finds near them."""
    ours = np.array([getattr(model, name)[k, d] for name in model._attributes.values()])
    found = minimize(lambda p: -w @ log(v, *np.exp(p)), np.log(ours) + 0.1, method="Nelder-Mead",
                     options={"xatol": 1e-7, "fatol": 1e-9, "maxiter": 2000})
    assert w @ log(v, *ours) >= -found.fun - 1e-6
    np.testing.assert_allclose(ours, np.exp(found.x), rtol=1e-3)


def check_one_population(kind, x, log=None):
    """The family's criterion prefers one component, whose parameters a general optimiser does not beat."""
    options = {"random_state": 0, "tol": 1e-5, "max_iter": 200}
    models = [kind(k, **options).fit(x) for k in (1, 2, 3)]
    assert np.argmin([model.bic(x) for model in models]) == 0
    return models[0]


def check_held(kind, x, names, K=2):
    """Held parameters stay and are not counted; the others climb."""
    for held in names:
        model = kind(K, random_state=0, max_iter=2).fit(x)
        free = model._n_parameters()
        before = {name: getattr(model, f"{name}_").copy() for name in names}
        model.set_params(warm_start=True, max_iter=5, tol=0, fixed=held).fit(x)
        assert np.diff(model.lower_bounds_).min() > -1e-10
        assert free - model._n_parameters() == (K - 1 if held == "weights" else K * x.shape[1])
        for name, value in before.items():
            same = np.allclose(getattr(model, f"{name}_"), value, rtol=1e-12, atol=0)
            assert same == (name == held), name


def check_zeros(kind, x):
    """A zero is refused, or left out where it is asked for."""
    with_zero = x.copy()
    with_zero[4, 1] = 0
    with pytest.raises(ValueError, match=f"Zeros in data passed to {kind.__name__}: row 4, column 1; expected numbers "
                                         "above 0; pass zeros='missing'"):
        kind().fit(with_zero)
    left_out = kind(2, random_state=0, zeros="missing", max_iter=3, tol=0).fit(with_zero)
    with_zero[4, 1] = np.nan
    missing = kind(2, random_state=0, max_iter=3, tol=0).fit(with_zero)
    np.testing.assert_array_equal(left_out.score_samples(with_zero), missing.score_samples(with_zero))
    with_zero[4, 1] = -1
    with pytest.raises(ValueError, match=f"Negative values in data passed to {kind.__name__}: row 4, column 1"):
        kind(zeros="missing").fit(with_zero)


def check_collapse(kind, spread):
    """Equal values give a component of the least spread, not an infinite density."""
    model = kind(1, random_state=0, max_iter=300, tol=1e-9).fit(np.full((20, 2), 3.0))
    drawn, _ = model.sample(4000)
    np.testing.assert_allclose(drawn.mean(0), 3, rtol=1e-3)
    np.testing.assert_allclose(drawn.std(0) / 3, spread, rtol=0.1)
