"""Low-rank changes of all experts of a layer in one file, in the orders that are in use.

Flat, A is [E R, I], expert after expert, and B is [O, R E]: PEFT lets the expert run fastest, Unsloth before 2026-09-17
the rank, under the same names. Shapes tell nothing: the order is said, or found by the loss. As stacks, which vLLM
makes of them, A is [E, R, I] and B [E, O, R].

Legend: E experts, O outputs, I inputs, R rank.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from mixwell.core.errors import MixwellError, shown

Packing = Literal["peft", "expert_first", "stacks"]
PACKINGS: tuple[Packing, ...] = get_args(Packing)
FLAT: tuple[Packing, ...] = ("peft", "expert_first")  # which shapes cannot tell apart


def check_packing(packing: str) -> None:
    """Raise `MixwellError` for an order that is none."""
    if packing not in PACKINGS:
        raise MixwellError(f"packing is {shown(packing)}; expected {' or '.join(PACKINGS)}.")


def unpacked(A: Tensor, B: Tensor, experts: int, packing: str, where: str) -> tuple[Tensor, Tensor]:
    """(A [E, R, I], B [E, O, R]) of a file's."""
    if A.ndim == 3 or packing == "stacks":
        return _stacks(A, B, experts, where)
    rows, columns = A.shape[0], B.shape[1]
    if rows != columns or rows % experts:
        raise MixwellError(f"{where}: lora_A has {rows} rows and lora_B {columns} columns; expected the rank times "
                           f"{experts} experts of both.")
    rank = rows // experts
    A_ERI = A.reshape(experts, rank, -1)
    if packing == "expert_first":
        B_OER = B.reshape(-1, experts, rank)
        return A_ERI, B_OER.permute(1, 0, 2)
    B_ORE = B.reshape(-1, rank, experts)
    return A_ERI, B_ORE.permute(2, 0, 1)


def _stacks(A: Tensor, B: Tensor, experts: int, where: str) -> tuple[Tensor, Tensor]:
    there = A.ndim == B.ndim == 3 and len(A) == len(B) == experts
    if not there:
        raise MixwellError(f"{where}: lora_A is {list(A.shape)} and lora_B {list(B.shape)}; expected stacks of "
                           f"{experts} experts, [experts, rank, inputs] and [experts, outputs, rank].")
    return A, B


def packed(A: Tensor, B: Tensor, packing: str = "peft") -> tuple[Tensor, Tensor]:
    """A file's A and B of A [E, R, I] and B [E, O, R]: [E R, I] and [O, R E], or these themselves as stacks."""
    if packing == "stacks":
        return A, B
    inputs, outputs = A.shape[2], B.shape[1]
    order = (1, 0, 2) if packing == "expert_first" else (1, 2, 0)
    arranged = B.permute(*order)
    return A.reshape(-1, inputs), arranged.reshape(outputs, -1)
