"""Claims: declared, found, tuned, tried seed by seed, kept and gone on with; tables from what was kept."""

import json
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest

from mixwell import claims
from mixwell.claims import evidence, judging, pages, running, sources, work
from mixwell.claims.claim import Claim, Comparison, Side, Untestable, flat, no_worse
from mixwell.claims.grids import finer, variants
from mixwell.claims.record import TUNING_SEED, Record, Task, Trial
from mixwell.core import registry
from mixwell.core.errors import MixwellError

BETTER = {"method": [1.0, 1.1, 1.2, 1.0, 1.1, 1.2, 1.1, 1.0], "baseline": [1.5, 1.62, 1.69, 1.5, 1.6, 1.7, 1.6, 1.5]}


class AtOnce:
    """An executor that does everything in this process, at once."""

    def __init__(self):
        self.done = []

    def submit(self, function, task, folder):
        self.done.append(task)
        future = Future()
        future.set_result(function(task, folder))
        return future


@pytest.fixture
def fake(monkeypatch):
    """Put a claim's file into the catalogue: `fake(name, CLAIM=..., trial=...)`."""
    def put(name, **content):
        monkeypatch.setitem(sys.modules, f"mixwell.claims.{name}", SimpleNamespace(**content))
        return name

    monkeypatch.setattr(sources, "source", lambda name: "now")
    monkeypatch.setattr(work, "_bench", lambda folder: None)
    return put


def tried(names, folder, **options):
    """The efforts after a run, and the tasks that were done."""
    pool = AtOnce()
    chosen = running.efforts(names, folder)
    running.run(chosen, folder, jobs=2, pool=pool, **options)
    return chosen, pool.done


# what is declared

def test_claims_are_found_by_room_family_method_and_last_name():
    every = claims.names()
    assert every == sorted(every) and "experts.routers.hash" in every and not any("._" in name for name in every)
    assert claims.chosen([]) == every and claims.chosen(["experts.routers.hash"]) == ["experts.routers.hash"]
    assert claims.chosen(["experts.routers.top_k"]) == [n for n in every if claims.method_of(n).endswith("s.top_k")]
    assert claims.chosen(["entropy"]) == ["experts.analysis.entropy", "experts.balance.entropy",
                                          "experts.balance.entropy__batch"]
    assert set(claims.chosen(["experts.balance", "convert"])) == {
        name for name in every if name.startswith(("experts.balance.", "convert."))}
    with pytest.raises(MixwellError, match=r"Did you mean 'experts.routers.hash'\?"):
        claims.chosen(["experts.routers.hsh"])


def test_gains_are_paired_signed_and_shares_where_asked():
    values = {"method": [1.0, 2.0], "baseline": [2.0, 5.0], "method error": [3.0, 3.0], "k-means error": [2.0, 4.0]}
    assert Comparison().gains(values) == [1.0, 3.0]
    assert Comparison(lower_is_better=False, relative=True).gains(values) == [-0.5, -0.6]
    assert Comparison(quantity="error", baseline="k-means").gains(values) == [-1.0, 1.0]
    assert Comparison(baseline=2).gains(values) == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"gives no 'baseline error'; it gives method, .* Did you mean"):
        Comparison(quantity="error").gains(values)
    with pytest.raises(ValueError, match="baseline is zero"):
        Comparison(relative=True, baseline=0).gains(values)


def test_a_condition_needs_a_margin():
    assert no_worse("error", 0.02) == Comparison(quantity="error", at_least=-0.02, relative=True)
    assert no_worse("error", 3, relative=False, baseline="k-means").at_least == -3
    with pytest.raises(ValueError, match="margin is 0; expected how much worse"):
        no_worse("error", 0)


def measured(bench, seed, *, lr, width=1):
    return {"loss": lr * width, "accuracy": 1 - lr}


@pytest.mark.parametrize(("method", "baseline", "told"), [
    ({"lr": (1, 2, 3)}, {"lr": (1, 2, 3, 4)}, r"unequal tries: \{'method': 3, 'baseline': 4\}"),
    ({"lr": (1, 2, 3)}, {}, "the baseline has no grid"),
    ({"lr": (1, 2)}, {"lr": (1, 2)}, "the method has 2 learning rates; expected 3"),
])
def test_both_sides_are_tuned_alike(method, baseline, told):
    sides = {"method": Side(measured, {}, method), "baseline": Side(measured, {}, baseline)}
    with pytest.raises(ValueError, match=told):
        Claim("c", "m", sides=sides)


def test_settings_are_chosen_by_the_quantity_that_the_claim_names():
    found = {"loss": 0.3, "accuracy": 0.9}
    assert Claim("c", "m", quantity="loss").score(found) == 0.3
    by_accuracy = Claim("c", "m", quantity="loss", tuned_by="accuracy",
                        provided=(no_worse("accuracy", 0.1, lower_is_better=False),))
    assert by_accuracy.score(found) == -0.9


def test_grids():
    assert finer((0.001, 0.1), 3) == (0.001, 0.01, 0.1)
    assert variants({"k": 2}, rate=(1, 2), rule=("a",)) == ({"k": 2, "rate": 1, "rule": "a"},
                                                           {"k": 2, "rate": 2, "rule": "a"})
    side = Side(measured, {"width": 2, "lr": 7}, {"lr": (1, 2), "spec": ({"a": (1,)},)})
    assert side.settings() == [{"lr": 1, "spec": {"a": [1]}}, {"lr": 2, "spec": {"a": [1]}}]
    assert Side(measured, {"width": 2, "lr": 7})(None, 0, {"lr": 3}) == {"loss": 6, "accuracy": -2}


# what the numbers say

def test_an_outcome_comes_with_its_interval_and_words():
    found = judging.judged(Claim("c", "m"), BETTER, 8)
    assert found["outcome"] == "held" and found["note"] == "" and found["margin"] == 0.0 and found["seeds"] == 8
    assert found["interval"][0] < found["effect"] < found["interval"][1]
    against = judging.judged(Claim("c", "m", at_least=1.0), BETTER, 8)
    assert against["outcome"] == "contradicted"
    assert against["note"].startswith("Against it: method against baseline: gain +0.501 (+0.492 to +0.511), more than")
    open_still = judging.judged(Claim("c", "m", at_least=0.5), BETTER, 8)
    assert open_still["outcome"] == "undecided" and "Open after 8 seeds; more may decide" in open_still["note"]


def test_a_condition_takes_back_what_held():
    values = {**BETTER, "method error": [1.06, 1.05, 1.07] * 2 + [1.06, 1.06], "baseline error": [1.0] * 8}
    kept = judging.judged(Claim("c", "m", provided=(no_worse("error", 0.1),)), values, 8)
    assert kept["outcome"] == "held" and [one["outcome"] for one in kept["conditions"]] == ["held"]
    taken = judging.judged(Claim("c", "m", provided=(no_worse("error", 0.05),)), values, 8)
    assert taken["outcome"] == "contradicted" and taken["note"].startswith("Against it: error: gain −6.0")
    assert judging.judged(Claim("c", "m", provided=(no_worse("error", 0.06),)), values, 8)["outcome"] == "undecided"


# running

def test_a_claim_is_tried_to_its_first_look_and_decided(fake, tmp_path):
    name = fake("experts.good", CLAIM=Claim("A beats B.", "bits"),
                trial=lambda bench, seed: {"method": BETTER["method"][seed], "baseline": BETTER["baseline"][seed]})
    (effort,), done = tried([name], tmp_path)
    assert [task.seed for task in done] == list(range(8)) and effort.done
    kept = json.loads((tmp_path / "experts.good.json").read_text())
    assert kept["outcome"] == "held" and kept["values"] == BETTER and kept["tried"] == list(range(8))
    assert kept["rule"] == {"looks": [8, 12, 16, 24, 32], "level": 0.015, "comparisons": 1}
    assert kept["machine"]["cpu"] and kept["versions"]["torch"] and len(kept["date"]) == 10
    _, again = tried([name], tmp_path)
    assert again == [], "nothing is left to do"


def test_an_open_claim_goes_on_to_its_last_look(fake, tmp_path):
    name = fake("experts.open", CLAIM=Claim("A beats B.", "bits"),
                trial=lambda bench, seed: {"method": float(seed % 2), "baseline": 0.5})
    (effort,), done = tried([name], tmp_path)
    assert len(done) == 32 and effort.done
    kept = json.loads((tmp_path / "experts.open.json").read_text())
    assert kept["outcome"] == "undecided" and kept["seeds"] == 32 and "Open after all looks" in kept["note"]


def test_a_stopped_run_goes_on_where_it_was_and_a_stale_one_begins_anew(fake, tmp_path, monkeypatch):
    name = fake("experts.good", CLAIM=Claim("A beats B.", "bits"),
                trial=lambda bench, seed: {"method": 1.0 + seed, "baseline": 3.0 + seed})
    asked = []

    def stop(effort, task, done):
        asked.append(task.seed)
        if len(asked) == 4:
            monkeypatch.setattr(running.time, "monotonic", lambda: 10.0)

    monkeypatch.setattr(running.time, "monotonic", lambda: 0.0)
    tried([name], tmp_path, until=5.0, report=stop)
    kept = json.loads((tmp_path / "experts.good.json").read_text())
    assert kept["tried"] == [0, 1, 2, 3]
    assert kept["outcome"] == "to be run" and kept["note"] == "4 of 8 seeds are there."
    _, rest = tried([name], tmp_path)
    assert [task.seed for task in rest] == [4, 5, 6, 7]
    monkeypatch.setattr(sources, "source", lambda name: "changed")
    (stale,) = running.efforts([name], tmp_path)
    assert stale.record.seeds == 0 and stale.record.judged["outcome"] == "to be run"


def test_settings_are_tried_on_a_seed_of_their_own_and_the_best_are_kept(fake, tmp_path):
    seen = []

    def measure(bench, seed, *, lr, best):
        seen.append((seed, lr))
        return {"loss": abs(lr - best) + 0.001 * seed + (0.1 if best == 3 else 0.0), "speed": 2.0}

    grid = {"lr": (1, 2, 3)}
    name = fake("experts.tuned", CLAIM=Claim(
        "A beats B.", "loss", quantity="loss",
        sides={"method": Side(measure, {"best": 2}, grid), "baseline": Side(measure, {"best": 3}, grid)}))
    _, done = tried([name], tmp_path)
    assert [(task.side, task.setting["lr"]) for task in done[:6]] == [
        (side, lr) for side in ("method", "baseline") for lr in (1, 2, 3)]
    assert {seed for seed, _ in seen[:6]} == {TUNING_SEED}
    assert seen[6:8] == [(0, 2), (0, 3)] and TUNING_SEED not in {seed for seed, _ in seen[6:]}
    kept = json.loads((tmp_path / "experts.tuned.json").read_text())
    assert kept["tuning"]["baseline"]["chosen"] == {"lr": 3} and len(kept["tuning"]["method"]["tries"]) == 3
    assert kept["outcome"] == "held" and kept["values"]["method speed"] == [2.0] * 8
    entry = evidence.read_entry(tmp_path / "experts.tuned.json")
    claim = sys.modules["mixwell.claims.experts.tuned"].CLAIM
    back = evidence.entry(evidence.restored(entry, Record(name, claim, "now")))
    assert json.loads(evidence.text(back)) == kept


def test_a_broken_claim_is_told_and_the_rest_goes_on(fake, tmp_path):
    def trial(bench, seed):
        raise KeyError("x")

    claim = Claim("c", "m")
    broken = fake("experts.a", CLAIM=claim, trial=trial)
    endless = fake("experts.b", CLAIM=claim, trial=lambda bench, seed: {"method": float("nan"), "baseline": 1})
    good = fake("experts.c", CLAIM=claim, trial=lambda bench, seed: {"method": 1 + seed, "baseline": 3 + seed})
    first, second, third = tried([broken, endless, good], tmp_path)[0]
    assert first.broken == "KeyError: 'x'" and second.broken == "ValueError: method is nan; expected a finite number"
    assert third.record.judged["outcome"] == "held"
    assert [path.stem for path in tmp_path.iterdir()] == ["experts.c"]


def test_a_process_that_is_ended_from_outside_is_told_in_a_line_and_what_was_tried_is_kept(fake, tmp_path):
    class Ended(AtOnce):
        def submit(self, function, task, folder):
            if task.seed < 3:
                return super().submit(function, task, folder)
            future = Future()
            future.set_exception(BrokenProcessPool("terminated abruptly"))
            return future

    name = fake("experts.a", CLAIM=Claim("c", "m"), trial=lambda bench, seed: {"method": 1.0, "baseline": 2.0})
    with pytest.raises(MixwellError, match=r"a process ended while experts\.a was tried.*fewer --jobs"):
        running.run(running.efforts([name], tmp_path), tmp_path, jobs=1, pool=Ended())
    assert evidence.read_entry(tmp_path / "experts.a.json")["tried"] == [0, 1, 2]


def test_a_trial_may_find_that_nothing_can_be_tried(fake, tmp_path):
    def trial(bench, seed):
        raise Untestable("no expert is used")

    name = fake("experts.a", CLAIM=Claim("c", "m"), trial=trial)
    tried([name], tmp_path)
    kept = json.loads((tmp_path / "experts.a.json").read_text())
    assert kept["outcome"] == "not testable here" and kept["note"] == "no expert is used"
    assert tried([name], tmp_path)[1] == []


def test_near_looks_come_first_and_all_workers_have_work():
    first = running.Effort("a", Record("a", Claim("c", "m"), ""))
    second = running.Effort("b", Record("b", Claim("c", "m"), ""))
    for seed in range(8):
        first.record.trials[seed] = Trial({"method": seed % 2, "baseline": 0.5}, 2.0)
    found = running._next([first, second], 10, float("inf"))
    assert [(effort.name, task.seed) for effort, task in found] == [("b", s) for s in range(8)] + [("a", 8), ("a", 9)]
    assert running._next([first, second], 0, float("inf")) == running._next([first, second], 2, time.monotonic()) == []
    assert running.seconds_left([first, second], 2) == (4 + 8) * 2.0 / 2
    assert running.seconds_left([first, second], 2, looks=32) == (24 + 32) * 2.0 / 2
    assert running.seconds_left([second], 2) is None


@pytest.mark.slow
def test_work_is_done_in_other_processes_with_one_thread():
    with running._pool(None, 2) as pool:
        done = pool.submit(work.do, Task("experts.routers.none", 0), "/nowhere").result()
        threads = pool.submit(_threads).result()
    assert done.broken.startswith("ModuleNotFoundError") and threads == (1, "1")


def _threads():
    import os

    import torch

    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


# sources

@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small package: a claim, a helper, a method."""
    files = {
        "claims/experts/routers/a.py": "from mixwell.claims.help import used\nCLAIM = used(1)  # why\n",
        "claims/help.py": '"""Help."""\nSIZE = 3\n\ndef used(x):\n    """Words."""\n    return x + SIZE\n\n'
                          "def unused(x):\n    return x\n",
        "experts/routers/a.py": "from mixwell.experts.parts import part\nfrom mixwell.core.far import far\nA = part\n",
        "experts/parts.py": "part = 1\nother = 2\n", "core/far.py": "far = 1\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    forget()
    yield tmp_path
    forget()


def forget():
    """A process that goes on after a file changed reads it anew."""
    for read in (sources._body, sources._definitions, sources._said, sources._imports):
        read.cache_clear()


@pytest.mark.parametrize(("file", "old", "new", "stale"), [
    ("claims/help.py", "SIZE = 3", "SIZE = 4", True),
    ("claims/help.py", "return x + SIZE", "return x - SIZE", True),
    ("claims/help.py", "Words.", "Other words.", False),
    ("claims/help.py", "return x\n", "return -x\n", False),
    ("claims/experts/routers/a.py", "used(1)", "used(2)", True),
    ("claims/experts/routers/a.py", "# why", "# another reason", False),
    ("experts/routers/a.py", "A = part", "A = -part", True),
    ("experts/parts.py", "part = 1", "part = 7", True),
    ("experts/parts.py", "other = 2", "other = 7", False),
    ("core/far.py", "far = 1", "far = 2", False),
])
def test_what_a_claim_uses_makes_it_stale_and_nothing_else(checkout, file, old, new, stale):
    before = sources.source("experts.routers.a")
    path = checkout / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    forget()
    assert (sources.source("experts.routers.a") != before) is stale


# tables

def entries():
    held = {"claim": "A | B\nbeats C.", "metric": "bits", "seconds": 70.0, **judging.judged(Claim("c", "m"), BETTER, 8),
            "machine": {"cpu": "CPU"}, "versions": {"torch": "2.13"}}
    before = {"claim": "D.", "metric": "m", "outcome": "held", "effect": 1.0, "spread": 2.0}
    waiting = {"claim": "D.", "metric": "m", "outcome": "to be run", "seeds": 0, "note": "held under the old rule",
               "before": before}
    return {"density.x": held, "experts.y": {**held, "outcome": "contradicted", "note": "why"}, "experts.z": waiting}


def test_tables_are_made_from_the_entries():
    text = pages.page("experts", {k: v for k, v in entries().items() if k.startswith("experts")}).replace("\u202f", " ")
    assert "2 claims: 1 contradicted, 1 to be run." in text and "Measured on: CPU, torch 2.13." in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows[0] == (r"| `experts.y` | A \| B beats C. | **contradicted** | +0.501 (+0.492 to +0.511) | 0 | bits | 8 "
                       "| 1 min 10 s | why |")
    assert rows[1].startswith("| `experts.z` | D. | to be run |  |  | m |  |  | held under the old rule")


def test_the_readme_counts_by_room():
    text = f"before\n{pages.START}\nold\n{pages.END}\nafter\n"
    found = pages.filled(text, entries()).splitlines()
    assert found[:3] == ["before", pages.START,
                         "| room | held | contradicted | undecided | not testable here | to be run |"]
    assert found[4:7] == ["| [density](docs/evidence/density.md) | 1 | 0 | 0 | 0 | 0 |",
                          "| [experts](docs/evidence/experts.md) | 0 | 1 | 0 | 0 | 1 |", "| all | 1 | 1 | 0 | 0 | 1 |"]
    assert found[7:] == [pages.END, "after"]
    with pytest.raises(MixwellError, match="lacks the lines"):
        pages.filled("no marks", entries())


def test_numbers_of_a_trial_become_series():
    assert flat({"method": {"a": 1, "b": 2.5}, "k-means": 3}) == {"method a": 1.0, "method b": 2.5, "k-means": 3.0}
    assert evidence.text({"a": [1, 2], "b": {"c": [[1.5, 2], [3, 4]]}}).count("\n") < 12
