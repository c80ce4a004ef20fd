"""PEFT's folders against weights changed by hand under Hugging Face's names, against figures that PEFT gave, and PEFT.

Every number is a sine of its place, so that PEFT's own result (`PUBLISHED`) can be compared without PEFT.
"""

import json
import math
import zlib

import pytest
import torch

from mixwell.adapters.ia3 import IA3
from mixwell.adapters.ia3 import Config as Factors
from mixwell.adapters.lora import Config, LoRA
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator as seeded
from mixwell.formats.tensors import save_tensors
from mixwell.lm import folder as folders
from mixwell.lm import peft
from mixwell.lm.hf.config import read_config
from mixwell.lm.hf.tensors import file_shapes, recipes
from mixwell.lm.model import LanguageModel
from mixwell.lm.peft.experts import FLAT
from tests.contracts._adapters import moved

COMMON = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False}
DENSE = {**COMMON, "model_type": "llama", "intermediate_size": 48}
SPARSE = {**COMMON, "model_type": "qwen3_moe", "intermediate_size": 24, "moe_intermediate_size": 16, "num_experts": 4,
          "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
TOKENS = torch.arange(22).view(2, 11) * 7 % 40
LAYER = "base_model.model.model.layers.0."
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}


def sines(name, shape, size=0.3):
    start = zlib.crc32(name.encode()) % 1000
    places = torch.arange(math.prod(shape), dtype=torch.float64) * 1.7 + start
    return (size * places.sin()).view(shape).float()


def base(config=DENSE, change=None):
    """The model whose tensors are sines; `change` maps their dict, by Hugging Face's names."""
    arch = read_config(config)
    own = folders.shapes(arch)
    shapes = file_shapes(recipes(arch, config["model_type"], own))
    tensors = {name: sines(name, shape) + ("norm" in name) for name, shape in shapes.items()}
    if change is not None:
        change(tensors)
    made = folders.from_written(tensors, Checkpoint(arch, {}), config["model_type"], "made")
    return LanguageModel.from_checkpoint(made).eval()


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits_BTV


def adapter(folder, config, shapes):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {name: sines(name, shape, 0.2) for name, shape in shapes.items()}
    save_tensors(folder / "adapter_model.safetensors", tensors)
    return folder, tensors


def pairs(*modules):
    """Shapes of A and B: (module, rank, inputs, outputs)."""
    found = {}
    for module, rank, inputs, outputs in modules:
        found[f"{LAYER}{module}.lora_A.weight"] = (rank, inputs)
        found[f"{LAYER}{module}.lora_B.weight"] = (outputs, rank)
    return found


LINEAR = pairs(("self_attn.q_proj", 2, 32, 32), ("self_attn.v_proj", 3, 32, 16), ("mlp.up_proj", 2, 32, 48),
               ("mlp.down_proj", 2, 48, 32))
LINEAR_CONFIG = LORA | {"target_modules": r"model\.layers\.0\.(self_attn\.(q|v)|mlp\.(up|down))_proj",
                        "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"layers.0.mlp.*": 5}, "use_rslora": True}
EXPERTS = pairs(("mlp.experts.base_layer", 8, 32, 32), ("mlp.experts", 8, 16, 32))
EXPERTS_CONFIG = LORA | {"target_modules": [], "target_parameters": ["layers.0.mlp.experts.down_proj",
                                                                    "layers.0.mlp.experts.gate_up_proj"]}
# first logits of each row, by peft 0.21.2 under transformers 5.24
PUBLISHED = {
    "linear": [[0.30786663, -0.5193398, 0.2595039, 0.23583575], [0.18109123, -0.47173035, 0.33426684, 0.10654909]],
    "experts": [[0.19897993, -0.12347632, -0.06408391, 0.19348711], [0.0967209, 0.04114812, -0.1416745, 0.11362903]]}
FOLDERS = {"linear": (LINEAR_CONFIG, LINEAR, DENSE), "experts": (EXPERTS_CONFIG, EXPERTS, SPARSE)}


def test_linear_layers_agree_with_weights_changed_by_hand(tmp_path):
    folder, tensors = adapter(tmp_path / "theirs", LINEAR_CONFIG, LINEAR)

    def change(there):
        for module, rank, alpha in (("self_attn.q_proj", 2, 6), ("self_attn.v_proj", 3, 6), ("mlp.up_proj", 2, 5),
                                    ("mlp.down_proj", 2, 5)):
            A, B = (tensors[f"{LAYER}{module}.lora_{part}.weight"] for part in "AB")
            there[f"model.layers.0.{module}.weight"] += alpha / math.sqrt(rank) * B @ A

    model = base()
    before = logits(model)
    there = peft.read(folder, model)
    expected = logits(base(change=change))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, expected, atol=0.1)
    assert there.adapters["layers.0.sequence_mixer.qkv.weight"].A.shape == (5, 32)
    there.detach()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("packing", FLAT)
def test_experts_agree_with_weights_changed_one_by_one(packing, tmp_path):
    folder, tensors = adapter(tmp_path / "theirs", EXPERTS_CONFIG, EXPERTS)

    def change(there):
        for e in range(4):
            for stem, name in ((".base_layer", "gate_up"), ("", "down")):
                A, B = (tensors[f"{LAYER}mlp.experts{stem}.lora_{part}.weight"] for part in "AB")
                columns = [rank * 4 + e if packing == "peft" else e * 2 + rank for rank in range(2)]
                delta = 3.0 * B[:, columns] @ A[2 * e:2 * e + 2]
                parts = {"gate_up": ("gate_proj", "up_proj"), "down": ("down_proj",)}[name]
                for part, rows in zip(parts, delta.chunk(len(parts))):
                    there[f"model.layers.0.mlp.experts.{e}.{part}.weight"] += rows

    model = base(SPARSE)
    before = logits(model)
    there = peft.read(folder, model, packing=packing)
    expected = logits(base(SPARSE, change))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, expected, atol=0.1)
    there.merge()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "experts"])
def test_logits_are_those_that_peft_gave(name, tmp_path):
    config, shapes, arch = FOLDERS[name]
    folder, _ = adapter(tmp_path / "theirs", config, shapes)
    model = base(arch)
    peft.read(folder, model)
    torch.testing.assert_close(logits(model)[:, -1, :4], torch.tensor(PUBLISHED[name]), rtol=1e-4, atol=1e-5)


CASES = {
    "lora": (DENSE, lambda m: LoRA.attach(m, None, Config(rank=3, rslora=True, rank_pattern={"out": 2}), seeded(3))),
    "dora": (DENSE, lambda m: LoRA.attach(m, ["qkv", "gate_up_proj"], Config(rank=2, dora=True), seeded(3))),
    "pissa": (DENSE, lambda m: LoRA.attach(m, "qkv", Config(rank=2, start="pissa"), seeded(3))),
    "norms": (DENSE, lambda m: LoRA.attach(m, "out", Config(rank=2, dropout=0.1), seeded(3), trained=["norm.weight"])),
    "ia3": (DENSE, lambda m: IA3.attach(m, ["qkv", "down_proj"], Factors(), seeded(3))),
    "experts": (SPARSE, lambda m: LoRA.attach(m, ["qkv", "down_proj", "gate_up_proj"], Config(rank=2), seeded(3))),
    "one stack": (SPARSE, lambda m: LoRA.attach(m, "layers.1.*gate_up_proj", Config(rank=2), seeded(3))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", [{}, {"experts": "apart"}, {"packing": "expert_first"}], ids=str)
def test_what_is_written_reads_back_as_the_same_model(case, layout, tmp_path):
    arch, attach = CASES[case]
    if layout and arch is DENSE:
        pytest.skip("no experts")
    there = moved(attach(base(arch)), size=0.2)
    peft.write(there, tmp_path / "ours", base="mine", **layout)
    model = base(arch)
    again = peft.read(tmp_path / "ours", model)
    torch.testing.assert_close(logits(model), logits(there.model), rtol=1e-5, atol=1e-5)
    if case in ("lora", "experts", "one stack"):  # a shared A is written once a module, and found to be shared
        assert all(torch.equal(value, again.tensors()[name]) for name, value in there.tensors().items())


def test_the_loss_tells_the_order_of_experts(tmp_path):
    model = base(SPARSE)
    there = LoRA.attach(model, ["gate_up_proj", "down_proj"], Config(rank=2, alpha=8.0), seeded(3))
    moved(there, size=0.05)
    for _ in range(15):
        model.zero_grad()
        model.loss(TOKENS[:, :-1], TOKENS[:, 1:]).nats.backward()
        with torch.no_grad():
            for parameter in there.model.parameters():
                if parameter.requires_grad:
                    parameter -= 0.1 * parameter.grad
    peft.write(there, tmp_path / "old", packing="expert_first")
    path = tmp_path / "old" / "adapter_config.json"
    plain = json.loads(path.read_text())
    assert plain.pop("mixwell_expert_packing") == "expert_first"
    path.write_text(json.dumps(plain))
    found = peft.weigh_packings(tmp_path / "old", base(SPARSE), TOKENS)
    assert found["expert_first"] < found["peft"] - 0.05


def _without(name):
    def change(config, tensors):
        del tensors[f"{LAYER}{name}"]
    return change


def _nan(config, tensors):
    tensors[f"{LAYER}mlp.up_proj.lora_A.weight"][0, 0] = torch.nan


def _strange(config, tensors):
    tensors[f"{LAYER}self_attn.z_proj.lora_A.weight"] = torch.ones(2, 32)


def _narrow(config, tensors):
    tensors[f"{LAYER}mlp.up_proj.lora_A.weight"] = torch.ones(2, 31)


def _more(config, tensors):
    config["target_modules"] = ["q_proj", "v_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("change, message", [
    (_without("mlp.up_proj.lora_A.weight"), "model.layers.0.mlp.up_proj.lora_A is missing in the file"),
    (_nan, "mlp.up_proj.lora_A.weight has values that are not finite"),
    (_strange, "self_attn.z_proj.lora_A.weight has no place in this model; it would be dropped"),
    (_narrow, r"the file changes a matrix of \[48, 31\], this base has \[48, 32\]"),
    (_more, "model.layers.1.self_attn.q_proj is a target of this adapter and missing in its file"),
    (lambda config, tensors: config.update(peft_type="VERA"), "peft_type is 'VERA'; LORA, IA3, BOFT, OFT, LN_TUNING"),
    (lambda config, tensors: config.update(lora_bias=True), "asks for lora_bias, which would change the result"),
    (lambda config, tensors: config.pop("lora_alpha"), "has no lora_alpha"),
    (lambda config, tensors: tensors.clear(), "adapts no module; expected lora_A and lora_B"),
    (lambda config, tensors: config.update(mixwell_base_digest="ab"), "made for another base: the weights' digest"),
    (lambda config, tensors: config.update(mixwell_expert_packing="x"), "packing is 'x'; expected peft or")])
def test_bad_folders_are_refused_and_nothing_is_attached(change, message, tmp_path):
    config = dict(LINEAR_CONFIG)
    folder, tensors = adapter(tmp_path / "theirs", config, LINEAR)
    change(config, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_tensors(folder / "adapter_model.safetensors", tensors)
    model = base()
    with pytest.raises(MixwellError, match=message):
        peft.read(folder, model)
    assert all(p.requires_grad for p in model.parameters()) and not any("adapters" in n for n in model.state_dict())


def test_a_missing_router_or_expert_is_refused(tmp_path):
    config = EXPERTS_CONFIG | {"target_modules": ["layers.0.mlp.gate"]}
    folder, _ = adapter(tmp_path / "theirs", config, EXPERTS)
    with pytest.raises(MixwellError, match=r"model.layers.0.mlp.gate is a target of this adapter and missing"):
        peft.read(folder, base(SPARSE))
    some = pairs(*((f"mlp.experts.{e}.down_proj", 2, 16, 32) for e in (0, 2, 3)))
    folder, _ = adapter(tmp_path / "some", LORA | {"target_modules": None}, some)
    with pytest.raises(MixwellError, match=r"adapts some experts and lacks \[1\]; none is skipped"):
        peft.read(folder, base(SPARSE))


def test_a_gate_that_the_config_promises_and_the_file_lacks_is_refused(tmp_path):
    gates = {f"base_model.model.model.layers.{layer}.mlp.gate.weight": (4, 32) for layer in range(2)}
    linear = pairs(("self_attn.q_proj", 2, 32, 32))
    config = LORA | {"target_modules": ["layers.0.self_attn.q_proj"], "modules_to_save": ["gate"]}
    folder, tensors = adapter(tmp_path / "whole", config, linear | gates)
    there = peft.read(folder, base(SPARSE))
    assert sorted(there.trained) == [f"layers.{layer}.channel_mixer.router.weight" for layer in range(2)]
    name = "base_model.model.model.layers.1.mlp.gate.weight"
    torch.testing.assert_close(there.trained["layers.1.channel_mixer.router.weight"], tensors[name])
    del gates[name]
    folder, _ = adapter(tmp_path / "less", config, linear | gates)
    with pytest.raises(MixwellError, match=r"mlp.gate.weight is named in modules_to_save \(gate\) and missing"):
        peft.read(folder, base(SPARSE))


@pytest.mark.parametrize("change, message", [
    ({"use_frobnication": True}, "unknown key 'use_frobnication'.*It may change the result; take it out"),
    ({"r": 0}, "r is 0; expected a whole number, 1 or more"), ({"r": "8"}, "r is '8'; expected a whole number"),
    ({"r": 4}, "tensors have rank 2, its config says 4; the two do not belong together"),
    ({"lora_alpha": -1}, "lora_alpha is -1; expected a number above 0"),
    ({"rank_pattern": {"v_proj": 1.5}}, "v_proj is 1.5; expected a whole number"),
    ({"target_modules": ["q_proj", "v_prj"]}, "'v_prj' names nothing in this model. Did you mean 'v_proj'"),
    ({"target_modules": "model.encoder.*"}, "'model.encoder.*' names nothing in this model"),
    ({"target_parameters": ["experts.gate"]}, "target_parameters: 'experts.gate' names nothing"),
    ({"init_lora_weights": "pissa_niter_4"}, "took the start out of the base's own weights"),
    ({"rank_pattern": {"*.v_proj": 3}}, r"'\*.v_proj' is no regular expression \(nothing to repeat"),
    ({"target_modules": "(q_proj"}, r"'\(q_proj' is no regular expression"),
    ({"target_modules": 3}, "target_modules is 3; expected text or a list, each text or null"),
    ({"modules_to_save": "norm"}, "modules_to_save is 'norm'; expected a list"),
    ({"alpha_pattern": [6]}, r"alpha_pattern is \[6\]; expected keys and values"),
    ({"lora_dropout": "0.1"}, "lora_dropout is '0.1'; expected a number at least 0")])
def test_a_config_that_does_not_say_what_the_file_holds_is_refused(change, message, tmp_path):
    folder, _ = adapter(tmp_path / "theirs", LINEAR_CONFIG | change, LINEAR)
    with pytest.raises(MixwellError, match=message):
        peft.read(folder, base())
    (tmp_path / "theirs" / "adapter_config.json").write_text(json.dumps(LINEAR_CONFIG | {"not_yet_known": None}))
    peft.read(folder, base())  # a key that says nothing changes nothing


def test_a_rank_above_the_width_is_refused(tmp_path):
    wide = pairs(("self_attn.v_proj", 17, 32, 16))
    folder, _ = adapter(tmp_path / "wide", LORA | {"r": 17, "target_modules": ["layers.0.self_attn.v_proj"]}, wide)
    with pytest.raises(MixwellError, match="rank 17 is more than a matrix of 16 x 32 can have; expected 16 at most"):
        peft.read(folder, base())


def test_a_part_that_belongs_to_another_kind_of_adapter_is_refused(tmp_path):
    factors = {f"{LAYER}mlp.up_proj.ia3_l": (48, 1)}
    both = adapter(tmp_path / "both", LINEAR_CONFIG, LINEAR | factors)[0]
    other = adapter(tmp_path / "other", {"peft_type": "IA3", "target_modules": []}, LINEAR | factors)[0]
    for folder in (both, other):
        with pytest.raises(MixwellError, match="has no place in this model; it would be dropped"):
            peft.read(folder, base())


def test_experts_both_at_once_and_one_by_one_are_refused(tmp_path):
    one = pairs(("mlp.experts.2.down_proj", 2, 16, 32))
    folder, _ = adapter(tmp_path / "theirs", EXPERTS_CONFIG, EXPERTS | one)
    with pytest.raises(MixwellError, match="adapts its experts both one by one and all at once"):
        peft.read(folder, base(SPARSE))


def test_parameters_that_cannot_be_told_apart_are_refused(tmp_path):
    config = EXPERTS_CONFIG | {"target_parameters": ["layers.0.mlp.experts.down_proj"]}
    folder, _ = adapter(tmp_path / "theirs", config, EXPERTS)
    with pytest.raises(MixwellError, match="wraps it 2 times where target_parameters names 1 of its parameters"):
        peft.read(folder, base(SPARSE))


def test_a_tokenizer_of_another_base_is_refused(tmp_path):
    folder, _ = adapter(tmp_path / "theirs", LINEAR_CONFIG, LINEAR)
    model = base()
    vocab = {"model": {"vocab": {"a": 0}}}
    model.files = {"tokenizer.json": json.dumps(vocab).encode()}
    (folder / "tokenizer.json").write_text(json.dumps(vocab))
    peft.read(folder, model).detach()
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"b": 0}}}')
    with pytest.raises(MixwellError, match="another vocabulary than the model's"):
        peft.read(folder, model)


@pytest.mark.parametrize("case, options, message", [
    (lambda: IA3.attach(base(SPARSE), "down_proj", Factors(), seeded(3)), {}, r"PEFT has no \(IA\)\^3 on experts"),
    (lambda: LoRA.attach(base(SPARSE), "down_proj", Config(rank=2, dora=True), seeded(3)), {}, "no DoRA on experts"),
    (lambda: LoRA.attach(base(), "out", Config(rank=2), seeded(3), trained=["qkv"]), {}, "no module of its own"),
    (lambda: LoRA.attach(base(), "out", Config(rank=2), seeded(3)), {"packing": "x"}, "packing is 'x'"),
    (lambda: LoRA.attach(base(), "out", Config(rank=2), seeded(3)), {"experts": "x"}, "experts is 'x'")])
def test_what_peft_cannot_hold_is_refused(case, options, message, tmp_path):
    with pytest.raises(MixwellError, match=message):
        peft.write(case(), tmp_path / "ours", **options)
    assert not (tmp_path / "ours").exists()


def _published(arch, folder):
    """The base in transformers with the folder's adapter, by PEFT."""
    transformers = pytest.importorskip("transformers")
    theirs = pytest.importorskip("peft")
    folders.write(base(arch).to_checkpoint(), folder / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    return theirs.PeftModel.from_pretrained(model, folder / "adapter").eval()


def written_for_peft(arch, attach, folder):
    """Hold the logits of an adapter to those that PEFT itself gives of what is written of it."""
    pytest.importorskip("peft")
    there = moved(attach(base(arch)), size=0.2)
    peft.write(there, folder / "adapter")
    theirs = _published(arch, folder)
    with torch.no_grad():
        torch.testing.assert_close(logits(there.model), theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)


def given_by_peft(config, shapes, arch, figures, folder):
    """Hold figures of the last token of each row to those that PEFT itself gives."""
    pytest.importorskip("peft")
    adapter(folder / "adapter", config, shapes)
    theirs = _published(arch, folder)
    with torch.no_grad():
        found = theirs(TOKENS).logits[:, -1, :4]
    torch.testing.assert_close(found, torch.tensor(figures), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_peft_itself_gives_the_same_logits_of_ours(case, tmp_path):
    written_for_peft(*CASES[case], tmp_path)


@pytest.mark.parametrize("name", ["linear", "experts"])
def test_peft_itself_gives_what_is_written_here(name, tmp_path):
    given_by_peft(*FOLDERS[name], PUBLISHED[name], tmp_path)
