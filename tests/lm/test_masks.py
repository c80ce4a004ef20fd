"""What the loss counts, from the tokens on disk to the gradient: answers and nothing else."""

import json
import math

import numpy as np
import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.lm.chat import Chat
from mixwell.lm.conversation import conversation
from mixwell.lm.data import TokenData, write_shards
from mixwell.lm.documents import Document
from mixwell.lm.evaluate import evaluate
from mixwell.lm.splitting import Split, head, split_documents
from mixwell.lm.training import loop
from mixwell.lm.training.sampler import Sampler
from mixwell.parallel.team import Alone
from tests.lm.templates import byte_level, lossy, word_marks
from tests.lm.tiny import tiny_config, tiny_model


def talk(number, answer="hello world"):
    said = conversation([{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": answer}])
    return Document(f"a.jsonl:{number}", said.text, messages=said.to_json())


def shards(folder, documents, tokenizer, **options):
    split = Split(tuple(documents[1:]), tuple(documents[:1]), "")
    return write_shards(folder, {"talk": split}, tokenizer, **options)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shards(tmp_path_factory.mktemp("talk") / "tokens", [talk(i) for i in range(12)], byte_level("chatml"))


def test_streams_hold_conversations_and_masks_their_answers(data):
    tokenizer = byte_level("chatml")
    stream, mask = data.tokens("talk", "train"), data.mask("talk", "train")
    assert len(mask) == len(stream) == data.count("talk", "train")
    assert tokenizer.decode(stream[mask == 1]) == "hello world<|im_end|>" * 11
    assert data.counted("talk", "train") == mask.sum()
    labels = data.labels("talk", "train", 3, 40)
    assert labels.dtype == np.int64
    assert np.array_equal(labels, np.where(mask[3:40], stream[3:40].astype(int), -100))
    assert data.bytes_of("talk", "train", 0, len(stream)) == 11 * len("hello world")
    whole = tokenizer.decode(stream)
    assert whole.startswith("<|im_start|>user\nsay ") and whole.endswith("<|im_end|>\n<|endoftext|>")
    assert data.bytes("talk", "train") == len(tokenizer.decode(stream, skip_special=True))


def test_all_counts_where_that_is_asked_for(tmp_path):
    found = shards(tmp_path / "t", [talk(i) for i in range(3)], byte_level("chatml"), answers_only=False)
    assert found.mask("talk", "train").all() and found.counted("talk", "train") == found.count("talk", "train")


def test_text_needs_no_mask_but_for_bos_which_is_no_target(tmp_path):
    documents = [Document(str(i), f"hello world {i}") for i in range(3)]
    plain = shards(tmp_path / "plain", documents, byte_level("chatml"))
    assert plain.mask("talk", "train") is None and not list((tmp_path / "plain").glob("*mask*"))
    tokenizer = word_marks("inst")
    found = shards(tmp_path / "bos", documents, tokenizer)
    begins, ends = (tokenizer.id_of(token) for token in ("<s>", "</s>"))
    stream = found.tokens("talk", "train").tolist()
    assert stream == [i for d in documents[1:] for i in (*tokenizer.prompt(d.text), ends)]
    assert [n for n, counts in zip(stream, found.mask("talk", "train")) if not counts] == [begins] * 2
    unmarked = shards(tmp_path / "none", documents, tokenizer.with_bos(False))
    assert begins not in unmarked.tokens("talk", "train")


def test_a_conversation_is_closed_once_and_learned_to_be_closed(tmp_path):
    """Llama 2's template ends with the end-of-text token, ChatML's with one of its own, the third with nothing."""
    for name, closing, counts in (("inst", "</s>", True), ("chatml", "<|im_end|>\n<|endoftext|>", False),
                                  ("open", "world<|endoftext|>", True)):
        tokenizer = byte_level("chatml" if name == "open" else name)
        if name == "open":
            source = "{% for m in messages %}{{ m.role + ':' + m.content }}{% endfor %}"
            tokenizer = tokenizer.with_chat_template(source)
        found = shards(tmp_path / name, [talk(i) for i in range(2)], tokenizer)
        assert tokenizer.decode(found.tokens("talk", "train")).endswith(closing)
        assert bool(found.mask("talk", "train")[-1]) == counts


@pytest.mark.parametrize("seq_len", range(4, 12))  # so that an answer begins on either side of a window's end
def test_windows_without_an_answer_are_not_drawn(tmp_path, seq_len):
    long = [Document("x", "q", messages=conversation(
        [{"role": "user", "content": "say " * 40}, {"role": "assistant", "content": "good"}]).to_json())] * 3
    data = shards(tmp_path / "t", long, byte_level("chatml"))
    sampler = Sampler(data, None, 4, seq_len, 0)
    mask = data.mask("talk", "train")
    windows = (len(mask) - 1) // seq_len
    counting = [w for w in range(windows) if mask[w * seq_len + 1 : (w + 1) * seq_len + 1].any()]
    assert 0 < len(counting) < windows / 2
    assert sampler._windows == {"talk": len(counting)}
    for _ in range(3):
        batch = sampler.batch()
        assert (batch.targets_BT != -100).any(1).all()


def test_a_domain_without_answers_is_refused(tmp_path):
    nothing = shards(tmp_path / "n", [talk(i) for i in range(3)], byte_level("chatml"))
    np.memmap(nothing.folder / "00.train.mask.bin", np.uint8, "r+")[:] = 0
    with pytest.raises(MixwellError, match=r"'talk' holds nothing to learn from: .*data.answers_only: false"):
        Sampler(TokenData.open(nothing.folder), None, 4, 8, 0)


def test_evaluation_weighs_the_answers_alone(data):
    model = tiny_model(data.vocab_size).eval()
    found = evaluate(model, data, seq_len=10, batch_size=2)
    stream, mask = data.tokens("talk", "held").tolist(), data.mask("talk", "held")
    nats = 0.0
    for place in range(1, len(stream)):
        begin = (place - 1) // 10 * 10
        logits_V = model(torch.tensor([stream[begin:place]])).logits_BTV[0, -1].double()
        nats -= torch.log_softmax(logits_V, -1)[stream[place]].item() * int(mask[place])
    assert found.tokens["talk"] == mask[1:].sum() and found.bytes["talk"] == len("hello world")
    assert found.loss_nats["talk"] == pytest.approx(nats / mask[1:].sum(), rel=1e-5)
    assert found.bits_per_byte["talk"] == pytest.approx(nats / math.log(2) / len("hello world"), rel=1e-5)


def test_every_target_of_a_step_counts_the_same_however_it_is_cut_into_parts(tmp_path):
    documents = [talk(i, "hello " * (1 + 9 * (i % 2))) for i in range(12)]
    data = shards(tmp_path / "t", documents, byte_level("chatml"))
    steps = {}
    for parts in (1, 4):
        model = tiny_model(data.vocab_size)
        config = tiny_config(accumulate=parts, dtype="fp32").for_device("cpu")
        run = loop._Run(model, data, config, tmp_path / str(parts), None, torch.device("cpu"), Alone())
        counts = [int((part != -100).sum()) for part in Sampler(data, None, 4, 8, 0).batch().targets_BT.chunk(4)]
        values, _ = run._backward()
        steps[parts] = values
        run.close()
    assert len(set(counts)) > 1, "the parts hold unequally many targets"
    assert steps[4]["loss_nats"] == pytest.approx(steps[1]["loss_nats"], rel=1e-6)
    assert steps[4]["grad_norm"] == pytest.approx(steps[1]["grad_norm"], rel=1e-2)  # the experts' balance is by part


def test_conversations_are_held_out_and_capped_whole():
    documents = [talk(i) for i in range(40)]
    split = split_documents(documents, 0.1)
    assert all(d.messages for d in split.train + split.held) and not split.cut
    assert {d.path for d in split.train} | {d.path for d in split.held} == {d.path for d in documents}
    assert not head(documents[0], documents[0].size - 1).text and head(documents[0], 99) is documents[0]
    with pytest.raises(MixwellError, match="conversations are held out whole"):
        split_documents([talk(1)], 0.1)


def test_a_conversation_that_the_template_refuses_is_named(tmp_path):
    said = conversation([{"role": "assistant", "content": "x"}])
    with pytest.raises(MixwellError, match=r"^b.jsonl:7: the chat template refuses .*must alternate"):
        shards(tmp_path / "t", [talk(0), Document("b.jsonl:7", "x", messages=said.to_json())], byte_level("inst"))


def test_text_that_a_tokenizer_loses_is_counted(tmp_path):
    documents = [Document("0", "abc"), Document("1", "cab fed"), Document("2", "Abc"), Document("3", "ab é zz f"),
                 Document("4", "x")]
    data = shards(tmp_path / "t", documents, lossy())
    assert data.lost("talk") == {"documents": 5, "bytes": 3 + 7 + 3 + 10 + 1, "changed": 3, "changed_bytes": 14,
                                 "unknown_bytes": 5}
    whole = shards(tmp_path / "w", documents, byte_level("chatml"))
    assert whole.lost("talk")["changed"] == 0


def test_masks_of_another_length_are_named(data, tmp_path):
    folder = tmp_path / "t"
    shards(folder, [talk(i) for i in range(3)], byte_level("chatml"))
    (folder / "00.train.mask.bin").write_bytes(b"\1")
    with pytest.raises(MixwellError, match=r"00.train.mask.bin has 1 bytes, \d+ expected"):
        TokenData.open(folder)
    assert json.loads((folder / "index.json").read_text())["format"] == 3


def test_a_prompt_is_what_comes_before_an_answer_in_the_stream(data):
    chat = Chat(byte_level("chatml"))
    stream, mask = data.tokens("talk", "held").tolist(), data.mask("talk", "held")
    begun = chat.prompt(conversation([{"role": "user", "content": "say 0"}]))
    assert stream[: int(mask.argmax())] == begun
