"""A mixture-of-experts layer beside a dense block of equal active FLOPs, transformers' Mixtral block, and GEMM.

Training: 4096 tokens, width 512, 16 experts of 1024, top-2, forward and forward with backward, against a dense SwiGLU
of width 2048. Inference: 1 to 512 tokens, 16 experts of 512, weights packed by `kernels.packing.prepack`; in float32
with weights drawn with all their digits, and with weights from bfloat16, as public checkpoints hold them. transformers'
block runs in each of its expert implementations that copies no weights for each token; `batched_mm` does, and is
shown for eight tokens and fewer.

    python benchmarks/moe_layer.py --save
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from _parts import TYPES, Timing, add_types, gemm, measure, parser, plain, save, start
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core import rng
from mixwell.core.routing import Context
from mixwell.experts.layers.moe import Config, MoE
from mixwell.kernels.packing import prepack

DIM, EXPERTS, CHOSEN = 512, 16, 2
DIGITS = {"bf16": {"inference": torch.bfloat16},
          "fp32": {"inference": torch.float32, "inference, bf16 weights": torch.bfloat16}}


class Dense(nn.Module):
    """The dense block as one writes it: three linear maps."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(DIM, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def mixwell_layer(hidden: int, dtype: torch.dtype) -> MoE:
    """The layer in `dtype`, its router in float32 as always."""
    layer = MoE(DIM, Config(num_experts=EXPERTS, hidden_dim=hidden, balance={}), rng.generator(0))
    for parameter in (layer.gate_up_proj, layer.down_proj):
        parameter.data = parameter.data.to(dtype)
    return layer


def mixtral_block(hidden: int, dtype: torch.dtype, experts: str, like: MoE) -> nn.Module:
    """transformers' block with the weights of `like`."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(hidden_size=DIM, intermediate_size=hidden, num_local_experts=EXPERTS,
                           num_experts_per_tok=CHOSEN)
    config._experts_implementation = experts
    block = MixtralSparseMoeBlock(config).to(dtype)
    with torch.no_grad():
        block.gate.weight.copy_(like.router.weight)
        block.experts.gate_up_proj.copy_(like.gate_up_proj)
        block.experts.down_proj.copy_(like.down_proj)
    return block


class Contestant(NamedTuple):
    """A layer, and how it is called on tokens [T, D]."""

    layer: nn.Module
    call: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """One pass without gradient."""
        with torch.no_grad():
            return self.call(x)

    def backward(self, x: Tensor, grad: Tensor) -> None:
        """One pass, and the gradients of the input and of every weight."""
        self.layer.zero_grad(set_to_none=True)
        self.call(x.detach().requires_grad_()).backward(grad)


def ours(layer: MoE) -> Contestant:
    """mixwell's layer."""
    return Contestant(layer, lambda x: layer(x, Context()).y_TD)


def contestants(layer: MoE, hidden: int, dtype: torch.dtype, experts: tuple[str, ...]) -> dict[str, Contestant]:
    """mixwell and transformers with the same weights."""
    found = {"mixwell": ours(layer)}
    for name in experts:
        block = mixtral_block(hidden, dtype, name, layer)
        found[f"transformers {name}"] = Contestant(block, lambda x, block=block: block(x.unsqueeze(0)).squeeze(0))
    return found


def check(found: dict[str, Contestant], x: Tensor) -> None:
    """Stop unless the sparse layers agree; in bfloat16 transformers' router may choose otherwise for a few tokens."""
    exact = x.dtype == torch.float32
    want = found["mixwell"].forward(x).float()
    for name, contestant in found.items():
        if name != "dense":
            worst_T = (contestant.forward(x).float() - want).abs().amax(-1) / want.abs().max()
            share = (worst_T < (1e-5 if exact else 0.02)).float().mean()
            if share < (1.0 if exact else 0.97):
                raise SystemExit(f"{name} gives other results than mixwell on {1 - share:.1%} of the tokens")


def training(dtype: torch.dtype, seconds: float, clock: Callable[[], float]) -> dict[str, Any]:
    """Forward, and forward with backward, at the training shape."""
    tokens, hidden = 4096, 1024
    found = contestants(mixwell_layer(hidden, dtype), hidden, dtype, ("eager", "grouped_mm"))
    dense = Dense(CHOSEN * hidden).to(dtype)
    found["dense"] = Contestant(dense, dense)
    x, grad = (torch.randn(tokens, DIM, generator=rng.generator(seed)).to(dtype) for seed in (1, 2))
    check(found, x)
    product, product_flops = gemm(tokens * CHOSEN // EXPERTS, DIM, 2 * hidden, dtype)
    flops = 6.0 * tokens * CHOSEN * DIM * hidden
    passes = {"forward": ({n: partial(c.forward, x) for n, c in found.items()}, flops),
              "forward and backward": ({n: partial(c.backward, x, grad) for n, c in found.items()}, 3 * flops)}
    return {name: report(f"training, {name}, {dtype}", measure({**calls, "gemm": product}, seconds, clock), work,
                         product_flops) for name, (calls, work) in passes.items()}


def stored(layer: MoE, dtype: torch.dtype) -> MoE:
    """The layer with its weights rounded to `dtype`, computing in the type it had."""
    for parameter in layer.parameters():
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)
    return layer


def inference(dtype: torch.dtype, tokens: int, digits: torch.dtype, seconds: float,
              clock: Callable[[], float]) -> dict[str, Any]:
    """One forward pass, mixwell's weights packed, the weights as if they had been stored in the type `digits`."""
    hidden = 512
    experts = ("eager", "grouped_mm", "batched_mm") if tokens <= 8 else ("eager", "grouped_mm")
    layer = stored(mixwell_layer(hidden, dtype), digits).eval()
    prepack(layer)
    found = contestants(layer, hidden, dtype, experts)
    found["mixwell unpacked"] = ours(stored(mixwell_layer(hidden, dtype), digits).eval())
    x = torch.randn(tokens, DIM, generator=rng.generator(1)).to(dtype)
    check(found, x)
    product, product_flops = gemm(max(1, tokens * CHOSEN // EXPERTS), DIM, 2 * hidden, dtype)
    timings = measure({**{n: partial(c.forward, x) for n, c in found.items()}, "gemm": product}, seconds, clock)
    title = f"inference, {tokens} tokens, {dtype}, weights from {digits}"
    return report(title, timings, 6.0 * tokens * CHOSEN * DIM * hidden, product_flops)


def report(title: str, timings: dict[str, Timing], flops: float, product_flops: float) -> dict[str, Any]:
    """Print one table; returns its figures."""
    own, rate = timings["mixwell"].min_s, product_flops / timings["gemm"].min_s
    print(f"\n{title}; GEMM {rate / 1e9:.0f} GFLOP/s")
    print(f"{'':28s}{'ms':>9s}{'median':>9s}{'over mixwell':>14s}{'of GEMM':>9s}")
    for name, t in timings.items():
        if name != "gemm":
            print(f"{name:28s}{t.min_s * 1e3:9.3f}{t.median_s * 1e3:9.3f}{t.min_s / own:13.2f}x"
                  f"{flops / t.min_s / rate:9.0%}")
    fastest = min((n for n in timings if n.startswith("transformers")), key=lambda n: timings[n].min_s)
    figures: dict[str, Any] = {
        "timings": plain(timings), "gemm_flops_per_s": rate, "share_of_gemm_rate": flops / own / rate,
        "fastest_transformers": fastest, "transformers_over_mixwell": timings[fastest].min_s / own,
        "transformers_over_mixwell_median": timings[fastest].median_s / timings["mixwell"].median_s}
    line = f"transformers ({fastest.split()[1]}) takes {figures['transformers_over_mixwell']:.2f}x mixwell's time"
    if "dense" in timings:
        figures["mixwell_over_dense"] = own / timings["dense"].min_s
        figures["mixwell_over_dense_median"] = timings["mixwell"].median_s / timings["dense"].median_s
        line += f"; mixwell {figures['mixwell_over_dense']:.2f}x dense"
    print(line)
    return figures


def main() -> None:
    """Run, print, and save where asked."""
    options = parser(__doc__ or "")
    add_types(options)
    options.add_argument("--parts", nargs="+", choices=["training", "inference"], default=["training", "inference"])
    options = options.parse_args()
    clock = start(options)
    figures: dict[str, Any] = {}
    for kind in options.types:
        figures[kind] = {}
        if "training" in options.parts:
            figures[kind]["training"] = training(TYPES[kind], options.seconds, clock)
        if "inference" in options.parts:
            for name, digits in DIGITS[kind].items():
                figures[kind][name] = {str(tokens): inference(TYPES[kind], tokens, digits, options.seconds / 4, clock)
                                       for tokens in (1, 8, 64, 512)}
    save("moe_layer", options, figures)


if __name__ == "__main__":
    main()
