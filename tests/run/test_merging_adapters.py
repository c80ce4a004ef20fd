"""Merges of PEFT's LoRA folders against dense float64 changes made from the files by hand."""

import json
import math

import pytest
import torch

import mixwell
from mixwell.core.errors import MixwellError
from mixwell.formats.tensors import open_file, save_tensors
from mixwell.lm import peft
from mixwell.run.merging_adapters import merge_adapters
from mixwell.run.merging_factors import is_adapter
from tests.lm.test_peft import SPARSE, TOKENS, adapter, base, logits, pairs

CONFIG = {"peft_type": "LORA", "lora_alpha": 6, "base_model_name_or_path": "base", "bias": "none"}
Q, UP, DOWN = "self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"
SIZES = {Q: (32, 32), UP: (32, 48), DOWN: (48, 32)}
ONE = CONFIG | {"r": 2, "target_modules": ["q_proj", "up_proj"]}
TWO = CONFIG | {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q_proj", "down_proj"],
                "alpha_pattern": {"q_proj": 4}}
SCALES = {"one": {Q: 6 / 2, UP: 6 / 2}, "two": {Q: 4 / math.sqrt(3), DOWN: 5 / math.sqrt(3)}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two adapters of other ranks, scales and modules, and one of the first's kind."""
    root = tmp_path_factory.mktemp("adapters")
    for name, config, modules in (("one", ONE, (Q, UP)), ("two", TWO, (Q, DOWN)), ("three", ONE, (Q, UP))):
        rank = config["r"]
        folder, tensors = adapter(root / name, config, pairs(*((module, rank, *SIZES[module]) for module in modules)))
        if name == "three":
            save_tensors(folder / "adapter_model.safetensors", {key: value.roll(1) for key, value in tensors.items()})
    return root


def dense(folder, scales=None):
    """Change of each module [O, I], float64, from the file and its config alone."""
    tensors = open_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    found = {}
    for module, (inputs, outputs) in SIZES.items():
        key = f"base_model.model.model.layers.0.{module}.lora_"
        if f"{key}A.weight" in tensors:
            A, B = tensors[f"{key}A.weight"].double(), tensors[f"{key}B.weight"].double()
            path = f"model.layers.0.{module}"
            rank = config.get("rank_pattern", {}).get(path, config["r"])
            alpha = config.get("alpha_pattern", {}).get(path, config["lora_alpha"])
            assert len(A) == rank
            found[module] = (alpha / rank if scales is None else scales[module]) * B @ A
        else:
            found[module] = torch.zeros(outputs, inputs, dtype=torch.float64)
    return found


def close(found, expected):
    for module in SIZES:
        torch.testing.assert_close(found[module], expected[module], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "options", "weights"), [
    ("merge.linear", {}, (0.5, 0.5)),
    ("cat", {"weight": [1.0, 3.0]}, (0.25, 0.75)),
    ("merge.linear", {"weight": [2.0, -0.5], "normalize": False}, (2.0, -0.5)),
    ("merge.task_arithmetic", {"weight": [0.5, 1.5], "scale": 0.7}, (0.35, 1.05)),
    ("svd", {"rank": 5, "normalize": False}, (1.0, 1.0)),
])
def test_rules_that_add_are_exact_whatever_ranks_scales_and_modules(folders, tmp_path, name, options, weights):
    made = merge_adapters(name, [folders / "one", folders / "two"], out=tmp_path / "m", options=options)
    a, b = dense(folders / "one", SCALES["one"]), dense(folders / "two", SCALES["two"])
    close(dense(tmp_path / "m"), {module: weights[0] * a[module] + weights[1] * b[module] for module in SIZES})
    assert made.rank == 5 and made.error < 1e-6


def elected(a, b, density):
    """TIES of two changes: trim, elect, mean of those that agree."""
    kept = []
    for change in (a, b):
        least = change.abs().flatten().sort(descending=True).values[int(density * change.numel()) - 1]
        kept.append(torch.where(change.abs() >= least, change, 0))
    sign = torch.where(sum(kept) >= 0, 1.0, -1.0)
    votes = [(change * sign > 0).double() for change in kept]
    total = sum(change * vote for change, vote in zip(kept, votes))
    return total / sum(votes).clamp(min=1)


def test_ties_of_whole_changes_keeps_the_largest_singular_parts(folders, tmp_path):
    made = merge_adapters("merge.ties", [folders / "one", folders / "two"], out=tmp_path / "m",
                          options={"density": 0.5, "rank": 4})
    a, b = dense(folders / "one", SCALES["one"]), dense(folders / "two", SCALES["two"])
    found, lost, whole = dense(tmp_path / "m"), 0.0, 0.0
    for module in (Q,):  # the others have zeros in one place, which are kept or not alike
        rule = elected(a[module], b[module], 0.5)
        U, S, Vh = torch.linalg.svd(rule)
        torch.testing.assert_close(found[module], U[:, :4] * S[:4] @ Vh[:4], atol=1e-5, rtol=1e-4)
    assert made.rank == 4 and 0 < made.error < 1
    full = merge_adapters("merge.ties", [folders / "one", folders / "two"], out=tmp_path / "full",
                          options={"density": 0.5, "rank": 32})
    assert full.error < 1e-6
    whole_rule = dense(tmp_path / "full")
    lost = sum(float((whole_rule[module] - found[module]).square().sum()) for module in SIZES)
    whole = sum(float(change.square().sum()) for change in whole_rule.values())
    assert made.error == pytest.approx(math.sqrt(lost / whole), rel=1e-3)


@pytest.mark.parametrize("name", ["dare_ties", "dare_linear", "breadcrumbs", "della", "slerp", "nuslerp", "karcher",
                                  "multislerp", "model_stock", "sce", "ram", "nearswap", "arcee_fusion"])
def test_every_rule_of_models_gives_a_lone_adapter_twice_back(folders, tmp_path, name):
    options = {"dare_ties": {"normalize": True}, "dare_linear": {"normalize": True}, "slerp": {"t": 0.5},
               "nearswap": {"t": 0.5}, "breadcrumbs": {"normalize": True, "gamma": 0.0},
               "della": {"density": 1.0}}.get(name, {})
    merge_adapters(f"merge.{name}", [folders / "one"] * 2, out=tmp_path / "m", options=options)
    close(dense(tmp_path / "m"), dense(folders / "one", SCALES["one"]))


def test_factors_apart_are_merged_by_themselves(folders, tmp_path):
    merge_adapters("linear", [folders / "one", folders / "three"], out=tmp_path / "m", options={"factors": "apart"})
    made, one, three = (open_file(folder / "adapter_model.safetensors")
                        for folder in (tmp_path / "m", folders / "one", folders / "three"))
    for key in one:
        scale = 3.0 if ".lora_B" in key else 1.0  # alpha over the rank, which stands in B now
        torch.testing.assert_close(made[key], scale * (one[key] + three[key]) / 2)


def test_experts_of_a_layer_are_merged_one_by_one_and_read_beside_the_base(tmp_path):
    layer = "base_model.model.model.layers.0.mlp.experts."
    shapes = {f"{layer}base_layer.lora_A.weight": (8, 32), f"{layer}base_layer.lora_B.weight": (32, 8),
              f"{layer}lora_A.weight": (8, 16), f"{layer}lora_B.weight": (32, 8)}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": [],
              "target_parameters": ["layers.0.mlp.experts.gate_up_proj",
                                                              "layers.0.mlp.experts.down_proj"]}
    one, _ = adapter(tmp_path / "one", config, shapes)
    two, tensors = adapter(tmp_path / "two", config | {"lora_alpha": 1}, shapes)
    save_tensors(two / "adapter_model.safetensors", {key: value.roll(3) for key, value in tensors.items()})
    merge_adapters("linear", [one, two], out=tmp_path / "m", options={"normalize": False})
    found, states = {}, []
    for place in (one, two, tmp_path / "m"):
        model = base(SPARSE)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with_adapter = peft.read(place, model)
        found[place.name] = logits(model)
        with_adapter.merge()
        states.append({name: value - before[name] for name, value in model.state_dict().items() if name in before})
    for name, change in states[2].items():
        torch.testing.assert_close(change, states[0][name] + states[1][name], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(found["m"], found["one"]) and TOKENS.numel()


def refused(folders, tmp_path, words, name="linear", places=("one", "two"), **options):
    with pytest.raises(MixwellError, match=words):
        merge_adapters(name, [folders / place for place in places], out=tmp_path / "m", options=options)
    assert not (tmp_path / "m").exists()


def test_what_does_not_go_together_is_refused_in_a_line(folders, tmp_path):
    refused(folders, tmp_path, "does not change .*mlp.down_proj, others do", factors="apart")
    refused(folders, tmp_path, "factors side by side add up", name="ties", factors="cat")
    refused(folders, tmp_path, "expected cat, svd, apart", factors="mean")
    refused(folders, tmp_path, "rank: expected a whole number from 1", rank=0)
    refused(folders, tmp_path, "keep their rank", places=("one", "three"), factors="apart", rank=2)
    refused(folders, tmp_path, "looks at whole models", name="fisher")
    refused(folders, tmp_path, "expected 2", name="slerp", places=("one", "two", "three"), t=0.5)
    refused(folders, tmp_path, "unknown merge", name="mean")


@pytest.mark.parametrize(("change", "words"), [
    ({"use_dora": True}, "use_dora is True"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"base_model_name_or_path": "other"}, "expected adapters of one base"),
    ({"target_parameters": ["x"]}, "target_parameters"),
    ({"r": "2"}, "r is '2'"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"init_lora_weights": "pissa_niter_4"}, "took the start out of the base's own weights"),
    ({"lora_bias": True}, "lora_bias"),
    ({"alpha_pattern": {"q_proj": "2"}}, "q_proj is '2'"),
    ({"lora_alphas": 4}, "Did you mean 'lora_alpha'"),
])
def test_configs_that_ask_for_more_than_products_are_refused(folders, tmp_path, change, words):
    shapes = pairs((Q, 2, 32, 32))
    adapter(tmp_path / "other", ONE | change, shapes)
    with pytest.raises(MixwellError, match=words):
        merge_adapters("linear", [folders / "one", tmp_path / "other"], out=tmp_path / "m", options={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


@pytest.mark.parametrize(("shapes", "words"), [
    (pairs((Q, 2, 32, 40)), r"by \[40, 32\], .* by \[32, 32\]"),
    ({key: shape for key, shape in pairs((Q, 2, 32, 32)).items() if "lora_A" in key}, "lora_B is missing"),
    ({**pairs((Q, 2, 32, 32)), "base_model.model.lm_head.weight": (40, 32)}, "is no lora_A or lora_B"),
    ({key: (3, 32) if "lora_A" in key else shape for key, shape in pairs((Q, 2, 32, 32)).items()}, "expected one rank"),
])
def test_files_that_do_not_fit_are_named(folders, tmp_path, shapes, words):
    adapter(tmp_path / "other", ONE, shapes)
    with pytest.raises(MixwellError, match=words):
        merge_adapters("linear", [folders / "one", tmp_path / "other"], out=tmp_path / "m", options={})


def test_numbers_that_are_not_finite_are_named(folders, tmp_path):
    folder, tensors = adapter(tmp_path / "other", ONE, pairs((Q, 2, 32, 32)))
    broken = {key: torch.full_like(value, math.nan) for key, value in tensors.items()}
    save_tensors(folder / "adapter_model.safetensors", broken)
    with pytest.raises(MixwellError, match="not finite"):
        merge_adapters("linear", [folder, folders / "one"], out=tmp_path / "m", options={})


def test_types_are_the_first_adapters_or_those_asked_for(folders, tmp_path):
    for dtype, options in ((torch.float32, {}), (torch.bfloat16, {"dtype": "bfloat16"})):
        place = tmp_path / str(dtype)
        merge_adapters("linear", [folders / "one", folders / "two"], out=place, options=options)
        made = open_file(place / "adapter_model.safetensors")
        assert {made[key].dtype for key in made} == {dtype} and is_adapter(place)
    assert 'merge: "linear"' in (place / "README.md").read_text()


def test_the_command_merges_adapters_and_keeps_them_apart_from_models(folders, tmp_path, monkeypatch, capsys):
    from mixwell.cli.main import main

    places = ["--in", str(folders / "one"), "--in", str(folders / "two")]
    for words, code, said in (([*places], 0, "of the merged change 0.00% are lost to the rank"),
                              ([*places, "--base", str(folders)], 2, "leave --base out"),
                              (["--in", str(folders), *places], 2, "is an adapter and")):
        target = tmp_path / said[:4]
        monkeypatch.setattr("sys.argv", ["mixwell", "apply", "merge.linear", *words, "--out", str(target)])
        with pytest.raises(SystemExit) as ended:
            main()
        heard = capsys.readouterr()
        assert ended.value.code == code and said in (heard.out + heard.err).replace("\n", " "), heard
        assert target.exists() == (code == 0)
    with pytest.raises(MixwellError, match="is a PEFT adapter"):
        mixwell.apply("merge.linear", [folders / "one", folders / "two"])


def test_adapters_are_experts_beside_their_base(tmp_path):
    whole = base()
    whole.save(tmp_path / "base")
    one, _ = adapter(tmp_path / "lora", ONE, pairs((UP, 2, 32, 48)))
    config = json.loads((one / "adapter_config.json").read_text()) | {"target_modules": ["layers.0.mlp.up_proj"]}
    (one / "adapter_config.json").write_text(json.dumps(config))
    named = f"{tmp_path / 'base'}+{one}"
    experts = [{"source_model": str(tmp_path / "base")}, {"source_model": named}]
    mixed = mixwell.apply("convert.mixture_of_models", tmp_path / "base", out=tmp_path / "m", experts=experts,
                          gate_mode="even", experts_per_token=1)
    up = mixed.state_dict()["layers.0.channel_mixer.gate_up_proj"][:, 48:].double()
    tensors = open_file(one / "adapter_model.safetensors")
    key = f"base_model.model.model.layers.0.{UP}.lora_"
    change = 3.0 * tensors[f"{key}B.weight"].double() @ tensors[f"{key}A.weight"].double()
    torch.testing.assert_close(up[1] - up[0], change, atol=2e-6, rtol=1e-5)
    assert mixed.lineage[-1]["inputs"][2] == named
