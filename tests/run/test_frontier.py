"""A model in many sizes: bytes and losses against loops, what none beats, what is written, what is refused."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

import mixwell
from mixwell.cli.main import app
from mixwell.core import registry
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.formats.tensors import size_bytes
from mixwell.lm import folder as folders
from mixwell.lm.calibration import TextCalibration
from mixwell.lm.config import ModelConfig
from mixwell.lm.conversion import convert
from mixwell.lm.model import LanguageModel
from mixwell.lm.tokenizer import Tokenizer
from mixwell.report.statistics import Interval
from mixwell.run.frontier import FIGURES, REPORT, Point, command, frontier, lead, marked
from mixwell.run.searching import halves
from tests.run.test_searching import bits_per_byte, document

OPTIONS = {"group_size": 8, "widths": [2, 4, 8]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A mixture of three experts, and text in eight files."""
    root = tmp_path_factory.mktemp("frontier")
    (root / "text").mkdir()
    for number in range(8):
        (root / "text" / f"{number}.txt").write_text(document(number))
    tokenizer = Tokenizer.train([document(seed) for seed in range(20, 24)], 266)
    mixer = {"method": "experts.layers.moe", "hidden_dim": 8, "num_experts": 3}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, dim=16, num_layers=1, num_heads=2, channel_mixer=mixer)
    model = LanguageModel(config, torch.Generator().manual_seed(0))
    model.tokenizer = tokenizer
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 4
    model.save(root / "moe")
    return root


@pytest.fixture(scope="module")
def points(root):
    methods = ["precision.integers", "precision.expert_bits", "precision.nf4"]
    seen = []
    found = frontier(methods, root / "moe", text=root / "text", bits=[2.0, 2.5, 4.0], out=root / "sizes",
                     options=OPTIONS, progress=seen.append)
    assert [point.method for point in seen] == [point.method for point in found[1:]]
    return found


def test_sizes_are_those_of_the_methods(root, points):
    assert [(point.method.rpartition(".")[2], point.bits) for point in points] == [
        ("", None), ("integers", 2), ("integers", 4), ("expert_bits", 2), ("expert_bits", 2.5), ("expert_bits", 4),
        ("nf4", None)]
    before = folders.read(root / "moe")
    assert points[0].bytes == size_bytes(before.tensors)
    looked, weighed = halves(root / "text", before.files, 4096, 0)
    for point in points[1:]:
        entry = registry.find(point.method)
        config = mixwell.core.config.from_dict(entry.module().Config, point.options)
        text = TextCalibration(looked.tokens_BT)
        after = convert(entry, before, config, generator(0, entry.name), text)
        assert point.bytes == size_bytes(after.tensors)
        assert point.bits_per_byte == pytest.approx(bits_per_byte(after.tensors, before, weighed), rel=1e-5)
        gap = point.bits_per_byte - points[0].bits_per_byte
        assert point.gap.mean == pytest.approx(gap, abs=1e-6)
        assert point.gap.low < gap < point.gap.high


def test_what_is_measured_is_measured_once(root, monkeypatch):
    module = registry.find("precision.expert_bits").module()
    calls, real = [], module.sensitivities
    monkeypatch.setattr(module, "sensitivities", lambda *given: calls.append(1) or real(*given))
    frontier(["precision.expert_bits"], root / "moe", text=root / "text", bits=[2.0, 3.0], options=OPTIONS)
    assert len(calls) == 1


def point(size, loss, method="precision.integers", gap=(0.0, 0.0), **options):
    return Point(method=method, bits=4.0, bytes=size, bits_per_byte=loss, gap=Interval(*gap, 4), options=options)


def test_marks_are_those_of_trying_all_pairs():
    draws = torch.Generator().manual_seed(0)
    pairs = [tuple(row) for row in torch.randint(0, 6, (30, 2), generator=draws).tolist()]
    found = marked([point(size, float(loss)) for size, loss in pairs] + [point(0, math.nan)])
    for (size, loss), own in zip(pairs, found):
        beaten = any(s <= size and x <= loss and (s < size or x < loss) for s, x in pairs)
        assert own.best == (not beaten)
    assert not found[-1].best and any(own.best for own in found)


def test_words():
    whole = point(1000, 2.0, method="")
    near = point(300, 2.01, gap=(0.01, 0.02), group_size=32, widths=[2, 3])
    far = point(200, 2.5, gap=(0.5, 0.1))
    assert lead([whole, far]) == "Every size costs bits per byte that this text can tell."
    larger = point(1100, 2.0, gap=(0.0, 0.1))
    assert lead([whole, larger, far]) == lead([whole, far])
    assert lead([whole, near, far]).startswith("precision.integers, 4 bits: 300\u202fB, 30% of the model")
    better = point(300, 2.005, method="precision.gptq", gap=(0.005, 0.02))
    assert lead([whole, near, better]).startswith("precision.gptq, 4 bits: 300")
    assert "(+0.0100 bits per byte, -0.0100 to +0.0300)" in lead([whole, near, far])
    assert command(near, "a b", "t") == ("mixwell apply precision.integers --in 'a b' --out SMALLER group_size=32 "
                                         "'widths=[2, 3]'")
    assert command(point(1, 1.0, method="precision.hawq"), "m", "t").endswith("--text t")
    assert command(whole, "m", "t") == ""


def test_report_and_figures(root, points):
    told = json.loads((root / "sizes" / FIGURES).read_text())
    assert [one["bytes"] for one in told["points"]] == [one.bytes for one in points]
    assert told["points"][1]["gap"]["mean"] == points[1].gap.mean
    page = (root / "sizes" / REPORT).read_text()
    assert "precision.expert_bits, 2.5 bits" in page and "<svg" in page
    best = sorted((one for one in points if one.best and one.method), key=lambda one: one.bytes)
    made = [place for place in range(len(page)) if page.startswith("<pre>mixwell apply", place)]
    assert len(made) == len(best) > 1
    for one, place in zip(best, made):
        assert page.startswith(f"<pre>mixwell apply {one.method} ", place)


def test_command_and_refusals(root, tmp_path):
    words = ["frontier", "precision.integers", "group_size=8", "--in", root / "moe", "--text", root / "text", "--out",
             tmp_path / "a", "--bits", "2,8", "--tokens", "64"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    assert "precision.integers, 8 bits:" in done.stdout and "written:" in done.stdout
    wrong = CliRunner().invoke(app, [*map(str, words[:-3]), "two", "--out", str(tmp_path / "b")])
    assert wrong.exit_code and "--bits: expected a number such as 2 or 2.5, got 'two'" in wrong.output
    for bits, message in (([0.0], "0 bits is no size"), ([math.inf], "inf bits is no size"), ([2.5], "none; add one")):
        with pytest.raises(MixwellError, match=message):
            frontier(["precision.integers"], root / "moe", text=root / "text", bits=bits)
    for methods, options, message in ((["merge.linear"], {}, "makes no model smaller by bits"),
                                      (["precision.hawq"], {"bits_per_weight": 3}, "is what is varied"),
                                      (["precision.hawq"], {"rank": 3}, "no method here has an option rank")):
        with pytest.raises(MixwellError, match=message):
            frontier(methods, root / "moe", text=root / "text", options=options)
