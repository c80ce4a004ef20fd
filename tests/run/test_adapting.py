"""Adapters in folders: merged into their base with a receipt, taken out again, written in other layouts, refused."""

import json

import pytest
import torch

import mixwell
from mixwell.adapters import files
from mixwell.adapters.ia3 import IA3
from mixwell.adapters.ia3 import Config as Factors
from mixwell.adapters.lora import Config, LoRA
from mixwell.adapters.mixlora import Config as Routed
from mixwell.adapters.mixlora import MixLoRA
from mixwell.adapters.s2ft import S2FT
from mixwell.adapters.s2ft import Config as Slices
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.formats.tensors import open_file, save_tensors
from mixwell.lm import folder as folders
from mixwell.lm import peft
from mixwell.lm.adapted import put
from mixwell.lm.model import LanguageModel
from mixwell.run import adapting
from mixwell.run import apply as applying
from mixwell.run.adapting import put_many
from tests.contracts._adapters import moved
from tests.lm.test_peft import DENSE, SPARSE, TOKENS, base, logits

MERGE = "adapters.lora"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A base of four experts, and adapters on them and on attention."""
    folder = tmp_path_factory.mktemp("adapters")
    folders.write(base(SPARSE).to_checkpoint(), folder / "base")
    there = LoRA.attach(mixwell.load(folder / "base"), ["qkv", "gate_up_proj", "down_proj"], Config(rank=2, alpha=4.0),
                        generator(3))
    moved(there, size=0.1)
    there.adapters["layers.1.channel_mixer.down_proj"].B.data[2] = 0
    files.save(there, folder / "own", "base")
    for name, options in {"fused": {}, "old": {"packing": "expert_first"}, "apart": {"experts": "apart"}}.items():
        peft.write(there, folder / name, **options)
    return folder, logits(there.model)


def _forget(folder, target):
    """A PEFT folder without what is said of the order and of the base, as other programs write it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    plain = {key: value for key, value in config.items() if not key.startswith("mixwell")}
    target.mkdir()
    (target / "adapter_config.json").write_text(json.dumps(plain))
    tensors = dict(open_file(folder / "adapter_model.safetensors"))
    save_tensors(target / "adapter_model.safetensors", tensors)
    return target


def test_a_merged_model_gives_what_base_and_adapter_give_and_says_what_changed(places, tmp_path):
    folder, expected = places
    made = mixwell.apply(MERGE, folder / "base", adapter=folder / "own", out=tmp_path / "merged")
    torch.testing.assert_close(logits(mixwell.load(tmp_path / "merged")), expected, rtol=1e-5, atol=1e-5)
    record = made.lineage[-1]
    receipt = record["receipt"]
    there = put(folder / "own", mixwell.load(folder / "base"))
    assert receipt["trained_parameters"] == there.num_parameters and receipt["merge_error"] < 1e-4
    assert receipt["without_change"] == {"layers.1.channel_mixer.down_proj": [2]}
    name = "layers.0.channel_mixer.gate_up_proj"
    weight = there.adapters[name].target.tensor
    own = [there.delta_weight(name)[e].norm() / weight[e].norm() for e in range(4)]
    assert receipt["changes"][name] == pytest.approx([float(one) for one in own], rel=1e-5)
    assert receipt["max_logit_error"] > 0.01 and record["stage"] == "adapters"


def test_taken_out_again_it_leaves_the_base(places, tmp_path):
    folder, _ = places
    mixwell.apply(MERGE, folder / "base", adapter=folder / "own", out=tmp_path / "merged")
    back = mixwell.apply(MERGE, tmp_path / "merged", adapter=folder / "own", unmerge=True)
    before = mixwell.load(folder / "base").state_dict()
    for name, value in back.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)
    with pytest.raises(MixwellError, match=r"does not say that .* was merged into it"):
        mixwell.apply(MERGE, folder / "base", adapter=folder / "own", unmerge=True)


def test_what_rounding_or_the_rule_took_is_not_had_back(tmp_path):
    model = base(DENSE)
    folders.write(model.to_checkpoint(), tmp_path / "base")
    there = moved(IA3.attach(model, ["qkv"], Factors(), generator(3)), size=0.1)
    files.save(there, tmp_path / "factors")
    mixwell.apply("adapters.ia3", tmp_path / "base", adapter=tmp_path / "factors", out=tmp_path / "scaled")
    with pytest.raises(MixwellError, match="is a function of the base's weight"):
        mixwell.apply("adapters.ia3", tmp_path / "scaled", adapter=tmp_path / "factors", unmerge=True)
    half = LanguageModel.from_checkpoint(base(DENSE).to_checkpoint(), "bf16")
    folders.write(half.to_checkpoint(), tmp_path / "half")
    files.save(moved(LoRA.attach(half, "out", Config(rank=1), generator(3)), size=0.1), tmp_path / "thin")
    mixwell.apply(MERGE, tmp_path / "half", adapter=tmp_path / "thin", out=tmp_path / "rounded")
    stored = folders.read(tmp_path / "rounded").tensors["layers.0.sequence_mixer.out.weight"]
    assert stored.dtype == torch.bfloat16
    with pytest.raises(MixwellError, match="is bfloat16, whose rounding took digits of the base with it"):
        mixwell.apply(MERGE, tmp_path / "rounded", adapter=tmp_path / "thin", unmerge=True)


@pytest.mark.parametrize("came, layout", [("own", "peft"), ("fused", "unsloth"), ("old", "stacks"), ("old", "apart"),
                                          ("apart", "own")])
def test_every_layout_is_read_as_the_same_adapter(came, layout, places, tmp_path):
    folder, _ = places
    done = applying.convert_adapter(MERGE, folder / "base", folder / came, options={"layout": layout},
                                    out=tmp_path / "out")
    again = put(tmp_path / "out", mixwell.load(folder / "base"))
    first = put(folder / "own", mixwell.load(folder / "base")).tensors()
    assert all(torch.equal(value, first[name]) for name, value in again.tensors().items())
    assert done["parameters_before"] == done["parameters_after"] and done["max_logit_error"] < 1e-5


def test_a_base_of_sixteen_bits_is_weighed_in_the_type_in_which_its_adapter_came(tmp_path):
    half = LanguageModel.from_checkpoint(base(DENSE).to_checkpoint(), "bf16")
    stored = half.to_checkpoint()
    folders.write(stored, tmp_path / "half")
    files.save(moved(LoRA.attach(half, "out", Config(rank=1), generator(3)), size=0.1), tmp_path / "thin")
    for layout in ("own", "peft"):
        done = applying.convert_adapter(MERGE, tmp_path / "half", tmp_path / "thin", options={"layout": layout},
                                        out=tmp_path / layout)
        assert done["max_logit_error"] < 1e-5
    model = LanguageModel.from_checkpoint(stored, "fp32").eval()
    work = adapting.Work(base=stored, name="half", folder=tmp_path / "thin", tokens_BT=TOKENS,
                         bytes_V=torch.ones(half.config.vocab_size), options=adapting.Options())
    there = work.put(other_base=True)
    for adapter in there.adapters.values():
        adapter.B.data.zero_()
    bits = adapting._bits(work, there)
    wanted = adapting.bits_per_byte(model, TOKENS, work.bytes_V)
    assert bits["bits_per_byte_without"] == bits["bits_per_byte_with"] == wanted


def test_stacks_are_three_dimensional_with_the_expert_first(places, tmp_path):
    folder, _ = places
    applying.convert_adapter(MERGE, folder / "base", folder / "old", options={"layout": "stacks"}, out=tmp_path / "out")
    tensors = open_file(tmp_path / "out" / "adapter_model.safetensors")
    there = put(folder / "own", mixwell.load(folder / "base")).adapters["layers.0.channel_mixer.down_proj"]
    stem = "base_model.model.model.layers.0.mlp.experts."
    assert torch.equal(tensors[f"{stem}lora_A.weight"], there.A)
    assert torch.equal(tensors[f"{stem}lora_B.weight"], there.B)


def test_an_order_that_nobody_says_is_asked_for(places, tmp_path):
    folder, expected = places
    bare = _forget(folder / "old", tmp_path / "bare")
    with pytest.raises(MixwellError, match="does not say in which order its experts lie"):
        put(bare, mixwell.load(folder / "base"))
    told = put(bare, mixwell.load(folder / "base"), packing="expert_first")
    torch.testing.assert_close(logits(told.model), expected, rtol=1e-5, atol=1e-5)
    plain = _forget(folder / "apart", tmp_path / "plain")  # nothing to ask: experts have names of their own
    torch.testing.assert_close(logits(put(plain, mixwell.load(folder / "base")).model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["own", "fused", "apart"])
def test_beside_another_base_it_stands_where_that_is_meant_alone(layout, places):
    folder, _ = places
    model = mixwell.load(folder / "base")
    with torch.no_grad():
        model.norm.weight += 1
    with pytest.raises(MixwellError, match="was made for another base"):
        put(folder / layout, model)
    assert not any("adapters" in name for name in model.state_dict())  # nothing was left there
    assert put(folder / layout, model, other_base=True).num_parameters


def test_several_are_put_beside_a_base_whose_numbers_are_counted_once(places, monkeypatch):
    folder, _ = places
    counted = []
    digest = files.digest
    monkeypatch.setattr(files, "digest", lambda tensors: counted.append(len(tensors)) or digest(tensors))
    layouts = {name: str(folder / name) for name in ("own", "fused", "apart")}
    model = mixwell.load(folder / "base")
    assert put_many(model, layouts).names == list(layouts) and len(counted) == 1
    other = mixwell.load(folder / "base")
    with torch.no_grad():
        other.norm.weight += 1
    for name, place in layouts.items():
        with pytest.raises(MixwellError, match="was made for another base"):
            put_many(other, {name: place})


def test_a_model_without_experts_has_no_orders_to_compare(tmp_path, monkeypatch):
    there = moved(LoRA.attach(base(DENSE), "out", Config(rank=2), generator(3)), size=0.1)
    peft.write(there, tmp_path / "said")
    bare = _forget(tmp_path / "said", tmp_path / "bare")
    monkeypatch.setattr("mixwell.lm.peft.weighing.read", lambda *_, **__: pytest.fail("it was read to be compared"))
    model = base(DENSE)
    put(bare, model)
    torch.testing.assert_close(logits(model), logits(there.model), rtol=1e-5, atol=1e-5)


def test_the_loss_on_text_of_its_kind_tells_the_order(tmp_path):
    model = base(SPARSE)
    folders.write(model.to_checkpoint(), tmp_path / "base")
    there = moved(LoRA.attach(model, ["gate_up_proj", "down_proj"], Config(rank=2, alpha=8.0), generator(3)), size=0.05)
    for _ in range(15):
        model.zero_grad()
        model.loss(TOKENS[:, :-1], TOKENS[:, 1:]).nats.backward()
        with torch.no_grad():
            for parameter in [p for p in model.parameters() if p.requires_grad]:
                parameter -= 0.1 * parameter.grad
    peft.write(there, tmp_path / "said", packing="expert_first")
    bare = _forget(tmp_path / "said", tmp_path / "bare")
    fresh = mixwell.load(tmp_path / "base")
    assert peft.settled_packing(bare, fresh, text=lambda: TOKENS) == "expert_first"
    assert not any("adapters" in name for name in fresh.state_dict())


def test_text_that_an_adapter_does_not_serve_tells_no_order(places, tmp_path):
    folder, _ = places
    bare = _forget(folder / "old", tmp_path / "bare")
    with pytest.raises(MixwellError, match=r"does not tell the order of its experts \(peft .*, the base "):
        peft.settled_packing(bare, mixwell.load(folder / "base"), text=lambda: TOKENS)


@pytest.mark.parametrize("method, options, message", [
    ("adapters.ia3", {}, "holds adapters.lora, not adapters.ia3; say `apply adapters.lora`"),
    (MERGE, {"packing": "peft"}, "says itself how its experts lie"),
    (MERGE, {"packing": "x"}, "packing is 'x'; expected peft or"),
    (MERGE, {"layout": "x"}, "layout is 'x'; expected own, peft, unsloth, stacks, apart"),
    (MERGE, {"unmerge": True, "layout": "own"}, "two things"),
    (MERGE, {"rank": 3}, "unknown key 'rank'")])
def test_what_cannot_be_is_refused(method, options, message, places, tmp_path):
    folder, _ = places
    call = applying.convert_adapter if options.get("layout") else applying.adapt
    with pytest.raises(MixwellError, match=message):
        call(method, folder / "base", folder / "own", options=options, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_adapter_and_what_is_none_are_one_line(places):
    folder, _ = places
    with pytest.raises(MixwellError, match=r"name the adapter's folder with --adapter"):
        mixwell.apply(MERGE, folder / "base")
    with pytest.raises(MixwellError, match=r"holds no adapter; expected adapter.json"):
        mixwell.apply(MERGE, folder / "base", adapter=folder / "base")
    with pytest.raises(MixwellError, match=r"is not a folder. Did you mean 'fused'"):
        mixwell.apply(MERGE, folder / "base", adapter=folder / "fusedd")
    with pytest.raises(MixwellError, match=r"merge.linear takes no adapter"):
        mixwell.apply("merge.linear", [folder / "base"] * 2, adapter=folder / "own")
    with pytest.raises(MixwellError, match=r"convert.upcycle takes no adapter"):
        mixwell.apply("convert.upcycle", folder / "base", adapter=folder / "own")


def test_a_routed_adapter_is_not_merged(tmp_path):
    there = MixLoRA.attach(base(DENSE), ["channel_mixer"], Routed(num_experts=2, rank=1), generator(3))
    folders.write(base(DENSE).to_checkpoint(), tmp_path / "base")
    files.save(there, tmp_path / "routed")
    with pytest.raises(MixwellError, match="depends on what comes in, so no matrix holds it"):
        mixwell.apply("adapters.mixlora", tmp_path / "base", adapter=tmp_path / "routed")


def test_new_numbers_in_the_place_of_old_ones_merge_and_are_not_taken_out(tmp_path):
    model = base(DENSE)
    folders.write(model.to_checkpoint(), tmp_path / "base")
    there = moved(S2FT.attach(model, None, Slices(out=0.5, down=0.2), generator(3)), size=0.1)
    expected = logits(model)
    files.save(there, tmp_path / "slices")
    mixwell.apply("adapters.s2ft", tmp_path / "base", adapter=tmp_path / "slices", out=tmp_path / "merged")
    torch.testing.assert_close(logits(mixwell.load(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(MixwellError, match=r"take the base itself"):
        mixwell.apply("adapters.s2ft", tmp_path / "merged", adapter=tmp_path / "slices", unmerge=True)
