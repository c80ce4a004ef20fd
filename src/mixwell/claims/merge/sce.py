"""SCE: what differs most between models, weighed by its size, merges tasks better than TIES with as many settings.

Paper: none of the catalogue; FuseChat: Knowledge Fusion of Chat Models (2408.07990).
Tried: a small net tuned on digits turned by each of four quarters, for 30, 60, 90 and 120 steps, so that the models
drifted unequally far; mean accuracy over the four tasks on test rows, the share kept and a scale of the change chosen
on validation rows from as many settings. Beside: task arithmetic with a tuned scale. Against it: an accuracy that is no
higher than that of TIES.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.merge._digits import Tuned, best_of, digits, fresh, mean_accuracy, merged, tuned
from mixwell.claims.merge._moved import chosen

SHARES, SCALES = (0.1, 0.3, 0.6, 1.0), (0.5, 1.0, 1.5, 2.0)
FLOOR = 1e-20  # the published 1e-6 lets all of such small nets weigh the same
STEPS = (30, 60, 90, 120)
CLAIM = Claim("Selected, weighed and erased changes merge tasks better than trimmed signs.",
              "mean accuracy over four tasks", lower_is_better=False)


def drifted(seed: int) -> Tuned:
    """A base that reads upright digits, and a fine-tune a quarter, each longer than the one before."""
    split = digits(seed)
    base = tuned(fresh(seed), split.train, seed, steps=150)
    splits = [split.turned(quarters) for quarters in range(4)]
    models = []
    for own, steps in zip(splits, STEPS):
        models.append(tuned(base, own.train, seed + steps, steps=steps))
    return Tuned(splits, base, models)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of SCE, TIES and task arithmetic."""
    task = drifted(seed)
    selected = chosen(task, "sce", "select_topk", SHARES, SCALES, floor=FLOOR)
    trimmed = chosen(task, "ties", "density", SHARES, SCALES)
    nets = [merged("task_arithmetic", task, scale=scale / 4) for scale in SCALES]
    added = best_of(nets, task.splits)
    plain = mean_accuracy(added, task.splits, "test")
    return {"method": selected, "baseline": trimmed, "task arithmetic": plain}
