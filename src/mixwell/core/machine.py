"""The machine a run happens on: what to write into the report, how many threads to use, how much memory was used."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import resource
from importlib import metadata
from pathlib import Path

from mixwell import __version__


@functools.cache
def physical_cores() -> int:
    """Cores this process may use: hardware threads of one core count once, a container's quota is heeded."""
    allowed = set(range(os.cpu_count() or 1))
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
    cores = {_core_of(cpu) for cpu in allowed}
    quota = _quota(Path("/sys/fs/cgroup/cpu.max"))
    return max(1, min(len(cores), quota))


def _core_of(cpu: int) -> tuple[str, str]:
    folder = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        return (folder / "physical_package_id").read_text(), (folder / "core_id").read_text()
    except OSError:
        return "", str(cpu)


def _quota(file: Path) -> int:
    try:
        limit, period = file.read_text().split()
        return max(1, int(limit) // int(period))
    except (OSError, ValueError):  # no control group, or its limit is "max"
        return 1 << 20


def threads(wanted: int | None = None) -> int:
    """Threads to compute with: `wanted`, else OMP_NUM_THREADS, else every physical core."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return wanted or (int(named) if named.isdigit() and int(named) else physical_cores())


def is_busy(wanted: int) -> bool:
    """Whether other programs leave fewer than `wanted` hardware threads free, by the last minute's load.

    What this process did in that minute counts, too.
    """
    free = (os.cpu_count() or 1) - os.getloadavg()[0]
    return free < wanted - 0.5


def memory_bytes() -> int:
    """Main memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@functools.cache
def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def capability() -> str:
    """The vector instructions that torch computes with, such as `AVX2`, and a limit set for oneDNN, where one is."""
    import torch

    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
    own = torch.backends.cpu.get_cpu_capability()
    return f"{own}, oneDNN up to {limit}" if limit else own


def versions() -> dict[str, str]:
    """Versions that decide the numbers of a run."""
    torch_version = metadata.version("torch")
    return {"mixwell": __version__, "torch": torch_version, "python": platform.python_version()}


def describe(num_threads: int) -> dict[str, object]:
    """What a report says of the machine."""
    return {"cpu": cpu_model(), "instructions": capability(), "cores": physical_cores(), "threads": num_threads,
            "memory_bytes": memory_bytes(),
            "os": platform.platform(), **versions()}


def reset_peak() -> None:
    """Start a new high-water mark of this process's memory, where the system allows it (Linux does)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # `peak_bytes` then gives the mark of the whole process, which is never too low


def peak_bytes() -> int:
    """Largest resident memory of this process since `reset_peak`, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@functools.cache
def hold_memory() -> bool:
    """Let this process keep freed memory for its next tensors; returns whether the C library could be told so.

    glibc gives blocks above 32 MB back to the system each time they are freed, and a training step then spends its
    time in page faults. For programs that train; a library should not decide it for its caller.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1
    return bool(mallopt(mmap_threshold, most)) and bool(mallopt(trim_threshold, most))
