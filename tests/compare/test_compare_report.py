"""The report of a comparison, from constructed results: a clear win, no difference, a loss, a failure."""

import math

import pytest

from mixwell.compare import report, results
from mixwell.compare import view as views
from mixwell.core.errors import MixwellError
from mixwell.formats import sealed
from tests.compare import fake_compare
from tests.report.pages import balanced, text_of

BASE = [1.62, 1.65, 1.60]


def constructed(folder, **more):
    scores = {"top_k": BASE, "win": [b - 0.03 + e for b, e in zip(BASE, (0.001, -0.001, 0.0))],
              "same": [b + e for b, e in zip(BASE, (0.01, -0.012, 0.004))],
              "loss": [b + 0.05 + e for b, e in zip(BASE, (0.001, 0.0, -0.001))]}
    fake_compare.write(folder, scores, failures={"broken": "stage trained: loss_nats is nan"}, points=30, **more)
    return results.read(folder)


def test_the_lead_names_what_the_seeds_support(tmp_path):
    lead = views.lead(constructed(tmp_path))
    assert lead.startswith("Better than top_k: win by 0.0300 (0.0275 to 0.0325) bits per byte. "
                           "Worse than top_k: loss by 0.0500 (0.0475 to 0.0525) bits per byte. ")
    assert lead.endswith("No difference from top_k is supported for same. broken failed.")


def test_the_table_ranks_and_judges(tmp_path):
    rows = views.table(constructed(tmp_path))
    assert [(r["name"], r["verdict"]) for r in rows] == [
        ("win", "better"), ("top_k", "baseline"), ("same", "not supported"), ("loss", "worse")]
    assert rows[0]["gap"] == "−0.0300" and rows[0]["mean"] == "1.5933" and rows[1]["gap"] == ""


def test_a_difference_that_only_stands_alone_is_said_to(tmp_path):
    near = [b - 0.01 + e for b, e in zip(BASE, (0.002, -0.002, 0.001))]  # p = 0.014 alone
    others = {f"n{i}": [b + e for b, e in zip(BASE, (0.01, -0.01, i / 1e3))] for i in range(5)}
    fake_compare.write(tmp_path, {"top_k": BASE, "near": near, **others}, points=10)
    row = next(r for r in views.table(results.read(tmp_path)) if r["name"] == "near")
    assert row["verdict"] == "not supported" and row["aside"] == "alone it would be"


def test_unequal_compute_is_said(tmp_path):
    assert "equal compute" not in " ".join(views.notes(constructed(tmp_path / "a")))
    notes = " ".join(views.notes(constructed(tmp_path / "b", dear={"win"}))).replace("\u202f", " ")
    assert "A token costs from 19.0 MFLOP to 38.0 MFLOP" in notes


def test_one_seed_supports_nothing(tmp_path):
    fake_compare.write(tmp_path, {"a": [1.0], "b": [2.0]}, points=10)
    found = results.read(tmp_path)
    assert views.lead(found) == "One seed cannot tell a difference from luck: nothing is said of b against a."
    assert balanced(report.build(tmp_path).read_text())


def test_the_page_holds_every_part_and_nothing_from_outside(tmp_path):
    constructed(tmp_path)
    html = report.build(tmp_path).read_text()
    page, text = balanced(html), text_of(html)
    assert page.outside == []
    for part in ("standard-library by router", "broken failed (all seeds): stage trained: loss_nats is nan", "p, Holm",
                 "correction for 3 comparisons", "Learning curves", "14.2 M 6.30 M active", "19.0 TFLOP", "40.0 s",
                 "1.00 kB", "By domain", "docstrings", "Expert load", "(baseline)", "model.router: {method: win}",
                 "1.00 M tokens"):
        assert part in text, part
    assert html.count('class="band') >= 4 + 3 and html.count('<table class="heat') == 4
    assert "training loss minus that of top_k" in text


def test_loads_are_sorted_before_the_mean_over_seeds(tmp_path):
    constructed(tmp_path, tilt=0.5)
    shares = [math.exp(-0.5 * i) for i in range(8)]
    top = f"{100 * shares[0] / sum(shares):.0f}"
    assert f">{top}</td>" in report.build(tmp_path).read_text(), "the busiest expert differs by seed"


def test_more_variants_than_colours_show_the_best(tmp_path):
    fake_compare.write(tmp_path, {f"v{i}": [1 + i / 10, 1.1 + i / 10] for i in range(10)}, baseline="v9", points=10)
    html = report.build(tmp_path).read_text()
    curves = html[html.index('id="curves"'):html.index('id="cost"')]
    assert "v9" in curves and "v6" in curves and "v7" not in curves and "v7" in html


def test_evaluations_on_the_way_are_drawn(tmp_path):
    constructed(tmp_path / "without")
    assert "held out" not in text_of(report.build(tmp_path / "without").read_text())
    constructed(tmp_path / "with", held_out=True)
    assert "held out" in text_of(report.build(tmp_path / "with").read_text())


def test_curves_of_different_tokenizers_are_not_shown_together(tmp_path):
    constructed(tmp_path, tokenizer="own")
    text = text_of(report.build(tmp_path).read_text())
    assert "different tokenizers" in text and "nats per token;" not in text and "Better than top_k: win" in text


def test_a_tie_has_no_best(tmp_path):
    fake_compare.write(tmp_path, {"a": [1.0, 1.1], "b": [1.1, 1.0], "c": [1.2, 1.3]}, points=10)
    assert 'class="best"' not in report.build(tmp_path).read_text()


def test_a_stopped_comparison_says_what_is_missing(tmp_path):
    fake_compare.write(tmp_path, {"a": [1.0, 1.1], "b": [1.0]}, waiting={"b"}, points=10)
    assert "This comparison is not finished: b." in text_of(report.build(tmp_path).read_text())


def test_hostile_names_stay_text(tmp_path):
    fake_compare.write(tmp_path, {"<b>a": [1.0, 1.1], "b": [1.0, 1.2]}, points=10,
                       failures={"c": "<script>alert(1)</script>"})
    html = report.build(tmp_path).read_text()
    assert "<b>a" not in html and "alert(1)</script>" not in html


def test_a_folder_that_is_no_comparison_is_refused(tmp_path):
    with pytest.raises(MixwellError, match="is not there"):
        results.read(tmp_path)
    (tmp_path / "compare.json").write_text("[]")
    with pytest.raises(MixwellError, match="it holds list"):
        results.read(tmp_path)
    sealed.write(tmp_path / "compare.json", {"name": "x"})
    with pytest.raises(MixwellError, match="no record of a comparison"):
        results.read(tmp_path)
