"""The stages that make tokens, and samples of conversations: what a recipe's keys do to them."""

import json
from pathlib import Path

import pytest
import yaml

from mixwell.core.errors import MixwellError
from mixwell.lm.data import TokenData
from mixwell.lm.model import load
from mixwell.lm.template import CHATML
from mixwell.lm.tokenizer import Tokenizer
from mixwell.run import engine, recipe
from tests.lm.templates import byte_level, lossy, word_marks
from tests.lm.tiny import tiny_model

MODEL = {"dim": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 16}


def talks(path: Path, count: int = 40) -> Path:
    """Conversations of one turn each."""
    asked = [{"role": "user", "content": f"say number {i}"} for i in range(count)]
    answers = [{"role": "assistant", "content": "hello world " * (i % 3 + 1)} for i in range(count)]
    rows = map(list, zip(asked, answers))
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def ran(folder: Path, stages=(), **keys):
    """The results of a run's stages by id, and their folders."""
    data = {"name": "t", "threads": 1, "model": MODEL, "evaluate": {"max_tokens": 200, "seq_len": 32},
            "train": {"batch_size": 2, "seq_len": 32, "dtype": "fp32"}, "stages": list(stages), **keys}
    (folder / "t.yaml").write_text(yaml.safe_dump(data))
    engine.run(recipe.read(folder / "t.yaml"), folder / "run")
    found = {path.parent.name.rpartition("-")[0]: path.parent for path in (folder / "run/stages").glob("*/stage.json")}
    return {id: json.loads((path / "stage.json").read_text())["result"] for id, path in found.items()}, found


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir()
    for name, data in tokenizer.save_files().items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model trained on conversations from nothing, with a sample of every kind."""
    folder = tmp_path_factory.mktemp("talk")
    sample = {"prompts": ["say <|im_end|>"], "max_new_tokens": 4}
    messages = [[{"role": "system", "content": "be good"}, {"role": "user", "content": "say number 3"}]]
    stages = [{"id": "tuned", "train": {"tokens": 640}}, {"id": "text", "from": "tuned", "sample": sample},
              {"id": "chat", "from": "tuned", "sample": {**sample, "prompts": messages}},
              {"id": "said", "from": "tuned", "sample": {**sample, "chat": True}},
              {"id": "begun", "from": "tuned", "sample": {"max_new_tokens": 4, "temperature": 0}}]
    return ran(folder, stages, data={"domains": {"talk": str(talks(folder / "talk.jsonl"))}, "held_out": 0.2},
               tokenizer={"vocab_size": 300})


def test_a_tokenizer_trained_on_conversations_has_their_tokens_and_template(run):
    results, folders = run
    tokenizer = Tokenizer.load(folders["tokenizer"])
    assert tokenizer.chat_template == CHATML and results["tokenizer"]["vocab_size"] == 300
    assert tokenizer.special == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    data = TokenData.open(folders["tokens"] / "shards")
    counted, tokens = (results["tokens"][what]["talk"] for what in ("counted", "domains"))
    assert counted["train"] == data.counted("talk", "train") < tokens["train_tokens"] / 2
    assert (results["tokens"]["lost"]["talk"]["changed"], results["tokens"]["notices"]) == (0, [])
    assert results["data"]["domains"]["talk"]["read"] == {"files": 1, "documents": 40, "files_passed_over": {},
                                                          "rows_passed_over": {}, "copies": 0, "dropped": {}}


def test_the_finished_model_carries_the_template_and_where_answers_end(run):
    _, folders = run
    model = load(folders["tuned"] / "model")
    assert model.tokenizer.chat_template == CHATML
    assert model.generation.eos_token_id == model.stop_ids == (0, 2)


def test_samples_of_text_of_messages_and_of_held_out_beginnings(run):
    results, _ = run
    told, = results["text"]["notices"]
    assert told.startswith("a prompt spells <|im_end|>, which stays text; give messages, or sample.chat: true, and the")
    assert results["chat"]["samples"][0]["prompt"] == "be good\nsay number 3" and not results["chat"]["notices"]
    assert results["said"]["samples"][0]["prompt"] == "say <|im_end|>"
    begun = results["begun"]["samples"][0]["prompt"]
    assert begun.startswith("user\nsay number") and begun.endswith("\nassistant\n")


def test_all_of_a_conversation_counts_where_asked_and_bos_stands_before_each_text(tmp_path):
    config = {"domains": {"talk": str(talks(tmp_path / "talk.jsonl", 12))}, "held_out": 0.2, "answers_only": False}
    results, _ = ran(tmp_path, data=config, tokenizer={"vocab_size": 300})
    tokens, counted = (results["tokens"][what]["talk"] for what in ("domains", "counted"))
    assert 0 <= tokens["train_tokens"] - counted["train"] <= 12


def test_a_tokenizer_that_loses_text_is_told(tmp_path):
    folder = save(lossy(), tmp_path / "tok")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"abc def {'é' * (i % 2)}{'fade' * i}"}) + "\n"
                                              for i in range(20)))
    results, _ = ran(tmp_path, data={"domains": {"a": str(tmp_path / "a.jsonl")}, "held_out": 0.2},
                     tokenizer={"path": str(folder)})
    told, = results["tokens"]["notices"]
    assert told.startswith("a: 10 of 20 documents do not come back from the tokenizer as they were, ")
    assert told.endswith(" of the text became the unknown token: bits per byte make it look better than it is.")


@pytest.mark.parametrize("bos", [None, True, False])
def test_bos_is_as_the_tokenizer_says_unless_the_recipe_says_otherwise(tmp_path, bos):
    tokenizer = word_marks("inst")
    folder = save(tokenizer if bos is None else tokenizer.with_bos(not bos), tmp_path / "tok")
    rows = [json.dumps({"text": f"hello world {i}"}) for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    options = {"path": str(folder)} | ({} if bos is None else {"bos": bos})
    config = {"domains": {"a": str(tmp_path / "a.jsonl")}, "held_out": 0.2}
    results, folders = ran(tmp_path, data=config, tokenizer=options)
    stream = TokenData.open(folders["tokens"] / "shards").tokens("a", "train").tolist()
    documents = results["data"]["domains"]["a"]["documents"]
    held = TokenData.open(folders["tokens"] / "shards").documents("a", "held")
    begins = tokenizer.id_of("<s>")
    assert stream.count(begins) == (documents - held if bos is not False else 0)
    assert (stream[0] == begins) == (bos is not False)
    written = Tokenizer.load(folders["model"] / "model")
    assert (written.around[0] == (begins,)) == (bos is not False), "the model's folder says the same"


def test_a_folder_with_a_template_of_the_recipe_is_trained_with_it_and_saved_with_it(tmp_path):
    tokenizer = byte_level("chatml")
    bare = {name: data for name, data in tokenizer.save_files().items() if name != "chat_template.jinja"}
    base = tiny_model(tokenizer.vocab_size)
    base.tokenizer = Tokenizer(bare)
    base.save(tmp_path / "base")
    talks(tmp_path / "talk.jsonl")
    config = {"domains": {"talk": str(tmp_path / "talk.jsonl")}, "held_out": 0.2}
    keys = {"data": config, "model": str(tmp_path / "base"), "stages": [{"id": "tuned", "train": {"tokens": 128}}]}
    with pytest.raises(MixwellError, match=r"stage tokens: .*no chat template .*tokenizer.chat_template: chatml"):
        ran(tmp_path, **keys)
    (tmp_path / "own.jinja").write_text("{{ bos_token }}" + CHATML)
    for named in ("chatml", str(tmp_path / "own.jinja")):
        _, folders = ran(tmp_path, **keys, tokenizer={"chat_template": named})
        tuned = load(folders["tuned"] / "model")
        assert tuned.tokenizer.chat_template.endswith(CHATML)
        assert tuned.tokenizer.digest == base.tokenizer.digest


def test_templates_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("hello world\n" * 200)
    keys = {"data": {"domains": {"a": str(tmp_path / "a.txt")}}}
    with pytest.raises(MixwellError, match=r"tokenizer.chat_template: cannot read .*none.jinja"):
        ran(tmp_path, **keys, tokenizer={"chat_template": str(tmp_path / "none.jinja")})
    folder = save(word_marks("inst"), tmp_path / "tok")
    with pytest.raises(MixwellError, match=r"the tokenizer has no special token <\|im_end\|>, which chatml needs"):
        ran(tmp_path, **keys, tokenizer={"path": str(folder), "chat_template": "chatml"})


def test_the_recipe_in_the_documentation_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "text.md").read_text(encoding="utf-8")
    text, = (block.partition("```")[0] for block in page.split("```yaml\n")[1:] if block.startswith("name: chat"))
    base = tiny_model(byte_level("chatml").vocab_size)
    base.tokenizer = byte_level("chatml")
    base.save(tmp_path / "path/to/model")
    talks(tmp_path / "talk.jsonl", 100)
    monkeypatch.chdir(tmp_path)
    Path("chat.yaml").write_text(text)
    small = ["stages.tuned.train.tokens=600", "train.seq_len=32", "train.batch_size=2"]
    engine.run(recipe.read("chat.yaml", small), tmp_path / "run")
    said, = (tmp_path / "run/stages").glob("said-*/stage.json")
    assert len(json.loads(said.read_text())["result"]["samples"]) == 1
