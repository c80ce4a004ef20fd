"""RegMix's published runs: tried where MIXWELL_REGMIX names a folder with the authors' tables."""

import os
from pathlib import Path

import numpy as np
import pytest

from mixwell.data.mixing import law_and_trees, regression
from mixwell.data.optimum import Search, best_weights
from mixwell.data.predictor import rank_correlation
from mixwell.data.runs import read_runs

FOLDER = Path(os.environ.get("MIXWELL_REGMIX", "absent"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="MIXWELL_REGMIX names no folder with the published tables")

# the notebook's rank correlations (times 100) and its prior, domain by domain
REPORTED = [99.6, 99.71, 99.08, 99.45, 97.2, 99.77, 99.73, 99.18, 98.92, 96.87, 98.51, 99.19, 99.12]
PRIOR = np.array([0.11328527, 0.07960865, 0.00391349, 0.1853759, 0.05108136, 0.01596293, 0.10175077, 0.00370752,
                  0.06652935, 0.00175077, 0.02708548, 0.23686921, 0.01184346, 0.00792997, 0.00803296, 0.03882595,
                  0.04644696])
OPTIMUM = {"pile_cc": 0.8909, "ubuntu_irc": 0.0614, "pubmed_abstracts": 0.0123, "wikipedia_en": 0.0073,
           "pubmed_central": 0.0058}


def table(name):
    import pandas

    weights = pandas.read_csv(FOLDER / f"{name.replace('_', '_mixture_', 1)}.csv")
    losses = pandas.read_csv(FOLDER / f"{name.replace('_', '_pile_loss_', 1)}.csv")
    return read_runs(weights, losses, weight_prefix="train_the_pile_", loss_prefix="metric/the_pile_")


def correlations(fitted, runs):
    predicted = fitted.predict(runs.weights_ND)
    pairs = zip(predicted.T, runs.losses_NM.T)
    return [100 * rank_correlation(a, b) for a, b in pairs]


def test_the_notebooks_figures():
    pytest.importorskip("lightgbm", reason="optional")
    train, test = table("train_1m"), table("test_1m")
    config = regression.Config(booster="lightgbm", min_samples_leaf=20, validation=test)
    fitted = regression.Regression(config).fit(train)
    assert correlations(fitted, test) == pytest.approx(REPORTED, abs=0.006)
    found = best_weights(fitted, {"pile_cc_val_loss": 1.0}, prior_D=PRIOR, caps_D=np.ones(17),
                         search=Search(samples=100_000, rounds=1), generator=np.random.RandomState(42))
    weights = dict(zip(train.domains, found.weights_D))
    assert {name: weights[name] for name in OPTIMUM} == pytest.approx(OPTIMUM, abs=0.0006)


@pytest.mark.parametrize("count, here, larger", [(50, 94, 92), (128, 96, 95)])
def test_law_and_trees_do_better_from_fewer_runs(count, here, larger):
    train = table("train_1m")
    places = np.random.default_rng(0).permutation(512)[:count]
    fitted = law_and_trees.LawAndTrees().fit(train.rows(places))
    assert np.median(correlations(fitted, table("test_1m"))) > here
    assert np.median(correlations(fitted, table("test_1B"))) > larger
