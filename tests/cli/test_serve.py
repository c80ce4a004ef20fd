"""`mixwell serve`: a real server on a real port, what ends it, and what is said when it cannot be."""

import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixwell.cli.main import app
from mixwell.cli.serve import _called
from mixwell.lm.generation import for_tokenizer
from tests.serve.conftest import small_model


def call(*words):
    return CliRunner().invoke(app, ["serve", *map(str, words)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = small_model()
    model.generation = for_tokenizer(model.tokenizer)
    return model.save(tmp_path_factory.mktemp("served") / "model")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def connected(port):
    until = time.monotonic() + 600
    while True:
        try:
            found = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
            found.connect()
            return found
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_sigterm_lets_answers_end_and_then_the_server(folder):
    port, found = free_port(), {}

    def client():
        body = json.dumps({"prompt": "say", "max_tokens": 80, "stream": True, "ignore_eos": True}).encode()
        connection = connected(port)
        try:
            connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            found["first"] = answer.readline()
            os.kill(os.getpid(), signal.SIGTERM)
            found["rest"] = answer.read().decode()
        except BaseException:
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    thread = threading.Thread(target=client)
    thread.start()
    ended = call(folder, "--port", port, "--name", "tiny")
    thread.join()
    assert ended.exit_code == 143
    assert f"serving tiny at http://127.0.0.1:{port}" in ended.stdout
    assert found["first"].startswith(b"data: {") and found["rest"].endswith("data: [DONE]\n\n")
    assert found["rest"].count("data: {") > 20


def test_what_cannot_be_served_is_one_line(folder, monkeypatch):
    for words, said in ((("--host", "0.0.0.0"), "set a key (MIXWELL_API_KEY or --api-key), or say --insecure"),
                        (("--api-key", " "), "the key is empty"),
                        (("--draft", "lokup"), "--draft is neither lookup, tree nor jacobi, and no model: lokup"),
                        (("--rows", "9", "--step-tokens", "8"), "each row takes a token a step")):
        ended = call(folder, *words)
        assert ended.exit_code == 2 and said in ended.stderr and ended.stderr.count("\n") == 1
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = call(folder, "--port", taken.getsockname()[1])
        assert ended.exit_code == 2 and "is the port taken?" in ended.stderr
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    ended = call(folder)
    assert ended.exit_code == 2 and "pip install 'mixwell[serve]'" in ended.stderr


def test_a_drafter_is_for_the_model_that_it_was_given_for(folder, tmp_path, monkeypatch):
    """Models beside it may have other tokens."""
    made = []
    monkeypatch.setattr("mixwell.serve.app.build", lambda model, settings, rules, beside: made.append([
        settings, *[own for _, own in beside]]))
    monkeypatch.setattr("mixwell.cli.serve._listen", lambda *_: None)
    assert call(folder, "--draft", folder, "--beside", folder).exit_code == 0
    assert call(folder, "--draft", "lookup", "--beside", folder).exit_code == 0
    (served, beside), named = made
    assert served.smaller is not None and beside.smaller is None and served.limits.draft is None
    assert [own.limits.draft for own in named] == ["lookup", "lookup"]


def test_a_model_is_called_as_its_folder_wherever_one_stands(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert [_called(Path(name)) for name in (".", "./", str(folder), "runs/mine:tuned")] == [
        folder.name, folder.name, folder.name, "mine:tuned"]
    assert _called(Path("..")) == folder.parent.name
