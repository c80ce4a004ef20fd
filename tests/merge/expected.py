"""What mergekit makes of small tensors: `python tests/merge/expected.py` in an environment that has it writes the file.

Inputs are sines, so that no generator has to agree; draws are a table of their own on both sides.
"""

import json
from pathlib import Path
from unittest import mock

import torch

FILE = Path(__file__).with_name("mergekit_expected.json")
HALVES = FILE.with_name("mergekit_bfloat16.json")  # the same, models and results in bfloat16
ROWS, COLUMNS = 4, 6

# name of the case -> method, options shared, options of each model beside the base, whether there is a base, models
CASES = {
    "linear": ("linear", {}, {"weight": [0.3, 0.9, 0.5]}, False, 3),
    "linear, sum": ("linear", {"normalize": False}, {"weight": [0.3, 0.9, -0.5]}, False, 3),
    "slerp": ("slerp", {"t": 0.3}, {}, None, 2),
    "nuslerp": ("nuslerp", {}, {"weight": [0.3, 0.9]}, False, 2),
    "nuslerp, base": ("nuslerp", {}, {"weight": [0.3, 0.9]}, True, 2),
    "nuslerp, rows": ("nuslerp", {"nuslerp_flatten": False}, {"weight": [0.3, 0.9]}, True, 2),
    "nuslerp, columns": ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}, {"weight": [0.3, 0.9]},
                         False, 2),
    "multislerp": ("multislerp", {}, {"weight": [0.3, 0.9, 0.5]}, False, 3),
    "multislerp, base": ("multislerp", {}, {"weight": [0.3, 0.9, 0.5]}, True, 3),
    "multislerp, sum": ("multislerp", {"normalize_weights": False}, {"weight": [0.3, 0.9, 0.5]}, True, 3),
    "karcher": ("karcher", {}, {}, False, 3),
    "karcher, 2 steps": ("karcher", {"max_iter": 2}, {}, False, 3),
    "passthrough": ("passthrough", {}, {"scale": [0.7]}, False, 1),
    "model_stock": ("model_stock", {}, {}, True, 3),
    "model_stock, rows": ("model_stock", {"filter_wise": True}, {}, True, 3),
    "nearswap": ("nearswap", {"t": 0.1}, {}, True, 1),
    "arcee_fusion": ("arcee_fusion", {}, {}, True, 1),
    "sce": ("sce", {}, {}, True, 3),
    "sce, half": ("sce", {"select_topk": 0.5}, {}, True, 3),
    "ram": ("ram", {"epsilon": 0.15}, {}, True, 3),
    "ramplus_tl": ("ramplus_tl", {"epsilon": 0.15, "alpha": 0.4}, {}, True, 3),
    "task_arithmetic": ("task_arithmetic", {"lambda": 0.8}, {"weight": [0.3, 0.9, -0.5]}, True, 3),
    "task_arithmetic, mean": ("task_arithmetic", {"normalize": True}, {"weight": [0.3, 0.9, 0.5]}, True, 3),
    "ties": ("ties", {}, {"weight": [0.3, 0.9, 0.5], "density": [0.5, 0.6, 0.7]}, True, 3),
    "ties, sum": ("ties", {"normalize": False, "rescale": True, "lambda": 1.5},
                  {"weight": [0.3, 0.9, 0.5], "density": [0.5, 0.6, 1.0]}, True, 3),
    "dare_ties": ("dare_ties", {}, {"weight": [0.3, 0.9, 0.5], "density": [0.5, 0.6, 0.7]}, True, 3),
    "dare_linear": ("dare_linear", {"rescale": False}, {"weight": [0.3, 0.9, 0.5], "density": [0.5, 0.6, 0.7]},
                    True, 3),
    "breadcrumbs": ("breadcrumbs", {}, {"weight": [0.3, 0.9, 0.5], "density": [0.5, 0.6, 0.9], "gamma": [0.1] * 3},
                    True, 3),
    "breadcrumbs_ties": ("breadcrumbs_ties", {"rescale": True},
                         {"weight": [0.3, 0.9, 0.5], "density": [0.5, 0.6, 0.9], "gamma": [0.1, 0.2, 0.2]}, True, 3),
    "della": ("della", {}, {"weight": [0.3, 0.9, 0.5], "density": [0.5, 0.6, 0.7]}, True, 3),
    "della_linear": ("della_linear", {}, {"weight": [0.3, 0.9, 0.5], "density": [0.5, 0.6, 0.7], "epsilon": [0.2] * 3},
                     True, 3),
}


def tensors(count):
    """A base and `count` fine-tunes of it."""
    place = torch.arange(ROWS * COLUMNS, dtype=torch.float64).view(ROWS, COLUMNS)
    base = (place * 1.7 + 0.3).sin()
    return base.float(), [(base + 0.4 * (place * (2.3 + model) + model).sin()).float() for model in range(count)]


def uniform(*shape, **options):
    """The table of draws: the same at every call."""
    sides = shape[0] if isinstance(shape[0], (tuple, torch.Size)) else shape
    count = int(torch.Size(sides).numel())
    return ((torch.arange(count) * 0.61803398875 + 0.1) % 1).view(sides)


def theirs(case, dtype=torch.float32):
    """What mergekit makes of a case."""
    from mergekit.merge_methods.api import merge_tensors

    method, shared, own, has_base, count = CASES[case]
    base, models = tensors(count)
    base, models = base.to(dtype), [model.to(dtype) for model in models]
    everyone = [base, *models] if has_base else models
    with mock.patch("torch.bernoulli", lambda p: (uniform(p.shape) < p).to(p.dtype)):
        return merge_tensors(everyone, method, parameters={**shared, **own},
                             base_index=0 if has_base or has_base is None else None)


if __name__ == "__main__":

    halves = {case: theirs(case, torch.bfloat16).float().flatten().tolist() for case in CASES}
    rows = ",\n".join(f" {json.dumps(case)}: {json.dumps(row)}" for case, row in halves.items())
    HALVES.write_text("{\n" + rows + "\n}\n")
    found = {case: [round(value, 7) for value in theirs(case).flatten().tolist()] for case in CASES}
    lines = ",\n".join(f" {json.dumps(case)}: {json.dumps(values)}" for case, values in found.items())
    FILE.write_text('{\n "source": "mergekit 0.1.5, mergekit.merge_methods.api.merge_tensors",\n' + lines + "\n}\n")
