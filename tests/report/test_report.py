"""The report of a run: its figures are the run's, its verdicts right, its text escaped, its parts optional."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from mixwell.core.errors import MixwellError
from mixwell.report import page as report
from mixwell.report.experts import specialities
from mixwell.report.training import cell
from tests.report import fake_run
from tests.report.fake_run import changed, only
from tests.report.pages import balanced, text_of


def page(folder, entries, **record):
    return report.build(fake_run.write(folder, entries, **record), folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return page(tmp_path_factory.mktemp("run"), fake_run.stages())


def test_the_page_is_whole_and_reaches_for_nothing(html):
    parsed = balanced(html)
    assert parsed.outside == []
    assert not re.search(r"(https?:)?//[a-z]|@import|url\(|fetch\(|XMLHttpRequest|import\(", html)
    assert len(html) < 300_000
    anchors = set(re.findall(r'href="#([^"]+)"', html))
    assert anchors == set(report.TITLES) - {"adapters", "mixture"} and anchors <= set(parsed.ids)


def test_the_headline_tells_outcome_cost_and_what_to_do(html):
    text = text_of(html)
    assert ("One seed at equal tokens: moe-trained is lower than dense-trained by 3.09 % in bits per byte of held-out "
            "text. Nothing was compared at equal FLOPs: no two sides spent equally many FLOPs (moe-trained 38.0 TFLOP, "
            "dense-trained 24.0 TFLOP).") in text
    assert "At equal tokens · 2.00 M each One seed moe-trained 1.570 dense-trained 1.620" in text
    assert "--vary dense-trained.from=dense,moe --stage dense-trained --budget tokens=2000000" in text
    assert "For a verdict at equal seconds, add to the recipe: - {id: dense-trained-seconds, from: dense" in text
    assert ("moe-trained 1.570 one seed 14.2 M 6.30 M active 19.0 MFLOP 1.6 × dense-trained 46.0 µs 2.1 × "
            "dense-trained 2.00 M 38.0 TFLOP 1 min 32 s") in text
    assert "moe-trained: none of 32 experts is dead (under 25 % of an even load on held-out text)." in text
    assert "Loss on held-out text minus that on the text trained on" in text and "won at" not in text


def test_a_winner_over_seeds_is_named(tmp_path):
    entries = fake_run.seeded({"dense": [1.60, 1.64, 1.62], "moe": [1.57, 1.60, 1.59]})
    html = page(tmp_path, entries)
    assert "moe won at equal tokens, at equal FLOPs and at equal seconds: moe is lower than dense by" in text_of(html)
    assert '<td class="best">1.587</td>' in html and "Settle it" not in html  # the mean of moe's seeds, on its card
    lines = re.findall(r'<polyline class="s\d line" points="[^"]*" data-name="([^"]*)"', html)
    assert lines == ["dense", "moe"] * 3  # one line a side and budget, over its seeds


def test_figures_of_the_stages_are_on_the_page(html):
    text = text_of(html)
    for figure in ("1.270", "2.070", "2.010", "1.570", "−21.89 % (moe)", "+0.00 % (dense)",  # bits per byte
                   "tokens read 3.00 k 3.00 k", "Split: library by file; tests by file",
                   "14.2 M parameters (6.30 M active) · 2.00 M tokens · key ",
                   "3.60 MB", "188 kB", "1.08 M", "3.41", "9.00 MB",  # data
                   "40.1 % planned 40.0 % · 802 k tokens",  # ledger
                   "3.20 × 10⁻⁶ 1.00 × 10⁻⁴ kept", "3.2145 3.2147 +0.0002",  # receipts
                   "56.7 MB 14.6 MB × 0.258", "32.0 8.24 × 0.258", "2 promises kept", "1 promise kept",
                   "38.0 TFLOP 36.0 TFLOP", "812 MB 900 MB", "1 min 33 s 1 min 28 s",  # actual, predicted
                   "AMD EPYC 9R14 · AVX512 · 2 threads · trained in bf16", "instructions AVX512",
                   "8.21 GB", "2.13.0", "seeds 0", "4 min 03 s in all", "tokens: 1200000"):
        assert figure in text, figure
    assert "The function was preserved at step 0: the largest change of a logit is 3.20 × 10⁻⁶" in text
    assert "This conversion does not promise to preserve the function" in text


def test_the_data_section_tells_what_was_read_and_how_much_was_held_out(tmp_path):
    entries = fake_run.stages()
    result = entries[0][0].result
    result["notices"] = ["library: 4.00 MB of 33.0 MB read (data.max_bytes)."]
    result["domains"]["library"] |= {"found_bytes": 33_000_000, "held_share": 0.0496}
    entries[4][0].result["notices"] = ["tests: read 5 times <over>."]
    html = page(tmp_path, entries)
    balanced(html)
    text = text_of(html)
    assert "domain documents there to train on held out share held out tokens to train on" in text
    assert "library 40 33.0 MB 3.60 MB 188 kB 5.0 %" in text
    assert "library: 4.00 MB of 33.0 MB read (data.max_bytes). dense: tests: read 5 times <over>. Split:" in text


def test_each_line_begins_where_its_parent_ended(html):
    chart = re.search(r'data-x="tokens">.*?</svg>', html, re.S).group()
    lines = {name: [tuple(map(float, p.split(","))) for p in path.split()]
             for path, name in re.findall(r'<polyline class="s\d line" points="([^"]*)" data-name="([^"]*)"', chart)}
    assert set(lines) == {"dense", "moe-trained", "dense-trained"}
    first = 1000 * 1.2e6 / 3.2e6  # dense's share of all tokens
    assert lines["dense"][-1][0] == pytest.approx(first, abs=3)
    assert lines["moe-trained"][0] == lines["dense-trained"][0] == lines["dense"][-1]  # no gap where they part
    assert lines["moe-trained"][-1][0] == 1000 and lines["moe-trained"][-1][1] > lines["dense-trained"][-1][1]


def test_text_of_the_user_is_escaped(tmp_path):
    nasty = "<script>alert(1)</script>"
    entries = fake_run.stages(sample=(nasty, '"><img src="https://example.com/x.png">'))
    html = page(tmp_path, entries, name=f"run {nasty}", recipe={"name": nasty})
    assert html.count("<script>") == 1 and "<img" not in html and balanced(html).outside == []
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4  # title, heading, recipe, sample
    assert "&lt;img src=" in html


def test_samples_keep_their_lines(html):
    assert "<b>def add(a, b):</b> return a &lt;b&gt;+&lt;/b&gt; b</pre>" in html
    assert "<b>The quick</b> brown\n  fox &amp; co</pre>" in html and "white-space: pre-wrap" in html


def test_one_branch_has_nobody_to_beat(tmp_path):
    html = page(tmp_path, only(fake_run.stages(), "data", "tokenizer", "tokens", "model", "dense"))
    assert "There is no winner to name: there is one side only." in text_of(html) and 'class="card"' not in html


def test_evaluations_on_the_way_are_drawn(tmp_path):
    entries = [(record, [line | ({"evaluation": {"mean": 3.0 - line["tokens"] / 1e6}} if i % 50 == 49 else {})
                         for i, line in enumerate(lines)]) for record, lines in fake_run.stages()]
    html = page(tmp_path, entries)
    chart = html[html.index("bits per byte of held-out text against tokens"):]
    path = re.search(r'points="([^"]*)" data-name="moe-trained"', chart).group(1)
    assert len(path.split()) == 4 and path.endswith("1000.0,954.5")


@pytest.mark.parametrize(("left_out", "section"), [
    ({"moe", "moe-trained", "moe-int8"}, {"experts", "receipts"}), ({"samples"}, {"samples"}),
    ({"data", "tokens", "tokenizer"}, set()), ({"dense", "moe-trained", "dense-trained"}, {"loss"})])
def test_missing_parts_are_left_out(tmp_path, left_out, section):
    entries = [(e, lines) for e, lines in fake_run.stages() if e.id not in left_out]
    html = page(tmp_path, entries)
    ids = set(balanced(html).ids)
    assert not section & ids and (set(report.TITLES) - section) - ids <= {"adapters", "data", "mixture"}
    for name in section:
        assert f'href="#{name}"' not in html


def test_an_empty_run_is_still_a_page(tmp_path):
    text = text_of(page(tmp_path, [], recipe={}, machine={}, versions={}))
    assert "default" in text and "Lineage" not in text and "Recipe" not in text


def test_one_domain_and_an_evaluate_stage(tmp_path):
    entries = changed(only(fake_run.stages(), "dense"), "dense", result={"ledger": {"library": 1000}})
    entries = [(replace(record, evaluation={"bits_per_byte": {"library": 1.7}, "mean": 1.7}), lines)
               for record, lines in entries]
    tokens = fake_run.stage("tokens", "tokens", [], {"domains": {"library": {"train_tokens": 1000}}})
    again = fake_run.stage("again", "evaluate", ["dense", "tokens"], {"bits_per_byte": {"library": 1.5}, "mean": 1.6})
    html = page(tmp_path, [tokens, *entries, again])
    text = text_of(html)
    assert "dense 1.700 1.700" in text and "again 1.500 1.600 −5.88 % (dense)" in text
    assert 'class="total"' not in html


def test_a_tie_is_not_bold():
    column = {"a": 1.23441, "b": 1.23449, "c": 1.5}
    assert [cell(name, column, 3)["best"] for name in column] == [False, False, False]
    assert [cell(name, column, 5)["best"] for name in column] == [True, False, False]
    assert cell("a", {"a": 1.0}, 3) == {"text": "1.000", "best": False}


def test_what_experts_prefer_is_said_in_words():
    load = {"2": {"code": [0.2, 0.8], "prose": [0.5, 0.5]}, "0": {"code": [0.62, 0.38], "prose": [0.2, 0.8]}}
    said = [line.replace("\u202f", " ") for line in specialities(load)]
    assert said == ["Expert 0 of layer 0 takes 62 % of the routed tokens of code, 1.5 times its share of all text.",
                    "Expert 1 of layer 0 takes 80 % of the routed tokens of prose, 1.4 times its share of all text."]
    assert specialities({"0": {"code": [0.5, 0.5], "prose": [0.45, 0.55]}})[0].startswith("No expert takes 1.3 times")
    assert specialities({"0": {"all": [0.1, 0.9]}}) == []


def test_dead_and_dominating_experts_are_warned_of(tmp_path):
    entries = only(fake_run.stages(), "data", "tokens", "dense", "moe", "moe-trained")
    load = fake_run.loads(layers=2, dead=(3, 5))
    load["1"] = {d: [0.93, *[0.01] * 7] for d in fake_run.DOMAINS}
    text = text_of(page(tmp_path, changed(entries, "moe-trained", evaluation={"load": load})))
    assert "Layer 0: experts 3, 5 are dead (under 25 % of an even share)." in text
    assert "Layer 1: expert 0 dominates with 93 % of the load, 7.4 times an even share." in text
    assert "0.862" in text  # relative entropy of six even experts of eight: ln 6 / ln 8


def test_loads_that_sum_to_k_are_shares_all_the_same(tmp_path):
    entries = fake_run.stages()
    twice = {layer: {d: [2 * v for v in p] for d, p in by.items()} for layer, by in fake_run.loads(tilt=0.6).items()}
    halves = page(tmp_path / "a", entries)
    for id in ("moe-trained", "moe-int8"):
        entries = changed(entries, id, evaluation={"load": twice})
    assert page(tmp_path / "b", entries).replace(str(tmp_path / "b"), str(tmp_path / "a")) == halves


def test_a_broken_promise_is_said_loudly(tmp_path):
    entries = only(fake_run.stages(), "dense", "moe")
    receipt = fake_run.receipt("convert.upcycle", max_logit_error=0.3, kl_nats=None)
    text = text_of(page(tmp_path, changed(entries, "moe", result={"receipt": receipt})))
    assert "promises broken" in text and "was NOT preserved at step 0: the largest change of a logit is 0.300" in text
    assert "not a number 1.00 × 10⁻⁶ broken" in text and "promises kept" not in text


def test_weights_of_the_recipe_are_the_plan(tmp_path):
    entries = only(fake_run.stages(), "tokens", "dense")
    weights = {"library": 1, "tests": 1, "prose": 1, "docstrings": 1}
    text = text_of(page(tmp_path, changed(entries, "dense", config={"weights": weights})))
    assert "40.1 % planned 25.0 % · 481 k tokens" in text and "Without weights" not in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(MixwellError, match=r"run\.json is not there"):
        report.build(tmp_path, tmp_path / "report.html")
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(MixwellError, match="it holds list, expected keys and values"):
        report.build(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_a_browser_draws_it_without_errors(html, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    shown = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
         "--enable-logging=stderr", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=600, check=True)
    assert shown.stdout.count('class="readout"') == 3  # the script ran to its end: a read-out for each line chart
    assert "Uncaught" not in shown.stderr and "Refused to" not in shown.stderr
