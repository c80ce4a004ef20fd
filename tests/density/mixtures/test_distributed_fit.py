"""Two processes with half of the rows each end with the model that one process finds on all of them."""

import multiprocessing

import numpy as np
import pytest
import torch.distributed as dist

from mixwell.core.errors import MixwellError
from mixwell.density import CategoricalMixture, GaussianMixture, PoissonMixture, StudentTMixture


def cases():
    """Estimators with rows and weights."""
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(-3, 1, (100, 3)), rng.normal(3, 2, (140, 3))] + 1e4
    holes = x.copy()
    holes[rng.random(x.shape) < 0.2] = np.nan
    given = {"weights_init": [0.5, 0.5], "means_init": x[[0, -1]], "precisions_init": np.tile(np.eye(3), (2, 1, 1)),
             "tol": 0, "max_iter": 6}
    from_first = PoissonMixture(2, random_state=0, tol=0, max_iter=5)
    return {"full": (GaussianMixture(2, **given), x, None),
            "weights": (GaussianMixture(2, **given), x, rng.random(240)),
            "missing": (GaussianMixture(2, **given), holes, None),
            "single": (GaussianMixture(2, **given), (x - 1e4).astype(np.float32), None),
            "student": (StudentTMixture(2, **given), x, None),
            "counts": (from_first, rng.poisson(np.where(np.arange(240) % 2, 3.0, 9.0)[:, None], (240, 2)) + 0.0, None)}


def fitted(rank, folder, to):
    """What one process of two finds with its rows, and how it refuses rows that do not go together."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for name, (model, x, weight) in cases().items():
        own = slice(0, 90) if rank == 0 else slice(90, None)
        model.fit_distributed(x[own], sample_weight=None if weight is None else weight[own])
        found[name] = [model.weights_.tolist(), model.lower_bounds_, getattr(model, "means_", model.weights_).tolist()]
    _, x, _ = cases()["full"]
    bad = np.where(np.arange(3) == 1, np.inf, x[:6])
    for name, own in (("infinity", bad if rank == 1 else x), ("columns", x[:, :2] if rank == 1 else x)):
        with pytest.raises((MixwellError, ValueError)) as refused:
            GaussianMixture(2).fit_distributed(own)
        found[name] = f"{refused.type.__name__}: {refused.value}"
    to.send(found)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork")
    folder = tmp_path_factory.mktemp("meet")
    context = multiprocessing.get_context("fork")  # all is imported already: no process starts from nothing
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    crew = [context.Process(target=fitted, args=(rank, folder, to)) for rank, (_, to) in enumerate(pipes)]
    for process, (_, to) in zip(crew, pipes):
        process.start()
        to.close()
    told = [ours.recv() for ours, _ in pipes]
    for process in crew:
        process.join()
    return told


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", ["full", "weights", "missing", "single", "student"])
def test_two_processes_are_one(found, name):
    model, x, weight = cases()[name]
    model.fit(x, sample_weight=weight)
    assert found[0][name] == found[1][name]
    tolerance = 1e-4 if name == "single" else 1e-9
    for theirs, ours in zip(found[0][name], (model.weights_, model.lower_bounds_, model.means_)):
        np.testing.assert_allclose(theirs, ours, rtol=tolerance)


def test_the_start_comes_from_the_first_process(found):
    assert found[0]["counts"] == found[1]["counts"] and np.diff(found[0]["counts"][1]).min() > 0


def test_all_processes_hear_of_a_refusal(found):
    assert "ValueError: Input X contains infinity" in found[1]["infinity"]
    assert found[0]["infinity"] == "MixwellError: process 1 of 2 could not use its rows; its own message says why."
    assert "[2, 8] columns and bytes a number, [3, 8] in the first process" in found[1]["columns"]
    assert "process 1 of 2" in found[0]["columns"]


def test_refusals_in_one_process():
    x = np.zeros((4, 2))
    with pytest.raises(MixwellError, match=r"torch.distributed is not initialised; call .*init_process_group"):
        GaussianMixture(2).fit_distributed(x)
    with pytest.raises(ValueError, match="CategoricalMixture cannot be fitted to rows spread over processes"):
        CategoricalMixture(2).fit_distributed(x)
    with pytest.raises(ValueError, match="GaussianMixture with batch_size cannot be fitted to rows spread"):
        GaussianMixture(2, batch_size=2).fit_distributed(x)
