"""A training as numbers: all of a model's weights and FLOPs, what it keeps, and this machine measured as a cluster."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.parallel.simulate import estimate
from mixwell.parallel.wire import in_threads
from mixwell.parallel.workload import Spread
from mixwell.run import clusters, measuring, recipe
from mixwell.run.stages.train import Training
from mixwell.run.workload import Step, step_of, work_of

ARCH = {"vocab_size": 64, "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
        "channel_mixer": [{"method": "experts.layers.swiglu", "hidden_dim": 96},
                          {"method": "experts.layers.moe", "num_experts": 4, "hidden_dim": 48,
                           "router": {"method": "top_k", "k": 2}}]}
CONFIG = Training(steps=1, batch_size=8, seq_len=16, dtype="fp32")


def test_weights_and_flops_are_the_models():
    work, model = work_of(ARCH, CONFIG), LanguageModel(ModelConfig(**ARCH))
    assert work.weights == model.num_parameters()
    flops = sum(layer.flops for layer in work.layers) + work.head_flops
    assert flops == pytest.approx(model.flops_per_token(16))
    dense, mixed = work.layers
    assert (dense.experts, mixed.experts, mixed.chosen, mixed.balanced) == (0, 4, 2.0, True)
    assert mixed.expert_weights == 4 * 3 * 32 * 48 and mixed.expert_flops == 2 * 2 * 3 * 32 * 48
    assert (work.rows, work.length, work.number_bytes, work.parameters) == (8, 16, 4, len(list(model.parameters())))
    assert work_of(ARCH, Training(steps=1, dtype="bf16")).number_bytes == 2


def test_what_layers_keep_is_what_autograd_saves():
    """Numbers a token of all layers, by the storages that are saved for the backward pass: within a tenth."""
    model = LanguageModel(ModelConfig(**{**ARCH, "dim": 128, "num_layers": 2})).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def pack(tensor):
        store = tensor.untyped_storage()
        if store.data_ptr() not in own:
            saved[store.data_ptr()] = tensor, store.nbytes()
        return tensor

    ids = torch.randint(0, 64, (4, 33))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.loss(ids[:, :-1], ids[:, 1:], labels_B=torch.zeros(4, dtype=torch.int64))
    counted = sum(nbytes for _, nbytes in saved.values()) / 4 / 128
    work = work_of({**ARCH, "dim": 128}, CONFIG)
    ends = 128 + 64  # what goes into the head, and its logits
    assert sum(layer.kept for layer in work.layers) + ends == pytest.approx(counted, rel=0.1)


def test_a_measured_machine():
    step = Step(work=work_of(ARCH, CONFIG), arch=ARCH, config=CONFIG, processes=2)
    assert (step.many_rows, step.few_rows) == (4, 2)
    work = step.work
    update = 36 * work.weights / 2e10
    layer_s, row_s = 3e-4, 1e-3
    figures = {"fp32_gflops": 1.0, "bf16_gflops": 9.0, "memory_gbps": 20.0, "latency_s": 1e-5, "bytes_per_s": 1e8,
               "few_s": 2 * row_s + 6 * layer_s + update, "many_s": 4 * row_s + 6 * layer_s + update}
    found = measuring.cluster_of(figures, 2, step)
    flops = 3 * 16 * (sum(layer.flops for layer in work.layers) + work.head_flops)
    assert found.device.flops_per_s == 1e9 and found.device.layer_s == pytest.approx(layer_s)
    assert found.device.efficiency == pytest.approx(min(1.0, flops / row_s / 1e9))
    assert (found.devices, found.inside.latency_s, found.inside.bytes_per_s) == (2, 1e-5, 1e8)

    def work_of_thread(wire):
        return measuring.links(wire) | measuring.steps(step, wire)

    one, other = in_threads(2, work_of_thread)
    assert one.keys() == other.keys() == {"latency_s", "bytes_per_s", "few_s", "many_s"}
    assert min(one.values()) > 0
    with pytest.raises(MixwellError, match="--measure: 1 processes came; expected 2 to 64"):
        measuring.measure(1, step)


def test_a_machine_measured_with_insides_computed_again_is_as_fast():
    """Such a step is worth four forward passes in the measurement as in the prediction."""
    config = Training(steps=1, batch_size=8, seq_len=16, dtype="fp32", checkpointing=True)
    work = work_of(ARCH, config)
    forward_s, layer_s = 2e-4, 3e-4
    fixed_s = 4 * len(work.layers) * layer_s
    update = 36 * work.weights / 2e10
    figures = {"fp32_gflops": 1000.0, "bf16_gflops": 9.0, "memory_gbps": 20.0, "latency_s": 1e-5, "bytes_per_s": 1e8,
               "few_s": 2 * 4 * forward_s + fixed_s + update, "many_s": 4 * 4 * forward_s + fixed_s + update}
    found = measuring.cluster_of(figures, 2, Step(work=work, arch=ARCH, config=config, processes=2))
    flops = 16 * (sum(layer.flops for layer in work.layers) + work.head_flops)
    assert found.device.efficiency == pytest.approx(flops / forward_s / 1e12)
    assert found.device.layer_s == pytest.approx(layer_s)
    step = estimate(work, Spread(data=2), found)
    assert step.computing_s == pytest.approx(figures["many_s"])


def test_cluster_files(tmp_path):
    path = tmp_path / "cluster.yaml"
    text = ("devices: 8\nnodes: 2\nabout: eight\ndevice: {flops_per_s: 400T, memory_bytes: 80G, "
            "memory_bytes_per_s: 3.5T}\ninside: {latency_s: 3e-6, bytes_per_s: 150G}\n"
            "between: {latency_s: 2e-5, bytes_per_s: 12G}\n")
    path.write_text(text)
    found = clusters.read(path)
    assert found.device.flops_per_s == 4e14 and found.processes == 16 and found.inside.latency_s == 3e-6
    clusters.write(tmp_path / "again.yaml", found)
    assert clusters.read(tmp_path / "again.yaml") == found
    for old, new, words in [("400T", "400Q", "flops_per_s: expected a number such as 400T or 3e-6, got '400Q'"),
                            ("devices: 8", "device_s: 8", "unknown key 'device_s'. Did you mean 'devices'"),
                            ("between", "betwixt", "unknown key 'betwixt'"),
                            ("400T", ".inf", "inf came; expected a finite number"),
                            ("400T", "1e308T", "flops_per_s: '1e308T' is too large"),
                            ("400T", "-4T", "flops_per_s is -4.*above 0"),
                            ("400T", "1e999", "flops_per_s: '1e999' is too large"),
                            ("400T", "-4", "flops_per_s is -4.*above 0"),
                            ("nodes: 2", "nodes: many", "nodes: expected a number")]:
        path.write_text(text.replace(old, new))
        with pytest.raises(MixwellError, match=words):
            clusters.read(path)
    path.write_text("- 1\n")
    with pytest.raises(MixwellError, match="expected keys such as devices"):
        clusters.read(path)
    with pytest.raises(MixwellError, match="there is no file"):
        clusters.read(tmp_path / "none.yaml")


def test_the_training_of_a_recipe_may_be_larger_than_this_machine(tmp_path):
    (tmp_path / "a.txt").write_text("text\n" * 50)
    plain = {"data": {"domains": {"a": str(tmp_path / "a.txt")}}, "train": {"steps": 4, "batch_size": 8, "seq_len": 16},
             "model": {"dim": 8192, "num_layers": 80, "num_heads": 64, "hidden_dim": 28672},
             "stages": [{"id": "first", "train": {}}, {"id": "second", "from": "first", "train": {"seq_len": 32}}]}
    chosen = recipe.from_plain(plain)
    step = step_of(chosen, None, 4)
    assert step.work.length == 32 and step.work.weights > 5e10
    assert step_of(chosen, "first", 4).work.length == 16
    with pytest.raises(MixwellError, match=r"--stage: no stage 'frist' that trains. Did you mean 'first'\?"):
        step_of(chosen, "frist", 4)
