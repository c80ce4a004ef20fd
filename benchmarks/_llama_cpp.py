"""llama.cpp's own figures for GGUF files: run by a Python that has xllamacpp, since ours need not.

Reads JSON from standard input: {"files": {name: path}, "threads": n, "repeats": n, "prompt": n, "short": n, "new": n,
"vocabulary": n}. Writes {name: {"decode": tokens a second, "prefill": tokens a second}}, the best of the repeats, as
the server itself times them.
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
        return json.load(answer)["timings"]


def figures(path, given):
    """Tokens a second of one file."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.n_ctx = path, 1, 1024
    params.n_batch = params.n_ubatch = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given["threads"]
    server = xllamacpp.Server(params)
    found = {"decode": 0.0, "prefill": 0.0}
    for turn in range(given["repeats"] + 1):
        ids = [(7 * i + turn) % given["vocabulary"] for i in range(given["prompt"])]
        common = {"temperature": 0, "cache_prompt": False, "ignore_eos": True}
        long = asked(server, {**common, "prompt": ids, "n_predict": 1})
        new = asked(server, {**common, "prompt": ids[: given["short"]], "n_predict": given["new"]})
        if turn:
            found["prefill"] = max(found["prefill"], long["prompt_per_second"])
            found["decode"] = max(found["decode"], new["predicted_per_second"])
    return found


if __name__ == "__main__":
    given = json.load(sys.stdin)
    print("figures " + json.dumps({name: figures(path, given) for name, path in given["files"].items()}))
