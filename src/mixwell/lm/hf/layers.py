"""What config.json says layer by layer: which layers slide, which do not turn, which have experts; and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mixwell.lm.hf.forms import Family

Keys = Mapping[str, Any]
SLIDING, FULL = "sliding_attention", "full_attention"  # kinds of layers: with a window, without


def late(full: Keys, layer: int) -> bool:
    """The layers from max_window_layers on."""
    return layer >= full["max_window_layers"]


def alternating(full: Keys, layer: int) -> bool:
    """Every other layer, up to max_window_layers."""
    return layer % 2 == 0 and layer < full["max_window_layers"]


def every(period: int) -> Callable[[Keys, int], bool]:
    """All but each `period`-th layer; older files may give another period."""
    def slides(full: Keys, layer: int) -> bool:
        given = full.get("sliding_window_pattern") or full.get("_sliding_window_pattern")
        return (layer + 1) % (given or period) != 0

    return slides


def without_turning(full: Keys, layer: int) -> bool:
    """The layers without rotary positions."""
    return turning(full)[layer] == 0


def turning(full: Keys) -> list[int]:
    """1 for a layer with rotary positions, 0 for one without: all but every no_rope_layer_interval-th."""
    listed = full.get("no_rope_layers")
    if listed:
        return list(listed)
    step = full["no_rope_layer_interval"]
    layers = range(1, full["num_hidden_layers"] + 1)
    return [int(number % step != 0) for number in layers]


def window(full: Keys, family: Family) -> int | None:
    """The sliding window, None where no layer has one."""
    if "sliding_window" not in family.mixer_keys or (family.window_flag and not full["use_sliding_window"]):
        return None
    return full["sliding_window"] or None


def sliding(full: Keys, family: Family) -> list[bool]:
    """Whether each layer is one that slides."""
    layers = range(full["num_hidden_layers"])
    if family.slides is None:
        return [True for _ in layers]
    kinds = full.get("layer_types")
    if kinds:
        return [kind == SLIDING for kind in kinds]
    return [family.slides(full, layer) for layer in layers]


def still(full: Keys, family: Family) -> list[bool]:
    """Whether each layer is one without rotary positions."""
    if family.still == "full":
        return [not slides for slides in sliding(full, family)]
    if family.still == "listed":
        return [not turns for turns in turning(full)]
    return [False] * full["num_hidden_layers"]


def write_windows(mixers: Sequence[Keys], family: Family) -> dict[str, Any]:
    """The keys that `window`, `sliding` and `still` read."""
    windows = [mixer.get("sliding_window") or 0 for mixer in mixers]
    config: dict[str, Any] = {}
    if "sliding_window" in family.mixer_keys:
        config["sliding_window"] = max(windows) or None
    if family.window_flag:
        config["use_sliding_window"] = any(windows)
    if family.slides is not None:
        config["layer_types"] = [SLIDING if width else FULL for width in windows]
    if family.still == "listed":
        config["no_rope_layers"] = [int(mixer.get("rotary_dim") != 0) for mixer in mixers]
    return config


def routed(full: Keys, which: str) -> list[bool]:
    """Whether each layer has experts."""
    count = full["num_hidden_layers"]
    return [_routes(full, which, layer) for layer in range(count)]


def _routes(full: Keys, which: str, layer: int) -> bool:
    if which == "after_first":
        return layer >= full["first_k_dense_replace"]
    if which == "span":
        return _in_span(full, layer)
    if which == "step":  # every `decoder_sparse_step`-th, but those of `mlp_only_layers`
        step, dense = full["decoder_sparse_step"], full["mlp_only_layers"] or ()
        return step > 0 and (layer + 1) % step == 0 and layer not in dense
    return True


def _in_span(full: Keys, layer: int) -> bool:
    """Every `moe_layer_interval`-th layer from `moe_layer_start_index` to `moe_layer_end_index` (-1: the last)."""
    first, last = full["moe_layer_start_index"], full["moe_layer_end_index"]
    if last == -1:
        last = full["num_hidden_layers"] - 1
    turn = (layer + 1) % full["moe_layer_interval"]
    return first <= layer <= last and turn == 0


def write_routed(routes: Sequence[bool], which: str) -> dict[str, Any]:
    """The keys that `routed` reads; where they cannot say it, what is read back differs."""
    dense = [layer for layer, sparse in enumerate(routes) if not sparse]
    if which == "step":
        return {"decoder_sparse_step": 1, "mlp_only_layers": dense}
    first = routes.index(True)
    if which == "after_first":
        return {"first_k_dense_replace": first}
    if which == "span":
        last = len(routes) - 1 - routes[::-1].index(True)
        return {"moe_layer_start_index": first, "moe_layer_end_index": last, "moe_layer_interval": 1}
    return {}
