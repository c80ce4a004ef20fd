"""Number of components: criteria by their definitions, three groups found by each, files, refusals."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.mixture import GaussianMixture as Reference
from sklearn.model_selection import KFold

from mixwell.density import CategoricalMixture, ComponentSearch, GaussianMixture
from mixwell.density.selection.components import example
from tests.density.selection._tools import three_groups


def test_one_number_is_a_range_of_one():
    assert ComponentSearch(GaussianMixture(random_state=0), 2).fit(three_groups()).best_n_components_ == 2


@pytest.mark.parametrize("criterion", ["bic", "icl", "sabic", "caic", "cv", "slope"])
def test_criteria_find_three_groups(criterion):
    x = three_groups()
    search = ComponentSearch(GaussianMixture(random_state=0), range(1, 6), criterion=criterion, folds=3, random_state=0,
                             one_standard_error=criterion == "cv").fit(x)
    assert search.best_n_components_ == 3 == len(search.best_estimator_.weights_)
    assert len(np.unique(search.predict(x))) == 3 and search.score(x) == search.best_estimator_.score(x)
    assert sorted(search.scores_) == list(range(1, 6))


def test_criteria_are_what_their_equations_say():
    x = three_groups(30)
    for criterion in ("bic", "aic", "icl"):
        search = ComponentSearch(GaussianMixture(random_state=0), [2, 3], criterion=criterion).fit(x)
        for k in (2, 3):
            model = Reference(k, random_state=0).fit(x)
            resp = model.predict_proba(x)
            entropy = -sum(r * np.log(r) for r in resp.ravel() if r > 0)
            expected = {"bic": model.bic(x), "aic": model.aic(x), "icl": model.bic(x) + 2 * entropy}[criterion]
            assert search.scores_[k] == pytest.approx(expected, rel=1e-6)
            assert search.log_likelihoods_[k] == pytest.approx(model.score_samples(x).sum(), rel=1e-6)


def test_held_out_scores_are_means_over_folds():
    x = three_groups(30)
    search = ComponentSearch(GaussianMixture(random_state=0), [1, 3], criterion="cv", folds=4, random_state=7).fit(x)
    for k in (1, 3):
        folds = [Reference(k, random_state=0).fit(x[train]).score(x[test])
                 for train, test in KFold(4, shuffle=True, random_state=7).split(x)]
        assert search.scores_[k] == pytest.approx(-np.mean(folds), rel=1e-5)
        assert search.standard_errors_[k] == pytest.approx(np.std(folds, ddof=1) / 2, rel=1e-4)


def test_one_standard_error_prefers_fewer():
    x = np.random.default_rng(2).standard_t(2.5, (80, 1))
    options = {"estimator": GaussianMixture(random_state=0), "n_components": [1, 2, 3], "criterion": "cv",
               "folds": 3, "random_state": 0}
    plain, careful = (ComponentSearch(one_standard_error=e, **options).fit(x) for e in (False, True))
    assert (careful.best_n_components_, plain.best_n_components_) == (1, 3)
    limit = plain.scores_[plain.best_n_components_] + plain.standard_errors_[plain.best_n_components_]
    assert careful.scores_[careful.best_n_components_] <= limit
    assert all(plain.scores_[k] > limit for k in range(1, careful.best_n_components_))


def test_one_number_is_that_fit():
    x = three_groups()
    search = ComponentSearch(n_components=[2]).fit(x)
    assert search.best_n_components_ == 2 and isinstance(search.best_estimator_, GaussianMixture)


def test_files_count_their_rows(tmp_path):
    x = three_groups(30)
    for i, part in enumerate(np.array_split(x, 2)):
        pd.DataFrame(part, columns=["a", "b"]).to_parquet(tmp_path / f"{i}.parquet")
    memory = ComponentSearch(GaussianMixture(random_state=0), [1, 3]).fit(x)
    for source in (sorted(tmp_path.iterdir()), tmp_path):
        files = ComponentSearch(GaussianMixture(random_state=0), [1, 3]).fit(source)
        assert files.log_likelihoods_[1] == pytest.approx(memory.log_likelihoods_[1])
        with pytest.raises(ValueError, match="criterion='cv' got files; expected rows in memory"):
            ComponentSearch(GaussianMixture(random_state=0), [1, 3], criterion="cv").fit(source)


def test_tables_of_text_and_other_estimators():
    x = three_groups(30)
    theirs = ComponentSearch(Reference(random_state=0), [1, 3, 4]).fit(x)
    assert theirs.best_n_components_ == 3
    with pytest.raises(ValueError, match="GaussianMixture has no icl; choose another criterion, or 'cv'"):
        ComponentSearch(Reference(), [1], criterion="icl").fit(x)
    frame = pd.DataFrame({"a": list("xxyy") * 10, "b": list("ssll") * 10})
    search = ComponentSearch(CategoricalMixture(random_state=0), [1, 2], criterion="cv", folds=2, random_state=0)
    assert search.fit(frame).best_n_components_ == 2


def test_refusals():
    with pytest.raises(ValueError, match="criterion='x'; expected one of bic, aic, icl, sabic, caic, cv, slope"):
        ComponentSearch(criterion="x").fit(three_groups())
    with pytest.raises(ValueError, match="n_components is empty"):
        ComponentSearch(n_components=[]).fit(three_groups())
    with pytest.raises(ValueError, match="at least four of each"):
        ComponentSearch(n_components=[1, 2], criterion="slope").fit(three_groups())


def test_example():
    given = example(torch.Generator().manual_seed(0))
    assert given["estimator"].fit(given["X"]).best_n_components_ == 3


STOUFFER_TOBY = [42, 23, 6, 25, 6, 24, 7, 38, 1, 4, 1, 6, 2, 9, 2, 20]  # Goodman (1974), 216 answers to four questions


def patterns():
    """The 16 answers to four questions with two options each, in the order of the frequencies."""
    return np.array([[n >> shift & 1 for shift in (3, 2, 1, 0)] for n in range(16)], dtype=float)


@pytest.mark.parametrize("criterion", ["bic", "aic", "icl"])
def test_a_table_of_frequencies_is_the_table_of_its_rows(criterion):
    x, counts = patterns(), np.array(STOUFFER_TOBY)
    model = CategoricalMixture(2, n_init=10, tol=1e-9, max_iter=5000, random_state=0)
    weighted = ComponentSearch(model, [1, 2], criterion=criterion).fit(x, sample_weight=counts)
    whole = ComponentSearch(model, [1, 2], criterion=criterion).fit(np.repeat(x, counts, axis=0))
    for k in (1, 2):
        assert weighted.scores_[k] == pytest.approx(whole.scores_[k], abs=1e-4)
        assert weighted.log_likelihoods_[k] == pytest.approx(whole.log_likelihoods_[k], abs=1e-4)
    if criterion == "bic":
        assert weighted.scores_[2] == pytest.approx(1057.313, abs=1e-3)  # poLCA 1.6 on its data set `values`


def test_held_out_scores_follow_the_weights():
    x, w = three_groups(20), np.random.default_rng(0).integers(1, 4, 60)
    search = ComponentSearch(GaussianMixture(random_state=0), [2], criterion="cv", folds=3, random_state=1)
    search.fit(x, sample_weight=w)
    folds = []
    for train, test in KFold(3, shuffle=True, random_state=1).split(x):
        model = GaussianMixture(2, random_state=0).fit(x[train], sample_weight=w[train])
        folds.append(np.average(model.score_samples(x[test]), weights=w[test]))
    assert search.scores_[2] == pytest.approx(-np.mean(folds), rel=1e-9)
