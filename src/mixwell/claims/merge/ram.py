"""Reinforced agent merging: unique changes kept whole merge sparse fine-tunes better than trimmed signs do.

Paper: none of the catalogue; Behavior Knowledge Merge in Reinforced Agentic Models (2601.13572).
Tried: a small net tuned on digits turned by each of four quarters, whose smaller changes are taken back, as sparse as
those of reinforcement learning are said to be; mean accuracy over the four tasks on test rows, of the method with a
gain against TIES, a scale of the change and one more option chosen on validation rows from as many settings. Beside: no
gain. Against it: an accuracy that is no higher. Adam on labels stands in for reinforcement.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.merge._digits import Tensors, turned_tasks
from mixwell.claims.merge._moved import chosen

KEPT = 0.2  # of each tensor's entries
SCALES = (0.5, 0.75, 1.0, 1.5)
GAINS, DENSITIES = (0.1, 0.5, 1.0), (0.3, 0.6, 1.0)
CLAIM = Claim("Unique changes kept whole merge sparse fine-tunes better than trimmed signs.",
              "mean accuracy over four tasks", lower_is_better=False)


def sparse(net: Tensors, base: Tensors) -> dict[str, Tensor]:
    """The net with the small changes of each tensor taken back."""
    found = {}
    for name, tensor in net.items():
        change = tensor - base[name]
        sizes = change.abs()
        least = sizes.flatten().quantile(1 - KEPT)
        found[name] = torch.where(sizes >= least, tensor, base[name])
    return found


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of the method with a gain, of TIES, and of the method without one."""
    whole = turned_tasks(seed)
    task = whole._replace(models=[sparse(model, whole.base) for model in whole.models])
    reinforced = chosen(task, "ramplus_tl", "r", GAINS, SCALES)
    trimmed = chosen(task, "ties", "density", DENSITIES, SCALES)
    plain = chosen(task, "ram", "epsilon", (1e-5,), SCALES)
    return {"method": reinforced, "baseline": trimmed, "no gain": plain}
