"""Tokens per second of a training step: mixwell's language model beside transformers' Mixtral, same shapes and weights.

A step is forward, backward and AdamW on float32 masters, in the type that is fast on this machine unless told.
transformers runs in every setting of the table; its fastest setting that keeps float32 masters is the one that counts,
its settings without them are shown for what they are.

    python benchmarks/train_step.py --save
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from _parts import TYPES, gemm, measure, parser, plain, save, start

from mixwell.core import rng
from mixwell.kernels.rates import compute_dtype
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.lm.training.optimizer import DType, MasterAdamW

ROWS, LENGTH, VOCABULARY = 16, 256, 2048
CONFIG = ModelConfig(
    vocab_size=VOCABULARY, dim=256, num_layers=4, num_heads=4, num_kv_heads=4, max_positions=LENGTH,
    channel_mixer={"method": "experts.layers.moe", "num_experts": 8, "hidden_dim": 512,
                   "router": {"method": "top_k", "k": 2}})
LEARNING_RATE = 1e-3

Step = Callable[[], float]


def mixwell_step(tokens: torch.Tensor, targets: torch.Tensor, kind: DType) -> Step:
    """One step of mixwell as its trainer does it, balance losses included; returns the loss in nats."""
    model = LanguageModel(CONFIG, rng.generator(0)).train()
    optimizer = MasterAdamW(model, dtype=kind)

    def step() -> float:
        loss = model.loss(tokens, targets)
        (loss.nats if loss.aux is None else loss.nats + loss.aux).backward()
        optimizer.step(LEARNING_RATE, float(optimizer.grad_norm()), 1.0)
        return float(loss.nats.detach())

    return step


def mixtral(folder: str, experts: str) -> Any:
    """transformers' model with the weights in `folder`, float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation=experts)
    model.config.use_cache = False
    return model.train()


def transformers_step(folder: str, tokens: torch.Tensor, targets: torch.Tensor, experts: str, setting: str) -> Step:
    """One step of transformers' Mixtral.

    autocast: float32 parameters, bfloat16 by autocast. masters: bfloat16 parameters under mixwell's optimizer, which
    keeps float32 masters (transformers itself has none). bf16: bfloat16 parameters and moments, no masters. fp32:
    float32 throughout.
    """
    model = mixtral(folder, experts)
    if setting == "masters":
        model.cast = lambda dtype: model.to(dtype)
        masters = MasterAdamW(model, dtype="bf16")
    else:
        if setting == "bf16":
            model.to(torch.bfloat16)
        adamw = torch.optim.AdamW(model.parameters(), LEARNING_RATE, (0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16) if setting == "autocast" else nullcontext():
            loss = model(input_ids=tokens, labels=tokens, shift_labels=targets).loss
        loss.backward()
        if setting == "masters":
            masters.step(LEARNING_RATE, float(masters.grad_norm()), 1.0)
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


SETTINGS = {"bf16": ("autocast", "masters", "bf16"), "fp32": ("fp32",)}
KEEPS_MASTERS = ("autocast", "masters", "fp32")


def main() -> None:
    """Run, print, and save where asked."""
    options = parser(__doc__ or "")
    options.add_argument("--type", choices=["auto", *TYPES], default="auto", help="what products are computed in")
    options = options.parse_args()
    clock = start(options)
    dtype = compute_dtype() if options.type == "auto" else TYPES[options.type]
    kind: DType = "bf16" if dtype == torch.bfloat16 else "fp32"
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH + 1), generator=rng.generator(1))
    tokens, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    steps: dict[str, Step] = {"mixwell": mixwell_step(tokens, targets, kind)}
    with tempfile.TemporaryDirectory() as folder:
        LanguageModel(CONFIG, rng.generator(0)).save(folder)
        for experts, setting in itertools.product(("eager", "grouped_mm"), SETTINGS[kind]):
            steps[f"transformers {experts} {setting}"] = transformers_step(folder, tokens, targets, experts, setting)
    losses = {name: step() for name, step in steps.items()}
    for name, loss in losses.items():
        if abs(loss - losses["mixwell"]) > 0.02:
            raise SystemExit(f"{name} starts at {loss:.4f} nats, mixwell at {losses['mixwell']:.4f}: two models")
    product, product_flops = gemm(4096, 256, 1024, dtype)
    timings = measure({**steps, "gemm": product}, options.seconds, clock)

    flops = 3.0 * LanguageModel(CONFIG).flops_per_token(LENGTH) * ROWS * LENGTH
    rate = product_flops / timings["gemm"].min_s
    kept = {n: t for n, t in timings.items() if n.endswith(KEEPS_MASTERS)}
    autocast = {n: t for n, t in kept.items() if n.endswith("autocast")}
    groups = {"fastest with float32 masters": kept} | ({"fastest with autocast": autocast} if autocast else {})
    ours = timings["mixwell"]
    print(f"{'':34s}{'ms':>8s}{'median':>8s}{'tokens/s':>10s}{'mixwell is':>12s}{'of GEMM rate':>14s}")
    for name in steps:
        t = timings[name]
        print(f"{name:34s}{t.min_s * 1e3:8.1f}{t.median_s * 1e3:8.1f}{ROWS * LENGTH / t.min_s:10.0f}"
              f"{t.min_s / ours.min_s:11.2f}x{flops / t.min_s / rate:13.0%}")
    ratios = {}
    for label, group in groups.items():
        name = min(group, key=lambda n: group[n].min_s)
        ratios[label] = {"setting": name, "min": group[name].min_s / ours.min_s,
                         "median": group[name].median_s / ours.median_s}
        print(f"mixwell against {label} ({name}): {ratios[label]['min']:.2f}x (medians {ratios[label]['median']:.2f}x)")
    print(f"{kind} GEMM rate {rate / 1e9:.0f} GFLOP/s; mixwell reaches {flops / ours.min_s / rate:.0%} of it")
    save("train_step", options, {
        "type": kind,
        "tokens_per_step": ROWS * LENGTH, "flops_per_step": flops, "gemm_flops_per_s": rate, "ratios": ratios,
        "share_of_gemm_rate": flops / ours.min_s / rate, "first_losses_nats": losses, "timings": plain(timings)})


if __name__ == "__main__":
    main()
