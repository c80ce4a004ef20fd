"""Sampling from a language model, with a cache of what was read.

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.lm.network import Network


def filter_logits(logits_BV: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
                  min_p: float = 0.0) -> Tensor:
    """Logits / temperature, -inf outside the `top_k` best (0: all) and outside the smallest set of mass `top_p`.

    So are those less probable than `min_p` times the best one.
    """
    logits = logits_BV.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        best = logits.topk(top_k, dim=-1).values
        last_B1 = best[:, -1:]
        logits = logits.masked_fill(logits < last_B1, -torch.inf)
    if top_p < 1.0:
        logits = logits.masked_fill(_outside(logits, top_p), -torch.inf)
    if min_p > 0.0:
        least_B1 = logits.amax(-1, keepdim=True) + math.log(min_p)
        logits = logits.masked_fill(logits < least_B1, -torch.inf)
    return logits


def penalised(logits_BV: Tensor, seen_BS: Tensor, penalty: float) -> Tensor:
    """Logits of the tokens seen before made smaller: divided by `penalty` where positive, else multiplied by it.

    Keskar et al. 2019 (1909.05858), section 4.1, with the sign of the logit minded, as is usual.
    """
    if penalty == 1.0:
        return logits_BV
    found_BS = logits_BV.gather(1, seen_BS)
    smaller_BS = torch.where(found_BS < 0, found_BS * penalty, found_BS / penalty)
    return logits_BV.scatter(1, seen_BS, smaller_BS)


def _outside(logits_BV: Tensor, top_p: float) -> Tensor:
    """Tokens beyond the smallest set of mass `top_p`, bool [B, V]; the best one is always inside."""
    ordered, order = logits_BV.sort(dim=-1, descending=True)
    shares = ordered.softmax(-1)
    before = shares.cumsum(-1) - shares
    outside = before >= top_p
    outside[:, 0] = False  # also where float32 makes 0 of top_p
    return torch.zeros_like(outside).scatter(-1, order, outside)


def sample(logits_BV: Tensor, generator: torch.Generator | None, **options: float) -> Tensor:
    """One token a row, int64 [B], drawn from the filtered logits."""
    shares = filter_logits(logits_BV, **options).softmax(-1)  # type: ignore[arg-type]
    return torch.multinomial(shares, 1, generator=generator).squeeze(1)


def check_options(max_new_tokens: int, temperature: float, top_k: int, top_p: float, min_p: float = 0.0,
                  repetition_penalty: float = 1.0) -> None:
    """Refuse options outside their ranges."""
    if max_new_tokens < 0:
        raise MixwellError(f"max_new_tokens is {max_new_tokens}; expected 0 or more.")
    if not temperature > 0:
        raise MixwellError(f"temperature is {temperature}; expected a number above 0 (do_sample=False for greedy).")
    if top_k < 0:
        raise MixwellError(f"top_k is {top_k}; expected 0 (all) or more.")
    if not 0 < top_p <= 1:
        raise MixwellError(f"top_p is {top_p}; expected above 0, up to 1.")
    if not 0 <= min_p <= 1:
        raise MixwellError(f"min_p is {min_p}; expected 0 to 1.")
    if not repetition_penalty > 0:
        raise MixwellError(f"repetition_penalty is {repetition_penalty}; expected a number above 0 (1: none).")


def generate(model: Network, tokens_BT: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
    """Continue each row: int64 [B, T] -> [B, T + at most max_new_tokens]; options as of `steps`."""
    found = steps(model, tokens_BT, max_new_tokens, **options)
    return torch.cat([tokens_BT, *(new_B.unsqueeze(1) for new_B in found)], 1)


def steps(model: Network, tokens_BT: Tensor, max_new_tokens: int, *, temperature: float = 1.0, top_p: float = 1.0,
          top_k: int = 0, min_p: float = 0.0, repetition_penalty: float = 1.0, do_sample: bool = False,
          eos_token_id: int | Sequence[int] | None = None, pad_token_id: int | None = None,
          mask_BT: Tensor | None = None, labels_B: Tensor | None = None,
          generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """The tokens that continue each row, one step after the other: int64 [B], at most max_new_tokens times.

    Greedy unless `do_sample`, which draws from `generator`: same state, same tokens. Rows of unequal length
    are padded on the left, with `mask_BT` False there. `labels_B` holds each row's domain, for routers that ask for it.
    After one of `eos_token_id` (default: the config's; pass () for none) a row is filled with `pad_token_id` (default:
    the config's, or that eos); the steps end when all rows have ended.
    Raises `MixwellError` for tokens of another shape than [B, T], and for draws without a generator.
    """
    check_options(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty)
    if tokens_BT.ndim != 2 or tokens_BT.shape[1] == 0:
        raise MixwellError(f"generate: expected tokens [B, T] with T at least 1, got shape {tuple(tokens_BT.shape)}.")
    if do_sample and generator is None:
        raise MixwellError("generate: do_sample needs a generator; see mixwell.core.rng.generator(seed).")
    stops = ids(model.config.eos_token_id if eos_token_id is None else eos_token_id)
    pads = [pad_token_id, model.config.pad_token_id, *stops, 0]
    pad = next(number for number in pads if number is not None)
    filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}

    def choose(logits_BV: Tensor, seen_BS: Tensor) -> Tensor:
        logits_BV = penalised(logits_BV, seen_BS, repetition_penalty)
        return sample(logits_BV, generator, **filters) if do_sample else logits_BV.argmax(-1)

    return _continue(model, tokens_BT, max_new_tokens, choose, stops, pad, mask_BT, labels_B)


def _continue(model: Network, tokens_BT: Tensor, max_new_tokens: int, choose: Callable[[Tensor, Tensor], Tensor],
              stops: list[int], pad: int, mask_BT: Tensor | None, labels_B: Tensor | None) -> Iterator[Tensor]:
    """Each step's tokens [B]; a row that ended is filled with `pad`."""
    cache = model.new_cache()
    ended = torch.zeros(tokens_BT.shape[0], dtype=torch.bool, device=tokens_BT.device)
    stops_S = torch.tensor(stops, device=tokens_BT.device)
    new, seen = tokens_BT, tokens_BT
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            with torch.inference_mode():  # a fifth less time between the products than under no_grad
                chosen = choose(model.next_logits(new, cache, mask_BT, labels_B), seen)
                new_B = chosen.masked_fill(ended, pad)
            new, mask_BT = new_B.unsqueeze(1), None
            seen = torch.cat((seen, new), 1)
            yield new_B
            if stops:
                ended |= torch.isin(new_B, stops_S)
                if bool(ended.all()):
                    return
    finally:
        model.train(was_training)


def ids(value: int | Sequence[int] | None) -> list[int]:
    """The ids that an option means: none, one, or several."""
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)
