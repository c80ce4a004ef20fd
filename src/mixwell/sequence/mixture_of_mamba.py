"""Mixture-of-Mamba: the Mamba block with projections of its own for each modality.

**Equation:** Mamba's, with W_in^m, W_x^m, (W_dt^m, b^m) and W_out^m, m the token's modality; convolution, A, skip and
    the scan over the interleaved sequence are common to all.
**Shapes:** x [B, T, D]; labels [B, T], 0 to M - 1; a projection that is split holds [M, O, I].
**Reference:** Liang et al. 2025 (2501.16295), algorithm 1, and the authors' code.
**Differs:** the copies start from independent draws, as in the authors' code; `equal_copies` makes them one block.
**Fails when:** a token's modality is not known, or the modalities need no different treatment: a rare one's copies
    then see too few tokens.
**Cost:** Mamba's, and four gathers of the tokens; M times the parameters of what is split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context, Plan, dispatch, plan
from mixwell.mixing import SequenceMixed, check_least
from mixwell.sequence._routed import StackedLinear
from mixwell.sequence._scan import ScanBlock, ScanCache, ScanConfig

Part = Literal["in", "x", "dt", "out"]


@dataclass(frozen=True, kw_only=True)
class Config(ScanConfig):
    """Options of Mamba, and what is split by modality."""

    num_modalities: int  # M, at least 1
    split: tuple[Part, ...] = ("in", "x", "dt", "out")  # projections with a copy for each modality

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, num_modalities=1)
        different = set(self.split)
        if len(different) < len(self.split):
            raise ValueError(f"split names {', '.join(self.split)}; expected each projection once")


@method(
    title="Mixture-of-Mamba (projections by modality)",
    paper="Mixture-of-Mamba: Enhancing Multi-Modal State-Space Models with Modality-Aware Sparsity",
    year=2025,
    tags={"recurrent"},
)
class MixtureOfMamba(ScanBlock):
    """Mamba block with projections by modality; see the module's card."""

    config: Config

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__(dim, config, generator)

    def make(self, name: str, inputs: int, outputs: int, bias: bool, generator: torch.Generator | None) -> Any:
        """A stack of maps where `name` is split, one map elsewhere."""
        if name in self.config.split:
            return StackedLinear(self.config.num_modalities, inputs, outputs, bias, generator)
        return super().make(name, inputs, outputs, bias, generator)

    def map(self, module: Any, x_BTI: Tensor, copies: Plan) -> Tensor:
        """Each token through the copy of its modality."""
        if not isinstance(module, StackedLinear):
            return module(x_BTI)
        tokens = x_BTI.flatten(0, 1)
        rows = module(dispatch(tokens, copies), copies.counts_E)
        only_slot = copies.rows_TK[:, 0]
        y = rows.index_select(0, only_slot)
        return y.unflatten(0, x_BTI.shape[:2])

    def forward(self, x_BTD: Tensor, positions_BT: Tensor | None = None, cache: ScanCache | None = None,
                mask_BT: Tensor | None = None, context: Context | None = None) -> SequenceMixed:
        """[B, T, D] -> [B, T, D]; see `SequenceMixer`; positions are not read.

        `context.labels_T` is each token's modality; it may be left out where there is only one. Raises `MixwellError`
        where a label is missing or unknown.
        """
        labels = None if context is None else context.labels_T
        labels_T = self._labels(x_BTD, labels)
        one_slot = labels_T.unsqueeze(1)
        copies = plan(one_slot, self.config.num_modalities)
        y = self.mix(x_BTD, cache, mask_BT, copies)
        return SequenceMixed(y)

    def equal_copies(self) -> None:
        """Give every modality the first one's maps, in place: the block is then a dense Mamba block."""
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, StackedLinear):
                    for parameter in module.parameters():
                        parameter.copy_(parameter[:1].expand_as(parameter))

    def _labels(self, x_BTD: Tensor, labels_T: Tensor | None) -> Tensor:
        known = self.config.num_modalities
        tokens = x_BTD.shape[0] * x_BTD.shape[1]
        if labels_T is None:
            if known > 1:
                raise MixwellError(f"MixtureOfMamba chooses among {known} modalities by label and got none; give "
                                   "Context(labels_T=...).")
            return torch.zeros(tokens, dtype=torch.int64, device=x_BTD.device)
        if labels_T.shape != (tokens,):
            raise MixwellError(f"MixtureOfMamba got labels of shape {list(labels_T.shape)} for {tokens} tokens; give "
                               "one for each.")
        if not tokens:
            return labels_T
        low = int(labels_T.min())
        high = int(labels_T.max())
        if low < 0 or high >= known:
            raise MixwellError(f"MixtureOfMamba knows {known} modalities and got labels {low} to {high}; set "
                               "num_modalities to their number.")
        return labels_T


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two rows of five tokens of width eight, of two modalities."""
    config = Config(num_modalities=2, state_dim=4, chunk_size=2)
    x_BTD = torch.randn(2, 5, 8, generator=generator)
    tokens = (2 * 5,)
    labels_T = torch.randint(0, 2, tokens, generator=generator)
    context = Context(labels_T=labels_T)
    dim = x_BTD.shape[-1]
    return {"dim": dim, "config": config, "x_BTD": x_BTD, "context": context}
