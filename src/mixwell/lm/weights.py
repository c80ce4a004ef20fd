"""Tensors into a network and out of it, under their canonical names.

An int8 weight is two tensors: integers under the weight's name, and their scale under that name with `SCALE` behind.
One in fewer bits is packed codes under the name, and its parts beside (`kernels.codes`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mixwell.core import machine
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.formats.declared import FLOATING, Declared, Fresh, check_form, copied, form_of
from mixwell.kernels import codes
from mixwell.kernels.packing import CHANGES, CODED
from mixwell.kernels.rates import compute_dtype
from mixwell.lm.config import ModelConfig
from mixwell.lm.layer import build_layer
from mixwell.lm.network import Network

DTYPES = {"fp32": torch.float32, "float32": torch.float32, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
          "fp64": torch.float64, "float64": torch.float64}
GIB = 2**30
BITS = ".bits"  # of a weight in codes: how many each of its rows has
SCALE = ".scale"  # companion of an int8 tensor: weight = int8 * scale, float32 [..., rows, 1]

N = TypeVar("N", bound=Network)


def skeleton(kind: type[N], arch: Mapping[str, Any]) -> N:
    """A network of `arch` that has names and shapes and no numbers yet; one that no memory would hold is refused."""
    config = from_dict(ModelConfig, arch)
    check_size(config)
    with torch.device("meta"):
        return kind(config)


def check_size(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> None:
    """Raise `MixwellError` where the parameters in `dtype` alone are more than this machine's memory."""
    ends = 1 if config.tie_embeddings else 2
    count = ends * config.vocab_size * config.dim
    for layer, times in _distinct_layers(config):
        count += times * _layer_parameters(config, layer)
    check_memory(count * dtype.itemsize, f"a model of {config.num_layers} layers, width {config.dim}, vocabulary "
                                         f"{config.vocab_size} in {str(dtype).removeprefix('torch.')}")


@contextmanager
def described_alone() -> Iterator[None]:
    """A block in which a model may be larger than this machine's memory: it is described here and made elsewhere."""
    before = _BOUNDLESS.set(True)
    try:
        yield
    finally:
        _BOUNDLESS.reset(before)


_BOUNDLESS = ContextVar("_BOUNDLESS", default=False)


def memory_bytes() -> float:
    """What a model may take: this machine's memory, and no bound where it is `described_alone`."""
    return math.inf if _BOUNDLESS.get() else machine.memory_bytes()


def check_memory(needed_bytes: int, what: str) -> None:
    """Raise `MixwellError` where `what` takes more memory than this machine has."""
    there_bytes = memory_bytes()
    if needed_bytes > there_bytes:
        needed, there = needed_bytes / GIB, there_bytes / GIB
        raise MixwellError(f"{what} takes {needed:,.1f} GiB ({needed_bytes} bytes); this machine has {there:,.1f} GiB.")


def _distinct_layers(config: ModelConfig) -> list[tuple[int, int]]:
    """Layers that stand for all others, each with the number of those that are like it."""
    mixers = config.sequence_mixer, config.channel_mixer
    if all(isinstance(spec, Mapping) for spec in mixers):
        return [(0, config.num_layers)]
    return [(layer, 1) for layer in range(config.num_layers)]


def _layer_parameters(config: ModelConfig, layer: int) -> int:
    try:
        with torch.device("meta"):
            made = build_layer(config, layer, None)
    except (RuntimeError, TypeError) as error:  # torch's own, where a size or the bytes are beyond what it counts in
        said = str(error).partition("\n")[0]
        raise MixwellError(f"layer {layer} is larger than any memory ({said}); check the sizes.") from error
    return sum(parameter.numel() for parameter in made.parameters())


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of a network's tensors, int8 ones left aside."""
    state = network.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def declare(network: Network, stored: Mapping[str, Tensor], where: str = "checkpoint") -> dict[str, Declared]:
    """What each of the `stored` tensors must be to go into `network`, the companions of compressed ones among them.

    One that is missing or left over, and a compressed one without its companion, raise `MixwellError`.
    """
    state = network.state_dict()
    _check_names(set(state), set(stored), where)
    declared: dict[str, Declared] = {}
    for name, empty in state.items():
        dtype = form_of(stored, name).dtype
        if f"{name}.bits" in stored:
            declared |= _declare_coded(name, empty, stored, where)
        elif empty.ndim > 1 and (dtype == torch.int8 or name + SCALE in stored):
            declared |= _declare_int8(name, empty, stored, where)
        else:
            kinds = FLOATING if empty.is_floating_point() else frozenset({empty.dtype})
            declared[name] = Declared(tuple(empty.shape), kinds)
    return declared


def _declare_int8(name: str, empty: Tensor, stored: Mapping[str, Tensor], where: str) -> dict[str, Declared]:
    """Integers, and a scale above 0 for each row of them."""
    shape = tuple(empty.shape)
    companion, dtype = name + SCALE, form_of(stored, name).dtype
    if (dtype == torch.int8) != (companion in stored):
        found = "with" if companion in stored else "without"
        raise MixwellError(f"{where}: {name} is {dtype} {found} {companion}; expected int8 with it, or a "
                           "floating type without.")
    whole = Declared(shape, frozenset({torch.int8}))
    scale = Declared((*shape[:-1], 1), frozenset({torch.float32}), positive=True)
    return {name: whole, companion: scale}


def _declare_coded(name: str, empty: Tensor, stored: Mapping[str, Tensor], where: str) -> dict[str, Declared]:
    """Packed codes of a weight, the bits of each row, and a scale for each group of a row, with what else is beside."""
    *matrix, width = empty.shape
    rows = tuple(matrix)
    bits = stored[f"{name}.bits"]
    if bits.dtype != torch.uint8 or tuple(bits.shape) != rows:
        raise MixwellError(f"{where}: {name}.bits is {form_of(stored, f'{name}.bits')}; expected uint8 {list(rows)}.")
    if int(bits.min()) < 1 or int(bits.max()) > codes.BYTE or width % codes.BYTE:
        raise MixwellError(f"{where}: {name} has {int(bits.min())} to {int(bits.max())} bits in rows of {width}; "
                           f"expected 1 to {codes.BYTE} in rows of a multiple of {codes.BYTE}.")
    groups = _groups(name, width, stored, where)
    whole = int(bits.sum()) * width // codes.BYTE
    integers = frozenset({torch.uint8})
    lead = rows[:-1]
    known = {
        "bits": Declared(rows, integers),
        "scale": Declared((*rows, groups), FLOATING | integers),
        "zero": Declared((*rows, groups), integers),
        "table": Declared((*lead, 2 ** int(bits.max()))),
        "input_bits": Declared((1,), integers, positive=True),
        "codebooks": Declared((*lead, *_codebooks(name, width, bits, stored, where))),
        "order": Declared((*lead, width), frozenset({torch.int32})),
        "block_bits": Declared((*lead, _input_blocks(name, width, stored, where)), integers, positive=True),
    }
    found = {f"{name}.{part}": known[part] for part, _ in codes.parts_of(stored, name)}
    return {name: Declared((whole,), integers), **found}


def _codebooks(name: str, width: int, bits: Tensor, stored: Mapping[str, Tensor], where: str) -> tuple[int, ...]:
    """Books, words and numbers of a word beside a coded weight; nothing where there are none."""
    companion = f"{name}.codebooks"
    if companion not in stored:
        return ()
    found = form_of(stored, companion)
    books, words, numbers = found.shape[-3:] if len(found.shape) >= 3 else (0, 0, 0)
    each = words.bit_length() - 1
    whole = 1 <= each <= codes.BYTE and words == 2**each and numbers > 0 and width % numbers == 0
    alone = not {f"{name}.zero", f"{name}.table"} & set(stored)
    spent = bits.int() * numbers  # in bytes it would wrap around
    if not whole or not alone or bool((spent != books * each).any()):
        raise MixwellError(f"{where}: {companion} is {found}; expected books of 2^B words of d numbers that make "
                           f"{int(bits.max())} bits in rows of {width}, without zero points or tables.")
    return books, words, numbers


def _input_blocks(name: str, width: int, stored: Mapping[str, Tensor], where: str) -> int:
    """Blocks of the inputs of a coded weight; 0 where they are not rounded in blocks."""
    companion = f"{name}.block_bits"
    if companion not in stored:
        return 0
    shape = form_of(stored, companion).shape
    blocks = shape[-1] if shape else 0
    if not blocks or width % blocks:
        raise MixwellError(f"{where}: {companion} has {blocks} blocks in rows of {width}; expected a divisor.")
    return blocks


def _groups(name: str, width: int, stored: Mapping[str, Tensor], where: str) -> int:
    """Groups in a row of a coded weight."""
    companion = name + SCALE
    if companion not in stored:
        raise MixwellError(f"{where}: {companion} is missing beside {name}.bits.")
    shape = form_of(stored, companion).shape
    groups = shape[-1] if shape else 0
    if not groups or width % groups:
        raise MixwellError(f"{where}: {companion} has {groups} groups in rows of {width}; expected a divisor.")
    return groups


def fill(network: Network, tensors: Mapping[str, Tensor], dtype: torch.dtype | str = "auto") -> None:
    """Put copies of `tensors` into a `skeleton`; int8 ones stay int8 and are scaled on use.

    `dtype`: the type to compute in; "auto" keeps the one that the tensors are stored in where it is quick here. A
    tensor that is missing, left over, misshapen, of another type than declared or not finite raises `MixwellError`,
    and so do weights that this machine's memory cannot hold.
    """
    declared = declare(network, tensors)
    compute = _compute_dtype(dtype, tensors)
    check_memory(_size_bytes(declared, compute), f"the model in {str(compute).removeprefix('torch.')}")
    for name in shapes(network):
        if f"{name}.bits" in declared:
            _place_coded(network, name, tensors, declared)
            continue
        companion = name + SCALE
        scale = _checked(tensors, companion, declared) if companion in declared else None
        _place(network, name, _checked(tensors, name, declared), scale, compute)
    network.cast(compute)


def fill_some(network: Network, tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Put the tensors of these names into a `skeleton`, in float32; no compressed ones are among them.

    What is wrong with one raises `MixwellError`, and so does a name that the network or the tensors lack.
    """
    declared = declare(network, tensors)
    for name in names:
        tensor = _checked(tensors, name, declared)
        _place(network, name, _floats(tensor), None, torch.float32)


def _floats(tensor: Tensor) -> Tensor:
    """The tensor in float32, whole numbers as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _checked(tensors: Mapping[str, Tensor], name: str, declared: Mapping[str, Declared]) -> Tensor:
    """A copy of a tensor; its numbers are checked here or by the reader that it comes from."""
    if not isinstance(tensors, Fresh):
        return copied(tensors, name, declared[name], "checkpoint")
    check_form(name, form_of(tensors, name), declared[name], "checkpoint")  # of the reader's architecture or another
    return tensors[name]


def _size_bytes(declared: Mapping[str, Declared], compute: torch.dtype) -> int:
    total = 0
    for expected in declared.values():
        width = compute.itemsize if expected.dtypes == FLOATING else 1
        total += math.prod(expected.shape) * width
    return total


def _check_names(wanted: set[str], stored: set[str], where: str) -> None:
    companions = {f"{name}.{part}" for name in wanted for part in codes.PARTS}
    for name in sorted(wanted - stored):
        raise MixwellError(f"{where}: {name} is missing.")
    for name in sorted(stored - wanted - companions):
        raise MixwellError(f"{where}: {name} has no place in this architecture; it would be dropped.")


def _compute_dtype(dtype: torch.dtype | str, tensors: Mapping[str, Tensor]) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        stored = form_of(tensors, "embed.weight").dtype
        if stored == torch.bfloat16:
            return compute_dtype()
        return torch.float64 if stored == torch.float64 else torch.float32
    if dtype not in DTYPES:
        raise MixwellError(f"dtype {dtype!r} is not known; expected auto, {', '.join(DTYPES)} or a torch type.")
    return DTYPES[dtype]


def _place(network: Network, name: str, tensor: Tensor, scale: Tensor | None, dtype: torch.dtype) -> None:
    """Put `tensor` where the network has `name`."""
    owner_name, _, attribute = name.rpartition(".")
    owner = network.get_submodule(owner_name)
    if attribute not in owner._parameters:
        owner._buffers[attribute] = tensor
        return
    owner._parameters[attribute] = nn.Parameter(tensor, requires_grad=scale is None)
    if scale is not None:
        _add_scale(owner, attribute, scale, dtype)


def _place_coded(network: Network, name: str, tensors: Mapping[str, Tensor], declared: Mapping[str, Declared]) -> None:
    """Put codes where the network has `name`, and their parts beside."""
    owner_name, _, attribute = name.rpartition(".")
    owner = network.get_submodule(owner_name)
    if attribute not in getattr(owner, "packable", ()):
        raise MixwellError(f"{name} is kept as codes, which {type(owner).__name__} does not compute from; keep it "
                           "whole.")
    packed = _checked(tensors, name, declared)
    owner._parameters[attribute] = nn.Parameter(packed, requires_grad=False)
    for part in codes.PARTS:
        companion = f"{name}.{part}"
        if companion in declared:
            value = _checked(tensors, companion, declared)
            _check_part(companion, part, value)
            owner.register_buffer(f"{attribute}_{part}", value)
    owner.__dict__.setdefault(CODED, {}).pop(attribute, None)


def _check_part(name: str, part: str, value: Tensor) -> None:
    """Refuse integers that stand for no finite number: of exponents, and of a width to round to."""
    if part == "order":
        _check_order(name, value)
    if value.dtype != torch.uint8:
        return
    least, largest = int(value.min()), int(value.max())
    if part == "scale" and largest > 2 * codes.E8M0_BIAS:
        raise MixwellError(f"{name} holds the exponent {largest}, which stands for no number; the file is damaged, "
                           "copy it again.")
    if part in ("input_bits", "block_bits") and not 2 <= least <= largest <= codes.BYTE:
        found = least if least == largest else f"{least} to {largest}"
        raise MixwellError(f"{name} is {found}; expected 2 to {codes.BYTE}. The file is damaged, copy it again.")


def _check_order(name: str, value: Tensor) -> None:
    columns = torch.arange(value.shape[-1], dtype=value.dtype, device=value.device)
    ordered, _ = value.sort(-1)
    if not bool((ordered == columns).all()):
        raise MixwellError(f"{name} does not name every column once; the file is damaged, copy it again.")


def _add_scale(owner: nn.Module, attribute: str, scale: Tensor, dtype: torch.dtype) -> None:
    """Beside the weight where the layer computes from int8 itself; else the weight reads as a floating one."""
    if attribute in getattr(owner, "packable", ()):
        owner.register_buffer(f"{attribute}_scale", scale)
        return
    if getattr(owner, "keep_float32", False):
        dtype = torch.promote_types(dtype, torch.float32)
    parametrize.register_parametrization(owner, attribute, _Scaled(scale, dtype), unsafe=True)


class _Scaled(nn.Module):
    """int8 weights as their type of use; the sum of products is taken in that type."""

    scale: Tensor

    def __init__(self, scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        wide = weight * self.scale
        return wide.to(self.dtype)


def tensors_of(network: Network) -> dict[str, Tensor]:
    """The network's tensors by their canonical names; they share its memory."""
    state = network.state_dict()
    beside = next((name for name in state if f".{CHANGES}." in name), None)
    if beside is not None:
        raise MixwellError(f"the model carries an adapter ({beside}), which a checkpoint would lose; merge it, or save "
                           "it beside and detach it.")
    return {_canonical(name, state): tensor.detach() for name, tensor in state.items()}


def _canonical(name: str, state: Mapping[str, Tensor]) -> str:
    """A tensor's canonical name, from its name in torch's `state`.

    torch keeps a parametrized weight X as parametrizations.X.original, and its scale as parametrizations.X.0.scale.
    """
    head, found, rest = name.partition("parametrizations.")
    if found:
        attribute, part = rest.split(".", 1)
        return head + attribute + ("" if part == "original" else SCALE)
    for part in codes.PARTS:
        whole = name.removesuffix(f"_{part}")
        if whole != name and whole in state and state[whole].dtype in (torch.int8, torch.uint8):
            return f"{whole}.{part}"
    return name
