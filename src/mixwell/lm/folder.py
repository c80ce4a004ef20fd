"""Model folders, read and written: Hugging Face's where one of its decoders computes the same, else mixwell's own."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mixwell import __version__
from mixwell.adapters import files as adapter_files
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError, shown
from mixwell.core.files import digest, whole_folder, write_bytes, write_json, write_text
from mixwell.formats.declared import Checked, Fresh, form_of
from mixwell.formats.places import held
from mixwell.formats.plain import read_object
from mixwell.formats.streams import selected
from mixwell.formats.tensors import LazyTensors, open_folder, save_shards
from mixwell.lm import older_tokenizer, schemas, weights
from mixwell.lm.compressed.reading import Coded, Unpacked
from mixwell.lm.compressed.scheme import read_scheme
from mixwell.lm.config import ModelConfig
from mixwell.lm.gguf.header import is_gguf
from mixwell.lm.gguf.reading import GgufFile, HuggingFaceView, hugging_face_config
from mixwell.lm.gguf.tokenizer import tokenizer_files
from mixwell.lm.hf.config import read_config
from mixwell.lm.hf.forms import EXPERT_COUNTS
from mixwell.lm.hf.tensors import Gathered, Recipe, Scattered, check_names, file_shapes, recipes
from mixwell.lm.hf.writing import comparable, model_type_of, write_config
from mixwell.lm.network import Network

CONFIG, RECORD, SAMPLING = "config.json", "mixwell.json", "generation_config.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
BESIDE = "adapter"  # folder inside a model's: an adapter that stands beside it
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
OWN = "mixwell"  # the model_type of what no Hugging Face decoder computes


def read(path: str | Path, *, beside: bool = False) -> Checkpoint:
    """The checkpoint in a folder; its tensors are read when asked for.

    beside: whether an adapter may stand beside it, of which a checkpoint knows nothing. A folder that lacks something,
    holds what would change the result and is not understood, or is not what mixwell.json says of it, raises
    `MixwellError`.
    """
    folder = Path(path)
    if is_gguf(folder):
        return _from_gguf(folder)
    if not folder.is_dir():
        raise MixwellError(f"{folder} is not a folder; expected a model folder with config.json.")
    _refuse_adapter(folder)
    if has_adapter(folder) and not beside:
        raise MixwellError(f"{folder} holds a model and an adapter beside it ({BESIDE}), which would be left out here; "
                           "such a model is evaluated, sampled and served, and can be trained no further.")
    config = _config(folder)
    stored = open_folder(folder)
    record, files = _record(folder), schemas.side_files(folder)
    _check_counts(config, _shapes(stored), folder / CONFIG)
    opened = _own if config.get("model_type") == OWN else _from_hugging_face
    arch, tensors = opened(config, stored, folder)
    _tell_changed_files(folder, files, record.get("files", {}))
    files = _with_tokenizer(folder, files)
    _tell_new_tensors(folder, stored, record)
    lineage = tuple(record.get("lineage", ()))
    return Checkpoint(_recorded(arch, record, folder), tensors, lineage, files)


def _refuse_adapter(folder: Path) -> None:
    """LoRA files are no part of a model; loading around them would leave out what was trained."""
    there = [name for name in ADAPTER if (folder / name).exists()]
    if not there:
        return
    if (folder / CONFIG).exists():
        raise MixwellError(f"{folder} holds a model and beside it LoRA files ({there[0]}), which would be left out; "
                           "move them out and merge them into it (`mixwell apply adapters.lora --in MODEL --adapter "
                           "FOLDER --out MERGED`).")
    raise MixwellError(f"{folder} holds a LoRA adapter ({there[0]}) without its model; name the model, and "
                       "this folder with --adapter, or merge the two (`mixwell apply adapters.lora`).")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter by itself, in mixwell's form or PEFT's."""
    ours, theirs = folder / adapter_files.FILE, folder / ADAPTER[0]
    return ours.is_file() or theirs.is_file()


def has_adapter(folder: Path) -> bool:
    """Whether an adapter of mixwell's stands beside the model in a folder."""
    return (folder / BESIDE / adapter_files.FILE).is_file()


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    if held(folder, CONFIG) is None:
        raise MixwellError(f"{path} is not there; expected a model's configuration.")
    return read_object(path, schemas.CONFIG)


def _record(folder: Path) -> Mapping[str, Any]:
    """What mixwell.json says, where it is there; its figures are those that were written."""
    if held(folder, RECORD) is None:
        return {}
    record = read_object(folder / RECORD, schemas.RECORD)
    written = record.get("digest")
    if written is not None and written != _digest(record):
        raise MixwellError(f"{folder / RECORD} is not what mixwell wrote (its digest is another); restore it, or "
                           "remove it: the model loads without its history.")
    return record


def _digest(record: Mapping[str, Any]) -> str:
    """Of everything else that the record says."""
    rest = dict(record)
    rest.pop("digest", None)
    return digest(rest)


def _with_tokenizer(folder: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    """The files, a tokenizer in an older form made into one that is read; a warning where that cannot be."""
    if not older_tokenizer.is_older(files):
        return files
    try:
        return older_tokenizer.completed(folder, files)
    except MixwellError as error:
        _warn(str(error))
        return files


def _tell_changed_files(folder: Path, files: Mapping[str, bytes], written: Mapping[str, str]) -> None:
    """Warn where a file that goes with the model is another than was saved with it."""
    now = {name: digest(data) for name, data in files.items()}
    changed = [name for name in written if now.get(name) != written[name]]
    if changed:
        names = ", ".join(changed)
        _warn(f"{folder}: {names}: not what was saved with this model (see {RECORD}).")


def _tell_new_tensors(folder: Path, stored: LazyTensors, record: Mapping[str, Any]) -> None:
    """Warn where the tensors are no longer those that the record was written for."""
    if not record.get("checksums"):
        return
    without = [name for name in stored if stored.sum(name) is None]
    if without:
        _warn(f"{folder}: another program wrote the tensors anew; what {RECORD} says of them may no longer hold.")


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=5)


def _shapes(stored: LazyTensors) -> dict[str, tuple[int, ...]]:
    return {name: stored.form(name).shape for name in stored}


def _check_counts(config: Mapping[str, Any], stored: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """A model has no more layers than tensors, and no more experts than rows or tensors: told before any are made.

    stored: shapes of the tensors, by name.
    """
    own = config.get("arch", {})
    layers = config.get("num_hidden_layers") or config.get("n_layer") or own.get("num_layers")
    if isinstance(layers, (int, float)) and layers > len(stored):
        raise MixwellError(f"{where}: {shown(layers)} layers; there are {len(stored)} tensors, too few.")
    sides = [side for shape in stored.values() for side in shape]
    most = max(len(stored), *sides)
    for key in EXPERT_COUNTS:
        count = config.get(key) or 0
        if count > most:
            raise MixwellError(f"{where}: {key} is {count}; the tensors hold at most {most}.")


def _full(arch: Any, where: str) -> dict[str, Any]:
    """`arch` with every option of `ModelConfig`."""
    return to_dict(from_dict(ModelConfig, arch, where))


def _own(config: Mapping[str, Any], stored: LazyTensors, folder: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """Architecture and tensors of a folder whose config.json is mixwell's own."""
    arch = _full(config.get("arch"), f"{folder / CONFIG}, arch")
    network = weights.skeleton(Network, arch)
    declared = weights.declare(network, stored, str(folder))
    return arch, Checked(stored, declared, str(folder))


def _from_hugging_face(config: Mapping[str, Any], tensors: Mapping[str, Tensor],
                       folder: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    where, place = str(folder), str(folder / CONFIG)
    scheme = read_scheme(config, place)
    if scheme is None:
        arch = read_config(config, place)
        table = _table(arch, tensors, where)
        return arch, Gathered(tensors, table, where)
    whole = {key: value for key, value in config.items() if key != "quantization_config"}
    arch = read_config(whole, place)
    unpacked = Unpacked(tensors, scheme, where)
    table = _table(arch, unpacked, where)
    return arch, Coded(unpacked, table, scheme, where)


def _table(arch: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> dict[str, Recipe]:
    """How each canonical tensor is made of those in the folder, once they are the ones that it takes."""
    table = recipes(arch, arch["architecture"], shapes(arch), set(tensors))
    check_names(table, tensors, where, arch)
    return table


def _from_gguf(path: Path) -> Checkpoint:
    """The checkpoint in a GGUF file, dequantised."""
    file = GgufFile(path)
    config = hugging_face_config(file)
    _check_counts(config, file.shapes, path)
    arch = read_config(config, str(path))
    table = recipes(arch, arch["architecture"], shapes(arch))
    heads = arch["num_heads"]
    groups = arch["num_kv_heads"] or heads
    stored = HuggingFaceView(file, file_shapes(table), (heads, groups))
    files = tokenizer_files(file.metadata, str(path))
    return Checkpoint(arch, Gathered(stored, table, str(path)), (), files)


def _recorded(arch: dict[str, Any], record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The record's architecture where it is the same model: it knows what config.json has no key for (balance).

    config.json is followed where it says another model, and a warning names the first difference.
    """
    noted = record.get("arch")
    if noted is None:
        return arch
    said, before = arch, noted
    if noted.get("num_layers") == arch["num_layers"]:
        noted = _full(noted, f"{RECORD}, arch")
        said, before = comparable(arch), comparable(noted)
        if said == before:
            return noted
    _warn(f"{folder}: {CONFIG} says another model than {RECORD}, and is followed: {difference(said, before)}.")
    return arch


def difference(now: Any, before: Any, where: str = "") -> str:
    """The first place where two values differ, and what stands there."""
    if isinstance(now, Mapping) and isinstance(before, Mapping):
        pairs = [(f"{where}.{key}", now[key], before.get(key)) for key in now]
    elif isinstance(now, list) and isinstance(before, list):
        pairs = [(f"{where}[{place}]", *items) for place, items in enumerate(zip(now, before))]
    else:
        pairs = []
    for place, one, other in pairs:
        if one != other:
            return difference(one, other, place)
    return f"{where.removeprefix('.')} is {shown(now)}, was {shown(before)}"


def shapes(arch: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of the tensors of `arch`, without making any."""
    network = weights.skeleton(Network, arch)
    return weights.shapes(network)


def folder_type(checkpoint: Checkpoint) -> str:
    """The model_type that `write` gives the checkpoint: a Hugging Face decoder that computes the same, or "mixwell"."""
    plain = set(checkpoint.tensors) == set(shapes(checkpoint.arch))  # no scales of int8 weights
    return model_type_of(checkpoint.arch) if plain else OWN


def written_tensors(checkpoint: Checkpoint, model_type: str, fused: bool = False) -> Mapping[str, Tensor]:
    """The checkpoint's tensors as a folder of that type holds them."""
    if model_type == OWN:
        return checkpoint.tensors
    table = recipes(checkpoint.arch, model_type, shapes(checkpoint.arch), fused=fused)
    parts = _parts(checkpoint, table)
    return parts if isinstance(parts, Fresh) else Scattered(checkpoint.tensors, table)


def unread_tensors(checkpoint: Checkpoint, model_type: str) -> Mapping[str, Tensor]:
    """As `written_tensors`; where they lie in such a folder, straight from it, numbers not looked at."""
    tensors = checkpoint.tensors
    if model_type == OWN:
        return selected(tensors.stored, list(tensors)) if isinstance(tensors, Checked) else tensors
    table = recipes(checkpoint.arch, model_type, shapes(checkpoint.arch))
    parts = _parts(checkpoint, table)
    return Scattered(tensors, table) if parts is None else selected(parts, list(file_shapes(table)))


def _parts(checkpoint: Checkpoint, table: Mapping[str, Any]) -> Mapping[str, Tensor] | None:
    """The tensors of a folder that the checkpoint's are gathered from by the same table."""
    tensors = checkpoint.tensors
    return tensors.parts_of(table) if isinstance(tensors, Gathered) else None


def from_written(written: Mapping[str, Tensor], like: Checkpoint, model_type: str, where: str) -> Checkpoint:
    """A checkpoint of `like`'s architecture with the tensors that a folder of that type holds, read when asked for."""
    if model_type == OWN:
        network = weights.skeleton(Network, like.arch)
        declared = weights.declare(network, written, where)
        return like.derive(tensors=Checked(written, declared, where))
    table = recipes(like.arch, model_type, shapes(like.arch))
    return like.derive(tensors=Gathered(written, table, where))


def write(checkpoint: Checkpoint, path: str | Path, *, shard_bytes: int = 4 * 2**30,
          fused_experts: bool = False, notes: Mapping[str, str] | None = None) -> Path:
    """Write a model folder that appears whole or not at all, and return its path.

    Where a Hugging Face decoder computes what the checkpoint says, `transformers` loads the folder unaided, with one
    tensor an expert (or one for all with `fused_experts`). Else config.json says model_type "mixwell", tensors have
    their canonical names, and mixwell alone loads it. Tokenizer files come along; lineage goes to mixwell.json. notes:
    texts by file name that lie beside, such as README.md. Tensors are made and written one by one.
    """
    model_type = folder_type(checkpoint)
    architecture = "auto" if model_type == OWN else model_type
    arch = dict(checkpoint.arch) | {"architecture": architecture}
    tensors = written_tensors(checkpoint, model_type, fused_experts)
    config = _own_config(arch) if model_type == OWN else write_config(arch, model_type)
    return place(checkpoint, path, arch, config, tensors, shard_bytes=shard_bytes, notes=notes)


def place(checkpoint: Checkpoint, path: str | Path, arch: Mapping[str, Any], config: Mapping[str, Any],
          tensors: Mapping[str, Tensor], *, shard_bytes: int = 4 * 2**30,
          notes: Mapping[str, str] | None = None) -> Path:
    """As `write`, with the architecture, the config.json and the tensors that are to lie there."""
    stored = form_of(checkpoint.tensors, "embed.weight").dtype
    config = {**config, "dtype": str(stored).removeprefix("torch.")}
    record = _new_record(arch, checkpoint)
    with whole_folder(path) as folder:
        write_json(folder / CONFIG, config)
        write_json(folder / RECORD, record)
        _write_carried(folder, checkpoint.files, arch)
        for name, text in (notes or {}).items():
            write_text(folder / name, text)
        save_shards(folder, tensors, shard_bytes=shard_bytes)
    return Path(path)


def _new_record(arch: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of mixwell.json; a lineage that JSON cannot hold raises `MixwellError`."""
    files = {name: digest(data) for name, data in checkpoint.files.items()}
    record = {"mixwell": __version__, "arch": arch, "lineage": list(checkpoint.lineage), "files": files,
              "checksums": True}
    try:
        plain = json.loads(json.dumps(record, allow_nan=False))  # as it will be read again
    except (TypeError, ValueError) as error:
        raise MixwellError(f"the model's lineage does not fit into JSON ({error}); expected finite numbers, text, "
                           "lists and keys with values.") from error
    return plain | {"digest": _digest(plain)}


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
