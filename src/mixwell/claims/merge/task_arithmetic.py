"""Model Breadcrumbs: settings chosen on two tasks serve four, better than those of task arithmetic do.

Paper: Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks.
Tried: a small net tuned on digits turned by each of four quarters; scale and shares are chosen on validation rows of
the first two tasks merged, then kept while all four are merged; mean accuracy on test rows. Against it: an accuracy
that is no higher than that of task arithmetic, whose scale was chosen and kept alike. Beside it: no upper cut.
"""

from __future__ import annotations

import itertools
from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.merge._digits import Tuned, at_best, mean_accuracy, merged, turned_tasks

SCALES = (0.2, 0.4, 0.6, 0.8, 1.0)
CLAIM = Claim("Sparse masks keep their settings as tasks are added.", "mean accuracy over four tasks",
              lower_is_better=False)


def kept(task: Tuned, name: str, settings: list[dict[str, Any]]) -> float:
    """Test accuracy on all tasks, with the setting that is best for the first two alone."""
    first = task._replace(splits=task.splits[:2], models=task.models[:2])
    nets = [merged(name, first, **setting) for setting in settings]
    scores = [mean_accuracy(net, first.splits, "valid") for net in nets]
    setting = at_best(settings, scores)
    net = merged(name, task, **setting)
    return mean_accuracy(net, task.splits, "test")


def grid(**shares: tuple[float, ...]) -> list[dict[str, Any]]:
    """Every scale with every combination of shares."""
    names = ["scale", *shares]
    products = itertools.product(SCALES, *shares.values())
    return [dict(zip(names, values)) for values in products]


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of breadcrumbs, of task arithmetic, and of trimming alone."""
    task = turned_tasks(seed)
    both = grid(density=(0.5, 0.8), gamma=(0.01, 0.1))
    lower = grid(density=(0.5, 0.8), gamma=(0.0,))
    masked = kept(task, "breadcrumbs", both)
    scales = grid()
    added = kept(task, "task_arithmetic", scales)
    trimmed = kept(task, "breadcrumbs", lower)
    return {"method": masked, "baseline": added, "no upper cut": trimmed}
