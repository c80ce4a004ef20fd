"""This machine as a cluster of so many processes: what each computes and sends while all of them do.

The processes start here, over gloo, with a thread each as torchrun starts them, and work at the same time, so that what
they share (cores, memory, the loopback) is shared in the figures, too. Steps of the planned model itself, at two
numbers of rows, tell what share of the products' rate a step reaches and what a layer costs however few its tokens.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mixwell.core import machine
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.kernels.rates import measure as measure_rates
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.parallel.cluster import Cluster, Device, Link
from mixwell.parallel.simulate import MESSAGES, UPDATE_BYTES
from mixwell.parallel.wire import LEAVING, ProcessWire
from mixwell.run.timing import stepping
from mixwell.run.workload import Step

MOST = 64  # processes that are started
LONGEST_S = 300.0  # that processes wait for each other
SMALL, LARGE = 64, 1 << 22  # numbers of the tensors sent: a message alone, and 16 MB
TRIES, STEPS = 15, 6
KINDS = ("total", "exchange")


def measure(processes: int, step: Step) -> Cluster:
    """This machine with so many processes, for a step of that model; a number that cannot be raises `MixwellError`."""
    check_number(processes)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="mixwell-measure-") as folder:
        there = context.SimpleQueue()
        arguments = [(rank, processes, str(Path(folder) / "store"), step, there) for rank in range(processes)]
        crew = [context.Process(target=_work, args=own, daemon=True) for own in arguments]
        for process in crew:
            process.start()
        for process in crew:
            process.join()
        if any(process.exitcode for process in crew):
            raise MixwellError(f"--measure: one of {processes} processes ended before it had measured, perhaps for "
                               "want of memory; measure with fewer.")
        found = there.get()
    return cluster_of(found, processes, step)


def check_number(processes: int) -> None:
    """Raise `MixwellError` for a number of processes that is not measured."""
    if not 2 <= processes <= MOST:
        raise MixwellError(f"--measure: {processes} processes came; expected 2 to {MOST}.")


def cluster_of(found: Mapping[str, float], processes: int, step: Step) -> Cluster:
    """The cluster from what its processes measured, means over them."""
    bandwidth = 1e9 * found["memory_gbps"]
    update = UPDATE_BYTES * step.work.weights / bandwidth
    few, many = step.few_rows, step.many_rows
    row_s = max((found["many_s"] - found["few_s"]) / (many - few), 1e-9)
    rest = found["few_s"] - few * row_s - update
    forward = sum(layer.flops for layer in step.work.layers) + step.work.head_flops
    passes = step.work.passes
    row_flops = passes * step.work.length * forward
    rate = 1e9 * max(found["fp32_gflops"], found["bf16_gflops"] if step.work.number_bytes == 2 else 0.0)
    layer_s = max(rest, 0.0) / passes / len(step.work.layers)
    efficiency = min(1.0, row_flops / row_s / rate)
    device = Device(flops_per_s=rate, memory_bytes=machine.memory_bytes() / processes, memory_bytes_per_s=bandwidth,
                    efficiency=efficiency, layer_s=layer_s)
    inside = Link(latency_s=found["latency_s"], bytes_per_s=found["bytes_per_s"])
    about = f"{machine.cpu_model()}, {processes} processes of one thread over gloo, measured"
    return Cluster(device=device, inside=inside, devices=processes, about=about)


def _work(rank: int, size: int, store: str, step: Step, there: Any) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    files = dist.FileStore(store, size)
    dist.init_process_group("gloo", store=files, rank=rank, world_size=size, timeout=timedelta(seconds=LONGEST_S))
    try:
        wire = ProcessWire()
        dist.barrier()
        own = measure_rates()
        own |= links(wire)
        own |= steps(step, wire)
        means = _mean(own, wire)
        if rank == 0:
            there.put(means)
    finally:
        dist.destroy_process_group()


def _mean(own: Mapping[str, float], wire: ProcessWire) -> dict[str, float]:
    """Of each figure over the processes."""
    values = torch.tensor(list(own.values()), dtype=torch.float64)
    mean = wire.total(values) / wire.size
    return dict(zip(own, mean.tolist()))


def links(wire: ProcessWire) -> dict[str, float]:
    """Seconds a message and bytes a second, the mean of sums and exchanges."""
    latencies, rates = [], []
    for kind in KINDS:
        small, large = (_call_s(wire, kind, numbers) for numbers in (SMALL, LARGE))
        messages = MESSAGES[kind] * (wire.size - 1)
        latencies.append(small / messages)
        sent = LEAVING[kind](wire.size) * 4 * LARGE
        moving = max(large - small, large / 2)  # a message that was held up must not eat up the rest
        rates.append(sent / moving)
    return {"latency_s": statistics.fmean(latencies), "bytes_per_s": statistics.harmonic_mean(rates)}


def _call_s(wire: ProcessWire, kind: str, numbers: int) -> float:
    """Seconds of one call."""
    tensor = torch.ones(numbers - numbers % wire.size)
    parts = [len(tensor) // wire.size] * wire.size

    def call() -> None:
        if kind == "total":
            wire.total(tensor)
        else:
            wire.exchange(tensor, parts, parts)

    return _median_s(call, TRIES)


def _median_s(call: Callable[[], Any], tries: int) -> float:
    call()
    times = []
    for _ in range(tries):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def steps(step: Step, wire: ProcessWire) -> dict[str, float]:
    """Seconds of a training step of few and of more rows, until the last process has done it."""
    config = from_dict(ModelConfig, step.arch)
    model = LanguageModel(config, generator(0))
    figure = torch.zeros(1)
    with stepping(model, step.config) as run:

        def together(rows: int) -> None:
            run(rows)
            wire.total(figure)

        return {"few_s": _median_s(lambda: together(step.few_rows), STEPS),
                "many_s": _median_s(lambda: together(step.many_rows), STEPS)}
