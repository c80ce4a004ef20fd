"""A training step with LoRA on all experts of a Qwen3-MoE: mixwell beside peft, and beside full fine-tuning.

    python benchmarks/adapters.py --threads 1 --save

A step is forward, backward and AdamW on what is trained; full fine-tuning is measured without its optimiser, to its
favour. All start from the same weights and are held to the same first loss. Peak memory is that of a process of its own
over three steps, imports and loading included. Beside it: a token each of eight rows, by the base, through one adapter,
and each row through its own. Needs peft beside transformers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from _parts import measure, parser, plain, save, start
from torch import Tensor

from mixwell.adapters.lora import Config, LoRA
from mixwell.adapters.many import NONE, Many
from mixwell.core.config import from_dict
from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.hf.config import read_config
from mixwell.lm.model import LanguageModel, load
from mixwell.run.apply import apply
from mixwell.serve.paged import PagedRows, Piece, widths

RANK, TOKENS, LEARNING_RATE = 8, 128, 1e-4
ROWS, BLOCK = 8, 16  # of what is answered together, and positions of a block of its cache
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]  # in peft's words
MODEL = {"model_type": "qwen3_moe", "vocab_size": 32000, "hidden_size": 512, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 512,
         "moe_intermediate_size": 512, "num_experts": 32, "num_experts_per_tok": 8, "norm_topk_prob": True,
         "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": True}
Step = Callable[[], float]


def write_base(folder: Path, layers: int) -> int:
    """The base in a folder, and beside it with int8 weights; returns its parameters."""
    arch = read_config(MODEL | {"num_hidden_layers": layers})
    model = LanguageModel(from_dict(ModelConfig, arch), generator(0))
    model.save(folder)
    apply("precision.int8", model, out=folder.with_name("int8"))
    return model.num_parameters()


def text() -> Tensor:
    """One row of ids and the one behind."""
    return torch.randint(MODEL["vocab_size"], (1, TOKENS + 1), generator=generator(1))


def stepping(parameters: list[Tensor], loss: Callable[[], Tensor], trained: bool = True) -> Step:
    """One step: the loss in nats of before it."""
    adamw = torch.optim.AdamW(parameters, LEARNING_RATE, fused=True) if trained else None

    def step() -> float:
        found = loss()
        found.backward()
        if adamw is not None:
            adamw.step()
        for parameter in parameters:
            parameter.grad = None
        return float(found.detach())

    return step


def ours(folder: Path, full: bool, int8: bool = False) -> Step:
    """mixwell, with LoRA on the experts or all of it."""
    ids = text()
    model = load(folder.with_name("int8") if int8 else folder, "fp32").train()
    if not full:
        LoRA.attach(model, ["gate_up_proj", "down_proj"], Config(rank=RANK, alpha=2.0 * RANK), generator(2))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return stepping(parameters, lambda: model.loss(ids[:, :-1], ids[:, 1:]).nats, trained=not full)


def theirs(folder: Path, full: bool) -> Step:
    """transformers, with peft's LoRA on the experts or all of it."""
    from transformers import AutoModelForCausalLM

    ids = text()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.use_cache = False
    if not full:
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=[],
                                                           target_parameters=STACKS))
    model.train()
    inputs, targets = ids[:, :-1], ids[:, 1:].contiguous()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return stepping(parameters, lambda: model(input_ids=inputs, labels=inputs, shift_labels=targets).loss,
                    trained=not full)


CONTESTANTS: dict[str, Callable[[Path], Step]] = {
    "mixwell": lambda folder: ours(folder, full=False),
    "mixwell, base in int8": lambda folder: ours(folder, full=False, int8=True),
    "peft": lambda folder: theirs(folder, full=False),
    "mixwell, full": lambda folder: ours(folder, full=True),
    "transformers, full": lambda folder: theirs(folder, full=True),
}


def resident_peak() -> int:
    """Largest memory that this program had since it was started, bytes (what it was forked from does not count)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024


def memory(name: str, folder: Path) -> dict[str, int]:
    """Peak bytes of three steps in this process."""
    import peft  # noqa: F401  (all processes import what one of them needs)

    step = CONTESTANTS[name](folder)
    for _ in range(3):
        step()
    return {"peak_bytes": resident_peak()}


def measured_apart(name: str, folder: Path, options: argparse.Namespace) -> dict[str, int]:
    """`memory` in a process of its own."""
    words = [sys.executable, __file__, "--memory-of", name, "--folder", str(folder), "--threads", str(options.threads)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def many(folder: Path) -> dict[str, Step]:
    """A token of each of eight rows: by the base alone, all through one adapter, each through its own."""
    model = load(folder, "fp32").eval()
    held = {}
    for number in range(ROWS):
        there = LoRA.attach(model, ["qkv", "out", "gate_up_proj", "down_proj"], Config(rank=RANK), generator(number))
        there.detach()
        held[str(number)] = there
    kept = widths(model)
    bare = PagedRows(load(folder, "fp32").eval(), ROWS, BLOCK, kept)
    adapted = PagedRows(model, ROWS, BLOCK, kept, Many(model, held))
    return {"base": reading(bare, [NONE] * ROWS), "one adapter": reading(adapted, [0] * ROWS),
            "each its own": reading(adapted, list(range(ROWS)))}


def reading(rows: PagedRows, numbers: list[int]) -> Step:
    """A pass over one token of each row, with these adapters."""
    pieces = [Piece([7 + row], 0, [row], 1, row, number) for row, number in enumerate(numbers)]

    def step() -> float:
        return float(rows.read(pieces)[0].logits_NV[0, 0])

    return step


def peft_version() -> str:
    """Of the package beside which this is measured."""
    return metadata.version("peft")


def main() -> None:
    """Run, print, and save where asked."""
    options = parser(__doc__ or "")
    options.add_argument("--layers", type=int, default=MODEL["num_hidden_layers"])
    options.add_argument("--memory-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = options.parse_args()
    clock = start(options)
    if options.memory_of:
        print(json.dumps(memory(options.memory_of, options.folder)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "base"
        parameters = write_base(folder, options.layers)
        memories = {name: measured_apart(name, folder, options)["peak_bytes"] for name in CONTESTANTS}
        steps = {name: make(folder) for name, make in CONTESTANTS.items()}
        losses = {name: step() for name, step in steps.items()}
        for name, loss in losses.items():
            if abs(loss - losses["peft"]) > (0.1 if "int8" in name else 1e-3):
                raise SystemExit(f"{name} starts at {loss:.4f} nats, peft at {losses['peft']:.4f}: two models")
        timings = measure(steps, options.seconds, clock, least=3)
        del steps
        rows = measure(many(folder), options.seconds, clock)
    peft_s = timings["peft"].median_s
    for name, timing in timings.items():
        print(f"{name:24s}{timing.min_s:8.3f}{timing.median_s:8.3f} s, peft's is {peft_s / timing.median_s:.2f}x, "
              f"{memories[name] / 1e9:.2f} GB")
    for name, timing in rows.items():
        print(f"eight rows, {name:14s}{1e3 * timing.min_s:8.1f}{1e3 * timing.median_s:8.1f} ms")
    save("adapters", options, {
        "parameters": parameters, "tokens": TOKENS, "rank": RANK, "rows": ROWS, "peft": peft_version(),
        "first_losses_nats": losses, "peak_bytes": memories, "timings": plain(timings), "many": plain(rows)})


if __name__ == "__main__":
    main()
