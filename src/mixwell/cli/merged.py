"""`mixwell apply merge.*` on adapters: PEFT's LoRA folders into one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mixwell.core.errors import MixwellError

ADAPTER, MODEL = "adapter_config.json", "config.json"


def are_adapters(sources: Sequence[Path]) -> bool:
    """Whether PEFT's folders came, and no models; both together raise `MixwellError`."""
    found = [source for source in sources if (source / ADAPTER).is_file() and not (source / MODEL).exists()]
    if found and len(found) < len(sources):
        other = next(source for source in sources if source not in found)
        raise MixwellError(f"{found[0]} is an adapter and {other} is none; merge adapters, or models. `mixwell apply "
                           "adapters.lora --in MODEL --adapter FOLDER --out MERGED` makes a model of an adapter.")
    return bool(found)


def show_merged(method: str, sources: Sequence[Path], base: Path | None, values: dict[str, Any], target: Path,
                seed: int) -> None:
    """Merge the adapters, and say what came of it."""
    from mixwell.core.units import counted, si
    from mixwell.run.merging_adapters import merge_adapters

    if base is not None:
        raise MixwellError("adapters are changes of their base already, whose own change is none; leave --base out.")
    made = merge_adapters(method, sources, out=target, options=values, seed=seed)
    console = Console(highlight=False)
    size = si(made.parameters)
    console.print(f"{counted(made.modules, 'module')}, rank {made.rank}, {size} parameters ({made.factors})")
    if made.factors != "apart":
        console.print(f"of the merged change {made.error:.2%} are lost to the rank")
    console.print(f"written: {target}", markup=False, soft_wrap=True)
