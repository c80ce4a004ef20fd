"""Categorical mixture: an EM step in loops, text, what is missing or unknown, one class."""

import numpy as np
import pandas as pd
import pytest
import torch

from mixwell.density import CategoricalMixture
from tests.density.mixtures._tools import continued, softmax

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_step_agrees_with_loops(alpha):
    x = np.random.default_rng(0).integers(0, 3, (60, 2)).astype(float)
    x[4, 0] = np.nan
    model = CategoricalMixture(2, random_state=0, max_iter=1, tol=0, alpha=alpha).fit(x)
    joint = np.array([[np.log(model.weights_[k]) + sum(np.log(model.probabilities_[d][k, int(v)])
                                                       for d, v in enumerate(row) if not np.isnan(v))
                       for k in range(2)] for row in x])
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(joint, 1), rtol=1e-9)
    r = softmax(joint)
    continued(model, x)
    np.testing.assert_allclose(model.weights_, r.mean(0), rtol=1e-9)
    for d in range(2):
        counts = np.array([[r[x[:, d] == c, k].sum() + alpha for c in range(3)] for k in range(2)])
        np.testing.assert_allclose(model.probabilities_[d], counts / counts.sum(1, keepdims=True), rtol=1e-9,
                                   atol=1e-250)


def test_classes_explain_the_dependence_of_columns():
    rng = np.random.default_rng(0)
    label = np.arange(400) % 2
    x = (rng.random((400, 3)) < np.where(label, 0.9, 0.15)[:, None]).astype(float)
    model = CategoricalMixture(2, random_state=0, n_init=2, tol=1e-6).fit(x)
    one = [p[:, 1] for p in model.probabilities_]
    together = model.weights_ @ (one[0] * one[1])
    assert together == pytest.approx((x[:, 0] * x[:, 1]).mean(), abs=0.01)
    assert together - (model.weights_ @ one[0]) * (model.weights_ @ one[1]) > 0.1
    assert max((model.predict(x) == label).mean(), (model.predict(x) != label).mean()) > 0.9


def test_pseudo_counts_weigh_the_same_in_batches():
    x = (np.random.default_rng(0).random((400, 2)) < 0.1).astype(float)
    whole, batches = (CategoricalMixture(1, alpha=20.0, batch_size=size, max_iter=5).fit(x) for size in (None, 100))
    np.testing.assert_allclose(batches.probabilities_, whole.probabilities_, atol=0.01)
    assert abs(whole.probabilities_[0][0, 1] - x[:, 0].mean()) > 0.03


def test_one_class_is_the_table_of_frequencies():
    x = np.array([[0.0, 5], [0, 5], [0, 7], [3, np.nan]])
    model = CategoricalMixture(1).fit(x)
    np.testing.assert_array_equal(model.categories_[0], [0, 3])
    np.testing.assert_array_equal(model.categories_[1], [5, 7])
    np.testing.assert_allclose(model.probabilities_[0], [[3 / 4, 1 / 4]])
    np.testing.assert_allclose(model.probabilities_[1], [[2 / 3, 1 / 3]])
    assert model._n_parameters() == 2


def table():
    return pd.DataFrame({"colour": ["red", "red", "blue", None, "blue", "red"] * 20,
                         "size": ["s", "s", "l", "l", "l", "s"] * 20})


def test_categories_may_be_text():
    frame = table()
    model = CategoricalMixture(2, random_state=0, n_init=3).fit(frame)
    assert [list(c) for c in model.categories_] == [["blue", "red"], ["l", "s"]]
    labels = model.predict(frame)
    assert labels[0] == labels[1] != labels[2] == labels[3]
    drawn, _ = model.sample(5)
    assert set(drawn[:, 0]) <= {"red", "blue"}
    np.testing.assert_array_equal(labels, CategoricalMixture(2, random_state=0, n_init=3).fit_predict(frame.to_numpy()))


@pytest.mark.parametrize("kind", ["string", "category", "object"])
def test_every_kind_of_text_column_may_lack_values(kind):
    frame = table()
    model = CategoricalMixture(2, random_state=0, n_init=3).fit(frame.astype(kind))
    np.testing.assert_array_equal(model.categories_[0], ["blue", "red"])
    expected = CategoricalMixture(2, random_state=0, n_init=3).fit(frame)
    np.testing.assert_array_equal(model.score_samples(frame.astype(kind)), expected.score_samples(frame))


def test_a_batch_without_text_is_read_as_the_fit_read_it():
    model = CategoricalMixture(1, alpha=1).fit(pd.DataFrame({"a": ["x", "y"] * 6, "b": [1, 2, 2, 2] * 3}))
    both = model.score_samples(pd.DataFrame({"a": [None, "x"], "b": [1, 1]}))
    for alone in (pd.DataFrame({"a": [None], "b": [1]}), pd.DataFrame({"a": [np.nan], "b": [1.0]})):
        np.testing.assert_array_equal(model.score_samples(alone), both[:1])
    assert both[0] == pytest.approx(np.log(4 / 14))


def test_numbers_beside_text_keep_their_names_when_a_missing_value_makes_them_float():
    frame = pd.DataFrame({"a": ["x", "y"] * 6, "b": [1, 2, 2, 2] * 3})
    model = CategoricalMixture(1, alpha=1).fit(frame)
    whole, holed = (model.score_samples(pd.DataFrame({"a": ["x", "y"], "b": b})) for b in ([1, 2], [1, None]))
    assert whole[0] == holed[0]
    frame.loc[5, "b"] = np.nan
    np.testing.assert_array_equal(CategoricalMixture(1).fit(frame).categories_[1], ["1", "2"])


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_a_model_of_text_reads_no_numbers_as_codes():
    model = CategoricalMixture(1).fit(table())
    with pytest.raises(ValueError, match="unknown category in row 0"):
        model.score_samples(np.array([[0.0, 1.0]]))
    for wrong in ([[0.0, 1.0]], torch.zeros(1, 2), "rows.parquet", np.zeros(2)):
        with pytest.raises(ValueError, match="fitted on a table with text"):
            model.score_samples(wrong)
    with pytest.raises(ValueError, match="could not convert string to float"):
        CategoricalMixture(1, unknown="missing").fit([[0.0, 1.0], [1.0, 1.0]]).predict(table().to_numpy())


def test_columns_of_text_keep_their_names_and_order():
    frame = table()
    model = CategoricalMixture(1).fit(frame)
    for wrong in (frame[["size", "colour"]], frame.rename(columns={"size": "length"}), frame[["size"]]):
        with pytest.raises(ValueError, match="feature names should match those that were passed during fit"):
            model.score(wrong)
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        model.score(frame.to_numpy())
    with pytest.raises(ValueError, match="X has 1 features, but CategoricalMixture is expecting 2 features"):
        CategoricalMixture(1).fit(frame.to_numpy()).score(frame[["size"]].to_numpy())


def test_unknown_categories_are_refused_or_left_out():
    frame = table()
    strange = pd.DataFrame({"colour": ["red", "green"], "size": ["s", "s"]})
    with pytest.raises(ValueError, match="unknown category in row 1, column 'colour'"):
        CategoricalMixture(2, random_state=0).fit(frame).predict(strange)
    lenient = CategoricalMixture(2, random_state=0, unknown="missing").fit(frame)
    only_size = pd.DataFrame({"colour": [None, None], "size": ["s", "s"]})
    np.testing.assert_allclose(lenient.score_samples(strange)[1], lenient.score_samples(only_size)[1])
    with pytest.raises(ValueError, match="unknown category in row 0, column 1"):
        CategoricalMixture(1).fit([[0.0, 1.0], [1.0, 2.0]]).predict([[0.0, 3.0]])
    with pytest.raises(ValueError, match="column 1 has no value at all"):
        CategoricalMixture(1).fit([[0.0, np.nan], [1.0, np.nan]])


def test_held_parameters_stay():
    x = np.random.default_rng(1).integers(0, 3, (60, 2)).astype(float)
    model = CategoricalMixture(2, random_state=0, max_iter=2).fit(x)
    before = [p.copy() for p in model.probabilities_]
    continued(model, x, fixed="probabilities")
    for a, b in zip(before, model.probabilities_):
        np.testing.assert_array_equal(a, b)
    assert model._n_parameters() == 1
