"""A training step as numbers: what each layer computes, holds, keeps for its gradient and asks of other processes.

Legend: T tokens of a micro-batch in a process, D width, K experts of a token, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from mixwell.mixing import check_least

FP32_STATE = 16  # bytes a parameter: itself, its gradient and AdamW's two moments
LOW_STATE = 18  # the same beside a copy in two bytes


@dataclass(frozen=True, kw_only=True)
class LayerWork:
    """One layer; FLOPs are forward, of one token."""

    dense_flops: float  # attention, router and all that every token goes through
    dense_weights: int
    kept: float  # numbers that a token leaves behind for the backward pass
    expert_flops: float = 0.0  # of the experts that a token chose
    expert_weights: int = 0  # of all experts
    experts: int = 0  # E; 0 where they cannot be spread
    chosen: float = 0.0  # K
    balanced: bool = False  # whether its router's balance is asked of the tokens of all processes

    @property
    def flops(self) -> float:
        """Forward, of one token."""
        return self.dense_flops + self.expert_flops

    @property
    def weights(self) -> int:
        """Of the layer."""
        return self.dense_weights + self.expert_weights


@dataclass(frozen=True, kw_only=True)
class Work:
    """One training step of a model."""

    layers: tuple[LayerWork, ...]
    dim: int  # D
    heads: int  # of queries
    kv_heads: int
    head_dim: int
    end_weights: int  # embedding, head and last norm
    head_flops: float  # forward, of one token
    vocab_size: int
    parameters: int  # tensors that are trained, each with a gradient
    expert_tensors: int = 0  # those of them that expert parallelism spreads
    rows: int  # of a step, over all micro-batches
    length: int  # tokens of a row
    accumulate: int = 1  # micro-batches of a step
    checkpointing: bool = False
    number_bytes: int = 4  # of an activation and of a weight as it is computed with

    def __post_init__(self) -> None:
        check_least(self, dim=1, heads=1, kv_heads=1, rows=1, length=1, accumulate=1)

    @property
    def state_bytes(self) -> int:
        """Of one parameter in training: itself, gradient, moments, and a copy in the type that is computed in."""
        return FP32_STATE if self.number_bytes == 4 else LOW_STATE

    @property
    def passes(self) -> float:
        """Forward passes that a row's way both ways is worth: a backward pass is two, and an inside may run again."""
        return 4.0 if self.checkpointing else 3.0

    @cached_property
    def experts(self) -> tuple[int, ...]:
        """The different numbers of experts of layers that have some."""
        found = {layer.experts for layer in self.layers}
        return tuple(sorted(found - {0}))

    @property
    def weights(self) -> int:
        """Of the whole model."""
        return self.end_weights + sum(layer.weights for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a step lies over processes; the product of the five numbers is how many there are.

    Neighbours share a `tensor` group, then come `sequence`, `expert`, `data` and `pipeline`.
    """

    data: int = 1  # copies of each expert, which read different rows
    expert: int = 1  # processes over which experts lie; they read different rows, too
    tensor: int = 1  # processes that hold slices of the same weights and work on the same tokens
    sequence: int = 1  # processes that hold pieces of the same rows
    pipeline: int = 1  # stages of layers
    sharded: bool = False  # whether copies hold a share of the weights each and gather them when they are needed
    micro_batches: int = 1  # of a step

    def __post_init__(self) -> None:
        check_least(self, data=1, expert=1, tensor=1, sequence=1, pipeline=1, micro_batches=1)

    @property
    def processes(self) -> int:
        """How many it takes."""
        return self.block * self.pipeline

    @property
    def block(self) -> int:
        """Processes of one stage."""
        return self.tensor * self.sequence * self.readers

    @property
    def readers(self) -> int:
        """Groups of processes that read rows of their own."""
        return self.expert * self.data

    @property
    def trains(self) -> bool:
        """Whether `mixwell run` trains so; the others are predicted alone."""
        untried = self.tensor * self.sequence * self.pipeline
        return untried == 1 and not (self.sharded and self.expert > 1)

    @property
    def is_plain(self) -> bool:
        """Whether the processes hold copies of the whole model."""
        return self.trains and self.expert == 1 and not self.sharded

    def words(self) -> str:
        """`data=4 expert=2`, and whatever else is not 1."""
        numbers = {"data": self.data, "expert": self.expert, "tensor": self.tensor, "sequence": self.sequence,
                   "pipeline": self.pipeline}
        parts = [f"{name}={count}" for name, count in numbers.items() if count > 1 or name == "data"]
        if self.pipeline > 1:
            parts.append(f"micro={self.micro_batches}")
        if self.sharded:
            parts.append("sharded")
        return " ".join(parts)


def misfit(work: Work, spread: Spread) -> str:
    """Why the work cannot lie so; nothing where it can."""
    slots = spread.readers * spread.micro_batches
    if work.rows % slots:
        return f"{work.rows} rows in {slots} parts"
    if spread.micro_batches % work.accumulate and spread.pipeline == 1:
        return f"{work.accumulate} micro-batches"
    if any(count % spread.expert for count in work.experts):
        return f"{work.experts} experts over {spread.expert} processes"
    if spread.expert > 1 and not work.experts:
        return "no experts to spread"
    if work.kv_heads % spread.tensor:
        return f"{work.kv_heads} heads of keys over {spread.tensor} processes"
    if spread.sequence > 1 and work.length % (2 * spread.sequence):
        return f"{work.length} tokens in {2 * spread.sequence} pieces"
    if len(work.layers) < spread.pipeline:
        return f"{len(work.layers)} layers in {spread.pipeline} stages"
    return ""
