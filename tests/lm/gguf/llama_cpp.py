"""What llama.cpp makes of GGUF files: run by a Python that has xllamacpp, since ours need not.

Reads JSON from standard input: {"files": [...], "prompts": [[id, ...], ...], "say": id}. Writes, for each file and
prompt, [[id, log probability], ...] of the next token before any bias, and the text of three tokens. `say` is a token
of plain text: probabilities come with whole characters alone.
"""

import json
import sys
import urllib.request

import xllamacpp


def asked(server, body):
    """One completion, by the server's own form."""
    request = urllib.request.Request(f"{server.listening_address}/completion", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def answers(path, prompts, say):
    """Log probabilities behind each prompt."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.cpuparams.n_threads, params.n_parallel, params.warmup = 128, 1, 1, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    found = []
    for prompt in prompts:
        told = asked(server, {"prompt": prompt, "temperature": 0, "cache_prompt": False, "n_probs": 10**6,
                              "n_predict": 3, "logit_bias": [[say, 1000]]})
        first = told["completion_probabilities"][0]["top_logprobs"]
        found.append([[[one["id"], one["logprob"]] for one in first], told["content"]])
    return found


if __name__ == "__main__":
    given = json.load(sys.stdin)
    print(json.dumps([answers(path, given["prompts"], given["say"]) for path in given["files"]]))
