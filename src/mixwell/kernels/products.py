"""One product, x times the transpose of a weight, through each of the libraries that a CPU build of torch carries.

All of them give the same numbers up to rounding. Which one is fast depends on the processor, on the number of rows and
on whether the weight was laid out for the library in advance; `mixwell.kernels.probe` measures it.

Legend: N rows, D width, M outputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Product = Callable[[Tensor, Any], Tensor]  # (x [N, D], the weight [M, D] as the library takes it) -> [N, M]

_NOTHING_AFTER: tuple[str, list[float], str] = "none", [], ""  # what oneDNN is to do to the result of a product
_ROUNDING = 2.0**-24  # relative error, in norm, that rounding to float32 makes anyway


def blas(x_ND: Tensor, weight_MD: Tensor) -> Tensor:
    """torch's BLAS."""
    return torch.mm(x_ND, weight_MD.t())


def swapped(x_ND: Tensor, weight_MD: Tensor) -> Tensor:
    """torch's BLAS with the weight in front: for two to a few rows it reads the weight in larger strides."""
    return torch.mm(weight_MD, x_ND.t()).t().contiguous()


def split(x_ND: Tensor, weight_MD: Tensor) -> Tensor:
    """Two matrix-vector products in one batched call, whose kernel reads a weight out of main memory twice as fast."""
    N, D = x_ND.shape
    M = weight_MD.shape[0]
    if M % 2:
        return blas(x_ND, weight_MD)
    weights = weight_MD.unflatten(0, (2, M // 2))
    columns = x_ND.t().expand(2, D, N)
    halves = torch.bmm(weights, columns)
    return halves.view(M, N).t().contiguous()


def onednn(x_ND: Tensor, weight: Tensor) -> Tensor:
    """oneDNN; the weight may be plain, a view, or packed by `pack_onednn`."""
    product = torch.ops.mkldnn._linear_pointwise.default
    return product(x_ND, weight, None, *_NOTHING_AFTER)


def fp16(x_ND: Tensor, weight: tuple[Any, float]) -> Tensor:
    """FBGEMM on a weight held in float16 (`pack_fp16`): half the bytes are read; sums are float32."""
    packed, scale = weight
    y_NM = torch.ops.quantized.linear_dynamic_fp16.default(x_ND.float() * scale, packed)
    return y_NM.to(x_ND.dtype)


def pack_onednn(weight_MD: Tensor) -> Tensor:
    """A copy in oneDNN's blocked layout."""
    return torch.ops.mkldnn._reorder_linear_weight(weight_MD)


def pack_fp16(weight_MD: Tensor) -> tuple[Any, float]:
    """A copy in float16, in FBGEMM's blocked layout, divided by a power of two, which is handed back."""
    scale = _scale(weight_MD)
    scaled = weight_MD.float() / scale
    return torch.ops.quantized.linear_prepack_fp16(scaled.contiguous(), None), scale


def _scale(weight: Tensor) -> float:
    """The power of two by which to divide, so that the largest number comes near the top of float16's range."""
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if not 0 < largest < math.inf:
        return 1.0
    _, exponent = math.frexp(largest)
    return 2.0 ** (exponent - 15)


PLAIN: Mapping[str, Product] = {"blas": blas, "swapped": swapped, "split": split, "onednn": onednn}
PACKED: Mapping[str, tuple[Product, Callable[[Tensor], Any]]] = {
    "onednn packed": (onednn, pack_onednn), "fp16": (fp16, pack_fp16)}


def through(library: str, x_ND: Tensor, weight_MD: Tensor, into: Tensor | None = None) -> Tensor:
    """x times the transpose of a plain weight through the library named, written into `into` where that is given."""
    if library == "blas":
        return torch.mm(x_ND, weight_MD.t(), out=into)
    product = PLAIN[library]
    result = product(x_ND, weight_MD)
    return result if into is None else into.copy_(result)


@functools.cache
def works(name: str, dtype: torch.dtype) -> bool:
    """Whether this processor and this build of torch can compute a product of `dtype` so."""
    x, weight = torch.ones(2, 4, dtype=dtype), torch.ones(2, 4, dtype=dtype)
    try:
        if name in PLAIN:
            PLAIN[name](x, weight)
        else:
            product, pack = PACKED[name]
            product(x, pack(weight))
    except (RuntimeError, AttributeError):  # refused for the processor; left out of this build
        return False
    return True


@functools.cache
def int8_works(dtype: torch.dtype) -> bool:
    """Whether this build has torch's product straight from int8 for `dtype`."""
    weight = torch.ones(32, 64, dtype=torch.int8)
    try:
        torch._weight_int8pack_mm(torch.ones(1, 64, dtype=dtype), weight, torch.ones(32, dtype=dtype))
    except (RuntimeError, AttributeError):
        return False
    return True


def fits_fp16(weight: Tensor) -> bool:
    """Whether rounding `weight` to float16 loses no more than float32's own rounding does.

    So it is with weights that were stored in bfloat16 or float16.
    """
    scaled = weight.float() / _scale(weight)
    lost = torch.linalg.vector_norm(scaled - scaled.half().float())
    return bool(lost <= _ROUNDING * torch.linalg.vector_norm(scaled))
