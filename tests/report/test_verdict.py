"""Who won at an equal budget: sides over seeds, clear wins, ties, one seed, budgets that nobody shares."""

import shlex
from dataclasses import replace

import pytest
import yaml
from scipy import stats

from mixwell.report import settle
from mixwell.report.headline import answer, answer_lines, headline, sentences, verdicts_of
from mixwell.report.records import read_run
from mixwell.report.sides import branch_ends, held_out_gap, name_clashes, sides
from mixwell.report.verdict import NEAR, equals, judge
from tests.report import fake_run


def run_of(folder, scores, **spent):
    return read_run(fake_run.write(folder, fake_run.seeded(scores, **spent)))


def words(run):
    return " ".join(sentences(verdicts_of(sides(run)))).replace("\u202f", " ")


DENSE, MOE = [1.60, 1.64, 1.62], [1.57, 1.60, 1.59]


def test_a_win_over_seeds_agrees_with_scipy(tmp_path):
    run = run_of(tmp_path, {"dense": DENSE, "moe": MOE})
    (verdict,) = judge(sides(run), "tokens")
    low, high = stats.ttest_1samp([1 - m / d for m, d in zip(MOE, DENSE)], 0).confidence_interval()
    (gain,) = verdict.gains
    assert verdict.won and [s.name for s in verdict.ranked] == ["moe", "dense"]
    assert (gain.low, gain.high) == (pytest.approx(low), pytest.approx(high)) and low > 0 and verdict.seeds == 3
    assert words(run) == (
        f"moe won at equal tokens, at equal FLOPs and at equal seconds: moe is lower than dense by "
        f"{100 * gain.mean:.2f} % in bits per byte of held-out text (95 % interval {100 * low:.2f} to "
        f"{100 * high:.2f} %, 3 seeds).")


def test_seeds_that_disagree_leave_no_winner(tmp_path):
    run = run_of(tmp_path, {"dense": [1.60, 1.60], "moe": [1.50, 1.61]})
    (verdict,) = judge(sides(run), "tokens")
    assert not verdict.won and verdict.gains[0].mean > 0
    assert "No clear difference at equal tokens" in words(run) and "within the noise (95 % interval −" in words(run)
    assert "won" not in words(run)


def test_one_seed_names_no_winner_however_large_the_gap(tmp_path):
    run = run_of(tmp_path, {"dense": [2.0], "moe": [1.0]})
    assert words(run).startswith("One seed at equal tokens, at equal FLOPs and at equal seconds: moe is lower than "
                                 "dense by 50.00 %")
    other = run_of(tmp_path / "b", {"dense": DENSE, "moe": [1.0]})
    assert judge(sides(other), "tokens")[0].seeds == 1  # seed 0 is the only pair


def test_without_a_common_seed_nothing_is_paired(tmp_path):
    made = fake_run.seeded({"dense": [1.6, 1.61], "moe": [1.0, 1.01]})
    for seed in (0, 1):
        made = fake_run.changed(made, f"moe-s{seed}", seed=seed + 5)
    run = read_run(fake_run.write(tmp_path, made))
    assert words(run).startswith("No seed in common at equal tokens") and judge(sides(run), "tokens")[0].seeds == 0


def test_every_other_side_must_be_beaten(tmp_path):
    run = run_of(tmp_path, {"dense": DENSE, "moe": MOE, "third": [m + e for m, e in zip(MOE, (0.01, -0.008, 0.001))]})
    (verdict,) = judge(sides(run), "tokens")
    assert len(verdict.ranked) == 3 and not verdict.won
    assert verdict.unclear.low < 0 < verdict.gains[1].low


def test_only_equal_budgets_are_compared(tmp_path):
    """dense-long has the mixture's time, dense its tokens and its FLOPs: each budget has its own pair."""
    scores = {"dense": DENSE, "dense-long": [1.5, 1.5, 1.5], "moe": MOE}
    run = run_of(tmp_path, scores, tokens={"dense-long": 2_000_000}, seconds={"moe": 41.0})
    pairs = {b: [{s.name for s in v.ranked} for v in judge(sides(run), b)] for b in ("tokens", "flops", "seconds")}
    assert pairs == {"tokens": [{"dense", "moe"}], "flops": [{"dense", "moe"}], "seconds": [{"dense-long", "moe"}]}
    assert "moe won at equal tokens and at equal FLOPs" in words(run)
    assert "dense-long won at equal seconds" in words(run)


@pytest.mark.parametrize(("share", "equal"), [(0.9 * NEAR["seconds"], True), (1.1 * NEAR["seconds"], False)])
def test_budgets_are_equal_to_a_few_per_cent(tmp_path, share, equal):
    run = run_of(tmp_path, {"dense": DENSE, "moe": MOE}, seconds={"moe": 20.0 * (1 + share)})
    (verdict,) = judge(sides(run), "seconds")
    assert bool(verdict.ranked) == equal
    if not equal:
        assert verdict.obstacle == "no two sides spent equally many seconds (dense 20.0\u202fs, moe 22.2\u202fs)"


def test_a_side_that_is_better_for_less_is_told_but_not_called_the_winner(tmp_path):
    run = run_of(tmp_path, {"dense": [1.5, 1.51], "moe": [1.6, 1.61]}, seconds={"moe": 25.0})
    (verdict,) = judge(sides(run), "seconds")
    words = "; with 20 % fewer than moe, dense is lower all the same, by 6.23 %"
    assert verdict.obstacle.replace("\u202f", " ").endswith(words) and not verdict.won and not verdict.ranked
    dearer = run_of(tmp_path / "b", {"dense": [1.5], "moe": [1.6]}, seconds={"dense": 25.0})
    assert "all the same" not in judge(sides(dearer), "seconds")[0].obstacle


def test_two_sets_of_equal_budgets_have_two_verdicts(tmp_path):
    run = run_of(tmp_path, {"a": [1.6], "b": [1.5], "c": [1.4], "d": [1.3]}, tokens={"c": 4_000_000, "d": 4_000_000})
    assert [[s.name for s in group] for group in equals(sides(run), "tokens")] == [["a", "b"], ["c", "d"]]
    assert [v.ranked[0].name for v in judge(sides(run), "tokens")] == ["b", "d"]


def test_a_step_on_the_way_to_a_side_is_not_held_against_it(tmp_path):
    made = fake_run.seeded({"dense": [1.6], "moe": [1.5]})
    more = fake_run.training("longer", "dense-s0", fake_run.curve(4, 3, 20_000, 12, 2e-5), 1.59, config={"mark": "l"})
    found = sides(read_run(fake_run.write(tmp_path, [*made, more])))
    assert [s.name for s in found] == ["dense", "moe", "longer"]
    assert found[2].spent["tokens"] == 1_020_000 and found[2].builds_on(found[0])
    assert [[s.name for s in group] for group in equals(found, "tokens")] == [["moe", "longer"]]


def test_sides_are_trainings_that_differ_only_by_seed(tmp_path):
    made = fake_run.seeded({"dense": [1.6, 1.7], "moe": [1.5, 1.4]})
    made = fake_run.changed(made, "moe-s1", side="moe", config={"lr": 1.0})  # another learning rate: not the same thing
    found = sides(read_run(fake_run.write(tmp_path, made)))
    assert [(s.name, list(s.ends)) for s in found] == [("dense", [0, 1]), ("moe-s0", [0]), ("moe-s1", [1])]
    assert name_clashes(found) == ["moe"] and found[0].scores == {0: 1.6, 1: 1.7}


def test_the_same_training_twice_is_two_sides(tmp_path):
    made = fake_run.changed(fake_run.seeded({"dense": [1.6, 1.7]}), "dense-s1", seed=0)
    assert [s.name for s in sides(read_run(fake_run.write(tmp_path, made)))] == ["dense-s0", "dense-s1"]


def test_what_all_branches_share_counts_for_none(tmp_path):
    run = read_run(fake_run.write(tmp_path, fake_run.stages()))
    assert [s.id for s in branch_ends(run)] == ["moe-trained", "dense-trained"]
    found = sides(run)
    assert [s.name for s in found] == ["moe-trained", "dense-trained"]
    assert found[1].spent["tokens"] == 2_000_000 and found[0].is_mixture and not found[1].is_mixture


def test_the_trainings_of_a_side_add_up(tmp_path):
    run = read_run(fake_run.write(tmp_path, fake_run.stages()))
    first = fake_run.training("half", "dense", fake_run.curve(3, 2.7, 1_000_000, 1.2e7, 2.2e-5), 1.8)
    halves = fake_run.changed([*fake_run.stages(), first], "dense-trained", inputs=("half", "tokens", "tokenizer"))
    order = [s.id for s in run.stages]
    halves.insert(order.index("dense-trained"), halves.pop())
    found = {s.name: s for s in sides(read_run(fake_run.write(tmp_path / "b", halves)))}
    assert found["dense-trained"].spent["tokens"] == 3_000_000 and found["half"].spent["tokens"] == 1_000_000


def test_a_single_side_and_a_side_without_evaluation_have_obstacles(tmp_path):
    run = run_of(tmp_path, {"dense": DENSE})
    assert words(run) == "There is no winner to name: there is one side only."
    made = [(replace(r, evaluation={}) if r.id == "moe-s0" else r, lines)
            for r, lines in fake_run.seeded({"dense": [1.6], "moe": [1.5]})]
    run = read_run(fake_run.write(tmp_path / "b", made))
    assert "no held-out text was read for moe" in words(run)


def test_a_run_without_training_has_no_headline(tmp_path):
    run = read_run(fake_run.write(tmp_path, fake_run.base()))
    assert headline(run) == {} and answer(run).sentences == () and answer_lines(tmp_path) == []


def test_the_gap_to_training_text_weighs_domains_as_they_were_drawn(tmp_path):
    run = run_of(tmp_path, {"dense": [1.6]})
    stage = run["dense-s0"]
    held = sum(stage.result["ledger"][d] * stage.evaluation["loss_nats"][d] for d in fake_run.DOMAINS)
    last = [line["loss_nats"] for line in stage.metrics[-5:]]  # a tenth of fifty lines
    expected = held / sum(stage.result["ledger"].values()) - sum(last) / 5
    assert held_out_gap(stage) == pytest.approx(expected)


def test_costs_and_the_best_model_are_in_the_answer(tmp_path):
    found = answer(read_run(fake_run.write(tmp_path, fake_run.stages())))
    dense, moe = sorted(found.costs, key=lambda cost: cost.parameters)
    assert found.reference == "dense-trained" == dense.side and dense.time_factor == dense.flops_factor == 1
    assert moe.time_factor == pytest.approx(4.6 / 2.2) and moe.flops_factor == pytest.approx(1.9 / 1.2)
    assert (moe.parameters, moe.active) == (14_172_416, 6_299_904)
    assert found.model.name == "model" and found.model.parent.name.startswith("moe-trained-")
    text = "\n".join(answer_lines(tmp_path)).replace("\u202f", " ")
    assert "moe-trained: 14.2 M parameters, 6.30 M active; a training token takes 46.0 µs, 2.1 times " in text
    assert "none of 32 experts is dead (under 25 % of an even load" in text
    assert f"next: mixwell apply experts.analysis.load --in {found.model}" in text


def test_dead_experts_are_told(tmp_path):
    load = fake_run.loads(layers=2, dead=(3,))
    made = fake_run.changed(fake_run.stages(), "moe-trained", evaluation={"load": load})
    found = answer(read_run(fake_run.write(tmp_path, made)))
    assert "2 of 16 experts are dead" in found.experts and found.experts.endswith("layer 0: 3; layer 1: 3.")


def test_the_command_that_settles_names_what_sets_the_sides_apart(tmp_path):
    run = read_run(fake_run.write(tmp_path / "my runs", fake_run.stages()))
    (line, *_) = answer(run).commands
    assert shlex.split(line) == [
        "mixwell", "compare", str(tmp_path / "my runs" / "recipe.yaml"), "--vary", "dense-trained.from=dense,moe",
        "--stage", "dense-trained", "--budget", "tokens=2000000", "--seeds", "3"]


def test_one_option_that_differs_is_varied_and_two_are_not(tmp_path):
    stages = [{"id": f"{side}-s0", "train": {"tokens": "1M"}} for side in ("slow", "fast")]
    made = fake_run.seeded({"slow": [1.6], "fast": [1.5]})
    run = read_run(fake_run.write(tmp_path, made, recipe={"name": "r", "stages": stages}))
    slow, fast = sides(run)
    assert "--vary fast-s0.mark=slow,fast " in settle.command(run, fast, slow, "tokens", 1)
    assert settle.command(run, fast, slow, "seconds", 4).endswith("--budget seconds=20 --seeds 8")
    other = fake_run.changed(made, "fast-s0", config={"lr": 1.0})
    run = read_run(fake_run.write(tmp_path / "b", other, recipe={"name": "r", "stages": stages}))
    assert settle.command(run, *reversed(sides(run)), "tokens", 1) == ""


def test_a_budget_without_equals_asks_for_a_longer_training(tmp_path):
    stages = [{"id": "dense-s0", "from": "x", "train": {"flops": "1T", "lr": 1e-3}}, {"id": "dense-s1", "seed": 1,
              "side": "dense", "train": None, "tokens": "1M"}, {"id": "moe-s0", "train": {"tokens": "1M"}}]
    made = fake_run.seeded({"dense": [1.6, 1.7], "moe": [1.5]}, seconds={"moe": 50.0})
    run = read_run(fake_run.write(tmp_path, made, recipe={"name": "r", "stages": stages}))
    first, second = answer(run).remedies["seconds"]
    train = {"lr": 1e-3, "tokens": 2_500_000}
    assert yaml.safe_load(first) == [{"id": "dense-seconds-s0", "from": "x", "train": train}]
    assert yaml.safe_load(second) == [{"id": "dense-seconds-s1", "seed": 1, "train": {"tokens": 2_500_000}}]
    assert set(answer(run).remedies) == {"seconds"}
