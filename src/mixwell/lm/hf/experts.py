"""Mixtures of experts in config.json, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.core.errors import MixwellError
from mixwell.lm.hf.forms import ACTIVATION_NAMES, EXPERT_COUNTS, MOE, TOP_K, Experts

Keys = Mapping[str, Any]
_GREEDY = "greedy"  # DeepSeek-V2's choice without groups


def read_experts(full: Keys, given: Keys, experts: Experts, where: str) -> dict[str, Any]:
    """Options of the mixture that a layer with experts has. Raises `MixwellError` for another activation than silu."""
    if ACTIVATION_NAMES.get(full.get("hidden_act", "silu")) != "silu":
        raise MixwellError(f"{where}: hidden_act is {full['hidden_act']!r}; mixwell computes experts with 'silu' only.")
    spec = {"method": MOE, "num_experts": _count(full, given, experts), "hidden_dim": full[experts.hidden]}
    spec["router"] = _read_router(full, experts)
    spec["balance"] = {} if experts.loss is None else {"switch": full[experts.loss]}
    if experts.shared is not None:
        spec["shared_experts"] = full[experts.shared] or 0
    spec |= experts.options
    return spec | {option: full[key] for key, option in experts.option_keys.items()}


def _count(full: Keys, given: Keys, experts: Experts) -> Any:
    """E under any of its names; what config.json says outranks what the decoder assumes."""
    for key in (experts.count, *EXPERT_COUNTS):
        if given.get(key) is not None:
            return given[key]
    return full[experts.count]


def _read_router(full: Keys, experts: Experts) -> dict[str, Any]:
    always = experts.renormalise
    renormalise = always if isinstance(always, bool) else bool(full[always])
    router = {**experts.router, "k": full[experts.k], "renormalise": renormalise}
    for key, option in experts.router_keys.items():
        router[option] = 1 if full[key] is None else full[key]
    if full.get("topk_method") == _GREEDY and "groups" in router:
        router |= {"groups": 1, "groups_kept": 1}
    if router["k"] == 1 and renormalise and router["method"] == TOP_K:
        router["constant"] = True
    return router


def write_experts(options: Keys, experts: Experts, aux: float) -> dict[str, Any]:
    """The keys of a mixture whose options are all written out."""
    router = options.get("router", {})
    config = {experts.count: options["num_experts"], experts.hidden: options.get("hidden_dim"),
              experts.k: router.get("k"), "output_router_logits": False}
    if experts.loss is not None:
        config[experts.loss] = aux
    if isinstance(experts.renormalise, str):
        config[experts.renormalise] = router.get("renormalise")
    if experts.shared is not None:
        config[experts.shared] = options.get("shared_experts")
    config |= {key: router.get(option) for key, option in experts.router_keys.items()}
    config |= {key: options.get(option) for key, option in experts.option_keys.items()}
    if "group_rank" in experts.router:
        config["topk_method"] = "group_limited_greedy" if (router.get("groups") or 1) > 1 else _GREEDY
    return config
