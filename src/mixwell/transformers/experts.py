"""Expert kernels for transformers' own mixture models: `experts_implementation="mixwell"`.

    import mixwell
    mixwell.register_experts()
    model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="mixwell")

transformers sends the experts of its mixtures through a registry of functions; one of them is added here. SwiGLU
experts, which nearly all of its mixtures have, take the kernels of mixwell's own layers, forward and backward; experts
with another activation, biases, weights stored transposed or a norm behind them take the same products and the
model's own code between them. Whatever leaves the products alone (the router, attention, the rest) stays as it is.

Legend: T tokens, D width, F hidden width, E experts, K slots per token, N filled slots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.errors import MixwellError
from mixwell.core.routing import combine, dispatch, plan
from mixwell.kernels.experts import each_expert, expert_mlp, is_one_token, one_token_mlp
from mixwell.kernels.linear import Weight
from mixwell.kernels.norm import wide
from mixwell.kernels.packing import pack_layer, weight_of

NAME = "mixwell"
COMPUTED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # types of weights that are multiplied


def register_experts() -> None:
    """Make the kernels known to transformers as "mixwell", for models loaded before and after.

    A model takes them with `from_pretrained(folder, experts_implementation="mixwell")`, or later with
    `model.set_experts_implementation("mixwell")`. Calling this twice changes nothing. Raises MixwellError where
    transformers is not installed, or has no such registry.
    """
    try:
        from transformers import PreTrainedModel
        from transformers.integrations.moe import ExpertsInterface

        ExpertsInterface.register(NAME, experts_forward)
        accepted: Any = PreTrainedModel.get_correct_experts_implementation
        accepted(None, NAME)  # the first versions had a registry, and took no name but their own
    except (ImportError, ValueError) as error:
        raise MixwellError("register_experts needs a transformers whose models take experts registered by others "
                           f"(5.0.0 does not, 5.24 does): pip install -U transformers ({error})") from error


def pack_experts(model: nn.Module) -> int:
    """Lay the experts' weights out for inference on this CPU, beside the plain ones; returns the bytes this takes.

    The copies serve while gradients are off. A weight that changes afterwards is used as it is until this is called
    again; experts whose weights are stored transposed are left as they are. Raises MixwellError where nothing in
    `model` computes with these kernels.
    """
    layers = [module for module in model.modules() if _computes_here(module)]
    if not layers:
        raise MixwellError(f"pack_experts: no experts of {type(model).__name__} compute with {NAME!r}; call "
                           f'register_experts(), then model.set_experts_implementation("{NAME}").')
    extra = 0
    for layer in layers:
        if not layer.is_transposed:
            extra += pack_layer(layer, _names(layer))
    return extra


def _computes_here(module: nn.Module) -> bool:
    """Whether transformers sends the experts in `module` through `experts_forward`."""
    config = getattr(module, "config", None)
    chosen = getattr(config, "_experts_implementation", None)
    return chosen == NAME and hasattr(module, "is_transposed") and hasattr(module, "down_proj")


def _names(layer: Any) -> tuple[str, str]:
    """The parameters that hold the stacks of weights: into the hidden width, and out of it."""
    return "gate_up_proj" if _has(layer, "gate", True) else "up_proj", "down_proj"


def _has(layer: Any, part: str, default: bool = False) -> bool:
    """Whether experts have a gate, a bias or a norm behind them; `default` where transformers is too old to say."""
    found: bool = getattr(layer, f"has_{part}", default)
    return found


@torch.compiler.disable  # sorting rows by expert depends on their values: compiled models call it as it is
def experts_forward(layer: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Each token through its experts, and their weighted sum: [T, D] -> [T, D], as transformers calls its experts.

    top_k_index [T, K] int64, top_k_weights [T, K]. Products are taken in the type of the weights, or in autocast's
    where it is on; sums over a token's experts in float32 or better. Raises MixwellError for weights in other types.
    """
    device = hidden_states.device.type
    weights_TK = wide(top_k_weights)
    if not torch.is_autocast_enabled(device):
        return _mixed(layer, hidden_states, top_k_index, weights_TK, _type_of(layer))
    with torch.autocast(device, enabled=False):  # what is multiplied here is brought to one type by hand
        return _mixed(layer, hidden_states, top_k_index, weights_TK, torch.get_autocast_dtype(device))


def _type_of(layer: Any) -> torch.dtype:
    """The type of the weights, which must be one that products are taken in."""
    name, _ = _names(layer)
    dtype: torch.dtype = getattr(layer, name).dtype
    if dtype not in COMPUTED:
        raise MixwellError(f"experts_implementation={NAME!r} computes with weights in float32, bfloat16, float16 or "
                           f"float64; {type(layer).__name__}.{name} holds {dtype}. Load the model without "
                           'quantization, or with experts_implementation="eager".')
    return dtype


def _weight(layer: Any, name: str, dtype: torch.dtype) -> Weight:
    """The stack [E, outputs, inputs] in `dtype`, packed where it was packed in that type."""
    plain: Tensor = getattr(layer, name)
    if layer.is_transposed:
        return plain.to(dtype).transpose(1, 2)
    if plain.dtype != dtype:
        return plain.to(dtype)
    return weight_of(layer, name)


def _mixed(layer: Any, x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor, dtype: torch.dtype) -> Tensor:
    """The weighted sum of each token's experts [T, D], computed in `dtype`."""
    into, out_of = (_weight(layer, name, dtype) for name in _names(layer))
    if getattr(layer, "_is_expert_parallel", True):  # what other processes hold counts as an empty slot
        elsewhere = indices_TK >= into.shape[0]
        indices_TK = indices_TK.masked_fill(elsewhere, -1)
    x = x_TD.to(dtype)
    swiglu = _is_swiglu(layer)
    if swiglu and x is x_TD and is_one_token(x):
        chosen = indices_TK[0].tolist()
        return one_token_mlp(x, weights_TK, chosen, into, out_of)
    order = plan(indices_TK, into.shape[0])
    rows_ND = dispatch(x, order)
    if swiglu:
        y_ND = expert_mlp(rows_ND, order.counts_E, into, out_of)
    else:
        y_ND = _other_experts(layer, rows_ND, order.counts_E.tolist(), into, out_of)
    summed = torch.promote_types(dtype, x_TD.dtype)
    return combine(y_ND.to(summed), order, weights_TK).to(x_TD.dtype)


def _is_swiglu(layer: Any) -> bool:
    """Whether an expert is W_down (silu(W_gate x) * W_up x), gate and up in two halves, and nothing else."""
    more = _has(layer, "bias") or _has(layer, "post_expert_norm")
    if more or not _has(layer, "gate", True):
        return False
    gate = type(layer)._apply_gate
    halves = gate.__module__ == "transformers.integrations.moe"  # no model's own
    return halves and _is_silu(layer.act_fn)


def _is_silu(activation: Any) -> bool:
    theirs = type(activation)
    named = theirs.__module__ == "transformers.activations" and theirs.__name__ == "SiLUActivation"
    return named or activation is F.silu or isinstance(activation, nn.SiLU)


def _other_experts(layer: Any, rows_ND: Tensor, counts: list[int], into: Weight, out_of: Weight) -> Tensor:
    """Rows sorted by expert through experts of any form [N, D], with the model's own code between the products."""
    biases = None
    if _has(layer, "bias"):
        first, second = (getattr(layer, f"{name}_bias").to(rows_ND.dtype) for name in _names(layer))
        biases = first, second
    activation = layer._apply_gate if _has(layer, "gate", True) else layer.act_fn
    y_ND = each_expert(rows_ND, counts, into, out_of, activation, biases)
    return layer.post_expert_norm(y_ND) if _has(layer, "post_expert_norm") else y_ND
