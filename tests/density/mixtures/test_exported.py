"""ONNX models say what the mixtures say, to 1e-5; without the packages the missing one is named."""

import sys

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.density import (
    BayesianGaussianMixture,
    CategoricalMixture,
    ExponentialMixture,
    GaussianMixture,
    LognormalMixture,
    NegativeBinomialMixture,
    PoissonMixture,
    ProductMixture,
    StudentTMixture,
)
from mixwell.density.mixtures.product import Block

RNG = np.random.default_rng(0)
X = np.vstack([RNG.normal(0, 1, (60, 3)) @ RNG.normal(size=(3, 3)), RNG.normal(2, 1, (60, 3))])
COUNTS = RNG.poisson([[2.0, 9.0, 4.0]] * 60 + [[8.0, 3.0, 5.0]] * 60).astype(float)
CODES = np.stack([RNG.permutation(np.arange(120) % 2), np.arange(120) % 3, np.repeat([0, 1], 60)], 1).astype(float)
MIXED = np.hstack([CODES[:, :1], X[:, :2], COUNTS, X[:, 2:], CODES[:, 1:]])
KINDS = [Block("category", CategoricalMixture(alpha=0.5), (0, 7, 8), sizes=(2, 3, 2)),
         Block("numeric", StudentTMixture(covariance_type="tied"), (6, 1)), Block("numeric", GaussianMixture(), (2,)),
         Block("count", PoissonMixture(), (5, 3, 4))]
CASES = [pytest.param(GaussianMixture(2, covariance_type=kind), X, id=kind)
         for kind in ("full", "tied", "diag", "spherical", "VEE", "VVI")]
CASES += [pytest.param(StudentTMixture(2), X, id="student_t"),
          pytest.param(StudentTMixture(2, covariance_type="diag"), X, id="student_t, diag"),
          pytest.param(PoissonMixture(2), COUNTS, id="poisson"),
          pytest.param(ProductMixture(2, blocks=KINDS), MIXED, id="blocks of all kinds"),
          pytest.param(ProductMixture(2), X, id="one block"),
          pytest.param(ExponentialMixture(2), COUNTS, id="exponential")]


@pytest.mark.parametrize(("model", "x"), CASES)
def test_a_runtime_agrees(model, x, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model.set_params(random_state=0, max_iter=20, tol=1e-2).fit(x)
    path = model.to_onnx(tmp_path / "mixture.onnx")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    labels_N, resp_NK = session.run(["labels", "responsibilities"], {"X": x})
    np.testing.assert_allclose(resp_NK, model.predict_proba(x), atol=1e-5)
    np.testing.assert_array_equal(labels_N, model.predict(x))
    assert len(np.unique(labels_N)) == 2
    one, _ = session.run(None, {"X": x[:1]})
    assert one[0] == labels_N[0]


def test_the_package_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MixwellError, match="pip install onnx"):
        GaussianMixture(1).fit(X).to_onnx(tmp_path / "mixture.onnx")


def test_a_block_of_another_form_is_named(tmp_path):
    pytest.importorskip("onnx")
    blocks = [Block("count", NegativeBinomialMixture(), (0, 1, 2))]
    with pytest.raises(ValueError, match="NegativeBinomialMixture has no ONNX form"):
        ProductMixture(1, blocks=blocks).fit(COUNTS).to_onnx(tmp_path / "mixture.onnx")


@pytest.mark.parametrize("model", [NegativeBinomialMixture(1), LognormalMixture(1), BayesianGaussianMixture()])
def test_mixtures_of_another_form_are_refused(model, tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match=f"{type(model).__name__} has no ONNX form; expected a GaussianMixture"):
        model.fit(COUNTS + 1).to_onnx(tmp_path / "mixture.onnx")
    assert not list(tmp_path.iterdir())
