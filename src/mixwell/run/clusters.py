"""Files that describe a cluster, read and written.

    devices: 8                      # of a node; one process on each
    nodes: 2
    device: {flops_per_s: 400T, memory_bytes: 80G, memory_bytes_per_s: 3T, efficiency: 0.4, layer_s: 1e-4}
    inside: {latency_s: 3e-6, bytes_per_s: 150G}      # between devices of a node
    between: {latency_s: 2e-5, bytes_per_s: 12G}      # between nodes
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from mixwell.core import units
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError, shown
from mixwell.core.files import write_text
from mixwell.parallel.cluster import Cluster
from mixwell.run import yaml_data

WORDS = ("about",)  # keys whose value is text


def read(path: Path) -> Cluster:
    """The cluster that a file describes; one that cannot be raises `MixwellError` with the key that is wrong."""
    if not path.exists():
        raise MixwellError(f"--cluster: there is no file {path}; write one, or measure this machine with --measure N.")
    data = yaml_data.read(path)
    if not isinstance(data, dict):
        raise MixwellError(f"{path}: expected keys such as devices, device and inside, got {shown(data)}.")
    return from_dict(Cluster, _numbers(data, str(path)), str(path))


def write(path: Path, cluster: Cluster) -> None:
    """Write what `read` reads."""
    plain = to_dict(cluster)
    kept = {name: value for name, value in plain.items() if value not in (None, "")}
    text = yaml.safe_dump(kept, sort_keys=False)
    write_text(path, f"# One process a device; figures of all processes at work together.\n{text}")


def _numbers(data: Any, where: str, key: str = "") -> Any:
    """Plain data in which `400T` is a number."""
    if isinstance(data, dict):
        return {name: _numbers(value, f"{where}.{name}", str(name)) for name, value in data.items()}
    if isinstance(data, float) and not math.isfinite(data):
        raise MixwellError(f"{where}: {data} came; expected a finite number.")
    if not isinstance(data, str) or key in WORDS:
        return data
    found = units.amount(data, where)
    return int(found) if found.is_integer() else found
