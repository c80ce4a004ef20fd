"""A merge searched on text: the split of the text, the choice against a loop, what is written, what is refused."""

import json
import math
import re

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

import mixwell
from mixwell.cli.main import app
from mixwell.core.errors import MixwellError
from mixwell.lm import folder as folders
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.lm.tokenizer import Tokenizer
from mixwell.merge import searching as merge_searching
from mixwell.run import searching
from mixwell.run.searching import halves, search

WORDS = ["ka", "lo", "mi", "ren"]


def document(seed):
    draws = torch.Generator().manual_seed(seed)
    return " ".join(WORDS[place] for place in torch.randint(0, len(WORDS), (60,), generator=draws).tolist())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A base, a model that learned the text, one that is the base with noise, and text in eight files."""
    root = tmp_path_factory.mktemp("search")
    (root / "text").mkdir()
    for number in range(8):
        (root / "text" / f"{number}.txt").write_text(document(number))
    tokenizer = Tokenizer.train([document(seed) for seed in range(20, 24)], 266)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, dim=16, num_layers=1, num_heads=2,
                         channel_mixer={"method": "swiglu", "hidden_dim": 16})
    model = LanguageModel(config, torch.Generator().manual_seed(0))
    model.tokenizer = tokenizer
    model.save(root / "base")
    noisy, draws = mixwell.load(root / "base"), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draws)
    noisy.save(root / "noisy")
    tokens = torch.tensor([tokenizer.encode(document(seed))[:48] for seed in range(30, 38)])
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        loss = F.cross_entropy(model(tokens).logits_BTV[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save(root / "tuned")
    return root


def bits_per_byte(tensors, like, half):
    """In float64, a window at a time."""
    model = LanguageModel.from_checkpoint(like.derive(tensors=tensors)).double().eval()
    nats = 0.0
    for row in half.tokens_BT:
        shares = model(row.unsqueeze(0)).logits_BTV[0].log_softmax(-1)
        nats -= sum(float(shares[place, token].detach()) for place, token in enumerate(row[1:].tolist()))
    return nats / math.log(2) / half.bytes


def test_halves_share_no_document(root):
    files = folders.read(root / "base").files
    first, second = halves(root / "text", files, 100_000, seed=0)
    tokenizer = Tokenizer.from_files(files)
    texts = [tokenizer.decode(half.tokens_BT.flatten().tolist()) for half in (first, second)]
    for number in range(8):
        start = document(number)[:40]
        assert sum(start in text for text in texts) <= 1
    assert len(first.tokens_BT) >= 4 and first.tokens_BT.shape == second.tokens_BT.shape
    few, _ = halves(root / "text", files, 64, seed=0)
    assert few.tokens_BT.numel() == 64
    bytes_V = tokenizer.token_bytes_V
    assert few.bytes == sum(float(bytes_V[token]) for row in few.tokens_BT for token in row[1:].tolist())


def test_one_document_is_cut_in_two(root, tmp_path):
    file = tmp_path / "one.txt"
    file.write_text(document(1) + " | " + document(2))
    first, second = halves(file, folders.read(root / "base").files, 1000, seed=0)
    assert first.tokens_BT.numel() and second.tokens_BT.numel()
    file.write_text("ka lo")
    with pytest.raises(MixwellError, match="expected at least 32, to search on one half"):
        halves(file, folders.read(root / "base").files, 1000, seed=0)


def test_the_choice_leans_to_the_model_that_knows_the_text(root, tmp_path):
    seen = []
    found = search("merge.linear", [root / "tuned", root / "noisy"], text=root / "text", vary={"weight": (0, 1)},
                   tries=14, tokens=256, out=tmp_path / "merged", progress=lambda number, bits: seen.append(bits))
    assert seen == [one.loss for one in found.tries] and len(seen) <= 14
    first, second = found.options["weight"]
    assert first > 2 * second and found.confirmed and found.gain.mean < 0

    like, noisy = folders.read(root / "tuned"), folders.read(root / "noisy")
    halves_of = halves(root / "text", like.files, 256, seed=0)
    share = first / (first + second)
    mixed = {name: share * tensor + (1 - share) * noisy.tensors[name] for name, tensor in like.tensors.items()}
    assert min(seen) == pytest.approx(bits_per_byte(mixed, like, halves_of[0]), rel=1e-4)
    checked, tuned = (bits_per_byte(tensors, like, halves_of[1]) for tensors in (mixed, like.tensors))
    assert found.checked["chosen"] == pytest.approx(checked, rel=1e-4)
    assert found.checked[str(root / "tuned")] == pytest.approx(tuned, rel=1e-4)
    assert found.gain.mean == pytest.approx(found.checked["chosen"] - found.checked["start"], rel=1e-6)

    written = folders.read(tmp_path / "merged")
    for name, tensor in written.tensors.items():
        torch.testing.assert_close(tensor, mixed[name])
    record = written.lineage[-1]
    assert record["search"]["chosen"] == found.options and record["config"]["weight"] == found.options["weight"]
    page = (tmp_path / "merged" / "search.html").read_text()
    assert "The choice holds on text that the search did not see" in page and "best so far" in page
    assert f"weight: {json.dumps(found.options['weight'])}" in (tmp_path / "merged" / "README.md").read_text()


def test_a_choice_that_changes_nothing_is_not_confirmed(root):
    found = search("merge.slerp", [root / "tuned", root / "tuned"], text=root / "text", vary={"t": (0.2, 0.8)}, tries=3,
                   tokens=128)
    assert not found.confirmed and abs(found.gain.mean) < 1e-6


def planted(monkeypatch, places):
    """The search tries these."""
    def tried(loss, box, start, tries, seed):
        book = merge_searching._Book(loss, box, tries)
        for values in (start, *places):
            book.at(values)
        return list(book.tries.values())

    monkeypatch.setattr(searching, "searched", tried)


@pytest.mark.parametrize(("wrong", "normalize"), [((0.0, 0.0), True), ((1e15, 1e15), False)])
def test_a_try_that_is_refused_or_not_finite_counts_as_worst(root, tmp_path, monkeypatch, wrong, normalize):
    planted(monkeypatch, [wrong, (0.9, 0.1)])
    two = [root / "tuned", root / "noisy"]
    search("merge.linear", two, text=root / "text", vary={"weight": (0, 1e15)}, tokens=128, out=tmp_path / "merged",
           options={"normalize": normalize, "weight": 0.5})
    record = folders.read(tmp_path / "merged").lineage[-1]["search"]
    first, worst, last = [one["loss"] for one in record["tries"]]
    assert worst is None and last == record["loss"] < first and record["chosen"] == {"weight": [0.9, 0.1]}
    assert "best so far" in (tmp_path / "merged" / "search.html").read_text()


def test_a_start_without_a_finite_loss_confirms_nothing(root, tmp_path, monkeypatch):
    planted(monkeypatch, [(0.9, 0.1)])
    two = [root / "tuned", root / "noisy"]
    found = search("merge.linear", two, text=root / "text", vary={"weight": (0, 1e15)}, tokens=128,
                   out=tmp_path / "merged", options={"normalize": False, "weight": 1e15})
    record = folders.read(tmp_path / "merged").lineage[-1]["search"]
    assert record["gain"] == {"mean": None, "low": None, "high": None} and not found.confirmed
    assert record["checked"]["start"] is None and record["checked"]["chosen"] < 10
    assert "own options is not finite there" in searching.verdict(record)


def test_no_finite_loss_at_all_and_options_refused_from_the_start_are_told(root, monkeypatch):
    two = [root / "tuned", root / "noisy"]
    planted(monkeypatch, [(1e15, 9e14)])
    with pytest.raises(MixwellError, match="no try of 2 has a finite loss"):
        search("merge.linear", two, text=root / "text", vary={"weight": (0, 1e15)}, tokens=128,
               options={"normalize": False, "weight": 1e15})
    with pytest.raises(MixwellError, match=r"merge\.linear, .*the weights sum to 0"):
        search("merge.linear", two, text=root / "text", vary={"weight": (0, 1)}, tokens=128, options={"weight": 0.0})
    with pytest.raises(MixwellError, match=r"merge\.linear: weight lists 1 values for 2 models"):
        search("merge.linear", two, text=root / "text", vary={"weight": (0, 1)}, tokens=128, options={"weight": [1.0]})


def test_from_the_command_line(root, tmp_path):
    words = ["search", "merge.ties", "density=0.9", "--in", root / "tuned", "--base", root / "base", "--text",
             root / "text", "--vary", "scale=0.2:1.5", "--tries", 4, "--tokens", 128, "--out", tmp_path / "m"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    assert "try 4 of 4:" in done.stdout and "scale=" in done.stdout and "density" not in done.stdout
    assert folders.read(tmp_path / "m").lineage[-1]["config"]["density"] == 0.9
    each = ["search", "merge.linear", *words[3:5], "--in", root / "base", *words[7:9], "--vary", "weight=0:1",
            *words[11:15]]
    found = CliRunner().invoke(app, [*map(str, each), "--out", str(tmp_path / "each")])
    assert found.exit_code == 0, found.output
    assert re.search(r"^weight=\[[\d.e-]+, [\d.e-]+\]$", found.stdout, re.MULTILINE), found.stdout
    for changed, told in (({1: "convert.upcycle"}, "is no merge"), ({10: "scale=0"}, "expected KEY=LEAST:MOST")):
        wrong = [changed.get(place, word) for place, word in enumerate(words[:-1])] + [tmp_path / "other"]
        refused = CliRunner().invoke(app, list(map(str, wrong)))
        assert refused.exit_code and told in refused.output and not (tmp_path / "other").exists()
