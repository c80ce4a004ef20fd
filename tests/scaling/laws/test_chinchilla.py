"""Chinchilla's law: its equation, its robustness, its refusals."""

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.scaling.law import Config
from mixwell.scaling.laws.chinchilla import Chinchilla, grid


def published(law):
    return law().curve(law.published)


def test_the_equation_as_it_stands_in_the_paper():
    p, n, d = Chinchilla.published, 7e8, 3e10
    loss = p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"] + p["E"]
    assert published(Chinchilla).predict({"n": n, "d": d})[0] == pytest.approx(loss, rel=1e-12)


def test_hubers_loss_bears_outliers():
    law, truth = Chinchilla(), published(Chinchilla)
    runs = grid(np.random.default_rng(0))
    loss = truth.predict(runs)
    loss[:3] *= 1.3
    fit = law.fit({**runs, "loss": loss})
    assert fit.parameters["alpha"] == pytest.approx(0.3478, abs=0.002)
    squares = Chinchilla(delta=10.0).fit({**runs, "loss": loss})
    assert abs(squares.parameters["alpha"] - 0.3478) > 0.02
    assert Chinchilla(starts=1).fit({**runs, "loss": loss}).objective >= fit.objective


def test_weights_are_counts_of_runs():
    law = Chinchilla()
    runs = grid(np.random.default_rng(0))
    loss = published(Chinchilla).predict(runs) * np.exp(0.01 * np.random.default_rng(1).standard_normal(40))
    counts = np.where(np.arange(40) < 10, 3, 1)
    weighed = law.fit({**runs, "loss": loss, "count": counts.astype(float)}, weight="count")
    repeated = law.fit({name: np.repeat(value, counts) for name, value in {**runs, "loss": loss}.items()})
    assert weighed.parameters["alpha"] == pytest.approx(repeated.parameters["alpha"], rel=1e-3)


@pytest.mark.parametrize("config", [{"delta": 0.0}, {"delta": float("nan")}, {"starts": 0}])
def test_a_config_checks_its_ranges(config):
    with pytest.raises(ValueError, match="expected"):
        Config(**config)


def test_a_law_takes_its_own_parameters_alone():
    with pytest.raises(MixwellError, match="the law takes the parameters A, B, E, alpha, beta; got A"):
        Chinchilla().curve({"A": 1.0})
    fit = Chinchilla().fit({**grid(np.random.default_rng(0)), "loss": published(Chinchilla).predict(grid(
        np.random.default_rng(0)))})
    with pytest.raises(MixwellError, match="share is 1"):
        fit.largest_left_out(1.0)
