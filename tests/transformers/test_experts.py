"""transformers' mixtures with their experts computed here, against transformers' own loop over experts."""

import importlib
import sys

import pytest
import torch
from torch import nn

import mixwell
from mixwell.core.errors import MixwellError
from mixwell.transformers import experts as module
from mixwell.transformers.experts import experts_forward, pack_experts, register_experts

transformers = pytest.importorskip("transformers", minversion="5")

T, E, K, D, F = 13, 5, 2, 8, 6
SMALL = {"hidden_size": D, "intermediate_size": F, "moe_intermediate_size": F, "moe_hidden_size": D,
         "num_experts": E, "num_local_experts": E, "n_routed_experts": E, "moe_num_experts": E, "hidden_act": "silu"}
# folder, experts, config: every layout that transformers 5.24 has
EXPERTS = {
    "plain": ("mixtral", "MixtralExperts", "MixtralConfig"),
    "plain, other names": ("deepseek_v3", "DeepseekV3Experts", "DeepseekV3Config"),
    "an activation that is a function": ("lfm2_moe", "Lfm2MoeExperts", "Lfm2MoeConfig"),
    "stored transposed": ("aria", "AriaExperts", "AriaTextConfig"),
    "transposed, biases, interleaved, clamped": ("gpt_oss", "GptOssExperts", "GptOssConfig"),
    "clamped": ("hy_v4", "HYV4Experts", "HYV4Config"),
    "no gate": ("nemotron_h", "NemotronHExperts", "NemotronHConfig"),
    "a norm behind": ("muse_spark", "MuseSparkExperts", "MuseSparkTextConfig"),
}
TINY = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "num_experts_per_tok": 2, "pad_token_id": 0}
MODELS = {"Mixtral": {**TINY, "num_local_experts": 4},
          "Qwen3Moe": {**TINY, "num_experts": 6, "moe_intermediate_size": 12, "norm_topk_prob": True}}


@pytest.fixture(autouse=True, scope="module")
def registered():
    register_experts()


def build(name: str, generator: torch.Generator) -> nn.Module:
    """transformers' experts in float64, small, with weights of normal draws."""
    folder, experts, config = EXPERTS[name]
    modeling = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    options = getattr(modeling, config)()
    for key in SMALL.keys() & set(dir(options)):
        setattr(options, key, SMALL[key])
    layer = getattr(modeling, experts)(options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return layer


def routed(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Tokens [T, D], experts [T, K] of which one has no token, weights [T, K]."""
    indices = torch.stack([torch.randperm(E - 1, generator=generator)[:K] for _ in range(T)])
    x, weights = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((T, D), (T, K)))
    return x, indices, weights


def passes(layer: nn.Module, implementation: str, x, indices, weights) -> list[torch.Tensor]:
    """The result for all tokens, for one alone without gradient, and the gradients of everything."""
    layer.config._experts_implementation = implementation
    leaves = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
    y = layer(leaves[0], indices, leaves[1])
    with torch.no_grad():
        alone = layer(x[:1], indices[:1], weights[:1])
    slopes = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    grads = torch.autograd.grad((y * slopes).sum(), [*leaves, *layer.parameters()])
    return [y, alone, *grads]


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_of_every_layout_agree_with_transformers_own_loop(name, generator):
    layer, inputs = build(name, generator), routed(generator)
    tolerance = 1e-6 if name == "a norm behind" else 1e-12  # that norm is taken in float32
    for got, want in zip(passes(layer, "mixwell", *inputs), passes(layer, "eager", *inputs)):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["plain", "stored transposed", "transposed, biases, interleaved, clamped"])
def test_slots_of_other_processes_are_left_out(name, generator):
    layer, (x, indices, weights) = build(name, generator), routed(generator)
    elsewhere = indices == 1
    want = passes(layer, "eager", x, indices, weights.masked_fill(elsewhere, 0))
    layer._is_expert_parallel = True
    got = passes(layer, "mixwell", x, indices.masked_fill(elsewhere, E), weights)
    want[3] = want[3].masked_fill(elsewhere, 0)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_nothing_chosen_gives_nothing(generator):
    for name in ("plain", "clamped"):
        layer, (x, indices, weights) = build(name, generator), routed(generator)
        layer._is_expert_parallel = True
        got = passes(layer, "mixwell", x, torch.full_like(indices, E), weights)
        assert not any(t.any() for t in got)


@pytest.mark.parametrize("name", ["plain", "clamped"])
@pytest.mark.parametrize("weights_in", [torch.float32, torch.bfloat16])
def test_autocast_decides_the_type(name, weights_in, generator):
    layer = build(name, generator).to(weights_in)
    inputs = routed(generator, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = (passes(layer, which, *inputs) for which in ("mixwell", "eager"))
    exact = passes(layer.double(), "eager", *(t.double() if t.is_floating_point() else t for t in inputs))
    assert got[0].dtype == torch.float32 and got[2].dtype == torch.float32 and got[4].dtype == weights_in
    for a, b, c in zip(got, want, exact):
        theirs = (b.double() - c).norm()
        assert (a.double() - c).norm() <= 1.2 * theirs + 1e-3 * c.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["plain", "transposed, biases, interleaved, clamped"])
def test_half_width_types_are_no_less_exact_than_transformers(dtype, name, generator):
    layer = build(name, generator).to(dtype)
    inputs = routed(generator, dtype)
    got, want = (passes(layer, which, *inputs) for which in ("mixwell", "eager"))
    exact = passes(layer.double(), "eager", *(t.double() if t.is_floating_point() else t for t in inputs))
    for a, b, c in zip(got, want, exact):
        assert a.dtype == b.dtype
        assert (a.double() - c).norm() <= 1.2 * (b.double() - c).norm() + 1e-4 * c.norm()


def model(name: str, implementation: str, **options) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(**MODELS[name], **options)
    torch.manual_seed(0)
    made = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2) if parameter.dim() > 1 else parameter.fill_(1.0)
    made.set_experts_implementation(implementation)
    return made


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_of_a_whole_model(name, checkpointing):
    ids = torch.randint(1, 64, (3, 11), generator=torch.Generator().manual_seed(1))
    found = {}
    for implementation in ("eager", "mixwell"):
        own = model(name, implementation).train()
        if checkpointing:
            own.gradient_checkpointing_enable()
        optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
        output = own(input_ids=ids, labels=ids)
        output.loss.backward()
        optimizer.step()
        found[implementation] = [output.loss, output.logits, *(p.grad for p in own.parameters()), *own.parameters()]
    for got, want in zip(found["mixwell"], found["eager"]):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_generates_the_same_tokens_with_packed_experts(name, packed_form):
    prompt = torch.randint(1, 64, (1, 7), generator=torch.Generator().manual_seed(1))
    own = model(name, "eager").bfloat16().float()  # such weights may be packed in float16
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    want = own.generate(prompt, **options)
    own.set_experts_implementation("mixwell")
    stacks = sum(m.gate_up_proj.numel() + m.down_proj.numel() for m in own.modules() if hasattr(m, "gate_up_proj"))
    assert own.generate(prompt, **options).equal(want)
    assert pack_experts(own) == stacks * (2 if packed_form == "fp16" else 4)
    assert own.generate(prompt, **options).equal(want)
    with torch.no_grad():
        for layer in own.modules():
            if hasattr(layer, "gate_up_proj"):
                layer.gate_up_proj.zero_()
    assert not own.generate(prompt, **options).equal(want)  # the copies are of weights that are gone


def test_packed_experts_still_train(packed_form):
    ids = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    grads = []
    for packed in (False, True):
        own = model("Mixtral", "mixwell").train()
        if packed:
            pack_experts(own)
        own(input_ids=ids, labels=ids).loss.backward()
        grads.append([p.grad for p in own.parameters()])
    assert all(a.equal(b) for a, b in zip(*grads))


def test_the_experts_go_through_these_kernels(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "expert_mlp", lambda *args: seen.append(args) or args[0])
    ids = torch.ones(1, 5, dtype=torch.int64)
    model("Mixtral", "eager")(input_ids=ids)
    assert not seen
    model("Mixtral", "mixwell")(input_ids=ids)
    assert len(seen) == MODELS["Mixtral"]["num_hidden_layers"]


def test_an_implementation_is_chosen_when_a_folder_is_loaded(tmp_path):
    model("Qwen3Moe", "eager").save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="mixwell")
    assert loaded.config._experts_implementation == "mixwell"
    ids = torch.arange(1, 9).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model("Qwen3Moe", "eager")(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_model_calls_the_kernels_as_they_are():
    traced = []

    def backend(graph, inputs):
        traced.extend(node.stack_trace or "" for node in graph.graph.nodes)
        return graph.forward

    block = model("Mixtral", "mixwell").model.layers[0].mlp
    x = torch.linspace(-1, 1, 80).view(1, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(block, backend=backend)(x), block(x))
    assert any("modeling_mixtral" in trace for trace in traced)
    assert not any("mixwell/kernels" in trace for trace in traced)


def test_weights_of_other_types_are_refused(generator):
    layer, inputs = build("plain", generator), routed(generator)
    layer.gate_up_proj = nn.Parameter(layer.gate_up_proj.to(torch.int8), requires_grad=False)
    with pytest.raises(MixwellError, match=r"MixtralExperts.gate_up_proj holds torch.int8. Load the model without"):
        experts_forward(layer, *inputs)


def test_packing_what_computes_elsewhere_is_refused():
    with pytest.raises(MixwellError, match="no experts of MixtralForCausalLM compute with 'mixwell'"):
        pack_experts(model("Mixtral", "eager"))


def test_without_a_registry_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.integrations.moe", None)
    with pytest.raises(MixwellError, match="register_experts needs a transformers whose models take experts"):
        mixwell.register_experts()


def test_a_registry_that_takes_no_other_names_is_refused(monkeypatch):
    def refuse(self, name):
        raise ValueError(f"{name} is not supported")

    monkeypatch.setattr(transformers.PreTrainedModel, "get_correct_experts_implementation", refuse)
    with pytest.raises(MixwellError, match="mixwell is not supported"):
        mixwell.register_experts()


def test_the_package_hands_both_calls_on():
    assert mixwell.register_experts is register_experts and mixwell.pack_experts is pack_experts
