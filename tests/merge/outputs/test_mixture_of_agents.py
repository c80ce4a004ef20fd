"""Mixture of agents: who is asked what, windows that slide, a server over HTTP, diversity and its regression."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.merge.outputs.mixture_of_agents import (
    Config,
    Endpoint,
    mixture_of_agents,
    quality_and_diversity,
    vendi_score,
)


def counting(log):
    def ask(prompt, temperature):
        log.append((prompt, temperature))
        return f"answer {len(log)}"
    return ask


def test_one_agent_answers_n_times_and_the_aggregator_reads_all():
    asked, read = [], []
    found = mixture_of_agents("Why?", [counting(asked)], counting(read), Config(samples=4, temperature=0.9))
    assert asked == [("Why?", 0.9)] * 4 and found == "answer 1"
    (prompt, temperature), = read
    assert temperature == 0 and "Why?" in prompt and all(f"answer {n}" in prompt for n in (1, 2, 3, 4))


def test_several_agents_answer_in_turn():
    first, second = [], []
    mixture_of_agents("Why?", [counting(first), counting(second)], lambda prompt, temperature: "x", Config(samples=5))
    assert len(first) == 3 and len(second) == 2
    with pytest.raises(MixwellError, match="2 agents and 1 samples"):
        mixture_of_agents("Why?", [counting(first)] * 2, counting(second), Config(samples=1))


def test_a_window_slides_over_the_answers_and_keeps_what_was_aggregated():
    read = []

    def aggregator(prompt, temperature):
        read.append(prompt)
        return f"best {len(read)}"

    found = mixture_of_agents("Why?", [counting([])], aggregator, Config(samples=7, window=3, reserved=1))
    assert found == "best 3" and len(read) == 3
    assert all(f"answer {n}" in read[0] for n in (1, 2, 3))
    assert "best 1" in read[1] and "answer 4" in read[1] and "answer 5" in read[1] and "answer 3" not in read[1]
    assert "best 2" in read[2] and "answer 7" in read[2]
    with pytest.raises(ValueError, match="reserved is 3 of a window of 3"):
        Config(window=3, reserved=3)


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            good = self.headers["Authorization"] == "Bearer secret"
            text = f"{body['model']} {body['temperature']} {body['messages'][0]['content']}"
            reply = {"choices": [{"message": {"content": text}}]} if body["model"] == "m" else {"other": 1}
            self.send_response(200 if good else 401)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *arguments):
            pass

    found = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}/v1"
    found.shutdown()
    found.server_close()


def test_an_endpoint_is_asked_over_http(server):
    assert Endpoint(url=server, model="m", key="secret")("Why?", 0.5) == "m 0.5 Why?"
    with pytest.raises(MixwellError, match="refused"):
        Endpoint(url=server, model="m")("Why?", 0.5)
    with pytest.raises(MixwellError, match="OpenAI-compatible"):
        Endpoint(url=server, model="other", key="secret")("Why?", 0.5)
    with pytest.raises(MixwellError, match="does not answer"):
        Endpoint(url="http://127.0.0.1:1/v1", model="m", timeout_s=2.0)("Why?", 0.5)
    with pytest.raises(MixwellError, match="expected http"):
        Endpoint(url="file:///etc/passwd", model="m")


def test_diversity_counts_and_is_regressed(generator):
    assert vendi_score(torch.eye(5)) == pytest.approx(5) and vendi_score(torch.ones(5, 5)) == pytest.approx(1)
    pairs = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    assert vendi_score(pairs) == pytest.approx(2)
    quality, diversity = torch.randn(50, generator=generator), 10 * torch.randn(50, generator=generator)
    scores = 3 * (quality - quality.mean()) / quality.std() - 0.5 * (diversity - diversity.mean()) / diversity.std() + 7
    a, b = quality_and_diversity(scores, quality, diversity)
    assert math.isclose(a, 3, rel_tol=1e-4) and math.isclose(b, -0.5, rel_tol=1e-3)
