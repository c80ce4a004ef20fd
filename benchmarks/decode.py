"""Tokens per second of generation, one row after another: mixwell beside transformers' generate, same weights.

A mixture of 224 million parameters (width 512, 12 layers, 16 experts of 704, top-2, vocabulary 8192) in float32 reads a
prompt of 32 tokens and continues it greedily by 64, with weights drawn with all their digits and with weights rounded
to bfloat16, as in public checkpoints. transformers runs in each of its expert implementations, and the fastest counts.

    python benchmarks/decode.py --threads 1 --save
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from _parts import measure, parser, plain, save, start

from mixwell.core import rng
from mixwell.kernels.packing import prepack
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel

PROMPT, NEW = 32, 64
CONFIG = ModelConfig(
    vocab_size=8192, dim=512, num_layers=12, num_heads=8, num_kv_heads=8, max_positions=256, tie_embeddings=False,
    channel_mixer={"method": "experts.layers.moe", "num_experts": 16, "hidden_dim": 704,
                   "router": {"method": "top_k", "k": 2}})
IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")

Generate = Callable[[], torch.Tensor]


def model(weights: str) -> LanguageModel:
    """The mixture; its logits are spread widely enough that rounding does not choose the tokens."""
    made = LanguageModel(CONFIG, rng.generator(0)).eval()
    with torch.no_grad():
        made.head.weight.mul_(8)
        if weights == "bfloat16":
            for parameter in made.parameters():
                parameter.copy_(parameter.bfloat16())
    return made


def transformers_generate(folder: str, prompt: torch.Tensor, experts: str) -> Generate:
    """transformers' greedy generation of as many tokens."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation=experts).eval()
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    return lambda: theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **options)


def contestants(folder: str, prompt: torch.Tensor, weights: str) -> dict[str, Generate]:
    """Every way to generate, by name."""
    plainly, packed = model(weights), model(weights)
    plainly.save(folder)
    prepack(packed)
    found: dict[str, Generate] = {"mixwell": lambda: packed.generate(prompt, NEW, eos_token_id=()),
                                  "mixwell unpacked": lambda: plainly.generate(prompt, NEW, eos_token_id=())}
    for experts in IMPLEMENTATIONS:
        found[f"transformers {experts}"] = transformers_generate(folder, prompt, experts)
    return found


def check(found: dict[str, Generate]) -> None:
    """Stop unless all of them write the same tokens."""
    want = found["mixwell"]()
    for name, generate in found.items():
        if not torch.equal(generate(), want):
            raise SystemExit(f"{name} continues the prompt otherwise than mixwell")


def compare(weights: str, seconds: float, clock: Callable[[], float]) -> dict[str, Any]:
    """All of them in turns; prints one table and returns its figures."""
    prompt = torch.randint(CONFIG.vocab_size, (1, PROMPT), generator=rng.generator(1))
    with tempfile.TemporaryDirectory() as folder:
        found = contestants(folder, prompt, weights)
    check(found)
    timings = measure(found, seconds, clock, least=3)
    ours = timings["mixwell"]
    print(f"\nweights from {weights}")
    print(f"{'':28s}{'tokens/s':>10s}{'median':>10s}{'mixwell is':>12s}")
    for name, t in timings.items():
        print(f"{name:28s}{NEW / t.min_s:10.1f}{NEW / t.median_s:10.1f}{t.min_s / ours.min_s:11.2f}x")
    fastest = min((n for n in timings if n.startswith("transformers")), key=lambda n: timings[n].min_s)
    ratio, ratio_of_medians = (getattr(timings[fastest], kind) / getattr(ours, kind) for kind in ("min_s", "median_s"))
    print(f"mixwell against transformers ({fastest.split()[1]}): {ratio:.2f}x (medians {ratio_of_medians:.2f}x)")
    return {"fastest_transformers": fastest, "ratio": ratio, "ratio_of_medians": ratio_of_medians,
            "timings": plain(timings)}


def main() -> None:
    """Run, print, and save where asked."""
    options = parser(__doc__ or "")
    options.add_argument("--weights", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"],
                         help="digits of the weights; the computation is float32 either way")
    options = options.parse_args()
    clock = start(options)
    figures = {weights: compare(weights, options.seconds, clock) for weights in options.weights}
    save("decode", options, {"new_tokens": NEW, "prompt_tokens": PROMPT, "weights": figures})


if __name__ == "__main__":
    main()
