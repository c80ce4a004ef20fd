"""The type to compute in follows what was measured, on this machine and on others that are faked."""

import pytest
import torch

from mixwell.kernels import rates as module
from mixwell.kernels.rates import Rates, compute_dtype, rates
from mixwell.lm.training.config import TrainConfig


@pytest.mark.parametrize(("fp32", "bf16", "dtype"), [
    (60.0, 8.0, torch.float32),  # emulated
    (60.0, 0.0, torch.float32),  # refused
    (60.0, 70.0, torch.float32),  # not worth the digits
    (100.0, 210.0, torch.bfloat16)])
def test_bf16_is_computed_in_where_it_is_faster(monkeypatch, fp32, bf16, dtype):
    fake = Rates(fp32_gflops=fp32, bf16_gflops=bf16, memory_gbps=20.0, threads=1)
    monkeypatch.setattr(module, "_rates", lambda threads: fake)
    assert compute_dtype() == dtype
    name = "bf16" if dtype == torch.bfloat16 else "fp32"
    assert TrainConfig(tokens=1.0).for_device("cpu").dtype == name
    assert TrainConfig(tokens=1.0, dtype="fp32").for_device("cpu").dtype == "fp32"


def test_rates_are_those_of_a_computer():
    found = rates()
    assert 0.5 < found.fp32_gflops < 1e5 and 0 <= found.bf16_gflops < 1e6
    assert 0.1 < found.memory_gbps < 1e4 and found.threads == torch.get_num_threads()


def test_a_type_that_is_refused_has_no_rate(monkeypatch):
    def refuse(a, b, out=None):
        raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(module, "product_nt", refuse)
    assert module._gemm_gflops(torch.bfloat16) == 0.0
