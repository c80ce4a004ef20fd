"""Words learned from what a weight is made of: k-means of numbers or of short vectors.

Legend: N points, d numbers of each, K words.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 65_536  # points whose distances are in memory at one time


def nearest_words(points_Nd: Tensor, words_Kd: Tensor) -> Tensor:
    """The index [N] of the word nearest to each point; the first of equal ones."""
    squares_K = words_Kd.square().sum(1)
    found = []
    for part in points_Nd.split(CHUNK):
        products = part @ words_Kd.T
        distances = squares_K - 2 * products  # but for the point's own square
        found.append(distances.argmin(1))
    return torch.cat(found)


def clustered(points_Nd: Tensor, count: int, rounds: int, generator: torch.Generator) -> Tensor:
    """K words [K, d] by Lloyd's rounds from points drawn at random; a word that no point is nearest to stays."""
    order_N = torch.randperm(len(points_Nd), generator=generator)
    numbers = torch.arange(count) % len(points_Nd)
    drawn = order_N[numbers].to(points_Nd.device)
    words_Kd = points_Nd[drawn].clone()
    for _ in range(rounds):
        nearest_N = nearest_words(points_Nd, words_Kd)
        moved_Kd = means(points_Nd, nearest_N, words_Kd)
        if torch.equal(moved_Kd, words_Kd):
            break
        words_Kd = moved_Kd
    return words_Kd


def means(points_Nd: Tensor, nearest_N: Tensor, words_Kd: Tensor) -> Tensor:
    """The mean of each word's points; the word where it has none."""
    sums_Kd = torch.zeros_like(words_Kd)
    sums_Kd.index_add_(0, nearest_N, points_Nd)
    counts_K = torch.bincount(nearest_N, minlength=len(words_Kd))
    means_Kd = sums_Kd / counts_K.clamp_min(1).unsqueeze(1)
    return torch.where(counts_K.unsqueeze(1) > 0, means_Kd, words_Kd)
