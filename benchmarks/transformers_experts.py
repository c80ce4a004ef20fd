"""transformers' own mixture layers with their experts computed by mixwell, by `grouped_mm` and by its eager loop.

The layer of Qwen3-MoE (width 2048, 128 experts of 768, 8 a token) at half its published widths and that of Mixtral
(width 4096, 8 experts of 14336, 2 a token) at a quarter, so that both fit small machines: forward passes of 1 to 512
tokens, with plain weights and with weights packed by `mixwell.pack_experts`. Forward with backward at 512 tokens: both
at a quarter, since the eager loop writes the gradients of all experts anew for each one.

    python benchmarks/transformers_experts.py --threads 1 --save

`--types` and `--shapes` run a part; what the file of results holds of the other parts stays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from _parts import RESULTS, TYPES, Timing, add_types, kind, measure, parser, plain, save, start
from torch import Tensor, nn

import mixwell
from mixwell.core import rng
from mixwell.core.files import read_json

TOKENS = (1, 8, 64, 512)
THEIRS = ("grouped_mm", "eager")  # batched_mm copies the weights of every token's experts


class Shape(NamedTuple):
    """A layer's published widths, and the share of them that forward passes are timed at."""

    model: str
    dim: int
    hidden: int
    experts: int
    chosen: int
    share: int  # one part in so many


SHAPES = {"Qwen3-MoE": Shape("qwen3_moe", 2048, 768, 128, 8, 2), "Mixtral": Shape("mixtral", 4096, 14336, 8, 2, 4)}
TRAINED_SHARE = 4


def layer(shape: Shape, share: int, dtype: torch.dtype) -> nn.Module:
    """transformers' block, router and experts, with weights that hold bfloat16's digits, as public checkpoints do."""
    from transformers import MixtralConfig, Qwen3MoeConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    dim, hidden = shape.dim // share, shape.hidden // share
    if shape.model == "mixtral":
        made = MixtralSparseMoeBlock(MixtralConfig(hidden_size=dim, intermediate_size=hidden,
                                                   num_local_experts=shape.experts, num_experts_per_tok=shape.chosen))
    else:
        made = Qwen3MoeSparseMoeBlock(Qwen3MoeConfig(hidden_size=dim, moe_intermediate_size=hidden, norm_topk_prob=True,
                                                     num_experts=shape.experts, num_experts_per_tok=shape.chosen))
    made = made.to(dtype)
    generator = rng.generator(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(-0.03, 0.03, generator=generator)
            parameter.copy_(parameter.bfloat16())
    return made.eval()


def under(block: nn.Module, implementation: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """`call` with the experts of `block` computed so; one block serves all, whose weights are large."""
    def run() -> Any:
        block.experts.config._experts_implementation = implementation
        return call()

    return run


def forward(block: nn.Module, x: Tensor) -> Tensor:
    """One pass without gradient."""
    with torch.no_grad():
        return block(x)


def backward(block: nn.Module, x: Tensor, grad: Tensor) -> None:
    """One pass, and the gradients of the input and of every weight."""
    block.zero_grad(set_to_none=True)
    block(x.detach().requires_grad_()).backward(grad)


def check(block: nn.Module, x: Tensor) -> None:
    """Stop unless the results agree."""
    got, want = (under(block, name, partial(forward, block, x))().float() for name in ("mixwell", "eager"))
    bound = 1e-4 if x.dtype == torch.float32 else 0.03
    if not (got - want).abs().max() <= bound * want.abs().max():
        raise SystemExit(f"mixwell differs from eager by {(got - want).abs().max() / want.abs().max():.1e}")


def inference(shape: Shape, dtype: torch.dtype, seconds: float, clock: Callable[[], float]) -> dict[str, Any]:
    """Forward passes by number of tokens: packed and plain weights in turn, the same block for all."""
    block = layer(shape, shape.share, dtype)
    xs = {tokens: torch.randn(1, tokens, shape.dim // shape.share, generator=rng.generator(1)).to(dtype)
          for tokens in TOKENS}
    found: dict[str, Any] = {}
    calls: dict[int, dict[str, Callable[[], Any]]] = {}
    for tokens, x in xs.items():
        check(block, x)
        once = partial(forward, block, x)
        calls[tokens] = {name: under(block, name, once) for name in ("mixwell", *THEIRS)}
    timings = {tokens: measure(named, seconds, clock, least=3) for tokens, named in calls.items()}
    block.experts.config._experts_implementation = "mixwell"
    packed_bytes = mixwell.pack_experts(block)
    for tokens, x in xs.items():
        check(block, x)
        named = {"mixwell packed": under(block, "mixwell", partial(forward, block, x)),
                 "grouped_mm": calls[tokens]["grouped_mm"]}
        packed = measure(named, seconds, clock, least=3)
        found[str(tokens)] = report(f"{tokens} tokens, {dtype}", timings[tokens], packed)
    return {"weights_bytes": sum(p.nbytes for p in block.parameters()), "packed_bytes": packed_bytes, "tokens": found}


def training(shape: Shape, dtype: torch.dtype, seconds: float, clock: Callable[[], float]) -> dict[str, Any]:
    """Forward with backward."""
    block = layer(shape, TRAINED_SHARE, dtype).train()
    x, grad = (torch.randn(1, TOKENS[-1], shape.dim // TRAINED_SHARE, generator=rng.generator(seed)).to(dtype)
               for seed in (1, 2))
    check(block, x)
    once = partial(backward, block, x, grad)
    timings = measure({name: under(block, name, once) for name in ("mixwell", *THEIRS)}, seconds, clock, least=3)
    return report(f"forward and backward, {TOKENS[-1]} tokens, {dtype}", timings, {})


def report(title: str, timings: dict[str, Timing], packed: dict[str, Timing]) -> dict[str, Any]:
    """Print one line; returns the figures: how many times faster mixwell is, within one turn of measurements each."""
    ours = timings["mixwell"].median_s
    figures: dict[str, Any] = {"timings": plain(timings),
                               "over": {name: timings[name].median_s / ours for name in THEIRS}}
    if packed:
        figures["packed"] = plain(packed)
        ratio = packed["grouped_mm"].median_s / packed["mixwell packed"].median_s
        # eager's time beside the packed weights follows from its ratio to grouped_mm's
        figures["packed_over"] = {name: ratio * timings[name].median_s / timings["grouped_mm"].median_s
                                  for name in THEIRS}
    shown = ", ".join(f"{name} {t.median_s * 1e3:.2f} ms" for name, t in {**packed, **timings}.items())
    print(f"{title}: {shown}; over mixwell: "
          + ", ".join(f"{name} {figures['over'][name]:.2f}x" + (f" (packed {figures['packed_over'][name]:.2f}x)"
                                                                if packed else "") for name in THEIRS), flush=True)
    return figures


def main() -> None:
    """Run, print, and save where asked."""
    options = parser(__doc__ or "")
    add_types(options)
    options.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    options = options.parse_args()
    clock = start(options)
    mixwell.register_experts()
    figures: dict[str, dict[str, Any]] = {name: {} for name in TYPES}
    for dtype in options.types:
        for name in options.shapes:
            print(f"\n{name}, {dtype}")
            figures[dtype][name] = {"inference": inference(SHAPES[name], TYPES[dtype], options.seconds / 4, clock),
                                    "training": training(SHAPES[name], TYPES[dtype], options.seconds, clock)}
    file = RESULTS / f"transformers_experts-{kind()}.json"
    before = read_json(file) if file.exists() else {}
    save("transformers_experts", options, {name: {**before.get(name, {}), **new} for name, new in figures.items()})


if __name__ == "__main__":
    main()
