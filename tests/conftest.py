"""Shared by all tests: one thread (two workers share two cores), and generators."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

gc.disable()  # imports and collected tests are a million objects that stay: no use looking for garbage among them
gc.set_threshold(20_000, 10, 10)


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _one_measurement_of_the_machine(tmp_path_factory):
    """Measurements are kept beside the tests' files, shared by the workers, and never in the home of whoever tests."""
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    os.environ["XDG_CACHE_HOME"] = str(shared / "cache")


@pytest.fixture
def generator():
    """A fresh generator with a fixed seed."""
    import torch

    return torch.Generator().manual_seed(7)


@pytest.fixture(params=["onednn packed", "fp16"])
def packed_form(request, monkeypatch):
    """Every weight that can be is packed in this form, whatever is fastest on this machine."""
    import torch

    from mixwell.kernels import packing
    from mixwell.kernels.probe import ROWS, Choices
    from mixwell.kernels.products import works

    form = request.param
    if not works(form, torch.float32):
        pytest.skip(f"this processor or build of torch has no {form} product")
    exact = "blas" if form == "fp16" else form
    monkeypatch.setattr(packing, "choices", lambda: Choices({}, (exact,) * len(ROWS), (form,) * len(ROWS)))
    return form


@pytest.fixture(autouse=True)
def _one_thread():
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
