"""Shared by all tests: one thread (two workers share two cores), and generators."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


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


@pytest.fixture(autouse=True)
def _one_thread():
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
