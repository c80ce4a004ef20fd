"""Model folders, read and written: Hugging Face's where one of its decoders computes the same, else mixwell's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mixwell import __version__
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.files import read_json, whole_folder, write_bytes, write_json
from mixwell.formats.tensors import open_folder, save_shards
from mixwell.lm import weights
from mixwell.lm.config import ModelConfig
from mixwell.lm.hf.config import comparable, model_type_of, read_config, write_config
from mixwell.lm.hf.tensors import Gathered, Scattered, check_names, recipes
from mixwell.lm.network import Network

CONFIG, RECORD, SAMPLING = "config.json", "mixwell.json", "generation_config.json"
CARRIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
           "vocab.json", "merges.txt", "chat_template.jinja", SAMPLING)
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
OWN = "mixwell"  # the model_type of what no Hugging Face decoder computes


def read(path: str | Path) -> Checkpoint:
    """The checkpoint in a folder; its tensors are read when asked for.

    A folder that lacks something, or holds what would change the result and is not understood, raises `MixwellError`.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise MixwellError(f"{folder} is not a folder; expected a model folder with config.json.")
    config = _keys(folder / CONFIG, "expected a model's configuration")
    stored = open_folder(folder)
    record = _record(folder)
    lineage, files = tuple(record.get("lineage", ())), _carried(folder)
    if config.get("model_type") == OWN:
        arch = _full(config.get("arch"), f"{folder / CONFIG}, arch")
        return Checkpoint(arch, stored, lineage, files)
    arch, tensors = _from_hugging_face(config, stored, folder)
    return Checkpoint(_recorded(arch, record), tensors, lineage, files)


def _keys(path: Path, advice: str) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, Mapping):
        raise MixwellError(f"{path} holds no keys and values; {advice}.")
    return content


def _record(folder: Path) -> Mapping[str, Any]:
    path = folder / RECORD
    return _keys(path, "restore it or remove it") if path.exists() else {}


def _carried(folder: Path) -> dict[str, bytes]:
    found = [folder / name for name in CARRIED if (folder / name).exists()]
    return {path.name: path.read_bytes() for path in found}


def _full(arch: Any, where: str) -> dict[str, Any]:
    """`arch` with every option of `ModelConfig`."""
    return to_dict(from_dict(ModelConfig, arch, where))


def _from_hugging_face(config: Mapping[str, Any], tensors: Mapping[str, Tensor],
                       folder: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    where = str(folder)
    arch = read_config(config, str(folder / CONFIG))
    table = recipes(arch, arch["architecture"], shapes(arch), set(tensors))
    check_names(table, tensors, where, arch["tie_embeddings"])
    return arch, Gathered(tensors, table, where)


def _recorded(arch: dict[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """The record's architecture where it is the same model: it knows what config.json has no key for (balance)."""
    noted = record.get("arch")
    if noted is None:
        return arch
    noted = _full(noted, f"{RECORD}, arch")
    return noted if comparable(noted) == comparable(arch) else arch


def shapes(arch: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of the tensors of `arch`, without making any."""
    network = weights.skeleton(Network, arch)
    return weights.shapes(network)


def folder_type(checkpoint: Checkpoint) -> str:
    """The model_type that `write` gives the checkpoint: a Hugging Face decoder that computes the same, or "mixwell"."""
    plain = set(checkpoint.tensors) == set(shapes(checkpoint.arch))  # no scales of int8 weights
    return model_type_of(checkpoint.arch) if plain else OWN


def write(checkpoint: Checkpoint, path: str | Path, *, shard_bytes: int = 4 * 2**30,
          fused_experts: bool = False) -> Path:
    """Write a model folder that appears whole or not at all, and return its path.

    Where a Hugging Face decoder computes what the checkpoint says, `transformers` loads the folder unaided, with one
    tensor an expert (or one for all with `fused_experts`). Else config.json says model_type "mixwell", tensors have
    their canonical names, and mixwell alone loads it. Tokenizer files come along; lineage goes to mixwell.json.
    """
    model_type = folder_type(checkpoint)
    architecture = "auto" if model_type == OWN else model_type
    arch = dict(checkpoint.arch) | {"architecture": architecture}
    tensors = checkpoint.tensors
    if model_type == OWN:
        config = _own_config(arch)
    else:
        config = write_config(arch, model_type)
        tensors = Scattered(tensors, recipes(arch, model_type, shapes(arch), fused=fused_experts))
    stored = checkpoint.tensors["embed.weight"].dtype
    config["dtype"] = str(stored).removeprefix("torch.")
    record = {"mixwell": __version__, "arch": arch, "lineage": list(checkpoint.lineage)}
    with whole_folder(path) as folder:
        write_json(folder / CONFIG, config)
        write_json(folder / RECORD, record)
        _write_carried(folder, checkpoint.files, arch)
        save_shards(folder, tensors, shard_bytes=shard_bytes)
    return Path(path)


def _own_config(arch: Mapping[str, Any]) -> dict[str, Any]:
    note = "No transformers architecture computes this model; load it with mixwell.load(folder)."
    return {"architectures": ["MixwellForCausalLM"], "model_type": OWN, "arch": arch, "note": note}


def _write_carried(folder: Path, files: Mapping[str, bytes], arch: Mapping[str, Any]) -> None:
    """The files that came along, and the ids that sampling stops at where none of them says so."""
    for name, data in files.items():
        write_bytes(folder / name, data)
    if SAMPLING not in files:
        ids = {key: arch[key] for key in SPECIAL_IDS if arch.get(key) is not None}
        write_json(folder / SAMPLING, ids)
