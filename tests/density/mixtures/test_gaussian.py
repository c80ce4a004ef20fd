"""Gaussian mixture: scikit-learn's behaviour, and what goes beyond it."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Reference

from mixwell.core.errors import MixwellError
from mixwell.density import GaussianMixture, StudentTMixture, VonMisesFisherMixture

try:
    import polars
except ImportError:
    polars = None

KINDS = ("full", "tied", "diag", "spherical")
FITTED = ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_")


def groups(n=300, d=3, k=3, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    centres = 4 * rng.normal(size=(k, d))
    return (centres[rng.integers(0, k, n)] + rng.normal(size=(n, d)) @ rng.normal(size=(d, d))).astype(dtype)


def log_joint(x_ND, weights_K, means_KD, covariances_KDD):
    """Log weight plus log density, one row and one component at a time; NaN columns are left out."""
    out = np.empty((len(x_ND), len(weights_K)))
    for n, x_D in enumerate(x_ND):
        o = ~np.isnan(x_D)
        for k in range(len(weights_K)):
            diff, cov = x_D[o] - means_KD[k][o], covariances_KDD[k][np.ix_(o, o)]
            out[n, k] = np.log(weights_K[k]) - 0.5 * (o.sum() * np.log(2 * np.pi) + np.linalg.slogdet(cov)[1]
                                                      + diff @ np.linalg.solve(cov, diff))
    return out


def em_step(x_ND, weights_K, means_KD, covariances_KDD, reg, w_N=None):
    """One step of EM over observed values, in loops."""
    w_N = np.ones(len(x_ND)) if w_N is None else w_N
    joint = log_joint(x_ND, weights_K, means_KD, covariances_KDD)
    norm_N = np.logaddexp.reduce(joint, axis=1)
    resp = np.exp(joint - norm_N[:, None]) * w_N[:, None]
    K, D = means_KD.shape
    new_w, new_m, new_c = resp.sum(0) / w_N.sum(), np.zeros((K, D)), np.zeros((K, D, D))
    for k in range(K):
        filled, extra = x_ND.copy(), np.zeros((D, D))
        for n in range(len(x_ND)):
            m, o = np.isnan(x_ND[n]), ~np.isnan(x_ND[n])
            gain = covariances_KDD[k][np.ix_(m, o)] @ np.linalg.inv(covariances_KDD[k][np.ix_(o, o)])
            filled[n, m] = means_KD[k][m] + gain @ (x_ND[n, o] - means_KD[k][o])
            extra[np.ix_(m, m)] += resp[n, k] * (covariances_KDD[k][np.ix_(m, m)]
                                                 - gain @ covariances_KDD[k][np.ix_(o, m)])
        new_m[k] = resp[:, k] @ filled / resp[:, k].sum()
        diff = filled - new_m[k]
        new_c[k] = ((resp[:, k, None] * diff).T @ diff + extra) / resp[:, k].sum() + reg * np.eye(D)
    return new_w, new_m, new_c, (norm_N @ w_N) / w_N.sum()


def started(x_ND, k=3, **options):
    means = x_ND[np.flatnonzero(~np.isnan(x_ND).any(1))[:k]].astype(float)
    d = x_ND.shape[1]
    return GaussianMixture(k, weights_init=np.full(k, 1 / k), means_init=means,
                           precisions_init=np.tile(np.eye(d), (k, 1, 1)), tol=0, **options)


def fit_quietly(model, x, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_same_numbers_as_scikit_learn(kind, init):
    x = groups()
    options = {"covariance_type": kind, "init_params": init, "n_init": 2, "random_state": 1, "max_iter": 20}
    ours, theirs = fit_quietly(GaussianMixture(3, **options), x), fit_quietly(Reference(3, **options), x)
    for name in FITTED:
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-7, atol=1e-9)
    assert (ours.n_iter_, ours.converged_) == (theirs.n_iter_, theirs.converged_)
    np.testing.assert_allclose(ours.lower_bounds_, theirs.lower_bounds_, rtol=1e-10)
    np.testing.assert_allclose(ours.score_samples(x), theirs.score_samples(x), rtol=1e-9)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-9)
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))
    np.testing.assert_allclose(ours.sample(20)[0], theirs.sample(20)[0], rtol=1e-6, atol=1e-9)
    assert ours.bic(x) == pytest.approx(theirs.bic(x)) and ours.aic(x) == pytest.approx(theirs.aic(x))


@pytest.mark.parametrize("init", ["k-means++", "random_from_data"])
@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
def test_starts_from_single_points_as_scikit_learn(kind, init):
    x = groups(seed=2)
    options = {"covariance_type": kind, "init_params": init, "random_state": 1, "max_iter": 10, "tol": 0}
    ours, theirs = fit_quietly(GaussianMixture(3, **options), x), fit_quietly(Reference(3, **options), x)
    np.testing.assert_allclose(ours.means_, theirs.means_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(ours.lower_bounds_, theirs.lower_bounds_, rtol=1e-6)


def test_tied_start_from_single_points_ends_higher_than_scikit_learn():
    x = groups(seed=2)
    options = {"covariance_type": "tied", "init_params": "k-means++", "random_state": 1}
    assert GaussianMixture(3, **options).fit(x).lower_bound_ >= Reference(3, **options).fit(x).lower_bound_ - 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_float32_agrees_with_float64(kind):
    x = groups(dtype=np.float32)
    single = fit_quietly(started(x, covariance_type="full", max_iter=15), x)
    double = fit_quietly(started(x, covariance_type="full", max_iter=15), x.astype(np.float64))
    assert single.means_.dtype == np.float32 and single.score_samples(x).dtype == np.float32
    np.testing.assert_allclose(single.means_, double.means_, atol=2e-3)
    assert single.lower_bound_ == pytest.approx(double.lower_bound_, abs=1e-4)
    model = GaussianMixture(3, covariance_type=kind, random_state=0)
    assert model.fit(x).score(x) == pytest.approx(model.fit(x.astype(float)).score(x.astype(float)), abs=1e-3)


def test_weights_and_missing_values_agree_with_loops():
    rng = np.random.default_rng(3)
    x = groups(n=60)
    x[rng.random(x.shape) < 0.25] = np.nan
    x[7] = np.nan
    w = rng.random(60)
    model = fit_quietly(started(x, max_iter=4), x, sample_weight=w)
    params = (model.weights_init, model.means_init, np.tile(np.eye(3), (3, 1, 1)))
    for _ in range(4):
        *params, bound = em_step(x, *params, 1e-6, w)
    np.testing.assert_allclose(model.weights_, params[0], rtol=1e-8)
    np.testing.assert_allclose(model.means_, params[1], rtol=1e-7)
    np.testing.assert_allclose(model.covariances_, params[2], rtol=1e-6, atol=1e-9)
    assert model.lower_bound_ == pytest.approx(bound, abs=1e-9)
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(log_joint(x, *params), 1), atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_values_never_lower_the_likelihood(kind):
    x = groups(n=200)
    x[np.random.default_rng(1).random(x.shape) < 0.3] = np.nan
    bounds = fit_quietly(GaussianMixture(3, covariance_type=kind, random_state=0, tol=0, max_iter=25,
                                         reg_covar=0.0), x).lower_bounds_
    assert (np.diff(bounds) > -1e-9).all() and bounds[-1] > bounds[0]


def test_missing_at_random_recovers_the_covariance():
    rng = np.random.default_rng(0)
    cov = np.array([[1.0, 0.8], [0.8, 1.0]])
    x = rng.multivariate_normal([0, 0], cov, 4000)
    x[x[:, 0] > 0.5, 1] = np.nan  # depends on what is observed: leaving rows out would bias the mean
    model = fit_quietly(GaussianMixture(1, max_iter=60, tol=1e-7), x)
    np.testing.assert_allclose(model.covariances_[0], cov, atol=0.08)
    assert abs(model.means_[0, 1]) < 0.08 < abs(np.nanmean(x[:, 1]))


@pytest.mark.parametrize("kind", KINDS)
def test_integer_weights_are_repetitions(kind):
    x, w = groups(n=50), np.random.default_rng(0).integers(0, 4, 50)
    shape = {"full": (3, 3, 3), "tied": (3, 3), "diag": (3, 3), "spherical": (3,)}[kind]
    unit = np.broadcast_to(np.eye(3) if kind in ("full", "tied") else 1.0, shape)
    model = GaussianMixture(3, covariance_type=kind, weights_init=np.full(3, 1 / 3), means_init=x[:3],
                            precisions_init=unit, max_iter=5, tol=0)
    weighted, repeated = fit_quietly(clone(model), x, sample_weight=w), fit_quietly(clone(model), x.repeat(w, axis=0))
    for name in FITTED:
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("held", ["weights", "means", "covariances", ("weights", "means")])
@pytest.mark.parametrize("kind", ["full", "tied"])
def test_held_parameters_stay_and_the_rest_improves(held, kind):
    x = groups()
    unit = np.tile(np.eye(3), (3, 1, 1)) if kind == "full" else np.eye(3)
    model = GaussianMixture(3, covariance_type=kind, weights_init=[0.5, 0.3, 0.2], means_init=x[:3], reg_covar=0.0,
                            precisions_init=unit, fixed=held, max_iter=8, tol=0)
    fit_quietly(model, x)
    start = {"weights": model.weights_init, "means": model.means_init, "covariances": unit}
    for name, value in start.items():
        same = np.allclose(getattr(model, f"{name}_"), value)
        assert same == (name in ([held] if isinstance(held, str) else held))
    assert (np.diff(model.lower_bounds_) > -1e-9).all()
    if held == "means" and kind == "full":
        joint = log_joint(x, model.weights_, model.means_, model.covariances_)
        resp = np.exp(joint - np.logaddexp.reduce(joint, 1)[:, None])
        more = fit_quietly(clone(model).set_params(max_iter=200), x)
        diff = x - more.means_[0]
        joint = log_joint(x, more.weights_, more.means_, more.covariances_)
        resp = np.exp(joint - np.logaddexp.reduce(joint, 1)[:, None])[:, 0]
        np.testing.assert_allclose(more.covariances_[0], (resp[:, None] * diff).T @ diff / resp.sum(), rtol=1e-3)


def test_unknown_held_parameter_is_refused():
    with pytest.raises(ValueError, match="fixed names 'mean'; expected some of weights, means, covariances"):
        GaussianMixture(2, fixed="mean").fit(groups())


@pytest.mark.parametrize("d", [3, 95])  # 95 columns: too many features for the quadratic kernel
def test_narrow_components_switch_to_the_centred_kernel(d):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(400, d)) * 1e-7 + 1, rng.normal(size=(400, d)) * 1e-7 - 1])
    options = {"random_state": 0, "reg_covar": 0.0, "max_iter": 3, "tol": 0}
    model = fit_quietly(GaussianMixture(2, **options), x)
    expected = np.stack([np.cov(part.T, bias=True) for part in (x[:400], x[400:])])
    order = np.argsort(-model.means_[:, 0])
    np.testing.assert_allclose(model.covariances_[order], expected, rtol=1e-6, atol=1e-20)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_scale_and_shift_of_the_data_change_nothing(scale, shift):
    x = groups()
    plain = GaussianMixture(3, random_state=0, reg_covar="scale").fit(x)
    moved = GaussianMixture(3, random_state=0, reg_covar="scale").fit((x + shift) * scale)
    np.testing.assert_array_equal(plain.predict(x), moved.predict((x + shift) * scale))
    np.testing.assert_allclose(moved.means_ / scale - shift, plain.means_, atol=1e-6)
    assert moved.lower_bound_ + 3 * np.log(scale) == pytest.approx(plain.lower_bound_, abs=1e-5)


def test_regularisation_that_drowns_the_data_is_said():
    with pytest.warns(UserWarning, match="column 0 has a variance below reg_covar.*reg_covar='scale'"):
        GaussianMixture(2, random_state=0).fit(groups() * 1e-8)


def test_duplicates_and_constant_columns_give_a_usable_result():
    x = np.repeat(np.array([[0.0, 1.0, 5.0], [2.0, 1.0, 5.0], [4.0, 3.0, 5.0]]), 10, axis=0)
    with pytest.warns(UserWarning, match="column 2 is constant"):
        model = GaussianMixture(3, random_state=0).fit(x)
    assert len(np.unique(model.predict(x))) == 3 and np.isfinite(model.score(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isfinite(GaussianMixture(6, random_state=0).fit(x).score(x))
        with pytest.raises(ValueError, match="ill-defined empirical covariance"):
            GaussianMixture(3, random_state=0, reg_covar=0.0).fit(x)


def test_errors_of_scikit_learn():
    x = groups()
    for bad, text in (({"weights_init": [0.5, 0.5]}, "'weights' should have the shape of"),
                      ({"weights_init": [0.5, 0.5, 0.5]}, "'weights' should be normalized"),
                      ({"weights_init": [-0.5, 1.0, 0.5]}, "max value 1.00000, min value -0.50000"),
                      ({"means_init": x[:2]}, "'means' should have the shape of"),
                      ({"precisions_init": -np.tile(np.eye(3), (3, 1, 1))}, "symmetric, positive-definite"),
                      ({"tol": -1}, "The 'tol' parameter"), ({"covariance_type": "round"}, "'covariance_type' param")):
        with pytest.raises(ValueError, match=text):
            GaussianMixture(3, **bad).fit(x)
    with pytest.raises(ValueError, match="'diag precision' should be positive"):
        GaussianMixture(3, covariance_type="diag", precisions_init=np.zeros((3, 3))).fit(x)
    with pytest.raises(ValueError, match="Expected n_samples >= n_components but got n_components = 5, n_samples = 3"):
        GaussianMixture(5).fit(x[:3])
    with pytest.raises(ValueError, match="sample_weight"):
        GaussianMixture(2).fit(x, sample_weight=-np.ones(len(x)))
    with pytest.raises(ValueError, match="Invalid value for 'n_samples': 0"):
        GaussianMixture(2).fit(x).sample(0)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        GaussianMixture(3, max_iter=1, tol=0).fit(x)


def test_warm_start_goes_on_and_max_iter_zero_is_the_start():
    x = groups()
    whole = fit_quietly(GaussianMixture(3, random_state=0, max_iter=6, tol=0), x)
    model = GaussianMixture(3, random_state=0, max_iter=3, tol=0, warm_start=True)
    fit_quietly(fit_quietly(model, x), x)
    np.testing.assert_allclose(model.means_, whole.means_, rtol=1e-8)
    nothing = GaussianMixture(3, random_state=0, max_iter=0).fit(x)
    assert nothing.n_iter_ == 0 and nothing.means_.shape == (3, 3)


def test_verbose_prints_as_scikit_learn(capsys):
    x = groups()
    for cls in (GaussianMixture, Reference):
        fit_quietly(cls(2, random_state=0, verbose=1, verbose_interval=2, n_init=2), x)
    ours = capsys.readouterr().out
    assert ours[: len(ours) // 2] == ours[len(ours) // 2 :] and "Initialization 1" in ours
    fit_quietly(GaussianMixture(2, random_state=0, verbose=2), x)
    assert "lower bound" in capsys.readouterr().out


def test_torch_tensors_in_and_out():
    x = groups()
    model = GaussianMixture(3, random_state=0).fit(torch.from_numpy(x))
    other = GaussianMixture(3, random_state=0).fit(x)
    assert isinstance(model.means_, torch.Tensor) and isinstance(model.predict_proba(torch.from_numpy(x)), torch.Tensor)
    np.testing.assert_allclose(model.means_.numpy(), other.means_, rtol=1e-12)
    assert isinstance(model.sample(3)[0], torch.Tensor) and isinstance(model.predict(x), np.ndarray)
    with pytest.raises(ValueError, match=r"infinity: row 4, column 1"):
        GaussianMixture(2).fit(torch.from_numpy(x).index_put((torch.tensor([4]), torch.tensor([1])),
                                                             torch.tensor(np.inf, dtype=torch.float64)))
    with pytest.raises(ValueError, match="X has 2 features, but GaussianMixture is expecting 3"):
        model.predict(torch.zeros(4, 2))


@pytest.mark.skipif(polars is None, reason="polars is not installed")
def test_data_frames_keep_their_names():
    x = groups()
    names = ["a", "b", "c"]
    pandas_model = GaussianMixture(3, random_state=0).fit(pd.DataFrame(x, columns=names))
    polars_model = GaussianMixture(3, random_state=0).fit(polars.DataFrame(x, schema=names))
    assert list(pandas_model.feature_names_in_) == list(polars_model.feature_names_in_) == names
    np.testing.assert_array_equal(pandas_model.means_, polars_model.means_)


def test_streams_agree_with_memory(tmp_path):
    x = groups(n=3000).astype(np.float32)
    x[5, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    (tmp_path / "parts").mkdir()
    frame[:1000].to_parquet(tmp_path / "parts/1.parquet")
    frame[1000:].to_parquet(tmp_path / "parts/2.parquet")
    options = {"n_components": 3, "random_state": 0, "max_iter": 5, "tol": 0}
    memory = fit_quietly(GaussianMixture(**options), x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for source in (tmp_path / "x.npy", mapped, str(tmp_path / "parts"), sorted((tmp_path / "parts").iterdir())):
        model = fit_quietly(GaussianMixture(**options), source)
        np.testing.assert_allclose(model.means_, memory.means_, atol=1e-4)
        np.testing.assert_allclose(model.score_samples(source), memory.score_samples(x), atol=1e-3)
        assert model.score(source) == pytest.approx(memory.score(x), abs=1e-4)
    assert list(model.feature_names_in_) == ["a", "b", "c"]
    np.testing.assert_allclose(model.predict_proba(mapped[100:200]), memory.predict_proba(x[100:200]), atol=2e-3)


def test_bad_files_are_refused(tmp_path):
    pd.DataFrame({"a": [1.0, 2.0], "name": ["x", "y"]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(ValueError, match=r"column 'name' of .*text.parquet is .*expected numbers"):
        GaussianMixture().fit(tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="does not exist"):
        GaussianMixture().fit("nowhere.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="cannot read"):
        GaussianMixture().fit(tmp_path / "torn.parquet")
    pd.DataFrame({"a": [1.0, np.inf, 3.0], "b": [0.0, 1.0, 2.0]}).to_parquet(tmp_path / "inf.parquet")
    with pytest.raises(ValueError, match="infinity: row 1, column 'a'"):
        GaussianMixture().fit(tmp_path / "inf.parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_partial_fit_approaches_the_full_fit(kind):
    x = groups(n=4000)
    full = GaussianMixture(3, covariance_type=kind, random_state=0).fit(x)
    model = GaussianMixture(3, covariance_type=kind, random_state=0)
    first = model.partial_fit(x[:200]).score(x)
    for part in np.array_split(x[200:], 19):
        model.partial_fit(part)
    assert model.n_iter_ == 20 and model.score(x) > max(first, full.score(x) - 0.1)


def test_mini_batches_approach_the_full_fit():
    x = groups(n=3000)
    full = GaussianMixture(3, random_state=0).fit(x)
    batches = fit_quietly(GaussianMixture(3, random_state=0, batch_size=250, max_iter=5, learning_decay=0.6,
                                          learning_offset=2.0), x)
    assert batches.score(x) > full.score(x) - 0.03 and len(batches.lower_bounds_) <= 5


def test_start_from_part_of_the_rows():
    x = groups(n=2000)
    model = GaussianMixture(3, random_state=0, init_size=200).fit(x)
    assert model.score(x) > GaussianMixture(3, random_state=0).fit(x).score(x) - 0.05


def test_same_seed_same_bits_on_any_number_of_threads():
    x = groups(n=20_000, dtype=np.float32)
    options = {"n_components": 3, "random_state": 0, "init_params": "random_from_data", "max_iter": 4, "tol": 0}
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            found.append(fit_quietly(GaussianMixture(**options), x))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].covariances_, other.covariances_)


def test_starting_values_matter_to_fits_alone():
    x = groups()
    model = GaussianMixture(2, random_state=0).fit(x)
    wrong = model.set_params(means_init=x[:1], weights_init=[0.3, 0.3])
    assert np.isfinite(wrong.score(x))
    with pytest.raises(ValueError, match="should be normalized"):
        wrong.fit(x)


def test_a_component_without_rows_keeps_its_place():
    x = groups(n=100)
    far = np.array([*x[:2], [1e6, 1e6, 1e6]])
    model = fit_quietly(GaussianMixture(3, weights_init=np.full(3, 1 / 3), means_init=far, max_iter=3, tol=0,
                                        precisions_init=np.tile(np.eye(3), (3, 1, 1))), x)
    np.testing.assert_allclose(model.means_[2], far[2])
    assert model.weights_[2] == 0 and np.isfinite(model.score(x))


def test_icl_is_bic_plus_entropy():
    x = groups()
    model = GaussianMixture(3, random_state=0).fit(x)
    resp = model.predict_proba(x)
    assert model.icl(x) == pytest.approx(model.bic(x) - 2 * np.sum(resp * np.log(np.maximum(resp, 1e-300))))


def test_far_rows_have_no_density_and_still_a_component():
    x = groups()
    far = np.array([[1e160, 0, 0], [0, 0, 0]])
    for model in (GaussianMixture(3, random_state=0).fit(x), StudentTMixture(3, random_state=0).fit(x)):
        score = model.score_samples(far)
        assert score[0] == -np.inf and np.isfinite(score[1])
        np.testing.assert_allclose(model.predict_proba(far).sum(1), 1)
        assert set(model.predict(far)) <= {0, 1, 2}
    single = GaussianMixture(3, random_state=0).fit(x.astype(np.float32))
    assert single.score_samples(np.float32([[1e20, 0, 0]]))[0] == -np.inf
    assert single.score_samples(np.float32([[1e18, 0, 0]]))[0] < -1e30


def test_memory_maps_that_are_arrays_give_what_arrays_give(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60_000, 2)))
    private = np.load(tmp_path / "x.npy", mmap_mode="c")
    private += 100
    assert GaussianMixture(1).fit(private).means_.min() > 99
    x = np.load(tmp_path / "x.npy")
    shared = np.load(tmp_path / "x.npy", mmap_mode="r")  # as joblib hands arrays on
    one, other = (fit_quietly(GaussianMixture(2, random_state=0, max_iter=2), v) for v in (x, shared))
    np.testing.assert_array_equal(one.means_, other.means_)


def test_parquet_columns_are_checked_by_name_type_and_file(tmp_path):
    frame = pd.DataFrame(groups()[:, :2], columns=["a", "b"])
    model = GaussianMixture(1).fit(frame)
    frame[["b", "a"]].to_parquet(tmp_path / "turned.parquet")
    with pytest.raises(ValueError, match=r"feature names should match .* expected a, b; got b, a"):
        model.score(tmp_path / "turned.parquet")
    frame[frame.a > 0].to_parquet(tmp_path / "indexed.parquet")
    assert model.score(tmp_path / "indexed.parquet") == pytest.approx(model.score(frame[frame.a > 0]))
    folder = tmp_path / "parts"
    folder.mkdir()
    frame.astype(np.float32).to_parquet(folder / "1.parquet")
    (frame + 1e8).to_parquet(folder / "2.parquet")
    assert fit_quietly(GaussianMixture(2, random_state=0), folder).means_.dtype == np.float64
    frame.astype(str).to_parquet(folder / "2.parquet")
    with pytest.raises(MixwellError, match=r"column 'a' of .*2\.parquet is .*string; expected numbers"):
        model.fit(folder)
    (folder / "2.parquet").write_bytes(b"no")
    with pytest.raises(MixwellError, match=r"cannot read .*2\.parquet as Parquet"):
        model.fit(folder)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_streams_are_looked_at_whenever_they_are_read(tmp_path):
    x = groups()
    model = GaussianMixture(2, random_state=0).fit(x)
    x[7, 1] = np.inf
    np.save(tmp_path / "x.npy", x)
    for use in (model.predict, model.score, model.partial_fit, GaussianMixture(2, batch_size=50).fit):
        with pytest.raises(ValueError, match="contains infinity: row 7, column 1"):
            use(tmp_path / "x.npy")
    x[7, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match="contains NaN: row 7, column 1"):
        VonMisesFisherMixture(2, batch_size=50).fit(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(MixwellError, match=r"cannot read .*x\.npy as a \.npy file"):
        model.predict(tmp_path / "x.npy")


def test_sorted_streams_know_their_whole_spread(tmp_path, recwarn):
    x = np.random.default_rng(0).normal(size=(200_000, 2))
    x[:140_000, 0] = 3.0
    np.save(tmp_path / "x.npy", x)
    for floor in ("scale", 1e-6):
        options = {"max_iter": 1, "reg_covar": floor}
        stream, memory = (fit_quietly(GaussianMixture(1, **options), v) for v in (tmp_path / "x.npy", x))
        np.testing.assert_allclose(stream.covariances_, memory.covariances_, rtol=1e-9)
    assert not [w for w in recwarn if "constant" in str(w.message)]


def test_starts_that_cannot_be_computed(recwarn):
    x = groups()
    empty = x.copy()
    empty[:, 2] = np.nan
    with pytest.raises(ValueError, match="column 2 has no value in the 300 rows of the start"):
        GaussianMixture(2).fit(empty)
    with pytest.raises(ValueError, match="1 rows have a weight above 0; expected n_components=2 or more"):
        GaussianMixture(2, init_params="random_from_data").fit(x, sample_weight=np.eye(300)[0])
    given = {"init_params": "k-means++", "reg_covar": 0.0, "precisions_init": np.tile(np.eye(3), (2, 1, 1)),
             "random_state": 0}
    ours, theirs = GaussianMixture(2, **given).fit(x), Reference(2, **given).fit(x)
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, abs=1e-3)
    with pytest.raises(ValueError, match="ill-defined"):
        GaussianMixture(2, init_params="k-means++", reg_covar=0.0).fit(x)


def test_ranges_beyond_float32_and_a_missing_first_value(recwarn):
    x = groups()
    plain, large = (fit_quietly(GaussianMixture(2, reg_covar=0.0, random_state=0), v) for v in (x, x * 1e40))
    np.testing.assert_allclose(large.means_, plain.means_ * 1e40, rtol=1e-6)
    shifted = x + 1e8
    shifted[0, 0] = np.nan
    fit_quietly(GaussianMixture(1), shifted)
    assert not [w for w in recwarn if "constant" in str(w.message)]
    packed = np.zeros(300, [("x", "f8", (3,)), ("flag", "i1")])
    packed["x"] = x
    np.testing.assert_array_equal(GaussianMixture(1).fit(packed["x"]).means_, GaussianMixture(1).fit(x).means_)


def test_a_fit_that_failed_leaves_no_columns_behind():
    x = groups()
    model = GaussianMixture(5)
    with pytest.raises(ValueError, match="n_samples >= n_components"):
        model.fit(x[:3, :2])
    assert model.partial_fit(x).means_.shape == (5, 3)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("kind", "columns"), [("diag", 2100), ("spherical", 4200), ("full", 95)])
def test_columns_beyond_the_quadratic_features(kind, columns):
    x = np.random.default_rng(0).normal(size=(30, columns)) * 2 + 1
    options = {"covariance_type": kind, "reg_covar": 0.5, "max_iter": 1, "random_state": 0}
    ours, theirs = GaussianMixture(1, **options).fit(x), Reference(1, **options).fit(x)
    np.testing.assert_allclose(ours.score_samples(x), theirs.score_samples(x), rtol=1e-6)


def test_shrinkage_draws_means_to_the_middle_and_none_is_plain_em():
    x = np.vstack([np.random.default_rng(0).normal(m, 1, (30, 2)) for m in (-4, 4)])
    plain = GaussianMixture(2, random_state=0).fit(x)
    none = GaussianMixture(2, random_state=0, shrinkage=0.0).fit(x)
    some = GaussianMixture(2, random_state=0, shrinkage=10.0).fit(x)
    np.testing.assert_array_equal(none.means_, plain.means_)
    assert np.abs(some.means_ - x.mean(0)).max() < 0.8 * np.abs(plain.means_ - x.mean(0)).max()
