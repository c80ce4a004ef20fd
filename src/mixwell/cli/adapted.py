"""What `mixwell apply` prints of a receipt, and what it does with an adapter's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def show_adapted(console: Console, method: str, source: Path, adapter: str | None, values: dict[str, Any],
                 target: Path, text: Path | None, seed: int) -> None:
    """Merge an adapter into its base, take it out, or write it in another layout; print what that changed."""
    from mixwell.run import apply as applying

    shared: dict[str, Any] = {"options": values, "out": target, "text": text, "seed": seed}
    if values.get("layout") is not None:
        done = applying.convert_adapter(method, source, adapter, **shared)
        for name, value in done.items():
            console.print(f"{name:<18} {value if isinstance(value, str) else format(value, '.4g')}", highlight=False)
        return
    after = applying.adapt(method, source, adapter, **shared)
    receipt = after.lineage[-1]["receipt"]
    show_receipt(console, receipt)
    show_change(console, receipt)


def show_change(console: Console, receipt: dict[str, Any]) -> None:
    """What the receipt of a merged adapter says beside those of other methods."""
    from mixwell.core.units import si

    if "merge_error" not in receipt:
        return
    console.print(f"{'trained':<18} {si(receipt['trained_parameters'])} parameters", highlight=False)
    error = receipt["merge_error"]
    console.print(f"{'merge error':<18} {error:.3g} of a logit, merged against beside", highlight=False)
    if "bits_per_byte_with" in receipt:
        without, beside = (receipt[f"bits_per_byte_{side}"] for side in ("without", "with"))
        console.print(f"{'bits per byte':<18} {without:.4f} without, {beside:.4f} with", highlight=False)
    for name, idle in receipt["without_change"].items():
        numbers = ", ".join(map(str, idle))
        left = f"{name}: experts {numbers} are left as they were"
        console.print(left, style="yellow", highlight=False, soft_wrap=True)


def show_receipt(console: Console, receipt: dict[str, Any]) -> None:
    """The receipt, one fact a line."""
    from mixwell.core.units import si

    promised = receipt["promises"]
    for name in ("max_logit_error", "kl_nats", "loss_before_nats", "loss_after_nats"):
        limit = f"  (promised: at most {promised[name]:.3g})" if name in promised else ""
        console.print(f"{name:<18} {receipt[name]:.4g}{limit}", highlight=False)
    if receipt["bits_per_byte_low"] is not None:
        change, low, high = (receipt[f"bits_per_byte_{name}"] for name in ("change", "low", "high"))
        interval = f"({low:+.4f} to {high:+.4f})"
        console.print(f"{'bits per byte':<18} {change:+.4f}  {interval}", highlight=False)
    for name, unit in (("parameters", ""), ("active", ""), ("size", "B")):
        ending = "_bytes" if unit else ""
        before = si(receipt[f"{name}_before{ending}"], unit)
        after = si(receipt[f"{name}_after{ending}"], unit)
        console.print(f"{name:<18} {before} -> {after}", highlight=False)
