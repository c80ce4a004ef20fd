"""A cluster as it is described: what one process computes and holds, and the links between processes.

A process stands on a device of its own. `inside` is the link between two devices of a node, `between` that of devices
of different nodes; a group of processes that does not lie within a node goes at the pace of `between`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixwell.mixing import check_above, check_least, check_not_negative


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one process has."""

    flops_per_s: float  # of products in the type that is trained in
    memory_bytes: float
    memory_bytes_per_s: float
    efficiency: float = 0.4  # share of flops_per_s that a training step's products reach, above 0 and at most 1
    layer_s: float = 1e-4  # seconds of a layer's forward pass however few its tokens

    def __post_init__(self) -> None:
        check_above(self, flops_per_s=0, memory_bytes=0, memory_bytes_per_s=0, efficiency=0)
        check_not_negative(self, "layer_s")
        if self.efficiency > 1:
            raise ValueError(f"efficiency is {self.efficiency}; expected a share above 0, 1 at most")


@dataclass(frozen=True, kw_only=True)
class Link:
    """What a process sends on: a message takes `latency_s` and its bytes over `bytes_per_s`."""

    latency_s: float
    bytes_per_s: float  # of each process while all of them send

    def __post_init__(self) -> None:
        check_not_negative(self, "latency_s")
        check_above(self, bytes_per_s=0)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes of equal devices."""

    device: Device
    inside: Link
    between: Link | None = None  # needed where there are several nodes
    devices: int  # of a node
    nodes: int = 1
    about: str = ""  # where the figures come from

    def __post_init__(self) -> None:
        check_least(self, devices=1, nodes=1)
        if self.nodes > 1 and self.between is None:
            raise ValueError(f"{self.nodes} nodes and no link between them; expected between: latency_s and "
                             "bytes_per_s")

    @property
    def processes(self) -> int:
        """One a device."""
        return self.devices * self.nodes

    def link(self, reach: int) -> Link:
        """The link of groups that fill blocks of `reach` neighbours: one that no node's devices hold goes between."""
        fits = self.devices % reach == 0
        return self.inside if fits or self.between is None else self.between
