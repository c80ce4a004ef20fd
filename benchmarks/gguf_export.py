"""A model of 224 million parameters to GGUF in q8_0 and the others, beside package gguf's own quantiser and writer.

Both read tensors that lie in memory and write a file; every type in turns, the smallest time of a few.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from _parts import parser, save, start

from mixwell.lm.config import ModelConfig
from mixwell.lm.gguf.blocks import KINDS
from mixwell.lm.gguf.describing import written_as
from mixwell.lm.gguf.naming import pieces
from mixwell.lm.gguf.writing import _kind_of, write_gguf
from mixwell.lm.model import LanguageModel

TYPES = ("q8_0", "bf16", "q4_0")


def model(layers: int) -> LanguageModel:
    """A Qwen3-MoE, of 224 million parameters with 8 layers."""
    experts = {"method": "moe", "num_experts": 16, "hidden_dim": 1024, "router": {"method": "top_k", "k": 2}}
    mixer = {"method": "attention", "qk_norm": "head"}
    config = ModelConfig(vocab_size=32000, dim=512, num_layers=layers, num_heads=8, num_kv_heads=4, head_dim=64,
                         tie_embeddings=True, sequence_mixer=mixer, channel_mixer=experts)
    return LanguageModel(config, torch.Generator().manual_seed(0))


def theirs(checkpoint: Any, path: Path, kind: str) -> None:
    """The same tensors by package gguf."""
    import gguf

    name, what = written_as(checkpoint.arch)
    writer = gguf.GGUFWriter(path, name)
    for target, piece in pieces(checkpoint.tensors, checkpoint.arch, what).items():
        parts = piece.cut(checkpoint.tensors[piece.source])
        tensor = torch.stack(parts).view(piece.shape).numpy()
        kinds = {row.number: key for key, row in KINDS.items()}
        own = gguf.GGMLQuantizationType[kinds[_kind_of(target, piece, kind).number].upper()]
        writer.add_tensor(target, gguf.quants.quantize(tensor, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Measure, print and save."""
    options = parser(__doc__ or "")
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--repeat", type=int, default=3)
    options.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(TYPES))
    given = options.parse_args()
    clock = start(given)
    whole = model(given.layers)
    checkpoint = whole.to_checkpoint()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mixwell-gguf-") as folder:
        path = Path(folder) / "model.gguf"
        for kind in given.kinds:
            taken: dict[str, list[float]] = {"ours": [], "theirs": []}
            for _ in range(given.repeat):
                for side, write in (("ours", write_gguf), ("theirs", theirs)):
                    began = clock()
                    write(checkpoint, path, kind)
                    taken[side].append(clock() - began)
                    path.unlink()
            ours_s, theirs_s = min(taken["ours"]), min(taken["theirs"])
            rows[kind] = {"ours_s": ours_s, "theirs_s": theirs_s, "times_quicker": theirs_s / ours_s}
            print(f"{kind:<5} ours {ours_s:.2f} s, package gguf {theirs_s:.2f} s: {theirs_s / ours_s:.1f}x", flush=True)
    save("gguf_export", given, {"parameters": whole.num_parameters(), "types": rows})


if __name__ == "__main__":
    main()
