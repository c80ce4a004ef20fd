"""The data stage: what a cap lets in, what is held out, and what is told of both."""

import json
import random

import pytest

from mixwell.core import units
from mixwell.core.errors import MixwellError
from mixwell.run.stages import Job, Stage, text
from mixwell.run.stages.text import DataConfig, data_fingerprint, read_splits, run_data
from mixwell.run.stages.train import repeated


def ran(folder, **options):
    """The result of a data stage, and its splits."""
    folder.mkdir(exist_ok=True)
    stage = Stage(id="data", kind="data", method="data", config=DataConfig(**options))
    result = run_data(Job(stage=stage, folder=folder, work=folder, inputs={}, progress=lambda share, words: None))
    assert json.loads(json.dumps(result)) == result
    return result, read_splits(folder)


def corpus(folder, sizes):
    folder.mkdir()
    draws = random.Random(len(sizes))
    for number, size in enumerate(sizes):
        (folder / f"{number:04d}.txt").write_text(f"{number} " + "".join(draws.choices("abcdefg \n", k=size)))
    return folder


def test_text_above_the_cap_is_held_out_as_asked(tmp_path):
    texts = corpus(tmp_path / "texts", [330] * 1000)
    result, splits = ran(tmp_path / "out", domains={"wiki": str(texts)}, max_bytes=40_000)
    wiki = result["domains"]["wiki"]
    there = sum(path.stat().st_size for path in texts.iterdir())
    read = wiki["train_bytes"] + wiki["held_bytes"]
    assert wiki["found_bytes"] == there and 39_600 < read <= 40_000
    assert 0.025 <= wiki["held_share"] <= 0.075
    assert wiki["held_share"] == wiki["held_bytes"] / read == splits["wiki"].held_share
    assert result["notices"] == [f"wiki: {units.si(read, 'B')} of {units.si(there, 'B')} read (data.max_bytes)."]


def test_nothing_is_told_where_all_is_as_asked(tmp_path):
    texts = corpus(tmp_path / "texts", [300] * 200)
    result, _ = ran(tmp_path / "out", domains={"a": str(texts)}, held_out=0.1)
    assert result["notices"] == []
    assert result["domains"]["a"]["documents"] == 200


def test_what_is_left_out_and_what_is_cut_is_told(tmp_path):
    texts = corpus(tmp_path / "texts", [90_000, 300])
    (texts / "copy.txt").write_text((texts / "0001.txt").read_text())
    (texts / "a.png").write_bytes(b"\0")
    result, splits = ran(tmp_path / "out", domains={"a": str(texts), "b": str(texts / "0001.txt")})
    assert result["notices"] == [
        "a: 1 of 4 files passed over (binary): a.png.", "a: 1 copies of other documents left out.",
        "a: too few documents of like size, so the end of 0000.txt is held out; whole documents would tell more.",
        "b: one document alone, so the end of 0001.txt is held out; whole documents would tell more."]
    assert 0.025 <= splits["a"].held_share <= 0.075


def test_a_share_that_cannot_be_met_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    result, _ = ran(tmp_path / "out", domains={"a": str(tmp_path / "a.txt")})
    assert result["notices"][-1] == (f"a: {units.percent(1 / 3)} of the text is held out, {units.percent(0.05)} was "
                                     "asked for (data.held_out).")


def test_rows_and_their_field(tmp_path):
    rows = [{"story": f"text {i} " * 20, "by": "me"} for i in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, splits = ran(tmp_path / "out", domains={"a": str(tmp_path / "a.jsonl")}, text_field="story")
    assert result["domains"]["a"]["documents"] == 100
    assert all(d.text.startswith("text") for d in splits["a"].train + splits["a"].held)
    with pytest.raises(MixwellError, match=r"^data.domains.a: .*has no field 'text' or .*data.text_field"):
        ran(tmp_path / "again", domains={"a": str(tmp_path / "a.jsonl")})


def test_an_own_validation_set_is_held_out_and_nothing_of_it_trained_on(tmp_path):
    texts, own = corpus(tmp_path / "texts", [300] * 30), corpus(tmp_path / "own", [200] * 3)
    (own / "leak.txt").write_text((texts / "0003.txt").read_text())
    domains = {"a": str(texts), "b": str(texts)}
    result, splits = ran(tmp_path / "out", domains=domains, validation={"a": str(own)})
    assert {d.path for d in splits["a"].held} == {"0000.txt", "0001.txt", "0002.txt", "leak.txt"}
    assert len(splits["a"].train) == 29 and not any(d.path == "0003.txt" for d in splits["a"].train)
    assert len(splits["b"].train) + len(splits["b"].held) == 30
    assert result["notices"] == [
        "a: 1 documents are held out and not trained on, since data.validation holds them, too."]
    assert result["domains"]["a"]["split"] == "by its own files: 29 documents to train on, 4 held out"
    result, _ = ran(tmp_path / "capped", domains=domains, validation={"a": str(own)}, max_bytes=500)
    assert sum("a: validation: " in text and "read (data.max_bytes)" in text for text in result["notices"]) == 1
    with pytest.raises(MixwellError, match=r"^data.validation.a: .* is not there"):
        ran(tmp_path / "gone", domains=domains, validation={"a": "gone"})
    with pytest.raises(MixwellError, match=r"^data.domains.a: 0 documents to train on and 30 held out"):
        ran(tmp_path / "same", domains=domains, validation={"a": str(texts)})
    with pytest.raises(ValueError, match="validation names 'c'; expected names of domains: a, b"):
        DataConfig(domains=domains, validation={"c": "x"})


def test_the_key_of_the_text_covers_the_validation_set(tmp_path):
    texts, own = corpus(tmp_path / "texts", [300] * 5), corpus(tmp_path / "own", [200] * 3)
    config = DataConfig(domains={"a": str(texts)}, validation={"a": str(own)})
    stage = Stage(id="data", kind="data", method="data", config=config)
    before = data_fingerprint(stage)
    assert data_fingerprint(stage) == before
    (own / "0000.txt").write_text("other text")
    assert data_fingerprint(stage) != before


def test_another_share_held_out_is_no_other_text(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(text.facts.time, "time_ns", lambda: 2**62)  # all files are old enough
    corpus(tmp_path / "texts", [400, 400])
    read = []
    whole = text._read
    monkeypatch.setattr(text, "_read", lambda *args: read.append(1) or whole(*args))
    found = []
    for options in ({}, {"held_out": 0.3}, {"answers_only": False}, {"max_bytes": 500}):
        config = DataConfig(domains={"a": str(tmp_path / "texts")}, **options)
        found.append(data_fingerprint(Stage(id="data", kind="data", method="data", config=config)))
    assert len(read) == 2, "once, and once under the other cap"
    assert found[0] == found[1] == found[2] != found[3]


def test_a_data_set_is_capped_and_split_apart(tmp_path):
    result, _ = ran(tmp_path / "out", max_bytes=100_000)
    for domain in result["domains"].values():
        assert domain["found_bytes"] is None and 0.02 <= domain["held_share"] <= 0.08


@pytest.mark.parametrize(("read", "there", "told"), [
    ({"a": 100, "b": 90}, {"a": 100, "b": 100}, []),
    ({"a": 100, "b": 300}, {"a": 100, "b": 150}, ["b: 300 tokens read where its text holds 150, 2.0 times each."]),
    ({"a": 500, "b": 90}, {"a": 100, "b": 100, "c": 1},
     ["a: 500 tokens read where its text holds 100, 5.0 times each; so often repeated, it teaches little more: "
      "add text or train on less."]),
])
def test_text_that_is_read_over_and_over_is_told(read, there, told):
    assert repeated(read, there) == told
