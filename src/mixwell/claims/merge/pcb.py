"""PCB-Merging: parameters that compete merge four tasks better than TIES with as many settings tried.

Paper: Parameter Competition Balancing for Model Merging.
Tried: a small net tuned on digits turned by each of four quarters, merged; mean accuracy over the four tasks on test
rows, lambda and the share kept chosen on validation rows from as many settings. Beside it: task arithmetic with a tuned
lambda. Against it: an accuracy that is no higher than that of TIES.
"""

from __future__ import annotations

import itertools
from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.merge._digits import Tuned, best_of, mean_accuracy, merged, turned_tasks

SCALES, SHARES = (0.3, 0.6, 1.0, 1.5, 2.0), (0.05, 0.1, 0.2, 0.5)
CLAIM = Claim("Competing parameters merge tasks better than trimmed signs.", "mean accuracy over four tasks",
              lower_is_better=False)


def chosen(task: Tuned, name: str, settings: list[dict[str, Any]]) -> float:
    """Test accuracy with the setting that is best on validation rows."""
    nets = [merged(name, task, **setting) for setting in settings]
    net = best_of(nets, task.splits)
    return mean_accuracy(net, task.splits, "test")


def grid(share: str) -> list[dict[str, Any]]:
    """Every scale with every share."""
    pairs = itertools.product(SCALES, SHARES)
    return [{"scale": scale, share: part} for scale, part in pairs]


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of PCB-Merging, TIES and task arithmetic."""
    task = turned_tasks(seed)
    plain = [{"scale": scale / 4} for scale in SCALES]
    ratios, densities = grid("ratio"), grid("density")
    competing = chosen(task, "pcb", ratios)
    trimmed = chosen(task, "ties", densities)
    added = chosen(task, "task_arithmetic", plain)
    rest = {"task arithmetic": added}
    return {"method": competing, "baseline": trimmed, **rest}
