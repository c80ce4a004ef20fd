"""Quadratics of three clients on which compression without feedback stops short of the best point."""

import torch

from mixwell.parallel.sparse import top_k


def quadratics():
    """(curvatures [3, 3, 3], slopes [3, 3], the best point [3])."""
    curves = torch.stack([torch.diag(torch.tensor(row)) for row in ([1.0, 2, 1], [2, 1, 1], [1, 1, 6])]).double()
    slopes = torch.tensor([[9.0, 0, 1], [-9, 0, 1], [0, 9, 1]]).double()
    return curves, slopes, torch.linalg.solve(curves.mean(0), slopes.mean(0))


def check_that_naive_compression_stalls():
    curves, slopes, best = quadratics()
    naive = torch.zeros(3).double()
    for _ in range(600):
        naive = naive - 0.05 * top_k(curves @ naive - slopes, 1).mean(0)
    assert (naive - best).abs().max() > 0.05
