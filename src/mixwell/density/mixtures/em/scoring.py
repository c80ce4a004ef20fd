"""What a mixture says of rows: log densities, labels, responsibilities, piece by piece.

N rows, B rows of a piece, K components.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from mixwell.density.mixtures.em.kernels import posterior
from mixwell.density.mixtures.em.loop import Family, Params
from mixwell.density.mixtures.em.rows import Piece, Rows
from mixwell.density.mixtures.em.workers import Workers


class Scorer:
    """A family and its parameters (one start), which score pieces."""

    def __init__(self, family: Family, params: Params) -> None:
        self.family = family
        self.params = {name: value[None] for name, value in params.items()}
        self.levels = family.levels(self.params)
        cheapest = self.levels[0]
        self.kernel = family.kernel(self.params, cheapest)
        self.components = len(params["weights"])

    def joint(self, piece: Piece) -> tuple[Tensor, Tensor | None]:
        """Log weights plus log densities (K, B), and which rows (B,) have no density at all (None: all have)."""
        _, log_joint_SKB = self.kernel.joint(piece)
        if bool(log_joint_SKB.isfinite().all()):
            return log_joint_SKB[0], None
        log_joint_KB = self._careful_joint(piece)
        nowhere_B = log_joint_KB.amax(0).isneginf()
        return log_joint_KB.masked_fill(nowhere_B, 0.0), nowhere_B

    def _careful_joint(self, piece: Piece) -> Tensor:
        """For rows so far off that squares overflow."""
        careful = self.family.kernel(self.params, self.levels[-1])
        log_joint_KB = careful.joint(piece)[1][0]
        return log_joint_KB.masked_fill(log_joint_KB.isnan(), -math.inf)

    def labels(self, piece: Piece) -> Tensor:
        """The most probable component of every row (B,)."""
        return self.joint(piece)[0].argmax(0)

    def responsibilities(self, piece: Piece) -> Tensor:
        """(B, K)."""
        resp_SKB, _ = posterior(self.joint(piece)[0][None])
        return resp_SKB[0].T

    def log_density(self, piece: Piece) -> Tensor:
        """(B,), in nats."""
        log_joint_KB, nowhere_B = self.joint(piece)
        _, log_density_SB = posterior(log_joint_KB[None])
        log_density_B = log_density_SB[0]
        if nowhere_B is None:
            return log_density_B
        return log_density_B.masked_fill(nowhere_B, -math.inf)


def score_rows(scorer: Scorer, rows: Rows, value: Callable[[Piece], Tensor], out: Tensor) -> Tensor:
    """Fill `out` (N, ...) with a value of every row, one of the scorer's methods."""
    def fill(piece: Piece) -> None:
        index = piece.index
        if isinstance(index, Tensor):
            index = index.to(rows.device)
        out[index] = value(piece).to(out.dtype)

    size = scorer.kernel.rows(scorer.components)
    with Workers(rows.device) as workers:
        for _ in workers.map(fill, rows.pieces(size)):
            pass
    return out
