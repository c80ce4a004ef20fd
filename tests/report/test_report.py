"""The report of a run: its figures are the run's, its verdicts right, its text escaped, its parts optional."""

import json
import re
import shutil
import subprocess

import pytest

from mixwell.core.errors import MixwellError
from mixwell.report import page as report
from mixwell.report.headline import branch_curve, held_out
from mixwell.report.run_folder import read_run
from tests.report import fake_run
from tests.report.pages import balanced, text_of


def page(folder, entries, **record):
    return report.build(fake_run.write(folder, entries, **record), folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return page(tmp_path_factory.mktemp("run"), fake_run.stages())


def only(entries, *ids):
    return [(entry, lines) for entry, lines in entries if entry["id"] in ids]


def test_the_page_is_whole_and_reaches_for_nothing(html):
    parsed = balanced(html)
    assert parsed.outside == []
    assert not re.search(r"(https?:)?//[a-z]|@import|url\(|fetch\(|XMLHttpRequest|import\(", html)
    assert len(html) < 300_000
    anchors = set(re.findall(r'href="#([^"]+)"', html))
    assert anchors == set(report.TITLES) and anchors <= set(parsed.ids)


def test_the_headline_names_a_winner_at_each_budget(html):
    text = text_of(html)
    assert "moe-trained won at equal tokens and at equal FLOPs; dense-trained won at equal seconds." in text
    assert "At equal tokens · 2.00 M each" in text and "At equal FLOPs · 24.0 TFLOP each" in text
    assert "At equal seconds · 44.0 s each" in text
    assert "2.350" in text or "2.349" in text
    assert ("after the same number of tokens: moe-trained 1.570, dense-trained 1.620 bits per byte; "
            "moe-trained is 3.09 % lower than dense-trained, lower in 4 of 4 domains." in text)
    assert "budgets count from dense, which all branches share" in text and "one seed" in text


def test_figures_of_the_stages_are_on_the_page(html):
    text = text_of(html)
    for figure in ("1.270", "2.070", "2.010", "1.570", "−21.89 % (moe)", "+0.00 % (dense)",  # bits per byte
                   "tokens read 3.00 k 3.00 k", "Split: library by file; tests by file",
                   "14.2 M parameters (6.30 M active) · 2.00 M tokens · key 00000006",
                   "3.60 MB", "188 kB", "1.08 M", "3.41", "9.00 MB",  # data
                   "40.1 % planned 40.0 % · 802 k tokens",  # ledger
                   "3.20 × 10⁻⁶ 1.00 × 10⁻⁴ kept", "3.2145 3.2147 +0.0002",  # receipts
                   "56.7 MB 14.6 MB × 0.258", "32.0 8.24 × 0.258",
                   "38.0 TFLOP 36.0 TFLOP", "812 MB 900 MB", "1 min 39 s 1 min 28 s",  # actual, predicted
                   "AMD EPYC 9R14", "8.21 GB", "2.13.0", "seeds 0", "4 min 03 s in all", "tokens: 1200000"):
        assert figure in text, figure
    assert "The function was preserved at step 0: the largest change of a logit is 3.20 × 10⁻⁶" in text
    assert "This conversion does not promise to preserve the function" in text


def test_the_data_section_tells_what_was_read_and_how_much_was_held_out(tmp_path):
    entries = fake_run.stages()
    result = entries[0][0]["result"]
    result["notices"] = ["library: 4.00 MB of 33.0 MB read (data.max_bytes)."]
    result["domains"]["library"] |= {"found_bytes": 33_000_000, "held_share": 0.0496}
    entries[4][0]["result"]["notices"] = ["tests: read 5 times <over>."]
    html = page(tmp_path, entries)
    balanced(html)
    text = text_of(html)
    assert "domain documents there to train on held out share held out tokens to train on" in text
    assert "library 40 33.0 MB 3.60 MB 188 kB 5.0 %" in text
    assert "library: 4.00 MB of 33.0 MB read (data.max_bytes). dense: tests: read 5 times <over>. Split:" in text


def test_each_line_begins_where_its_parent_ended(html):
    chart = re.search(r'data-x="tokens">.*?</svg>', html, re.S).group()
    lines = {name: [tuple(map(float, p.split(","))) for p in path.split()]
             for path, name in re.findall(r'<polyline class="s\d" points="([^"]*)" data-name="([^"]*)"', chart)}
    assert set(lines) == {"dense", "moe-trained", "dense-trained"}
    first = 1000 * 1.2e6 / 3.2e6  # dense's share of all tokens
    assert lines["dense"][-1][0] == pytest.approx(first, abs=3)
    assert lines["moe-trained"][0][0] == pytest.approx(first, abs=4)
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


def test_a_tie_is_no_clear_difference(tmp_path):
    entries = fake_run.stages(dense_floor=2.35, dense_mean=1.571, moe_floor=2.3501)
    text = text_of(page(tmp_path, entries))
    assert "No clear difference at equal tokens" in text and "within the noise" in text


def test_held_out_text_that_contradicts_withdraws_the_winner_at_equal_tokens(tmp_path):
    text = text_of(page(tmp_path, fake_run.stages(dense_mean=1.5, moe_mean=1.6)))
    assert "Training loss favours moe-trained, held-out text dense-trained: neither is called the winner." in text
    assert text.count("moe-trained won") == 2  # the sentence and the card at equal FLOPs, where nothing was held out


def test_missing_figures_are_named(tmp_path):
    entries = fake_run.stages()
    for entry, lines in entries:
        if entry["id"] == "dense-trained":
            entry["result"].pop("flops")
            for line in lines:
                line["flops"] = None
    text = text_of(page(tmp_path, entries))
    assert "no comparison was possible at equal FLOPs" in text
    assert "Of 4 points of loss against FLOPs that are needed, dense-trained recorded none." in text


def test_the_stages_of_a_branch_add_up(tmp_path):
    """dense-trained in two halves is the same branch: same budget, same loss at its end."""
    entries = fake_run.stages()
    at = next(i for i, (entry, _) in enumerate(entries) if entry["id"] == "dense-trained")
    whole, lines = entries[at]
    halves = [lines[:100], [{**line, **{k: line[k] - lines[99][k] for k in ("tokens", "flops", "seconds")}}
                            for line in lines[100:]]]
    first = {**whole, "id": "first-half", "key": "f", "result": fake_run.train_result(halves[0], 1)}
    second = {**whole, "inputs": ["first-half", "tokens"], "result": fake_run.train_result(halves[1], 1)}
    entries[at:at + 1] = [(first, halves[0]), (second, halves[1])]
    run = read_run(fake_run.write(tmp_path, entries))
    ends = run.branch_ends()
    assert [s.id for s in ends] == ["moe-trained", "dense-trained"]
    curve = branch_curve(run, ends[1], ends)
    for budget in ("tokens", "flops", "seconds"):
        assert curve.spent[budget] == pytest.approx([line[budget] for line in lines], rel=1e-9)
    assert curve.loss == [line["loss_nats"] for line in lines]
    assert "after the same number of tokens" in held_out(run, ends)


def test_one_branch_has_nobody_to_beat(tmp_path):
    html = page(tmp_path, only(fake_run.stages(), "data", "tokenizer", "tokens", "model", "dense"))
    assert "There is no winner to name: there is one branch only." in text_of(html) and 'class="card"' not in html


def test_branches_with_different_tokenizers_are_not_compared(tmp_path):
    entries = fake_run.stages()
    other = {**dict(entries[1][0]), "id": "other"}
    for entry, _ in entries:
        if entry["id"] == "dense-trained":
            entry["inputs"] = ["model", "tokens", "other"]
        if entry["id"] == "model":
            entry["inputs"] = []
        if entry["id"] == "tokens":
            entry["inputs"] = ["data"]
    text = text_of(page(tmp_path, [*entries[:2], (other, []), *entries[2:]]))
    assert "There is no winner to name: the branches use different tokenizer stages" in text


@pytest.mark.parametrize(("left_out", "section"), [
    ({"moe", "moe-trained", "moe-int8"}, {"experts", "receipts"}), ({"samples"}, {"samples"}),
    ({"data", "tokens", "tokenizer"}, set()), ({"dense", "moe-trained", "dense-trained"}, {"loss"})])
def test_missing_parts_are_left_out(tmp_path, left_out, section):
    entries = [(e, lines) for e, lines in fake_run.stages() if e["id"] not in left_out]
    html = page(tmp_path, entries)
    ids = set(balanced(html).ids)
    assert not section & ids and (set(report.TITLES) - section) - ids <= {"data"}
    for name in section:
        assert f'href="#{name}"' not in html


def test_an_empty_run_is_still_a_page(tmp_path):
    text = text_of(page(tmp_path, [], recipe=None, machine=None, versions=None, seeds=None))
    assert "default" in text and "Lineage" not in text
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "run.json").write_text("{}")
    assert "bare" in text_of(report.build(bare, bare).read_text())


def test_one_domain_and_an_evaluate_stage(tmp_path):
    tokens, dense = only(fake_run.stages(), "tokens", "dense")
    tokens[0]["result"] = {"domains": {"library": {"train_tokens": 1000}}}
    dense[0]["result"]["ledger"] = {"library": 1000}
    dense[0]["evaluation"] = {"bits_per_byte": {"library": 1.7}}
    again = {"id": "again", "stage": "evaluate", "method": "evaluate", "inputs": ["dense", "tokens"],
             "result": {"bits_per_byte": {"library": 1.5}, "mean": 1.6}}
    html = page(tmp_path, [tokens, dense, (again, [])])
    text = text_of(html)
    assert "dense 1.700 1.700" in text and "again 1.500 1.600 −5.88 % (dense)" in text
    assert 'class="total"' not in html


def test_dead_and_dominating_experts_are_warned_of(tmp_path):
    entries = only(fake_run.stages(), "data", "tokens", "dense", "moe", "moe-trained")
    load = fake_run.loads(layers=2, dead=(3, 5))
    load["1"] = {d: [0.93, *[0.01] * 7] for d in fake_run.DOMAINS}
    entries[-1][0]["evaluation"]["load"] = load
    text = text_of(page(tmp_path, entries))
    assert "Layer 0: experts 3, 5 are dead (under 5 % of an even share)." in text
    assert "Layer 1: expert 0 dominates with 93 % of the load, 7.4 times an even share." in text
    assert "0.862" in text  # relative entropy of six even experts of eight: ln 6 / ln 8


def test_loads_that_sum_to_k_are_shares_all_the_same(tmp_path):
    entries = fake_run.stages()
    twice = {layer: {d: [2 * v for v in p] for d, p in by.items()} for layer, by in fake_run.loads(tilt=0.6).items()}
    halves = page(tmp_path / "a", entries)
    for entry, _ in entries:
        if entry["evaluation"].get("load") and entry["id"] != "moe":
            entry["evaluation"]["load"] = twice
    assert page(tmp_path / "b", entries) == halves


def test_a_broken_promise_is_said_loudly(tmp_path):
    entries = only(fake_run.stages(), "dense", "moe")
    entries[1][0]["result"]["receipt"] = fake_run.receipt("convert.upcycle", max_logit_error=0.3, kl_nats=None)
    text = text_of(page(tmp_path, entries))
    assert "promises broken" in text and "was NOT preserved at step 0: the largest change of a logit is 0.300" in text
    assert "not a number 1.00 × 10⁻⁶ broken" in text and "promises kept" not in text


def test_unfinished_stages_are_named(tmp_path):
    entries = fake_run.stages()
    text = text_of(page(tmp_path, entries[:6], stages=[e["id"] for e, _ in entries]))
    assert "This run is not finished: moe-trained, dense-trained, moe-int8, samples left nothing to show" in text


def test_weights_of_the_recipe_are_the_plan(tmp_path):
    entries = only(fake_run.stages(), "tokens", "dense")
    entries[1][0]["config"] = {"weights": {"library": 1, "tests": 1, "prose": 1, "docstrings": 1}}
    text = text_of(page(tmp_path, entries))
    assert "40.1 % planned 25.0 % · 481 k tokens" in text and "Without weights" not in text


def test_the_run_is_found_by_key_and_damaged_lines_are_skipped(tmp_path):
    entries = only(fake_run.stages(), "dense")
    folder = fake_run.write(tmp_path, entries, stages=[{"id": "dense", "key": entries[0][0]["key"]}])
    older = folder / "stages" / "dense-ffffffff"
    older.mkdir()
    (older / "stage.json").write_text(json.dumps({"id": "dense", "result": {"tokens": 5}}))
    metrics = next(folder.glob("stages/dense-0*/metrics.jsonl"))
    again = json.dumps({"step": 1000, "loss_nats": 9.0, "tokens": 1_200_000})
    metrics.write_text(f'{metrics.read_text()}{again}\n{{"step": 10')
    (stage,) = read_run(folder).stages
    assert stage.result["tokens"] == 1_200_000 and len(stage.metrics) == 200
    assert stage.metrics[-1]["loss_nats"] == 9.0  # a step written twice counts once, as written last


def test_branches_and_parents(tmp_path):
    run = read_run(fake_run.write(tmp_path, fake_run.stages()))
    assert [s.id for s in run.branch_ends()] == ["moe-trained", "dense-trained"]
    assert run.parent(run["moe-trained"]).id == "moe" and run.parent(run["tokens"]).id == "tokenizer"
    assert [s.id for s in run.ancestors(run["moe"])] == ["data", "tokenizer", "model", "tokens", "dense", "moe"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(MixwellError, match=r"run\.json is not there"):
        report.build(tmp_path, tmp_path / "report.html")
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(MixwellError, match="holds list, expected the record of a run"):
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
