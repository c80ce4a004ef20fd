"""Model folders, read and written: Hugging Face's where one of its decoders computes the same, else mixwell's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mixwell import __version__
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.files import read_json, whole_folder, write_bytes, write_json
from mixwell.core.tensors import open_folder, save_shards
from mixwell.kernels.rates import compute_dtype
from mixwell.lm.config import ModelConfig
from mixwell.lm.hf.config import comparable, model_type_of, read_config, write_config
from mixwell.lm.hf.tensors import Gathered, Scattered, check_names, recipes
from mixwell.lm.model import LanguageModel

RECORD = "mixwell.json"
CARRIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
           "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json")
DTYPES = {"fp32": torch.float32, "float32": torch.float32, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
          "fp64": torch.float64, "float64": torch.float64}
SCALE = ".scale"  # companion of an int8 tensor: weight = int8 * scale, float32 [..., rows, 1]


def load(path: str | Path, dtype: torch.dtype | str = "auto") -> LanguageModel:
    """The language model in a folder.

    Reads Llama, Mistral, Qwen3, Mixtral, Qwen3-MoE and OLMoE folders of Hugging Face, and mixwell's own. `dtype`:
    "auto" (as stored; float16 becomes float32, and so does bfloat16 where this CPU only emulates it), "fp32", "bf16"
    or a torch type. Anything in the folder that would change the result and is not understood, and any tensor that is
    missing, left over or misshapen, raises `MixwellError`.
    """
    return from_checkpoint(read(path), dtype)


def read(path: str | Path) -> Checkpoint:
    """The checkpoint in a folder; its tensors are read when asked for."""
    folder = Path(path)
    if not folder.is_dir():
        raise MixwellError(f"{folder} is not a folder; expected a model folder with config.json.")
    config = read_json(folder / "config.json")
    if not isinstance(config, Mapping):
        raise MixwellError(f"{folder / 'config.json'} holds no keys and values; expected a model's configuration.")
    tensors = open_folder(folder)
    record = read_json(folder / RECORD) if (folder / RECORD).exists() else {}
    if not isinstance(record, Mapping):
        raise MixwellError(f"{folder / RECORD} holds no keys and values; restore it or remove it.")
    files = {name: (folder / name).read_bytes() for name in CARRIED if (folder / name).exists()}
    lineage = tuple(record.get("lineage", ()))
    if config.get("model_type") == "mixwell":
        arch = to_dict(from_dict(ModelConfig, config.get("arch"), f"{folder / 'config.json'}, arch"))
        return Checkpoint(arch, tensors, lineage, files)
    arch = read_config(config, str(folder / "config.json"))
    table = recipes(arch, arch["architecture"], shapes(arch), set(tensors))
    check_names(table, tensors, str(folder), arch["tie_embeddings"])
    return Checkpoint(_recorded(arch, record), Gathered(tensors, table, str(folder)), lineage, files)


def _recorded(arch: dict[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """The record's architecture where it is the same model: it knows what config.json has no key for (balance)."""
    noted = record.get("arch")
    if noted is None:
        return arch
    noted = to_dict(from_dict(ModelConfig, noted, f"{RECORD}, arch"))
    return noted if comparable(noted) == comparable(arch) else arch


def shapes(arch: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of the tensors of `arch`, without making any."""
    return {name: tuple(tensor.shape) for name, tensor in _skeleton(arch).state_dict().items()}


def _skeleton(arch: Mapping[str, Any]) -> LanguageModel:
    config = from_dict(ModelConfig, arch)
    with torch.device("meta"):
        return LanguageModel(config)


def from_checkpoint(checkpoint: Checkpoint, dtype: torch.dtype | str = "auto") -> LanguageModel:
    """A model with copies of the checkpoint's tensors; int8 ones stay int8 and are scaled on use."""
    model = _skeleton(checkpoint.arch)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    scales = {name for name in checkpoint.tensors if name.endswith(SCALE) and name.removesuffix(SCALE) in wanted}
    for name in sorted(set(wanted) - set(checkpoint.tensors)):
        raise MixwellError(f"checkpoint: {name} is missing.")
    for name in sorted(set(checkpoint.tensors) - set(wanted) - scales):
        raise MixwellError(f"checkpoint: {name} has no place in this architecture; it would be dropped.")
    compute = _compute_dtype(dtype, checkpoint)
    for name, shape in wanted.items():
        tensor = checkpoint.tensors[name]
        if tuple(tensor.shape) != shape:
            raise MixwellError(f"checkpoint: {name} has shape {list(tensor.shape)}; its arch asks for {list(shape)}.")
        scale = checkpoint.tensors[name + SCALE] if name + SCALE in scales else None
        _place(model, name, tensor, scale, compute)
    model.lineage, model.files = tuple(checkpoint.lineage), dict(checkpoint.files)
    return model.cast(compute)


def _compute_dtype(dtype: torch.dtype | str, checkpoint: Checkpoint) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        stored = checkpoint.tensors["embed.weight"].dtype
        if stored == torch.bfloat16:
            return compute_dtype()
        return stored if stored == torch.float64 else torch.float32
    if dtype not in DTYPES:
        raise MixwellError(f"dtype {dtype!r} is not known; expected auto, {', '.join(DTYPES)} or a torch type.")
    return DTYPES[dtype]


class _Scaled(nn.Module):
    """int8 weights as their type of use; the sum of products is taken in that type."""

    scale: Tensor

    def __init__(self, scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        return (weight * self.scale).to(self.dtype)


def _place(model: LanguageModel, name: str, tensor: Tensor, scale: Tensor | None, dtype: torch.dtype) -> None:
    """Put a copy of `tensor` where the skeleton has `name`."""
    owner_name, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    whole = tensor.dtype == torch.int8
    if whole != (scale is not None):
        raise MixwellError(f"checkpoint: {name} is {tensor.dtype} {'with' if scale is not None else 'without'} "
                           f"{name + SCALE}; expected int8 with it, or a floating type without.")
    if attribute in owner._parameters:
        copy = tensor.detach().clone()
        owner._parameters[attribute] = nn.Parameter(copy, requires_grad=not whole)
        if scale is not None and attribute in getattr(owner, "packable", ()):
            owner.register_buffer(f"{attribute}_scale", scale.clone())
        elif scale is not None:
            kept = torch.promote_types(dtype, torch.float32) if getattr(owner, "keep_float32", False) else dtype
            parametrize.register_parametrization(owner, attribute, _Scaled(scale.clone(), kept), unsafe=True)
    else:
        owner._buffers[attribute] = tensor.detach().clone()


def to_checkpoint(model: LanguageModel) -> Checkpoint:
    """The model as a value; its tensors share the model's memory."""
    tensors, state = {}, model.state_dict()
    for name, tensor in state.items():
        head, found, rest = name.partition("parametrizations.")
        if found:  # torch keeps an int8 weight as parametrizations.X.original, its scale as parametrizations.X.0.scale
            attribute, part = rest.split(".", 1)
            name = head + attribute + ("" if part == "original" else SCALE)
        elif name.endswith("_scale") and getattr(state.get(name.removesuffix("_scale")), "dtype", None) == torch.int8:
            name = name.removesuffix("_scale") + SCALE
        tensors[name] = tensor.detach()
    return Checkpoint(to_dict(model.config), tensors, tuple(model.lineage), dict(model.files))


def folder_type(checkpoint: Checkpoint) -> str:
    """The model_type that `write` gives the checkpoint: a Hugging Face decoder that computes the same, or "mixwell"."""
    if set(checkpoint.tensors) != set(shapes(checkpoint.arch)):  # scales of int8 weights
        return "mixwell"
    return model_type_of(checkpoint.arch)


def write(checkpoint: Checkpoint, path: str | Path, *, shard_bytes: int = 4 * 2**30,
          fused_experts: bool = False) -> Path:
    """Write a model folder that appears whole or not at all, and return its path.

    Where a Hugging Face decoder computes what the checkpoint says, `transformers` loads the folder unaided, with one
    tensor an expert (or one for all with `fused_experts`). Else config.json says model_type "mixwell", tensors have
    their canonical names, and mixwell alone loads it. Tokenizer files come along; lineage goes to mixwell.json.
    """
    model_type = folder_type(checkpoint)
    arch = dict(checkpoint.arch) | {"architecture": "auto" if model_type == "mixwell" else model_type}
    if model_type == "mixwell":
        config: dict[str, Any] = {
            "architectures": ["MixwellForCausalLM"], "model_type": "mixwell", "arch": arch,
            "note": "No transformers architecture computes this model; load it with mixwell.load(folder)."}
        tensors = checkpoint.tensors
    else:
        config = write_config(arch, model_type)
        tensors = Scattered(checkpoint.tensors, recipes(arch, model_type, shapes(arch), fused=fused_experts))
    config["dtype"] = str(checkpoint.tensors["embed.weight"].dtype).removeprefix("torch.")
    with whole_folder(path) as folder:
        write_json(folder / "config.json", config)
        write_json(folder / RECORD, {"mixwell": __version__, "arch": arch, "lineage": list(checkpoint.lineage)})
        for name, data in checkpoint.files.items():
            write_bytes(folder / name, data)
        if "generation_config.json" not in checkpoint.files:
            ids = {k: arch.get(k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
            write_json(folder / "generation_config.json", {k: v for k, v in ids.items() if v is not None})
        save_shards(folder, tensors, shard_bytes=shard_bytes)
    return Path(path)
