"""How fast this machine multiplies and reads memory, by type; measured once, in well under a second, and kept.

What follows from it: the type to compute in (`compute_dtype`), and what `mixwell doctor` tells.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mixwell.core.measured import kept
from mixwell.kernels.linear import product_nn, product_nt, product_tn

SHAPE = (256, 512, 512)  # rows, inputs and outputs of the products timed: a small model's feed-forward block
TRIES = 5
PAYS = 1.2  # times float32's rate that bfloat16 must reach: it loses digits, so a tie goes to float32
SWEEP_BYTES = 1 << 26  # read to measure the memory; beyond any cache


@dataclass(frozen=True)
class Rates:
    """Rates of one process with `threads` threads."""

    fp32_gflops: float  # of a training step's products: forward, and both gradients
    bf16_gflops: float  # the same in bfloat16; 0 where this build cannot
    memory_gbps: float  # gigabytes read in a second by a sum over a large tensor
    threads: int

    @property
    def bf16_pays(self) -> bool:
        """Whether products in bfloat16 are faster by enough to be worth their lost digits."""
        return self.bf16_gflops >= PAYS * self.fp32_gflops


def rates() -> Rates:
    """This machine's rates at torch's present number of threads."""
    return _rates(torch.get_num_threads())


@functools.cache
def _rates(threads: int) -> Rates:
    return Rates(**kept("rates", measure, threads), threads=threads)


def compute_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """The type in which a model trains and answers fastest on `device` without a loss: bfloat16 or float32."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if rates().bf16_pays else torch.float32


def measure() -> dict[str, float]:
    """The rates as they are now, by the names of `Rates`."""
    return {"fp32_gflops": _gemm_gflops(torch.float32), "bf16_gflops": _gemm_gflops(torch.bfloat16),
            "memory_gbps": _memory_gbps()}


def _gemm_gflops(dtype: torch.dtype) -> float:
    """Rate of a product and of its two gradients together; 0 where the type is refused."""
    rows, inputs, outputs = SHAPE
    x, weight, grad = (torch.ones(shape, dtype=dtype) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs)))
    flops = 3 * 2.0 * rows * inputs * outputs

    def step() -> None:
        product_nt(x, weight)
        product_nn(grad, weight)
        product_tn(grad, x)

    try:
        return flops / _shortest(step) / 1e9
    except RuntimeError:
        return 0.0


def _memory_gbps() -> float:
    held = torch.ones(SWEEP_BYTES // 4)
    return SWEEP_BYTES / _shortest(lambda: held.sum()) / 1e9


def _shortest(run: Callable[[], object], tries: int = TRIES) -> float:
    """Seconds of the fastest of a few runs, the first of which warms up and counts for nothing.

    Where one run takes long (a type that is emulated), two must do.
    """
    run()
    times: list[float] = []
    while len(times) < tries and sum(times) < 0.15:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
