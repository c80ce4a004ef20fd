"""Sampling from a language model, with a cache of what was read.

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.lm.network import Network


def filter_logits(logits_BV: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits / temperature, -inf outside the `top_k` best (0: all) and outside the smallest set of mass `top_p`."""
    logits = logits_BV.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        best = logits.topk(top_k, dim=-1).values
        last_B1 = best[:, -1:]
        logits = logits.masked_fill(logits < last_B1, -torch.inf)
    if top_p < 1.0:
        logits = logits.masked_fill(_outside(logits, top_p), -torch.inf)
    return logits


def _outside(logits_BV: Tensor, top_p: float) -> Tensor:
    """Tokens beyond the smallest set of mass `top_p`, bool [B, V]; the best one is always inside."""
    ordered, order = logits_BV.sort(dim=-1, descending=True)
    shares = ordered.softmax(-1)
    before = shares.cumsum(-1) - shares
    outside = before >= top_p
    return torch.zeros_like(outside).scatter(-1, order, outside)


def sample(logits_BV: Tensor, generator: torch.Generator | None, **options: float) -> Tensor:
    """One token a row, int64 [B], drawn from the filtered logits."""
    shares = filter_logits(logits_BV, **options).softmax(-1)  # type: ignore[arg-type]
    return torch.multinomial(shares, 1, generator=generator).squeeze(1)


def check_options(max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    """Refuse options outside their ranges."""
    if max_new_tokens < 0:
        raise MixwellError(f"max_new_tokens is {max_new_tokens}; expected 0 or more.")
    if not temperature > 0:
        raise MixwellError(f"temperature is {temperature}; expected a number above 0 (do_sample=False for greedy).")
    if top_k < 0:
        raise MixwellError(f"top_k is {top_k}; expected 0 (all) or more.")
    if not 0 < top_p <= 1:
        raise MixwellError(f"top_p is {top_p}; expected above 0, up to 1.")


def generate(model: Network, tokens_BT: Tensor, max_new_tokens: int, *, temperature: float = 1.0,
             top_p: float = 1.0, top_k: int = 0, do_sample: bool = False,
             eos_token_id: int | Sequence[int] | None = None, mask_BT: Tensor | None = None,
             labels_B: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Continue each row: int64 [B, T] -> [B, T + at most max_new_tokens].

    Greedy unless `do_sample`, which draws from `generator`: same state, same tokens. Rows of unequal length
    are padded on the left, with `mask_BT` False there. `labels_B` holds each row's domain, for routers that ask for it.
    After one of `eos_token_id` (default: the config's; pass () for none) a row is filled with `pad_token_id` (or that
    eos, where the config has none); the loop ends when all rows have ended.
    """
    check_options(max_new_tokens, temperature, top_k, top_p)
    if tokens_BT.ndim != 2 or tokens_BT.shape[1] == 0:
        raise MixwellError(f"generate: expected tokens [B, T] with T at least 1, got shape {tuple(tokens_BT.shape)}.")
    if do_sample and generator is None:
        raise MixwellError("generate: do_sample needs a generator; see mixwell.core.rng.generator(seed).")
    stops = _ids(model.config.eos_token_id if eos_token_id is None else eos_token_id)
    pad = model.config.pad_token_id if model.config.pad_token_id is not None else (stops or [0])[0]
    was_training = model.training
    model.eval()

    def choose(logits_BV: Tensor) -> Tensor:
        if do_sample:
            return sample(logits_BV, generator, temperature=temperature, top_k=top_k, top_p=top_p)
        return logits_BV.argmax(-1)

    try:
        with torch.inference_mode():  # a fifth less time between the products than under no_grad
            result = _continue(model, tokens_BT, max_new_tokens, choose, stops, pad, mask_BT, labels_B)
        return torch.cat(result, 1)
    finally:
        model.train(was_training)


def _continue(model: Network, tokens_BT: Tensor, max_new_tokens: int, choose: Callable[[Tensor], Tensor],
              stops: list[int], pad: int, mask_BT: Tensor | None, labels_B: Tensor | None) -> list[Tensor]:
    """The tokens given and each step's new ones [B, 1]; a row that ended is filled with `pad`."""
    cache = model.new_cache()
    ended = torch.zeros(tokens_BT.shape[0], dtype=torch.bool, device=tokens_BT.device)
    stops_S = torch.tensor(stops, device=tokens_BT.device)
    new, result = tokens_BT, [tokens_BT]
    for _ in range(max_new_tokens):
        chosen = choose(model.next_logits(new, cache, mask_BT, labels_B))
        new, mask_BT = chosen.masked_fill(ended, pad).unsqueeze(1), None
        result.append(new)
        if stops:
            ended |= torch.isin(new.squeeze(1), stops_S)
            if bool(ended.all()):
                break
    return result


def _ids(value: int | Sequence[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)
