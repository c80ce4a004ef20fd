"""What every analysis of the catalogue promises.

Tag: `weights` (reads parameters and no routing, so that tokens do not enter).
"""

import dataclasses
import json

import pytest
import torch

from mixwell.core.routing import Context, Routing
from tests.contracts._tools import cases, example, fresh, poisoned_memory, same_config

ANALYSIS = "experts.analysis"
CASES = cases(ANALYSIS)


def rows(value, index):
    """A routing, a context or a tensor of tokens, cut to some tokens."""
    if isinstance(value, Routing):
        cut = {f: getattr(value, f)[index] for f in ("indices_TK", "weights_TK", "scores_TE")}
        return dataclasses.replace(value, **cut)
    if isinstance(value, Context):
        names = [f.name for f in dataclasses.fields(value) if f.name.endswith("_T")]
        cut = {n: getattr(value, n)[index] for n in names if getattr(value, n) is not None}
        return dataclasses.replace(value, batch_shape=None, **cut)
    return value[index]


def tensors(values):
    routing = values.get("routing")
    own = [routing.indices_TK, routing.weights_TK, routing.scores_TE] if routing is not None else []
    return own + [v for v in values.values() if isinstance(v, torch.Tensor)]


@pytest.mark.parametrize("entry", CASES)
def test_form(entry):
    values = example(entry)
    before = [t.clone() for t in tensors(values)]
    with poisoned_memory():
        result = entry.load()(**values)
    assert isinstance(result, dict) and json.loads(json.dumps(result, allow_nan=False)) == result
    assert result == entry.load()(**values)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(values)))
    assert same_config(values["config"])


@pytest.mark.parametrize("entry", cases(ANALYSIS, without={"weights"}))
def test_padding_counts_in_nothing(entry):
    values = example(entry)
    tokens = values["routing"].indices_TK.shape[0]
    mask = torch.arange(tokens) < tokens - 3
    context = dataclasses.replace(values["context"], batch_shape=None)
    cut = {n: rows(v, mask) if n == "routing" or n.endswith(("_TD", "_TE")) else v for n, v in values.items()}
    masked = {**values, "context": dataclasses.replace(context, mask_T=mask)}
    assert entry.load()(**{**cut, "context": rows(context, mask)}) == entry.load()(**masked)


@pytest.mark.parametrize("entry", cases(ANALYSIS, without={"weights"}))
def test_no_token_at_all_is_no_error(entry):
    values = example(entry)
    none = torch.zeros(values["routing"].indices_TK.shape[0], dtype=torch.bool)
    result = entry.load()(**{**values, "context": dataclasses.replace(values["context"], mask_T=none)})
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("entry", cases(ANALYSIS, without={"weights"}))
def test_half_width_scores_are_read_in_full(entry):
    values = example(entry)
    routing = values["routing"]
    rough = dataclasses.replace(routing, scores_TE=routing.scores_TE.bfloat16())
    exact = dataclasses.replace(routing, scores_TE=routing.scores_TE.bfloat16().double())
    assert entry.load()(**{**values, "routing": rough}) == entry.load()(**{**values, "routing": exact})


@pytest.mark.parametrize("entry", cases(ANALYSIS, without={"weights"}))
def test_empty_slots_are_no_expert(entry):
    values = example(entry)
    routing = values["routing"]
    draw = torch.rand(routing.indices_TK.shape, generator=fresh(2)) < 0.3
    emptied = dataclasses.replace(routing, indices_TK=routing.indices_TK.masked_fill(draw, -1),
                                  weights_TK=routing.weights_TK.masked_fill(draw, 0))
    json.dumps(entry.load()(**{**values, "routing": emptied}), allow_nan=False)
