"""Every method has its claim, every claim its paper, and what running it showed stands in the repository."""

import functools
import importlib
import inspect
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mixwell import claims
from mixwell.claims import evidence, pages, work
from mixwell.claims.claim import Claim
from mixwell.claims.experts._synthetic import BALANCED, FINE, TOP1, Clusters, Families, fixed, on_clusters
from mixwell.claims.record import TUNING_SEED, Record
from mixwell.core import registry
from tests.every import every

ROOT = Path(__file__).parents[2]
SAVED = ROOT / "docs" / "evidence"
ROOMS = ("experts", "sequence", "convert", "precision", "density")
METHODS = [entry for room in ROOMS for entry in registry.family(room)]
PAPERS = ("scaling.laws", "data.mixing", "parallel.federated")  # families in which textbook matter has no claim
METHODS += [entry for family in PAPERS for entry in registry.family(family) if entry.papers]
TRIED = claims.names()


@functools.cache
def kept():
    """The evidence, read by the process that looks at it."""
    return evidence.read(SAVED)


def docstring(name):
    return " ".join((importlib.import_module(f"mixwell.claims.{name}").__doc__ or "").split())


@every(METHODS)
def test_a_method_has_a_claim_that_names_a_paper_of_its_own(entry):
    text = docstring(entry.name)
    known = set(entry.papers) | STUDIES.get(entry.name, set())
    assert "Paper" in text
    if known:
        assert any(paper in text for paper in known), f"expected one of {known}"
    else:  # a card may cite by author and year alone, without the title
        assert entry.room == "density"


# studies and surveys that speak of a method without being the one it was built from
STUDIES = {"experts.analysis.co_activation": {
    "Configurable Foundation Models: Building LLMs from a Modular Perspective"}}


@every(TRIED, str)
def test_a_claim_says_what_is_tried_and_what_would_count_against_it(name):
    module = importlib.import_module(f"mixwell.claims.{name}")
    text = docstring(name)
    for part in ("Paper", "Tried: ", "Against it: "):
        assert part in text, f"the docstring lacks {part!r}"
    trial = getattr(module, "trial", None)
    assert trial is None or list(inspect.signature(trial).parameters) == ["bench", "seed"]
    assert isinstance(work.load(name), Claim)


@every(TRIED, str)
def test_what_the_evidence_says_is_what_its_numbers_say(name):
    saved = kept().get(name, {"before": {}, "outcome": "to be run"})
    if "before" in saved:
        assert saved["outcome"] == "to be run"
        return
    claim = work.load(name)
    assert (saved["claim"], saved["metric"]) == (claim.text, claim.metric)
    record = evidence.restored(saved, Record(name, claim, saved["source"]))
    assert_same(json.loads(evidence.text(record.judged)), {key: saved[key] for key in record.judged})
    assert all(len(series) == len(saved["tried"]) for series in saved["values"].values())
    assert all(map(math.isfinite, saved["seconds_a_seed"])) and TUNING_SEED not in saved["tried"]
    for side, told in saved["tuning"].items():
        best = min(told["tries"], key=lambda one: one["score"])
        assert {**best, **told["chosen"]} == best
        assert len(told["tries"]) <= len(claim.sides[side].settings())


def assert_same(found, expected):
    """Plain data that agrees, numbers but for the last digits, which another C library may round otherwise."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list) and expected and isinstance(expected[0], dict):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert_same(one, other)
    else:
        assert found == (expected if isinstance(expected, str) else pytest.approx(expected))


def test_no_evidence_is_left_of_claims_that_are_gone():
    assert set(kept()) <= set(TRIED)


def test_pages_and_readme_are_what_the_command_writes():
    made = pages.pages(SAVED, kept())
    stale = [path.name for path, text in made.items() if path.read_text(encoding="utf-8") != text]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if pages.filled(readme, kept()) != readme:
        stale.append("README.md")
    assert not stale, f"run `mixwell claims --write`: {', '.join(stale)}"
    assert set(SAVED.glob("*.md")) == set(made)


@pytest.mark.slow
def test_a_claim_shows_again_what_was_saved():
    saved = kept()["density.mixtures.categorical"]
    found = importlib.import_module("mixwell.claims.density.mixtures.categorical").trial(SimpleNamespace(), 0)
    for name, value in found.items():
        assert value == pytest.approx(saved["values"][name][0], rel=0.05)


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


def test_families_are_equal_clusters_in_unequal_groups(generator):
    problem = Families(3)
    batch = problem(64_000, generator)
    shares = torch.bincount(batch.labels_T) / 64_000
    torch.testing.assert_close(shares, torch.full((16,), 1 / 16), atol=0.005, rtol=0)
    assert torch.bincount(problem.family_C).tolist() == [6, 4, 3, 2, 1]
    assert float(batch.y_TD.square().mean()) == pytest.approx(1, rel=0.15)
    z = batch.x_TD - problem.centres_CD[batch.labels_T]
    rows = batch.labels_T == 15
    torch.testing.assert_close(batch.y_TD[rows], z[rows] @ problem.maps_CDD[15].T, atol=1e-4, rtol=1e-4)
    away = torch.cdist(problem.centres_CD, problem.centres_CD)[0]
    assert float(away[1:6].mean()) < float(away[6:].mean())


def test_what_is_measured_on_clusters():
    found = on_clusters(None, 0, families=True, steps=20, lr=3e-3, **{**TOP1, "capacity_factor": 0.5})
    assert set(found) == {"error", "load", "dropped"}
    assert found["dropped"] >= 0.5 and found["load"] == pytest.approx(1, abs=0.05) and 0 < found["error"] < 2
    dense = on_clusters(None, 0, families=True, steps=20, method="swiglu")
    assert set(dense) == {"error"}


def test_grids_of_both_sides_have_as_many_settings():
    assert len(FINE["lr"]) == len(BALANCED["lr"]) * len(BALANCED["balance"]) == 9
