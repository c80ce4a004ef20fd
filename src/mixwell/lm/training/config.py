"""Options of a training run, with their ranges."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, get_args

import torch

from mixwell.kernels.rates import compute_dtype
from mixwell.lm.training.optimizer import DType
from mixwell.lm.training.schedule import Shape, learning_rate

BUDGETS = ("tokens", "steps", "epochs", "flops", "seconds")
_FROM_ONE = ("batch_size", "seq_len", "accumulate", "eval_tokens")
_FROM_ZERO = ("min_lr", "weight_decay", "grad_clip", "save_every", "save_every_s", "eval_every", "log_every")
# What may change when a run is gone on with: it decides what is written down, not what is learned.
_FREE = {"log_every", "save_every", "save_every_s", "eval_every", "eval_tokens", "tensorboard"}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long to train and how. Exactly one of `BUDGETS` is given."""

    tokens: float | None = None  # tokens read
    steps: int | None = None  # optimizer steps, each of batch_size windows
    epochs: float | None = None  # as many tokens as the text has, so many times over
    flops: float | None = None  # floating-point operations, forward and backward, active experts only
    seconds: float | None = None  # wall time of the steps; evaluating and saving do not count
    batch_size: int = 16  # windows per step, over all micro-batches
    seq_len: int = 128  # tokens per window
    # apart: no token attends to another document; whole documents are packed into windows, longer ones read in pieces
    documents: Literal["joined", "apart"] = "joined"
    accumulate: int = 1  # micro-batches per step (gradient accumulation): batch_size stays, memory falls; divides it
    checkpointing: bool = False  # keep no activations inside layers, compute them again backward: memory for time
    # name patterns such as "embed*" or "layers.0.*" of what is not trained; in bf16 it is rounded like all else
    freeze: str | tuple[str, ...] = ()
    lr: float = 2e-3  # peak learning rate
    min_lr: float = 0.0  # learning rate at the end of the decay
    warmup: float = 0.05  # share of the budget spent rising to lr
    decay: float = 0.3  # share of the budget spent falling to min_lr, at the end
    decay_shape: Shape = "linear"  # or 1-sqrt
    weight_decay: float = 0.1  # of matrices; none on norms, biases and the input embedding
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW's two moments
    eps: float = 1e-8  # added to AdamW's denominator
    grad_clip: float = 1.0  # largest global norm of the gradient; 0 = off
    # of the matrices and their products; norms, routers and the optimizer stay fp32. auto: bf16 where products in
    # it are faster here, else fp32
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    arithmetic: str = ""  # a method of `precision.training` that takes the blocks' products, emulated; dtype is fp32
    log_every: int = 0  # steps between lines of metrics; 0 = 10, fewer where that would leave a curve few points
    save_every: int = 0  # steps between saved states; 0 = by time only
    save_every_s: float = 60.0  # seconds between saved states; 0 = by steps only
    eval_every: int = 0  # steps between evaluations on the held-out text; 0 = none
    eval_tokens: int = 16384  # held-out tokens of each domain read by such an evaluation
    seed: int = 0  # of the order of the data and of routers that draw
    tensorboard: bool = False  # also write TensorBoard events; needs mixwell[tensorboard]

    def __post_init__(self) -> None:
        self._check_budget()
        for name in _FROM_ONE:
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in _FROM_ZERO:
            _require(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("lr", "eps"):
            _require(self, name, getattr(self, name) > 0, "above 0")
        left = 1 - self.warmup
        whole = self.batch_size % self.accumulate == 0
        fading = all(0 <= beta < 1 for beta in self.betas)
        _require(self, "min_lr", self.min_lr <= self.lr, f"at most lr ({self.lr})")
        _require(self, "accumulate", whole, f"a divisor of {self.batch_size}")
        _require(self, "warmup", self.warmup >= 0, "0 or more")
        _require(self, "decay", 0 <= self.decay <= left, f"0 to {left:g}, what warmup leaves")
        _require(self, "betas", fading, "two numbers from 0 up to, not including, 1")
        _require(self, "decay_shape", self.decay_shape in get_args(Shape), "linear or 1-sqrt")
        _require(self, "documents", self.documents in ("joined", "apart"), "joined or apart")
        _require(self, "dtype", self.dtype in ("auto", *get_args(DType)), "auto, bf16 or fp32")
        _require(self, "dtype", not self.arithmetic or self.dtype == "fp32", "fp32 with an arithmetic of its own")

    def _check_budget(self) -> None:
        given = {name: getattr(self, name) for name in BUDGETS if getattr(self, name) is not None}
        if len(given) != 1:
            came = " and ".join(f"{name} {value}" for name, value in given.items())
            raise ValueError(f"{came or 'no budget'} came; expected exactly one of {', '.join(BUDGETS)}")
        for name, value in given.items():
            _require(self, name, value > 0, "above 0")

    @property
    def frozen(self) -> tuple[str, ...]:
        """The patterns of `freeze`."""
        given = self.freeze
        return (given,) if isinstance(given, str) else given

    @property
    def step_tokens(self) -> int:
        """Tokens that one step reads."""
        return self.batch_size * self.seq_len

    def token_budget(self, flops_per_token: float, text_tokens: float) -> float | None:
        """The budget in tokens; None where the clock decides.

        flops_per_token: of training. text_tokens: of the text, read once.
        """
        if self.steps is not None:
            return float(self.steps * self.step_tokens)
        if self.epochs is not None:
            return self.epochs * text_tokens
        if self.flops is not None:
            return self.flops / flops_per_token
        return self.tokens

    @property
    def settled_dtype(self) -> DType:
        """The type to compute in, of a config that `for_device` gave."""
        assert self.dtype != "auto", "call for_device first"
        return self.dtype

    def for_device(self, device: str | torch.device) -> Self:
        """The config with a type in the place of `auto`: the one to compute in on `device`."""
        if self.dtype != "auto":
            return self
        return replace(self, dtype="bf16" if compute_dtype(device) == torch.bfloat16 else "fp32")

    def learning_rate(self, progress: float) -> float:
        """The schedule at a share of the budget, 0 to 1."""
        return learning_rate(progress, peak=self.lr, floor=self.min_lr, warmup=self.warmup, decay=self.decay,
                             shape=self.decay_shape)

    def settings(self) -> dict[str, Any]:
        """What must be the same for a saved run to be gone on with, as plain data."""
        names = [option.name for option in fields(TrainConfig) if option.name not in _FREE]
        values = {name: getattr(self, name) for name in names}
        return {**values, "betas": list(self.betas), "freeze": list(self.frozen)}


def _require(config: Any, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {getattr(config, name)}; expected {expected}")
