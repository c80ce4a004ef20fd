"""Randomness comes from a `torch.Generator` that is handed in; nothing here touches the global state."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(*keys: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a generator seeded by `keys` (a seed and names): the same keys give the same stream everywhere."""
    text = "/".join(map(str, keys)).encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
    return torch.Generator(device=device).manual_seed(seed)


def spawn(parent: torch.Generator, count: int) -> list[torch.Generator]:
    """Draw `count` generators from `parent`, which moves on; the children are independent of each other."""
    device = parent.device
    seeds = torch.randint(0, 2**62, (count,), generator=parent, device=device)
    children = [torch.Generator(device=device) for _ in range(count)]
    for child, seed in zip(children, seeds.tolist()):
        child.manual_seed(seed)
    return children


def normal(shape: tuple[int, ...], std: float, generator: torch.Generator | None) -> Tensor:
    """A float32 tensor of independent normal draws, on the generator's device."""
    device = torch.get_default_device() if generator is None else generator.device
    if device.type == "meta":  # a shape without values; to draw none, torch would import its compiler, a second's work
        return torch.empty(shape, device=device)
    return torch.randn(shape, generator=generator, device=device) * std
