"""Shared by all tests: one thread (two workers share two cores), and generators."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


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
