"""Which bits where: one width for each part of a model, the least harm within a budget of bits.

Legend: U parts, B widths.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor


def allocate(harm_UB: Tensor, size_UB: Tensor, budget: float) -> list[int]:
    """The width of each part [U], as a place in B: sum of harm least, sum of sizes within the budget.

    Exact, by an integer program. Raises ValueError where even the smallest sizes exceed the budget.
    """
    least = float(size_UB.min(1).values.sum())
    if least > budget:
        raise ValueError(f"the budget is {budget:.6g}; the smallest widths take {least:.6g}")
    units, widths = harm_UB.shape
    most = float(harm_UB.max())
    cost = harm_UB.double().numpy().ravel() / (most or 1.0)  # in the range that the solver's tolerance is meant for
    one_each = np.kron(np.eye(units), np.ones(widths))
    total = size_UB.double().numpy().reshape(1, -1)
    exactly = LinearConstraint(one_each, 1, 1)
    within = LinearConstraint(total / budget, -np.inf, 1 + 1e-12)
    options = {"mip_rel_gap": 0.0}
    found = milp(cost, integrality=np.ones(units * widths), bounds=Bounds(0, 1), constraints=[exactly, within],
                 options=options)
    if found.x is None:
        raise ValueError(f"the solver found no widths: {found.message}")
    chosen = found.x.reshape(units, widths)
    return chosen.argmax(1).tolist()
