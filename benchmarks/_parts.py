"""What the benchmarks share: timing in turns, the machine's own rate, and results on disk.

A turn calls each function in order, for about two milliseconds where one call is shorter, so that a slow minute of the
machine falls on all of them alike. The smallest time is the least disturbed one; the median says how disturbed the run
was. Ratios are of smallest times within one run.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mixwell.core.files import write_json
from mixwell.core.machine import capability, hold_memory
from mixwell.kernels.rates import compute_dtype, rates

TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    min_s: float
    median_s: float
    repeats: int


def parser(text: str) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    options = argparse.ArgumentParser(description=text.splitlines()[0])
    options.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of torch")
    options.add_argument("--seconds", type=float, default=1.0, help="time given to each function of a comparison")
    options.add_argument("--clock", choices=["wall", "cpu"], default="wall",
                         help="cpu: processor time of one thread, for a machine that others use; needs --threads 1")
    options.add_argument("--pages", choices=["default", "kept"], default="default",
                         help="kept: freed memory is kept for the next tensors, for all contestants alike")
    options.add_argument("--save", action="store_true", help="write the figures to benchmarks/results")
    return options


def add_types(options: argparse.ArgumentParser) -> None:
    """The option `--types` of benchmarks that compute in several."""
    default = sorted(TYPES) if compute_dtype() == torch.bfloat16 else ["fp32"]
    options.add_argument("--types", nargs="+", choices=sorted(TYPES), default=default,
                         help="default: those that this machine computes in natively")


def start(options: argparse.Namespace) -> Callable[[], float]:
    """Set the process up as the options say; returns the clock."""
    if options.clock == "cpu" and options.threads != 1:
        sys.exit("--clock cpu counts one thread; give --threads 1 with it.")
    torch.set_num_threads(options.threads)
    if options.pages == "kept" and not hold_memory():
        sys.exit("this C library cannot be told to keep freed memory; give --pages default.")
    return time.thread_time if options.clock == "cpu" else time.perf_counter


def measure(functions: Mapping[str, Callable[[], Any]], seconds: float, clock: Callable[[], float],
            least: int = 5) -> dict[str, Timing]:
    """Time the functions in turns until `seconds` for each have passed and each had `least` turns."""
    calls = {}
    for name, function in functions.items():
        function()
        began = time.perf_counter()
        function()
        calls[name] = max(1, min(50, int(2e-3 / (time.perf_counter() - began))))
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds * len(functions)
    while time.perf_counter() < end or len(times[name]) < least:
        for name, function in functions.items():
            if calls[name] > 1:
                function()
            began = clock()
            for _ in range(calls[name]):
                function()
            times[name].append((clock() - began) / calls[name])
    return {name: Timing(min(t), statistics.median(t), len(t)) for name, t in times.items()}


def gemm(rows: int, inner: int, columns: int, dtype: torch.dtype) -> tuple[Callable[[], Any], float]:
    """The machine's own product x W^T as this library calls it, and its FLOPs."""
    from mixwell.kernels.linear import linear

    x, weight = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)

    def product() -> None:
        with torch.no_grad():
            linear(x, weight)

    return product, 2.0 * rows * inner * columns


def kind() -> str:
    """The kind of processor that figures stand for: what torch computes with, and bf16 where its products pay."""
    return torch.backends.cpu.get_cpu_capability().lower() + ("-bf16" if rates().bf16_pays else "")


LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "NUMBA_CPU_NAME",
          "NUMBA_CPU_FEATURES")


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures were taken on."""
    import transformers

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
    return {"processor": names[0] if names else platform.processor(), "cores": os.cpu_count(),
            "kind": kind(), "capability": capability(),
            "instructions": [flag for flag in wanted if flag in flags], "threads": options.threads,
            "clock": options.clock, "pages": options.pages, "load_average": os.getloadavg()[0],
            "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def save(name: str, options: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    """Write the figures with the machine and the command, where the user asked for it: one file a kind of machine."""
    if not options.save:
        return
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    command = " ".join([*limits, "python", f"benchmarks/{name}.py", *sys.argv[1:]])
    print("saved", write_json(RESULTS / f"{name}-{kind()}.json",
                              {"command": command, "machine": machine(options), **figures}))


def plain(timings: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    """Timings as JSON data."""
    return {name: asdict(timing) for name, timing in timings.items()}
