"""`mixwell doctor`: what this machine is, how fast, what that means for a training, and what is missing."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from mixwell.cli.errors import one_line
from mixwell.core import machine, measured
from mixwell.core.units import seconds, si

if TYPE_CHECKING:
    from mixwell.kernels.rates import Rates

OPTIONAL = {  # package -> (what it is for, the extra that brings it)
    "transformers": ("compares models with Hugging Face's own code in tests and benchmarks", "dev"),
    "scikit-learn": ("mixture models of tables, `mixwell fit`", "tables"),
    "scipy": ("mixture models of tables, `mixwell fit`", "tables"),
    "pandas": ("mixture models of tables, `mixwell fit`", "tables"),
    "pyarrow": ("Parquet files", "tables"),
    "tensorboard": ("`train.tensorboard: true`", "tensorboard"),
}
SHARE_OF_GEMM = 0.7  # of the GEMM rate that a training step of a small mixture reaches; docs/architecture.md


@one_line
def doctor() -> None:
    """Say what this machine is, how fast, and what that means.

    Measures the machine for about a second the first time; measurements are kept.

    **Example**

    `mixwell doctor`
    """
    import torch

    torch.set_num_threads(machine.threads())
    from mixwell.kernels.rates import rates

    for name, text in _lines(rates()):
        print(f"{name:<14} {text}")


def _lines(found: Rates) -> Iterator[tuple[str, str]]:
    """(what, in words)"""
    yield from processor(found.threads)
    yield from speed(found)
    yield from versions()
    yield "GPU", gpu()
    yield from missing()
    yield "measurements", str(measured.cache_file())
    for name in measured.disturbed():
        yield "", f"{name!r} was measured while other programs ran; the next command measures it again"


def processor(threads: int) -> Iterator[tuple[str, str]]:
    """The machine itself."""
    model = machine.cpu_model()
    yield "processor", f"{model} ({platform.machine()}), {machine.capability()}"
    cores = machine.physical_cores()
    compute = "computes" if threads == 1 else "compute"
    yield "cores", f"{cores}, of which {threads} {compute}"
    yield "memory", si(machine.memory_bytes(), "B")


def speed(found: Rates) -> Iterator[tuple[str, str]]:
    """What was measured, and what follows from it."""
    yield "products", f"fp32 {found.fp32_gflops:.0f} GFLOP/s, bf16 {found.bf16_gflops:.0f} GFLOP/s"
    yield "memory reads", f"{found.memory_gbps:.0f} GB/s"
    choice, rate = "fp32 (bf16 is no faster on this processor, and less exact)", found.fp32_gflops
    if found.bf16_pays:
        choice, rate = "bf16 (faster here)", found.bf16_gflops
    reached = SHARE_OF_GEMM * rate * 1e9  # FLOP/s
    step = step_flops() / reached
    yield "trains in", f"{choice}; a step of the default recipe takes about {seconds(step)}"


def step_flops() -> float:
    """FLOPs of one optimizer step of the default recipe's model: forward, and twice that backward."""
    from mixwell.core.rng import generator
    from mixwell.lm.model import LanguageModel
    from mixwell.run import recipe, sizing

    stages = recipe.stages(sizing.nominal(recipe.read()))
    build = next(stage for stage in stages if stage.kind == "build")
    train = next(stage for stage in stages if stage.kind == "train")
    vocabulary = next(stage for stage in stages if stage.kind == "tokenizer").config.vocab_size
    model = LanguageModel(build.config.model(vocabulary), generator(0))
    config = train.config
    return 3.0 * model.flops_per_token(config.seq_len) * config.batch_size * config.seq_len


def versions() -> Iterator[tuple[str, str]]:
    """What decides the numbers of a run."""
    found = machine.versions()
    parts = [f"{name} {value}" for name, value in found.items()]
    yield "versions", ", ".join(parts)


def gpu() -> str:
    """The GPU that torch can use, or that there is none."""
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    count = torch.cuda.device_count()
    more = f" and {count - 1} more" if count > 1 else ""
    held = torch.cuda.get_device_properties(0).total_memory
    return f"{torch.cuda.get_device_name(0)}, {si(held, 'B')}{more}"


def missing() -> Iterator[tuple[str, str]]:
    """Optional packages that are not there."""
    for package, (purpose, extra) in OPTIONAL.items():
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            yield "missing", f"{package}: {purpose}; pip install 'mixwell[{extra}]'"
