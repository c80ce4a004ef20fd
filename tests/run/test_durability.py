"""A crash at any step leaves the old state or the new one, whatever the disk was not yet told to keep."""

import os
import shutil

import pytest

from mixwell.core.errors import MixwellError
from mixwell.formats import sealed
from mixwell.report import records
from mixwell.run import engine, recipe, sizing, verify
from tests.run import tiny
from tests.run.disk import Disk, build

SHORT = "stages=[{id: dense, train: {tokens: 300}}, {id: moe, from: dense, convert: upcycle, num_experts: 2}]"


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    return recipe.read(tiny.recipe_file(tmp_path_factory.mktemp("recipe")), [SHORT])


@pytest.fixture(scope="module")
def watched(chosen, tmp_path_factory):
    """The stages of a run, and the disk that every step of it was noted by; neither is to be changed."""
    out = tmp_path_factory.mktemp("watched") / "run"
    out.mkdir()
    disk = Disk(out)
    with pytest.MonkeyPatch.context() as patch, disk.watching(patch):
        engine.run(chosen, out)
    return engine.plan(chosen, out, predict=False), disk


def bits(planned):
    """Stage -> what later stages read of it."""
    return {p.stage.id: records.read_stage(p.folder).bits for p in planned}


def crashes(disk):
    """Every state that a crash can leave, each once."""
    seen = []
    for step, now, synced in disk.crashes:
        for content in (now, synced):
            if content not in seen:
                seen.append(content)
                yield step, content


def standing(run, planned):
    """Stages that count as finished; a damaged one is none."""
    return {p.stage.id: p for p in planned if verify.standing(run / "stages" / p.folder.name, p.key).record is not None}


@pytest.mark.slow
def test_after_a_crash_at_any_step_of_a_run_what_counts_as_finished_is_whole(watched, tmp_path):
    planned, disk = watched
    after, final = tmp_path / "after", bits(planned)
    assert len(final) == 6 and len(disk.crashes) > 100
    counts = set()
    for step, content in crashes(disk):
        build(content, after)
        there = standing(after, planned)
        counts.add(len(there))
        for id, one in there.items():
            record = records.read_stage(after / "stages" / one.folder.name)
            assert record.bits == final[id] and not list(verify.damages(record)), f"{id} after {step}"
        if (after / records.RUN).exists():
            assert len(there) == len(final), f"run.json names what is not there, after {step}"
            assert [stage.id for stage in records.read_run(after).stages] == list(final)
    assert counts == {0, 1, 2, 3, 4, 5, 6}, "a crash between any two stages was tried"


def test_what_was_synced_only_grows(watched, tmp_path):
    """Once a stage lasts it lasts: nothing that a later step does may take it away."""
    planned, disk = watched
    after, most = tmp_path / "after", 0
    for step, _, synced in disk.crashes[:: max(1, len(disk.crashes) // 40)]:
        build(synced, after)
        there = len(standing(after, planned))
        assert there >= most, f"a finished stage was lost after {step}"
        most = there
    build(disk.crashes[-1][2], after)
    assert len(standing(after, planned)) == len(planned)


@pytest.mark.slow
def test_a_run_that_a_crash_ended_anywhere_ends_with_the_same_bits(chosen, watched, tmp_path):
    planned, disk = watched
    after, final = tmp_path / "after", bits(planned)
    states = list(crashes(disk))
    left = [at for at, (_, content) in enumerate(states) if any(name.startswith(".run.json") for name in content)]
    for at in {*range(0, len(states), len(states) // 6), left[0]}:
        build(states[at][1], after)
        engine.run(chosen, after)
        assert bits(engine.plan(chosen, after, predict=False)) == final
        assert not list(after.glob("stages/.*")) and not list(after.glob(".*.tmp"))


WRITERS = {
    "stage.json": lambda run, other: records.write_stage(other),
    "run.json": lambda run, other: records.write_run(records.RunRecord(name="other", stages=(other,), folder=run)),
    "size.json": lambda run, other: sealed.write(run / sizing.FILE, {"key": "other", "minutes": 1.0}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_record_is_the_old_one_or_the_new_one_at_every_step(tmp_path, monkeypatch, name):
    run, after = tmp_path / "run", tmp_path / "after"
    stage = records.StageRecord(id="a", kind="data", method="data", key="0" * 64, folder=run / "stages" / "a-00000000")
    stage.folder.mkdir(parents=True)
    records.write_stage(stage)
    records.write_run(records.RunRecord(name="old", stages=(stage,), folder=run))
    sealed.write(run / sizing.FILE, {"key": "old", "minutes": 1.0})
    place = {"stage.json": "stages/a-00000000/stage.json"}.get(name, name)
    old = (run / place).read_bytes()
    disk = Disk(run)
    with disk.watching(monkeypatch):
        WRITERS[name](run, records.replace(stage, seconds=2.0))
    new, seen = (run / place).read_bytes(), set()
    assert new != old
    for step, content in crashes(disk):
        build(content, after)
        found = (after / place).read_bytes()
        assert found in (old, new), f"neither old nor new after {step}"
        seen.add(found)
        try:
            sealed.read(after / place, "")
        except MixwellError as error:
            raise AssertionError(step) from error
    assert seen == {old, new}
    build(disk.crashes[-1][2], after)
    assert (after / place).read_bytes() == new, "what is written lasts"


def test_the_disk_forgets_what_was_not_synced(tmp_path, monkeypatch):
    """The test's own tool: a file written and renamed without being synced is empty or missing after a crash."""
    run, after = tmp_path / "run", tmp_path / "after"
    run.mkdir()
    disk = Disk(run)
    with disk.watching(monkeypatch):
        (run / "a").write_text("new")
        os.replace(run / "a", run / "b")
    states = [content for _, content in crashes(disk)]
    assert {"b": b""} in states and {} in states and not any(b"new" in state.values() for state in states)
    build({"b": b"", "c": None, "c/d": b"x"}, after)
    assert (after / "c" / "d").read_bytes() == b"x"
    shutil.rmtree(after)
