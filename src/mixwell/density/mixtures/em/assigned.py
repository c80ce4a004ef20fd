"""Components whose responsibilities come from elsewhere: from a chain, covariates, or another table of the same rows.

N rows, B rows of a piece, K components; one start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.density.mixtures.em.loop import Family, Params, expect
from mixwell.density.mixtures.em.rows import ArrayRows, Piece, Rows, imputed
from mixwell.density.mixtures.em.workers import Workers

SETTLED = 1e-10  # least change, as a share of the largest parameter, that is worth another M step
STEPS = 200  # M steps with the same responsibilities, of families that need more than one


class Assigned:
    """A kernel whose sums are under given responsibilities, which may be negative, or of any total."""

    def __init__(self, kernel: Any, resp_NK: np.ndarray, first: bool) -> None:
        self.kernel, self.first = kernel, first
        self.resp_KN = torch.as_tensor(resp_NK).T

    def joint(self, piece: Piece) -> tuple[Any, Tensor]:
        """State for `tally`, and log joint (1, K, B), of zeros where no parameters are known yet."""
        if self.first:
            state = self.kernel.state(piece)
            log_1KB = torch.zeros(1, len(self.resp_KN), len(piece.x_BD), dtype=torch.float64)
        else:
            state, log_1KB = self.kernel.joint(piece)
        return (state, piece.index), log_1KB

    def tally(self, known: tuple[Any, Any], resp_1KB: Tensor) -> Any:
        """The family's own sums."""
        state, index = known
        own_KB = self.resp_KN[:, index]
        return self.kernel.tally(state, own_KB[None].to(resp_1KB))


@dataclass
class Emission:
    """A family of components over rows."""

    workers: Workers
    family: Family
    rows: Rows

    def log_densities(self, params: Params) -> np.ndarray:
        """Log densities of all rows under all components (N, K), most carefully."""
        weights_1K = params["weights"]
        alone = {**params, "weights": torch.ones_like(weights_1K)}
        kernel = self.family.kernel(alone, self.family.levels(None)[-1])
        K = weights_1K.shape[1]
        pieces = self.rows.pieces(kernel.rows(K))
        parts = self.workers.map(lambda piece: (piece.index, kernel.joint(piece)[1]), pieces)
        log_NK = torch.empty(self.rows.n_rows, K, dtype=torch.float64)
        for index, log_1KB in parts:
            log_NK[index] = log_1KB[0].T.double().cpu()
        return log_NK.numpy()

    def maximise(self, params: Params | None, resp_NK: np.ndarray) -> Params:
        """One M step under given responsibilities; a `ValueError` where components collapse."""
        levels = self.family.levels(None)
        level = levels[0] if params is None else levels[-1]
        kernel = self.family.kernel(params, level)
        rows = self._whole() if params is None else self.rows
        pieces = rows.pieces(kernel.rows(resp_NK.shape[1]))
        assigned = Assigned(kernel, resp_NK, params is None)
        tally = expect(self.workers, assigned, pieces, None)
        new = self.family.maximise(tally, params, level)
        if params is not None and not self.family.trusts(new, level):
            self.family.refuse(new)
        return new

    def _whole(self) -> Rows:
        """The rows with something in the place of what is missing, as starts are computed from."""
        chunks = [chunk for _, chunk in self.rows.chunks()]
        x_ND = torch.cat(chunks)
        if not bool(x_ND.isnan().any()):
            return self.rows
        return ArrayRows(imputed(x_ND))

    def settle(self, resp_NK: np.ndarray) -> Params:
        """M steps from nothing until parameters stay, under the same responsibilities."""
        params = self.maximise(None, resp_NK)
        for _ in range(STEPS):
            before, params = params, self.maximise(params, resp_NK)
            if not _moved(before, params):
                break
        return params


def _moved(before: Params, params: Params) -> bool:
    """Whether a parameter changed by more than rounding."""
    for name, value in params.items():
        change = (value - before[name]).abs().max()
        size = value.abs().max()
        if bool(change > SETTLED * size):
            return True
    return False
