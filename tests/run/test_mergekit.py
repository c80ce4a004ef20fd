"""mergekit's merge files: gradients, filters, slices, modules, tokens, and what is refused by name.

Numbers of whole files were compared with mergekit 0.1.5 when this was written (all methods: at most 3e-7 apart in
float32); here they are compared with loops over the tensors.
"""

import json

import pytest
import torch

import mixwell
from mixwell.core.errors import MixwellError
from mixwell.formats.tensors import open_folder
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.lm.tokenizer import Tokenizer
from mixwell.merge.settings import evaluated, looked_up
from mixwell.run.mergekit import merge_file


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four models of four layers, m3 in bfloat16."""
    root = tmp_path_factory.mktemp("mergekit")
    config = ModelConfig(vocab_size=30, dim=8, num_layers=4, num_heads=2,
                         channel_mixer={"method": "swiglu", "hidden_dim": 12})
    for seed in range(4):
        model = LanguageModel(config, torch.Generator().manual_seed(seed))
        (model.bfloat16() if seed == 3 else model).save(root / f"m{seed}")
    return root


def tensors_of(path):
    found = open_folder(path)
    return {name: found[name] for name in found}


def run(root, tmp_path, text, out="out"):
    path = tmp_path / "merge.yaml"
    path.write_text(text.replace("$", str(root / "m")))
    merge_file(path, tmp_path / out)
    return tensors_of(tmp_path / out)


def test_settings_are_scalars_gradients_and_filters():
    assert evaluated(0.5, "x", 0.3) == 0.5 and evaluated("3e-1", "x", 0.3) == 0.3
    assert evaluated([0, 1, 5], "x", 0.25) == 0.5 and evaluated([0, 1, 5], "x", 1.0) == 5
    assert evaluated([True, False], "x", 0.9) is True
    choice = [{"filter": "mlp", "value": [0, 2]}, {"value": 7}]
    assert evaluated(choice, "layers.0.mlp.up", 0.5) == 1 and evaluated(choice, "norm", 0.5) == 7
    assert evaluated(choice[:1], "norm", 0.5) is None
    assert looked_up("t", [None, {"t": choice[:1]}, {"t": 9}], "norm", 0) == 9
    with pytest.raises(MixwellError, match=r"parameters\.t: expected entries"):
        looked_up("t", [{"t": [{"wrong": 1}]}], "norm", 0)


def test_gradients_run_over_the_layers(root, tmp_path):
    found = run(root, tmp_path, """
merge_method: linear
models:
  - {model: $0, parameters: {weight: 1.0}}
  - {model: $1, parameters: {weight: [0.0, {V}]}}
parameters: {normalize: false}
""".replace("{V}", "3.0"))
    a, b = tensors_of(root / "m0"), tensors_of(root / "m1")
    for layer in range(4):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        torch.testing.assert_close(found[name], a[name] + 3 * layer / 3 * b[name])
    torch.testing.assert_close(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"])  # depth 0


def test_slices_stack_layers_and_filters_scale_them(root, tmp_path):
    found = run(root, tmp_path, """
merge_method: passthrough
slices:
  - sources: [{model: $0, layer_range: [0, 3]}]
  - sources:
      - model: $1
        layer_range: [1, 4]
        parameters: {scale: [{filter: o_proj, value: 0.0}, {value: 1.0}]}
""")
    a, b = tensors_of(root / "m0"), tensors_of(root / "m1")
    name = "model.layers.{}.mlp.up_proj.weight".format
    assert torch.equal(found[name(2)], a[name(2)]) and torch.equal(found[name(3)], b[name(1)])
    assert torch.equal(found[name(5)], b[name(3)]) and name(6) not in found
    assert not found["model.layers.4.self_attn.o_proj.weight"].any()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 6
    assert torch.equal(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert mixwell.load(tmp_path / "out").config.num_layers == 6


def test_modules_of_slices_merge_other_layers_into_a_shorter_model(root, tmp_path):
    found = run(root, tmp_path, """
merge_method: linear
modules:
  default:
    slices:
      - sources:
          - {model: $0, layer_range: [0, 2], parameters: {weight: 0.25}}
          - {model: $1, layer_range: [2, 4], parameters: {weight: 0.75}}
out_dtype: bfloat16
""")
    a, b = tensors_of(root / "m0"), tensors_of(root / "m1")
    for layer in range(2):
        name = "model.layers.{}.self_attn.k_proj.weight".format
        expected = 0.25 * a[name(layer)] + 0.75 * b[name(layer + 2)]
        torch.testing.assert_close(found[name(layer)], expected.bfloat16())


def test_the_base_is_kept_apart_and_the_file_lies_beside(root, tmp_path):
    text = """
merge_method: ties
base_model: $2
models:
  - {model: $0, parameters: {weight: 0.5, density: 1.0}}
  - {model: $2}
parameters: {lambda: 0.5, int8_mask: true}
"""
    found = run(root, tmp_path, text)
    a, base = tensors_of(root / "m0"), tensors_of(root / "m2")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, base[name] + 0.5 * (a[name] - base[name]))
    kept = (tmp_path / "out" / "mergekit_config.yml").read_text()
    assert kept == (tmp_path / "merge.yaml").read_text()
    assert kept.strip() in (tmp_path / "out" / "README.md").read_text()
    record = mixwell.load(tmp_path / "out").lineage[-1]
    assert record["merge_method"] == "ties" and record["inputs"] == [str(root / "m0"), str(root / "m2")]


def test_slerp_runs_from_the_base_whatever_its_place(root, tmp_path):
    text = """
merge_method: slerp
base_model: $0
models: [{model: $1}, {model: $0}]
parameters: {t: 0.2}
"""
    found = run(root, tmp_path, text)
    expected = mixwell.apply("merge.slerp", [root / "m0", root / "m1"], t=0.2, out=tmp_path / "other")
    assert expected.lineage[-1]["method"] == "merge.slerp"
    for name, tensor in tensors_of(tmp_path / "other").items():
        assert torch.equal(tensor, found[name])


def test_several_types_meet_where_the_file_names_one(root, tmp_path):
    text = "merge_method: linear\nmodels:\n  - {model: $0, parameters: {weight: 1}}\n"
    text += "  - {model: $3, parameters: {weight: 1}}\n"
    with pytest.raises(MixwellError, match=r"float32 \[30, 8\] in .*m0 and bfloat16 \[30, 8\] in .*m3"):
        run(root, tmp_path, text)
    assert not (tmp_path / "out").exists()
    found = run(root, tmp_path, text + "dtype: float32\n")
    a, b = tensors_of(root / "m0"), tensors_of(root / "m3")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (a[name] + b[name].float()) / 2)


@pytest.mark.parametrize(("text", "words"), [
    ("merge_method: tiez\nmodels: [{model: $0}]", "'tiez' is not known. Did you mean 'ties'"),
    ("merge_method: linear", "one of models, slices and modules"),
    ("merge_method: linear\nmodels: [{model: $0}]", "linear needs weight for"),
    ("merge_method: ties\nmodels: [{model: $0, parameters: {weight: 1}}]", "ties needs base_model"),
    ("merge_method: slerp\nbase_model: $0\nmodels: [{model: $1}]", "slerp needs t for"),
    ("merge_method: linear\nmodels: [{model: $0, parameters: {weight: x}}]", "expected a number"),
    ("merge_method: linear\nmodels: [{model: $9, parameters: {weight: 1}}]", "m9 is not a folder"),
    ("merge_method: linear\nmodels: [{model: $0+lora, parameters: {weight: 1}}]", "names an adapter"),
    ("merge_method: linear\nmodels: [{model: {model: {path: $0, revision: x}}, parameters: {weight: 1}}]", "revision"),
    ("merge_method: linear\nmodels: [{model: $0, parameters: {weight: 1}}]\nfoo: 1", "unknown key 'foo'"),
    ("merge_method: linear\nmodels: [{model: $0, parameters: {weight: 1}}]\ndtype: int3", "dtype: 'int3'"),
    ("merge_method: passthrough\nslices: [{sources: [{model: $0}]}]", "needs layer_range"),
    ("merge_method: passthrough\nslices: [{sources: [{model: $0, layer_range: [0, 9]}]}]", "has no layer 4"),
    ("merge_method: linear\nslices: [{sources: [{model: $0, layer_range: [0, 2]}, {model: $1, layer_range: [0, 3]}]}]",
     r"\[2, 3\] layers; expected as many"),
    ("merge_method: passthrough\nslices: [{sources: [{model: $0, layer_range: [0, 2]}], residual_weight: 1}]",
     "residual_weight is not served"),
    ("merge_method: linear\nmodels: [{model: $0, parameters: {weight: 1}}]\nchat_template: chatml", "chat_template"),
    ("merge_method: linear\nmodels: [{model: $0, parameters: {weight: 1}}]\ntokenizer_source: union", "tokenizer.json"),
    ("merge_method: linear\nmodels: [{model: $0}]\ntokenizer_source: union\ntokenizer: {source: base}", "side by side"),
    ("- 1", "expected keys and values"),
])
def test_refusals(root, tmp_path, text, words):
    with pytest.raises(MixwellError, match=words.replace(". Did", r"\. Did").replace("tokenizer.j", r"tokenizer\.j")):
        run(root, tmp_path, text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merge.yaml"]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Two models with other tokens: each knows 257 and a few of its own."""
    root = tmp_path_factory.mktemp("spoken")
    for seed, text in enumerate(("abab abab", "xyxy xyxy xyxyxy")):
        tokenizer = Tokenizer.train([text * 40], 259 + seed)
        config = ModelConfig(vocab_size=tokenizer.vocab_size, dim=8, num_layers=1, num_heads=2,
                             channel_mixer={"method": "swiglu", "hidden_dim": 12})
        model = LanguageModel(config, torch.Generator().manual_seed(seed))
        model.tokenizer = tokenizer
        model.save(root / f"m{seed}")
    return root


UNION = """
merge_method: linear
models:
  - {model: $0, parameters: {weight: 0.25}}
  - {model: $1, parameters: {weight: 0.75}}
"""


def test_a_union_of_tokens_gives_every_token_its_row(spoken, tmp_path):
    found = run(spoken, tmp_path, UNION + "tokenizer: {source: union, pad_to_multiple_of: 8}\n")
    a, b = tensors_of(spoken / "m0"), tensors_of(spoken / "m1")
    ids = [mixwell.load(spoken / f"m{k}").tokenizer.vocabulary for k in (0, 1)]
    merged = mixwell.load(tmp_path / "out")
    union = merged.tokenizer.vocabulary
    assert set(union) == set(ids[0]) | set(ids[1]) and sorted(union.values()) == list(range(len(union)))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = found[name]
        assert rows.shape[0] % 8 == 0 and rows.shape[0] >= len(union)
        for token, number in union.items():
            first, second = ids[0].get(token), ids[1].get(token)
            one = a[name][first] if first is not None else b[name][second]
            other = b[name][second] if second is not None else a[name][first]
            torch.testing.assert_close(rows[number], 0.25 * one + 0.75 * other)
        torch.testing.assert_close(rows[-1], rows[: len(union)].mean(0)) if rows.shape[0] > len(union) else None
    assert merged.config.vocab_size == found["model.embed_tokens.weight"].shape[0]
    again = run(spoken, tmp_path, UNION + "tokenizer: {source: union, pad_to_multiple_of: 8}\n", out="again")
    assert all(torch.equal(tensor, again[name]) for name, tensor in found.items())


def test_tokens_have_rules_of_their_own(spoken, tmp_path):
    found = run(spoken, tmp_path, UNION + """
tokenizer:
  source: base
  tokens:
    <new>: {source: {kind: zero}}
    a: {source: $1, force: true}
    b: {source: {kind: model_token, model: $1, token: x}, force: true}
base_model: $0
""")
    b = tensors_of(spoken / "m1")
    other = mixwell.load(spoken / "m1").tokenizer.vocabulary
    ids = mixwell.load(tmp_path / "out").tokenizer.vocabulary
    rows = found["model.embed_tokens.weight"]
    assert not rows[ids["<new>"]].any()
    torch.testing.assert_close(rows[ids["a"]], b["model.embed_tokens.weight"][other["a"]])
    torch.testing.assert_close(rows[ids["b"]], b["model.embed_tokens.weight"][other["x"]])
    with pytest.raises(MixwellError, match="is none of the models"):
        run(spoken, tmp_path, UNION + "tokenizer_source: elsewhere\n", out="other")


def test_chat_templates_are_the_commonest_or_given(spoken, tmp_path):
    text = "{% for m in messages %}{{ m.content }}{% endfor %}"
    run(spoken, tmp_path, UNION + f"tokenizer_source: base\nbase_model: $0\nchat_template: '{text}'\n")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == text
    run(spoken, tmp_path, UNION + "tokenizer_source: $1\nchat_template: auto\n", out="auto")
    assert not (tmp_path / "auto" / "chat_template.jinja").exists()  # none of the models has one
