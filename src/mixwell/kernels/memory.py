"""How much memory is free for copies that make products faster."""

from __future__ import annotations

from pathlib import Path

from mixwell.core.machine import memory_bytes


def free_bytes() -> int:
    """Memory that this process may still take, in bytes: what the system has left, and its control group."""
    lines = _lines(Path("/proc/meminfo"))
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    left = kibibytes[0] * 1024 if kibibytes else memory_bytes() // 2  # where the system does not tell
    return min(left, _group_bytes(Path("/sys/fs/cgroup")))


def _group_bytes(folder: Path) -> int:
    """What a control group's limit leaves; all there is where it has none.

    Files that were read, a model's weights say, count as used there until their memory is wanted; here they do not.
    """
    limit, used, kinds = (_lines(folder / name) for name in ("memory.max", "memory.current", "memory.stat"))
    if not (limit and used) or not limit[0].isdigit():
        return memory_bytes()
    files = sum(int(line.split()[1]) for line in kinds if line.startswith("inactive_file "))
    held = int(used[0]) - files
    return max(0, int(limit[0]) - held)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
