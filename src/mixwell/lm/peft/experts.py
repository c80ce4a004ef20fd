"""Low-rank changes of all experts of a layer in one file, in the two orders that are in use.

A is [E R, I], expert after expert, in both. B is [O, R E]: PEFT lets the expert run fastest, Unsloth before
2026-09-17 the rank, under the same names. Shapes tell nothing: the order is said, or found by the loss.

Legend: E experts, O outputs, I inputs, R rank.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from mixwell.core.errors import MixwellError, shown

Packing = Literal["peft", "expert_first"]
PACKINGS: tuple[Packing, ...] = get_args(Packing)


def check_packing(packing: str) -> None:
    """Raise `MixwellError` for an order that is none."""
    if packing not in PACKINGS:
        raise MixwellError(f"packing is {shown(packing)}; expected {' or '.join(PACKINGS)}.")


def unpacked(A: Tensor, B: Tensor, experts: int, packing: str, where: str) -> tuple[Tensor, Tensor]:
    """(A [E, R, I], B [E, O, R]) of a file's."""
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


def packed(A: Tensor, B: Tensor, packing: str = "peft") -> tuple[Tensor, Tensor]:
    """A file's A [E R, I] and B [O, R E] of A [E, R, I] and B [E, O, R]."""
    inputs, outputs = A.shape[2], B.shape[1]
    order = (1, 0, 2) if packing == "expert_first" else (1, 2, 0)
    arranged = B.permute(*order)
    return A.reshape(-1, inputs), arranged.reshape(outputs, -1)
