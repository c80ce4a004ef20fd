"""Models that exist, measured on the same documents: bits by document, differences with intervals, and the page."""

import json
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mixwell.cli.main import app
from mixwell.compare import existing, existing_page, paired, texts
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.formats import sealed
from mixwell.lm.config import ModelConfig
from mixwell.lm.documents import Document
from mixwell.lm.model import LanguageModel
from mixwell.lm.scoring import score
from mixwell.lm.tokenizer import Tokenizer
from mixwell.report.statistics import interval
from mixwell.run import recipe
from tests.report.pages import balanced, text_of
from tests.run import tiny

WORDS = "the cat saw the dog and the dog saw the cat\n"


def model_folder(place, vocab_size, seed, text=WORDS, **options):
    """A model of width 8 with a tokenizer of its own."""
    tokenizer = Tokenizer.train([text], vocab_size)
    config = ModelConfig(**{"vocab_size": tokenizer.vocab_size, "dim": 8, "num_layers": 1, "num_heads": 2,
                            "channel_mixer": {"method": "experts.layers.swiglu", "hidden_dim": 8}} | options)
    model = LanguageModel(config, generator(seed))
    model.tokenizer = tokenizer
    return model.save(place)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models with different tokenizers, and a folder of 24 documents."""
    root = tmp_path_factory.mktemp("models")
    one = model_folder(root / "one", 257, 1)
    other = model_folder(root / "other", 270, 2)
    (root / "text").mkdir()
    for number in range(24):
        (root / "text" / f"{number:02d}.txt").write_text(WORDS[: 20 + number] * (1 + number % 3))
    return one, other, root / "text"


@torch.no_grad()
def bits_of(folder, documents, seq_len):
    """Bits by document, token by token: each sees the tokens from the last multiple of seq_len on."""
    model = existing.load(folder)
    tokenizer = Tokenizer.load(folder)
    stream, owners = [tokenizer.eos_id], [None]
    for number, text in enumerate(documents):
        ids = [*tokenizer.encode(text), tokenizer.eos_id]
        before = tokenizer.prompt("")
        stream += before + ids
        owners += [None] * len(before) + [number] * len(ids)
    bits = [0.0] * len(documents)
    for place in (place for place, owner in enumerate(owners) if owner is not None):
        start = (place - 1) // seq_len * seq_len
        logits = model.eval()(torch.tensor([stream[start:place]])).logits_BTV[0, -1].double()
        bits[owners[place]] -= torch.log_softmax(logits, -1)[stream[place]].item() / math.log(2)
    return bits


def plain(texts):
    return [Document("", text) for text in texts]


@pytest.mark.parametrize(("seq_len", "batch_size"), [(7, 2), (64, 3)])
def test_bits_of_each_document_agree_with_a_loop(folders, seq_len, batch_size):
    documents = ["the cat", "saw the dog\n" * 3, "naïve — 你好"]
    for folder in folders[:2]:
        found = score(existing.load(folder), Tokenizer.load(folder), plain(documents), seq_len=seq_len,
                      batch_size=batch_size)
        assert found.bits_N.tolist() == pytest.approx(bits_of(folder, documents, seq_len), rel=1e-5)
        assert found.tokens == sum(len(Tokenizer.load(folder).encode(text)) + 1 for text in documents)
        assert found.seconds > 0


def test_what_a_tokenizer_puts_before_a_text_is_read_and_costs_nothing(tmp_path):
    model = existing.load(model_folder(tmp_path / "plain", 270, 3))
    model.tokenizer = model.tokenizer.with_bos(True)
    folder, documents = model.save(tmp_path / "begun"), ["the cat", "saw the dog\n" * 3]
    found = score(model, model.tokenizer, plain(documents), seq_len=7, batch_size=2)
    assert found.bits_N.tolist() == pytest.approx(bits_of(folder, documents, 7), rel=1e-5)
    assert found.tokens == sum(len(model.tokenizer.encode(text)) + 1 for text in documents)
    bare = score(model, model.tokenizer.with_bos(False), plain(documents), seq_len=7, batch_size=2)
    assert bare.tokens == found.tokens and not np.allclose(bare.bits_N, found.bits_N)


TALKS = [[{"role": "user", "content": f"the {word}?"}, {"role": "assistant", "content": f"saw {word} — dog"}]
         for word in ("cat", "dog", "mat")]


def talking(folder, template):
    """A small model whose tokenizer has that template."""
    model = existing.load(model_folder(folder, 270, 3))
    model.tokenizer = model.tokenizer.with_chat_template(template)
    return model.save(folder.with_name(f"{folder.name}-talking"))


def test_of_conversations_the_answers_count_as_the_template_writes_them(tmp_path):
    template = "{% for m in messages %}{{ m['role'] + '\n' + m['content'] }}<|endoftext|>{% endfor %}" \
               "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
    folder = talking(tmp_path / "a", template)
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in TALKS))
    existing.evaluate([folder], tmp_path / "talk.jsonl", out=tmp_path / "out")
    record = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert record["text"]["bytes"] == {"talk": [len(talk[1]["content"].encode()) for talk in TALKS]}
    assert any("their answers alone count" in text for text in record["text"]["notices"])

    model, tokenizer = existing.load(folder).eval(), Tokenizer.load(folder)
    stream, expected = [tokenizer.eos_id], []
    for talk in TALKS:
        stream += tokenizer.encode(f"user\n{talk[0]['content']}<|endoftext|>assistant\n", special=True)
        answer = tokenizer.encode(f"{talk[1]['content']}<|endoftext|>", special=True)
        shares = model(torch.tensor([stream + answer])).logits_BTV[0].double().log_softmax(-1)
        places = range(len(stream) - 1, len(stream) + len(answer) - 1)
        expected.append(-sum(shares[place, token].item() for place, token in zip(places, answer)) / math.log(2))
        stream += answer
    assert record["models"][0]["bits"]["talk"] == pytest.approx(expected, rel=1e-4)


def test_conversations_are_plain_text_where_a_model_has_no_template(tmp_path):
    folders = [talking(tmp_path / "a", "{{ messages }}"), model_folder(tmp_path / "b", 270, 4)]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in TALKS))
    existing.evaluate(folders, tmp_path / "talk.jsonl", out=tmp_path / "out")
    record = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert any(text.startswith("b: no chat template") for text in record["text"]["notices"])
    assert sum(record["text"]["bytes"]["talk"]) > sum(len(talk[1]["content"].encode()) for talk in TALKS)


def test_a_tokenizer_of_another_model_is_refused(folders):
    with pytest.raises(MixwellError, match=r"gives id 26\d, the model embeds 257"):
        score(existing.load(folders[0]), Tokenizer.load(folders[1]), plain([WORDS]))


def test_with_documents_of_one_length_the_interval_is_students():
    draws = np.random.default_rng(3)
    own, other = draws.normal(80, 9, 12), draws.normal(82, 9, 12)
    sizes = {"d": np.full(12, 40.0)}
    found = paired.gap({"d": own}, {"d": other}, sizes).interval
    expected = interval(((own - other) / 40.0).tolist())
    assert (found.mean, found.half) == pytest.approx((expected.mean, expected.half))
    assert found.count == 12


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Documents of very unequal length; 95 % of the intervals hold the ratio of the whole population."""
    draws = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        sizes = draws.lognormal(5, 0.7, 40)
        gaps = 0.1 * sizes + draws.normal(0, 1, 40) * sizes**0.7
        found = paired.level({"d": gaps}, {"d": sizes}).interval
        held += found.low < 0.1 < found.high
    assert 0.92 < held / 400 < 0.98


def test_domains_count_the_same_and_their_variances_add_up():
    draws = np.random.default_rng(7)
    bits = {"a": draws.normal(10, 1, 5), "b": draws.normal(500, 30, 9)}
    sizes = {"a": draws.normal(8, 1, 5), "b": draws.normal(300, 9, 9)}
    apart = [paired.level({name: bits[name]}, {name: sizes[name]}) for name in bits]
    both = paired.level(bits, sizes)
    assert both.mean == pytest.approx((apart[0].mean + apart[1].mean) / 2)
    assert both.variance == pytest.approx((apart[0].variance + apart[1].variance) / 4)
    assert 4 <= both.freedom <= 12 and both.count == 14


def test_one_document_alone_decides_nothing_and_equal_models_do_not_differ():
    lone = {"d": np.array([3.0])}
    found = paired.gap(lone, {"d": np.array([2.0])}, {"d": np.array([4.0])})
    assert found.mean == 0.25 and math.isnan(found.p) and math.isnan(found.interval.half)
    same = {"d": np.array([3.0, 5.0])}
    found = paired.differences({"x": same, "y": same}, "x", {"d": np.array([4.0, 4.0])})["y"]
    assert found.p == 1.0 and not found.supported


def test_models_with_different_tokenizers_are_held_against_each_other(folders, tmp_path):
    one, other, text = folders
    page = existing.evaluate([one, other], text, out=tmp_path / "out")
    found = existing_page.read(page.parent)
    documents = [file.read_text() for file in sorted(text.iterdir())]
    once = list(dict.fromkeys(documents))
    expected = [sum(bits_of(folder, once, 256)) / sum(map(len, once)) for folder in (one, other)]
    rows = existing_page.table(found)
    assert [float(row["mean"]) for row in rows] == pytest.approx(expected, abs=1e-4)
    assert float(rows[1]["gap"].replace("−", "-")) == pytest.approx(expected[1] - expected[0], abs=2e-4)
    assert rows[1]["verdict"] in ("better", "worse", "not supported") and rows[1]["range"]
    html = page.read_text()
    balanced(html)
    words = text_of(html)
    assert "different tokenizers" in words and existing_page.lead(found) in words
    assert "active" in words and "tokens a second" in words


def test_a_mixture_tells_what_of_it_is_active(tmp_path):
    mixer = {"method": "experts.layers.moe", "num_experts": 4, "hidden_dim": 8, "router": {"method": "top_k", "k": 1}}
    folder = model_folder(tmp_path / "moe", 257, 1, channel_mixer=mixer)
    page = existing.evaluate([folder], texts.of_documents("words", {"d": [Document("a", WORDS * 40)]}),
                             out=tmp_path / "out")
    (model,) = existing_page.read(page.parent).models
    loaded = existing.load(folder)
    assert model.active_parameters == loaded.num_parameters(active=True) < model.parameters == loaded.num_parameters()
    assert model.weights_bytes == 4 * model.parameters
    assert "bits per byte of words" in text_of(page.read_text()), "one model is measured, too"


def test_few_documents_are_cut_at_lines_into_pieces():
    lines = "".join(f"line {number} of a long text\n" for number in range(1000))
    text = texts.of_documents("x", {"d": [Document("a", lines), Document("b", "short\n")]})
    pieces = text.domains["d"]
    assert "".join(piece.text for piece in pieces) == lines + "short\n" and len(pieces) > 40
    assert all(piece.text.endswith("\n") for piece in pieces) and text.pieces
    assert "2 documents, cut into" in text.notices[0]
    many = [Document(str(n), f"{n}\n" * 900) for n in range(30)]
    assert texts.of_documents("x", {"d": many}).domains["d"] == many


def test_budgets_of_bytes_and_of_tokens(folders, tmp_path):
    one, other, text = folders
    whole = existing_page.read(existing.evaluate([one, other], text, out=tmp_path / "a").parent)
    page = existing.evaluate([one, other], text, budget="bytes=500", out=tmp_path / "b")
    few = existing_page.read(page.parent)
    assert few.sizes["text"].sum() <= 500 < whole.sizes["text"].sum()
    assert "bytes read (--budget)" in text_of(page.read_text())
    page = existing.evaluate([one, other], text, budget="tokens=300", out=tmp_path / "c")
    tokens = [model.tokens for model in existing_page.read(page.parent).models]
    assert 300 <= max(tokens) < 300 + 150 and tokens[0] != tokens[1]


@pytest.mark.parametrize(("budget", "message"), [
    ("byte=1k", "unknown 'byte'. Did you mean 'bytes'"),
    ("bytes=1k,tokens=1k", "expected one of bytes and tokens"),
    ("bytes=many", "expected a number such as 1M, got 'many'"),
    ("tokens=0", "expected at least 1, got 0"), ("bytes=1e999", "expected a number such as 1M, got inf"),
    ("", "expected one of bytes and tokens"),
])
def test_budgets_that_are_none(folders, tmp_path, budget, message):
    with pytest.raises(MixwellError, match=message):
        existing.evaluate([folders[0]], folders[2], budget=budget, out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_text_that_a_tokenizer_loses_is_told(tmp_path):
    """A word-level tokenizer with an unknown word."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    backend = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2, "<eos>": 3, " ": 4}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    backend.decoder = decoders.Fuse()
    files = {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": b'{"eos_token": "<eos>"}'}
    folder = model_folder(tmp_path / "m", 257, 1)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    documents = [Document("a", "the cat"), Document("b", "the dog")]
    page = existing.evaluate([folder], texts.of_documents("x", {"d": documents}), out=tmp_path / "o")
    assert existing_page.read(page.parent).models[0].lost == {"d": 1}
    assert "m: its tokenizer does not give back 1 of 2 documents as they were" in text_of(page.read_text())


def test_names_are_the_ends_of_paths_where_these_differ():
    assert existing.named(["a/one", "b/two/", "runs/x:moe"]) == {
        "one": "a/one", "two": "b/two", "x:moe": "runs/x:moe"}
    assert list(existing.named(["a/model", "b/model", "c"])) == ["a/model", "b/model", "c"]
    assert str(existing.default_folder(existing.named(["a/model", "b/model"]))) == "runs/evaluate-a_model-b_model"
    with pytest.raises(MixwellError, match="each once, got a, a"):
        existing.named(["a", "a/"])


@pytest.mark.parametrize("record", ["[]", "{}", '{"models": [], "text": {"bytes": {}}}'])
def test_a_damaged_record_is_told_in_a_line(tmp_path, record):
    path = tmp_path / "evaluate.json"
    sealed.write(path, json.loads(record)) if record.startswith("{") else path.write_text(record)
    with pytest.raises(MixwellError, match=r"^[^\n]*evaluate.json [^\n]*run it again.$"):
        existing_page.build(tmp_path)


def call(*words):
    return CliRunner().invoke(app, list(map(str, words)))


def test_the_command_prints_what_the_page_says(folders, tmp_path):
    one, other, text = folders
    done = call("evaluate", one, other, "--data", text, "--seq-len", 32, "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[-1] == f"report: {tmp_path / 'o' / 'report.html'}"
    found = existing_page.read(tmp_path / "o")
    assert existing_page.lead(found) in lines and "tokens/s" in done.stdout
    assert json.loads((tmp_path / "o" / "evaluate.json").read_text())["reading"]["seq_len"] == 32
    again = call("report", tmp_path / "o", "--out", tmp_path / "r.html")
    assert again.exit_code == 0 and existing_page.lead(found) in text_of((tmp_path / "r.html").read_text())
    wrong = call("evaluate", one, tmp_path / "nothing")
    assert wrong.exit_code == 2 and "is not a folder" in wrong.stderr and wrong.stderr.count("\n") == 1


def test_compare_of_models_that_exist_trains_nothing(folders, tmp_path):
    one, other, _ = folders
    file = tiny.recipe_file(tmp_path)
    plain = recipe.read(file)
    written = {"name": "bare", "data": plain.data, "evaluate": {"max_tokens": 200, "seq_len": 32}}
    bare = tmp_path / "bare.yaml"
    bare.write_text(json.dumps(written))
    done = call("compare", bare, "--vary", f"model={one},{other}", "--baseline", other, "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    found = existing_page.read(tmp_path / "o")
    assert [model.name for model in found.models] == ["other", "one"] and set(found.sizes) == {"left", "right"}
    assert f"nothing is trained: {other}, {one} read the same held-out text" in done.stdout
    wrong = call("compare", bare, "--vary", f"model={one},{other}", "--baseline", "third")
    assert wrong.exit_code == 2 and "no model 'third'" in wrong.stderr


def test_a_loaded_model_can_be_the_stage_that_is_judged(folders, tmp_path):
    """With stages that train, and the models themselves asked for: the comparison makes the text that it judges by."""
    from mixwell import compare
    from mixwell.compare.results import read

    one = folders[0]
    twin = model_folder(tmp_path / "twin", 257, 9)
    chosen = recipe.read(tiny.recipe_file(tmp_path / "r", tokens=300))
    chosen = recipe.changed(chosen, {"tokenizer": None})
    page = compare.compare(chosen, {"model": [str(one), str(twin)]}, stage="model", seeds=1, out=tmp_path / "o")
    assert [len(result.trials) for result in read(page.parent).results] == [1, 1]
