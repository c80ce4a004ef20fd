"""Skew-t mixture: expectations by quadrature, a step in loops, its limit, units, draws and what stays."""

import numpy as np
import pytest
import scipy.stats as st
import torch
from scipy.special import digamma

from mixwell.density import SkewNormalMixture, SkewTMixture
from mixwell.density.mixtures.skew_t import Hidden, log_t_below
from tests.density.mixtures._columns import joint
from tests.density.mixtures._tools import continued, softmax

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def log(x, location, scale, skew, dof):
    z = (x - location) / scale
    half = st.t.logcdf(skew * z * np.sqrt((dof + 1) / (dof + z**2)), dof + 1)
    return np.log(2 / scale) + st.t.logpdf(z, dof) + half


def drawn(rows, location, scale, skew, dof, seed):
    rng = np.random.default_rng(seed)
    part = skew / np.sqrt(1 + skew**2)
    z = part * np.abs(rng.normal(size=rows)) + np.sqrt(1 - part**2) * rng.normal(size=rows)
    return location + scale * z / np.sqrt(rng.gamma(dof / 2, 2 / dof, rows))


def groups(rows=60):
    one = [drawn(rows, 0, 2, 4, 4, 0), drawn(rows, 2, 3, -2, 6, 1)]
    other = [drawn(rows, 14, 1, 2, 3, 2), drawn(rows, -9, 2, 5, 8, 3)]
    return np.hstack([one, other]).T


def expected(gap, slope, rest, dof):
    """E of c, log c, c u and c u^2 given a value, summed over log c."""
    whole = rest + slope**2
    mean, variance, alpha, beta = slope * gap / whole, rest / whole, (dof + 1) / 2, (dof + gap**2 / whole) / 2

    log_c = np.linspace(-14, 5, 3001)
    c = np.exp(log_c)
    lean = np.sqrt(c) * mean / variance**0.5
    ratio = np.sqrt(variance / c) * np.exp(st.norm.logpdf(lean) - st.norm.logcdf(lean))
    u, uu = mean + ratio, mean**2 + variance / c + mean * ratio
    weight = c**alpha * np.exp(-beta * c) * st.norm.cdf(lean)
    return np.array([weight @ value for value in (c, log_c, c * u, c * uu)]) / weight.sum()


@pytest.mark.parametrize(("gap", "slope", "rest", "dof"), [(1.3, 0.8, 0.5, 4.0), (-2.5, 1.5, 0.2, 2.5),
                                                           (0.2, -0.7, 1.1, 30.0)])
def test_expectations_agree_with_quadrature(gap, slope, rest, dof):
    params = {name: torch.tensor(value, dtype=torch.float64)
              for name, value in (("slopes", slope), ("variances", rest), ("dofs", dof))}
    hidden = Hidden.of(torch.tensor(gap, dtype=torch.float64), params)
    first = hidden.mean * hidden.precision() + hidden.lift()
    ours = hidden.precision(), hidden.log_precision(), first, hidden.mean * first + hidden.variance
    np.testing.assert_allclose([float(value) for value in ours], expected(gap, slope, rest, dof), rtol=2e-6)


def test_a_step_agrees_with_loops():
    """Weighted least squares of the values on one and the hidden part, row by row; the dof's equation."""
    x = groups(12)
    x[3, 1] = np.nan
    model = SkewTMixture(2, random_state=0, max_iter=3, tol=0).fit(x)
    together = joint(model, x, log)
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(together, 1), rtol=1e-8)
    r, seen = softmax(together), ~np.isnan(x)
    old = {name: getattr(model, name).copy() for name in model._attributes.values()}
    continued(model, x)
    for k, d in ((0, 0), (1, 1)):
        w, v = r[seen[:, d], k], x[seen[:, d], d]
        location, slope, rest, mean = step(w, v, *(value[k, d] for value in old.values()))
        ours = model.locations_[k, d], model.scales_[k, d], model.skews_[k, d]
        assert ours == pytest.approx((location, np.sqrt(rest + slope**2), slope / np.sqrt(rest)), rel=1e-5)
        half = model.dofs_[k, d] / 2
        assert model.dofs_[k, d] > 999 or np.log(half) + 1 - digamma(half) + mean == pytest.approx(0, abs=1e-5)


def step(w, x, location, scale, skew, dof):
    slope, rest = scale * skew / np.sqrt(1 + skew**2), scale**2 / (1 + skew**2)
    gram, target, total, logs = np.zeros((2, 2)), np.zeros(2), 0.0, 0.0
    for weight, value in zip(w, x):
        c, log_c, u, uu = expected(value - location, slope, rest, dof)
        gram += weight * np.array([[c, u], [u, uu]])
        target += weight * np.array([c * value, value * u])
        total += weight * c * value**2
        logs += weight * (log_c - c)
    found = np.linalg.solve(gram, target)
    return *found, (total - target @ found) / w.sum(), logs / w.sum()


def test_heavy_skewed_groups_are_found_and_the_likelihood_never_falls():
    x = np.column_stack([drawn(1000, 3, 2, 4, 4, 0), drawn(1000, -1, 1, -2, 8, 1)])
    model = SkewTMixture(1, tol=1e-5, max_iter=40).fit(x)
    assert np.diff(model.lower_bounds_).min() > -1e-10
    truth = log(x[:, 0], 3, 2, 4, 4).mean() + log(x[:, 1], -1, 1, -2, 8).mean()
    assert truth - 1e-3 < model.score(x) < truth + 0.02
    assert model.score(x) > SkewNormalMixture(1, max_iter=40).fit(x).score(x) + 0.05
    np.testing.assert_allclose(model.dofs_, [[4, 8]], rtol=0.5)
    assert model._n_parameters() == 8


def test_many_degrees_of_freedom_are_the_skew_normal():
    x = groups()
    plain = SkewNormalMixture(2, random_state=0, max_iter=5, tol=0).fit(x)
    model = SkewTMixture(2, random_state=0, max_iter=5, tol=0, dof_init=1e6).fit(x)
    first = SkewTMixture(2, random_state=0, max_iter=0, dof_init=1e6).fit(x)
    bare = SkewNormalMixture(2, random_state=0, max_iter=0).fit(x)
    np.testing.assert_allclose(first.score(x), bare.score(x), rtol=1e-4)
    assert model.score(x) > plain.score(x) and (model.dofs_ <= 1000).all()


def test_units_do_not_count_and_draws_have_the_density():
    x = groups()
    one = SkewTMixture(2, random_state=0, reg_covar=1e-9, max_iter=5).fit(x)
    other = SkewTMixture(2, random_state=0, reg_covar=1e-9, max_iter=5).fit(1e4 + 32 * x)
    np.testing.assert_allclose(other.dofs_, one.dofs_, rtol=1e-6)
    np.testing.assert_allclose(other.scales_, 32 * one.scales_, rtol=1e-6)
    rows, labels = one.sample(4000)
    own = rows[labels == 0, 0]
    shape = [getattr(one, name)[0, 0] for name in one._attributes.values()]
    grid = np.linspace(own.min(), own.max(), 4001)
    below = np.cumsum(np.exp(log(grid, *shape))) * (grid[1] - grid[0])
    assert np.abs(np.interp(np.sort(own), grid, below) - (np.arange(len(own)) + 0.5) / len(own)).max() < 0.05


def test_what_is_held_stays_and_the_rest_climbs():
    x = groups()
    for held in ("locations", "dofs"):
        model = SkewTMixture(2, random_state=0, max_iter=3).fit(x)
        before = getattr(model, f"{held}_").copy()
        model.set_params(warm_start=True, max_iter=5, tol=0, fixed=held).fit(x)
        np.testing.assert_allclose(getattr(model, f"{held}_"), before, rtol=1e-12)
        assert np.diff(model.lower_bounds_).min() > -1e-10 and model._n_parameters() == 13
    assert SkewTMixture(2, random_state=0, min_dof=9.0, max_iter=5).fit(x).dofs_.min() == pytest.approx(9.0)


def test_far_tails_have_a_logarithm():
    z = torch.tensor([-3.0, -700.0, -1e6], dtype=torch.float64)
    dof = torch.tensor([5.0, 101.0, 60.0], dtype=torch.float64)
    ours = log_t_below(z, dof)
    assert float(ours[0]) == pytest.approx(st.t.logcdf(-3.0, 5.0), rel=1e-12)
    for place in (1, 2):  # by the integral of the density's power law
        nu, t = float(dof[place]), -float(z[place])
        grid = np.linspace(0, 80 / nu, 200_001)
        log_pdf = st.t.logpdf(t * np.exp(grid), nu) + np.log(t) + grid
        total = np.logaddexp.reduce(log_pdf) + np.log(grid[1])
        assert float(ours[place]) == pytest.approx(total, rel=1e-3)


def test_refuses():
    with pytest.raises(ValueError, match="min_dof"):
        SkewTMixture(min_dof=0.0).fit(groups())
    with pytest.raises(ValueError, match="fixed names 'scales'"):
        SkewTMixture(fixed="scales").fit(groups())
