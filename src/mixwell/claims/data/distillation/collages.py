"""With hard labels collages of easy images teach most; with soft labels it hardly matters which images there are.

Paper: Rethinking Large-scale Dataset Compression: Shifting Focus From Labels to Images.
Tried: handwritten digits grown to 16 x 16, three stored images a class, a network of two convolutions with batch norm,
crops of half the area and more, all stored images in every step. Method: four easy images to each stored one. Baseline:
as many random whole images. Beside: synthetic ones by batch norm's statistics. Spread is the best less the
worst of the three, students learning from hard labels or from a teacher's soft ones. Against it: collages
no better than random images with hard labels, or a spread under soft labels that is not a third smaller.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.claims.data.distillation._digits import convolutions, images, reached
from mixwell.core.rng import generator
from mixwell.data.compact import Compact, Images, Training, trained
from mixwell.data.distillation import collages, weight_adjustment

CLAIM = Claim("With hard labels collages of easy images teach most.", "test accuracy", quantity="accuracy",
              lower_is_better=False,
              provided=(Comparison(quantity="spread", method="soft", baseline="hard", at_least=1 / 3, relative=True),))
SIDE, EACH = 16, 3
STUDENT = Training(steps=60, batch=120, lr=1e-2, least_area=0.5)  # all images that are stored, in every step

CHOSEN: dict[str, dict[str, Any]] = {"collage": {}, "random": {"tiles": 1, "keep": "any"}}
STILL = weight_adjustment.Config(per_class=EACH, direction="none", steps=40, lr=0.05, statistics=1.0, teacher_steps=60)


def sets(learned: Images, seed: int) -> dict[str, Compact]:
    """Three ways to three images a class."""
    build = convolutions(SIDE)
    chosen = {}
    for name, options in CHOSEN.items():
        config = collages.Config(per_class=EACH, networks=1, steps=30, **options)
        draws = generator(seed, name)
        chosen[name] = collages.collages(learned, build, config, draws)
    draws = generator(seed, "synthetic")
    chosen["synthetic"] = weight_adjustment.weight_adjustment(learned, build, STILL, draws)
    return chosen


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Accuracies with hard labels, and the spread of both kinds of labels."""
    learned, test = images(seed, SIDE)
    build = convolutions(SIDE)
    draws = generator(seed, "soft labels")
    teacher = trained(build(draws), learned, Training(steps=60), draws)
    hard, soft, found = {}, {}, {}
    for name, made in sets(learned, seed).items():
        hard[name] = reached(made, test, build, STUDENT, [seed])
        soft[name] = reached(made, test, build, STUDENT, [seed], teacher)
        found[name] = {"accuracy": hard[name], "soft": soft[name]}
    found["hard"] = {"spread": spread(hard)}
    found["soft"] = {"spread": spread(soft)}
    method = found.pop("collage")
    baseline = found.pop("random")
    return {"method": method, "baseline": baseline, **found}


def spread(reached: dict[str, float]) -> float:
    """The best less the worst."""
    values = reached.values()
    return max(values) - min(values)
