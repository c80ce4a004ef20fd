"""Every method has its claim, every claim its paper, and what running it showed stands in the repository."""

import importlib
import inspect
import json
import math
import statistics
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from mixwell.claims import claims
from mixwell.claims._judging import no_worse, provided
from mixwell.claims.experts._synthetic import Clusters, fixed
from mixwell.core import registry
from mixwell.core.evidence import Evidence, Outcome

SAVED = Path(__file__).parents[2] / "docs" / "evidence"
ROOMS = ("experts", "sequence", "convert", "precision", "density")
EVIDENCE = {name: entry for room in ROOMS
            for name, entry in json.loads((SAVED / f"{room}.json").read_text(encoding="utf-8")).items()}
FAMILIES = ("experts.routers", "experts.balance", "experts.overflow", "experts.analysis", "experts.layers", "sequence",
            "convert", "precision")
METHODS = [e for f in FAMILIES for e in registry.family(f)] + [
    registry.find("experts.hidden_dropout"), registry.find("experts.policy"), *registry.family("density")]
TRIED = [c.name for room in ROOMS for c in claims(room)]
CLAIMS = [pytest.param(name, id=name) for name in TRIED]


def claim_name(entry):
    """Room and last name of the method, with its family where two methods of the room share it."""
    last = entry.name.rpartition(".")[2]
    shared = sum(e.room == entry.room and e.name.rpartition(".")[2] == last for e in METHODS) > 1
    return f"{entry.room}.{entry.name.split('.')[-2]}_{last}" if shared else f"{entry.room}.{last}"


def docstring(name):
    return " ".join((importlib.import_module(f"mixwell.claims.{name}").__doc__ or "").split())


@pytest.mark.parametrize("entry", [pytest.param(e, id=e.name) for e in METHODS])
def test_a_method_has_a_claim_that_names_a_paper_of_its_own(entry):
    text = docstring(claim_name(entry))
    known = set(entry.papers) | STUDIES.get(entry.name, set())
    assert "Paper" in text
    if known:
        assert any(paper in text for paper in known), f"expected one of {known}"
    else:  # a card may cite by author and year alone, without the title
        assert entry.room == "density"


# studies and surveys that speak of a method without being the one it was built from
STUDIES = {"experts.analysis.co_activation": {
    "Configurable Foundation Models: Building LLMs from a Modular Perspective"}}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_says_what_is_tried_and_what_would_count_against_it(name):
    module = importlib.import_module(f"mixwell.claims.{name}")
    text = docstring(name)
    for part in ("Paper", "Tried: ", "Against it: "):
        assert part in text, f"the docstring lacks {part!r}"
    assert list(inspect.signature(module.claim).parameters) == ["bench"]


@pytest.mark.parametrize("name", CLAIMS)
def test_what_a_claim_showed_stands_in_the_repository(name):
    saved = EVIDENCE[name]
    found = Evidence(**{f.name: saved[f.name] for f in fields(Evidence)})
    assert found.outcome in get_args(Outcome)
    assert saved["seconds"] >= 0 and {"mixwell", "torch"} <= set(saved["versions"])
    if found.outcome == "not testable here":
        assert found.note
        return
    assert found.seeds >= 3 and found.metric and math.isfinite(found.effect)
    assert found.values and all(len(series) == found.seeds for series in found.values.values())
    assert found.outcome == "held" or found.note, "a claim that did not hold says why"
    if {"method", "baseline"} <= set(found.values):
        gain = statistics.fmean(found.values["method"]) - statistics.fmean(found.values["baseline"])
        assert abs(found.effect) == pytest.approx(abs(gain))


def test_no_evidence_is_left_of_claims_that_are_gone():
    assert set(EVIDENCE) == set(TRIED)


def test_a_claim_shows_again_what_was_saved():
    saved = EVIDENCE["experts.sparse_mixer"]
    found = importlib.import_module("mixwell.claims.experts.sparse_mixer").claim(SimpleNamespace(seeds=(0, 1, 2)))
    assert found.outcome == saved["outcome"]
    assert found.effect == pytest.approx(saved["effect"], rel=0.05)


def test_a_condition_that_fails_takes_back_what_held():
    held = Evidence(claim="c", outcome="held", metric="m", effect=1.0, spread=0.1, seeds=3, values={"method": [1.0]})
    kept = provided(held, no_worse([1.0, 1.1], [1.0, 1.0], 0.06), "It is worse.", other=[2.0])
    assert kept.outcome == "held" and kept.values == {"method": [1.0], "other": [2.0]} and not kept.note
    taken = provided(held, no_worse([1.0, 1.2], [1.0, 1.0], 0.06), "It is worse.")
    assert taken.outcome == "did not hold" and taken.note == "It is worse."


def test_clusters_ask_for_a_map_of_their_own_each(generator):
    problem = Clusters(3, clusters=4, zipf=1.0)
    batch = problem(20_000, generator)
    shares = torch.bincount(batch.labels_T) / 20_000
    torch.testing.assert_close(shares, torch.tensor([12.0, 6, 4, 3]) / 25, atol=0.02, rtol=0)
    z = batch.x_TD - problem.centres_CD[batch.labels_T]
    for c in range(4):
        rows = batch.labels_T == c
        torch.testing.assert_close(batch.y_TD[rows], z[rows] @ problem.maps_CDD[c].T, atol=1e-4, rtol=1e-4)
    same = fixed(problem, 0, 8)
    assert torch.equal(same(8, generator).x_TD, same(8, generator).x_TD)
