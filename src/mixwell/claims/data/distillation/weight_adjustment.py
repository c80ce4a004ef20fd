"""A teacher moved away from each batch makes synthetic images that are more diverse and teach more.

Paper: Diversity-Driven Synthesis: Enhancing Dataset Distillation through Directed Weight Adjustment.
Tried: handwritten digits, two images a class made in 60 steps from real ones, a network of two convolutions with
batch norm; test accuracy of a student, and the mean distance of two images of a class in the features of a network
of its own. Baseline: a teacher that stays. The statistics' weight is tuned, a hundred times the paper's since pixels go
from 0 to 1, and the move's length with it. Beside: a move as long on a random line. Against it: an accuracy that is no
higher, or less diversity.
"""

from __future__ import annotations

from typing import Any

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.data.distillation._digits import convolutions, images, reached
from mixwell.core.rng import generator
from mixwell.data.compact import ConvNet, Training, trained
from mixwell.data.distillation.weight_adjustment import Config, spread, weight_adjustment

SIZES: dict[str, Any] = {"per_class": 2, "steps": 60, "lr": 0.05, "shift": 1, "teacher_steps": 100}


def measured(bench: Bench, seed: int, **options: Any) -> dict[str, float]:
    """Accuracy of students and diversity of the images."""
    learned, test = images(seed)
    build = convolutions()
    config = Config(**{**SIZES, **options})
    draws = generator(seed, "weight adjustment")
    made = weight_adjustment(learned, build, config, draws)
    judge = ConvNet(1, 8, 10, draws, width=8)
    trained(judge, learned, Training(steps=100), draws)
    with torch.no_grad():
        features = judge.features(made.images_MCHW)
    accuracy = reached(made, test, build, Training(steps=80), [seed])
    return {"accuracy": accuracy, "diversity": spread(features, made.classes_M)}


MOVED = {"statistics": [0.3, 3.0], "distance": [0.1, 0.3]}
CLAIM = Claim(
    "Moving the teacher away from a batch makes its images teach more.", "test accuracy", quantity="accuracy",
    lower_is_better=False, provided=(Comparison(quantity="diversity", lower_is_better=False),),
    sides={"method": Side(measured, grid=MOVED),
           "baseline": Side(measured, {"direction": "none"}, {"statistics": [0.3, 1.0, 3.0, 10.0]}),
           "random": Side(measured, {"direction": "random", "statistics": 1.0, "distance": 0.3})})
