"""The next id of a row from its logits, and how likely it and others were.

Legend: V vocabulary.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.lm.generate import penalised, sample
from mixwell.serve.request import Options, Row

GREEDY = 1e-5  # temperatures below it take the likeliest id: divided by them, logits overflow


def choose(logits_V: Tensor, row: Row) -> int:
    """The id that follows the row, drawn as its options say. Raises `MixwellError` where logits are not finite."""
    options = row.options
    adjusted = _adjusted(logits_V, row)
    best = int(adjusted.argmax())  # one that is no number, where there is one
    if not torch.isfinite(adjusted[best]):
        raise MixwellError("the model's logits are not finite; its weights may be damaged.")
    if options.temperature < GREEDY:
        return best
    drawn = sample(adjusted.unsqueeze(0), row.generator, temperature=options.temperature, top_k=options.top_k,
                   top_p=options.top_p, min_p=options.min_p)
    return int(drawn[0])


def _adjusted(logits_V: Tensor, row: Row) -> Tensor:
    """The logits with what the options add to them and take off."""
    options, said = row.options, row.said
    logits = logits_V
    if options.repetition_penalty != 1.0:
        seen = torch.tensor([row.ids])
        logits = penalised(logits.unsqueeze(0), seen, options.repetition_penalty)[0]
    if said and (options.presence_penalty or options.frequency_penalty):
        logits = _less_of(logits, said, options)
    if options.logit_bias:
        ids = torch.tensor(list(options.logit_bias))
        values = torch.tensor(list(options.logit_bias.values()), dtype=logits.dtype)
        logits = logits.index_add(0, ids, values)
    if options.stop_ids and len(said) < options.min_tokens:
        ends = torch.tensor(sorted(options.stop_ids))
        logits = logits.index_fill(0, ends, -torch.inf)
    if row.constraint is not None:
        logits = row.constraint.allowed(logits)
    return logits


def _less_of(logits_V: Tensor, said: list[int], options: Options) -> Tensor:
    """Logits less the presence penalty of each id said, and the frequency penalty each time it was."""
    counts = Counter(said)
    ids = torch.tensor(list(counts))
    times = torch.tensor(list(counts.values()), dtype=logits_V.dtype)
    taken = options.presence_penalty + options.frequency_penalty * times
    return logits_V.index_add(0, ids, -taken)


def likelihoods(logits_NV: Tensor, ids: list[int], count: int) -> list[tuple[float, tuple[tuple[int, float], ...]]]:
    """Of each row its id's log-probability in nats, and the `count` likeliest ids with theirs."""
    logs_NV = logits_NV.log_softmax(-1)
    ids_N1 = torch.tensor(ids).unsqueeze(1)
    own_N = logs_NV.gather(1, ids_N1).squeeze(1)
    most = min(count, logs_NV.shape[1])
    best = logs_NV.topk(most, -1)
    numbers, values = best.indices.tolist(), best.values.tolist()
    found = []
    for logprob, row_numbers, row_values in zip(own_N.tolist(), numbers, values):
        top = zip(row_numbers, row_values)
        found.append((logprob, tuple(top)))
    return found
