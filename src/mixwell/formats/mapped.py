"""Tensors in mapped files: their pages count as a process's memory until it lets go of them."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable

from torch import Tensor

DONT_NEED = getattr(mmap, "MADV_DONTNEED", None)  # Linux's and macOS's


def let_go(tensor: Tensor) -> None:
    """Give back the pages that lie wholly in a tensor of a mapped file; who looks there again reads the file again.

    For memory that only the file fills: what was written into it, or no file is behind, is lost.
    """
    advise = _advise()
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.nbytes) // page * page
    if advise is not None and end > start:
        advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), DONT_NEED)


@functools.cache
def _advise() -> Callable[..., int] | None:
    """The C library's madvise, where it has one."""
    if DONT_NEED is None:
        return None
    return getattr(ctypes.CDLL(None), "madvise", None)
