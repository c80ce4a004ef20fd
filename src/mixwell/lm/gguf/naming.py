"""Canonical tensors by their names in a GGUF file, and which rows of them stand where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.formats.declared import form_of
from mixwell.lm.gguf.architectures import Architecture

ENDS = {"embed.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "head.weight": "output.weight"}
QKV = ("attn_q", "attn_k", "attn_v")
LAYER: dict[str, tuple[str, ...]] = {  # "*" stands for `STACK` where there are experts, else for nothing
    "sequence_norm.weight": ("attn_norm.weight",),
    "channel_norm.weight": ("ffn_norm.weight",),
    "sequence_mixer.qkv.weight": tuple(f"{part}.weight" for part in QKV),
    "sequence_mixer.qkv.bias": tuple(f"{part}.bias" for part in QKV),
    "sequence_mixer.out.weight": ("attn_output.weight",),
    "sequence_mixer.q_norm.weight": ("attn_q_norm.weight",),
    "sequence_mixer.k_norm.weight": ("attn_k_norm.weight",),
    "channel_mixer.gate_up_proj": ("ffn_gate*.weight", "ffn_up*.weight"),
    "channel_mixer.down_proj": ("ffn_down*.weight",),
    "channel_mixer.router.weight": ("ffn_gate_inp.weight",),
    "channel_mixer.shared_gate_up_proj": ("ffn_gate_shexp.weight", "ffn_up_shexp.weight"),
    "channel_mixer.shared_down_proj": ("ffn_down_shexp.weight",),
    "channel_mixer.shared_gate": ("ffn_gate_inp_shexp.weight",),
}
STACK = "_exps"
ROUTERS = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight")  # kept in float32, as llama.cpp wants them


class Piece(NamedTuple):
    """A tensor of the file, cut out of a canonical one."""

    source: str  # canonical name
    rows: slice  # of its rows, the last dimension but one; all of a vector
    shape: tuple[int, ...]  # in the file
    turned: int = 0  # heads whose rows come with their turning pairs side by side; 0: in order

    def cut(self, tensor: Tensor) -> list[Tensor]:
        """The piece of its canonical tensor, float32: the rows of each expert, or all in one."""
        if tensor.ndim == 3:
            return [expert[self.rows].to(torch.float32) for expert in tensor]
        part = tensor[self.rows]
        if self.turned:
            part = together(part, self.turned)
        return [part.to(torch.float32)]


def together(rows: Tensor, heads: int) -> Tensor:
    """Rows (2 i, 2 i + 1) that turn together, of each head, from rows (i, i + P/2)."""
    halves = rows.unflatten(0, (heads, 2, -1))
    pairs = halves.transpose(1, 2)
    return pairs.reshape(rows.shape)


def pieces(tensors: Mapping[str, Tensor], arch: Mapping[str, Any], what: Architecture) -> dict[str, Piece]:
    """Name in the file -> piece, of all of a checkpoint's tensors; one without a name there raises `MixwellError`."""
    found = {}
    for name in tensors:
        shape = form_of(tensors, name).shape
        targets = _targets(name, len(shape) == 3)
        cuts = _cuts(arch, targets, shape)
        for target, (rows, heads) in zip(targets, cuts):
            turned = heads if what.interleaved and heads else 0
            found[target] = Piece(name, rows, _piece_shape(target, shape, rows), turned)
    return found


def _targets(name: str, stacked: bool) -> tuple[str, ...]:
    if name in ENDS:
        return (ENDS[name],)
    inside = name.split(".", 2)[-1]
    if inside not in LAYER:
        packed = inside.rpartition(".")[0] in LAYER  # a scale, say, beside a weight that has one
        hint = " It is quantised already: export the model from before, and name the --type." if packed else ""
        raise MixwellError(f"{name} has no name in GGUF; the model cannot be written there.{hint}")
    layer = name.split(".")[1]
    prefix = f"blk.{layer}."
    suffix = STACK if stacked else ""
    plain = [target.replace("*", suffix) for target in LAYER[inside]]
    return tuple(prefix + target for target in plain)


def _cuts(arch: Mapping[str, Any], targets: tuple[str, ...], shape: tuple[int, ...]) -> list[tuple[slice, int]]:
    """Rows of each part, and its heads where it holds queries or keys."""
    vector = len(shape) == 1
    total = shape[0] if vector else shape[-2]
    parts = len(targets)
    if parts < 3:
        each = total // parts
        starts = range(0, total, each)
        return [(slice(start, start + each), 0) for start in starts]
    heads = arch["num_heads"]
    groups = arch.get("num_kv_heads") or heads
    width = total // (heads + 2 * groups)
    first = heads * width
    second = first + groups * width
    queries, keys = slice(0, first), slice(first, second)
    values = slice(second, total)
    return [(queries, heads), (keys, groups), (values, 0)]


def _piece_shape(target: str, shape: tuple[int, ...], rows: slice) -> tuple[int, ...]:
    count = rows.stop - rows.start
    if len(shape) == 1:
        return (count,)
    if target.endswith("ffn_gate_inp_shexp.weight"):  # its one row is stored as a vector
        return shape[-1:]
    return (*shape[:-2], count, shape[-1])
