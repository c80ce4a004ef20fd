"""The page at `/`: its files, what it may load, and what a browser makes of it."""

import os
import re
import subprocess

import pytest
from fastapi.responses import HTMLResponse, Response
from starlette.testclient import TestClient

from mixwell.serve.app import Settings, build
from mixwell.serve.engine import Limits
from mixwell.serve.guard import Rules
from tests.serve.listening import listening
from tests.serve.test_app import served

DRIVE = """
const until = (what) => new Promise((done) => { const look = () => what() ? done() : setTimeout(look, 5); look(); });
(async () => {
  await until(() => $("model").options.length);
  $("ask").value = "say hello"; $("most").value = 6; $("label").value = "prose";
  $("beside").value = "other";
  $("form").requestSubmit();
  await until(() => document.querySelectorAll("article").length == 2 && !$("send").disabled);
  const list = document.querySelector(".tokens");
  list.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  await until(() => $("load").children.length);
  const shown = new Answer({ id: "a" }, $("log"));
  shown.call({ id: "1", function: { name: "add", arguments: '{"one": 3, "to": "<b>"}' } });
  shown.call({ id: "2", function: { name: "now", arguments: "{}" } });
  $("tools").value = "[{";
  $("ask").value = "again";
  $("form").requestSubmit();
  await until(() => document.querySelectorAll(".error").length == 2);
  document.body.dataset.done = "yes";
})();
"""


def test_its_files_need_no_key_and_load_nothing_from_elsewhere(model):
    with TestClient(served(model, Rules(api_key="k"))) as client:
        page, script = client.get("/"), client.get("/page.js")
        assert client.get("/v1/models").status_code == 401
    assert page.headers["content-type"].startswith("text/html") and script.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    assert "//" not in page.text  # no address
    assert re.findall(r'(?:src|href)="([^"]*)"', page.text) == ["data:,", "#ask", "page.js"]
    known = set(re.findall(r'id="([\w-]+)"', page.text))
    assert set(re.findall(r'\$\("([\w-]+)"\)', script.text)) <= known
    assert "innerHTML" not in script.text  # what a model writes is text, never a part of the page


def test_labels_name_every_control(model):
    with TestClient(served(model)) as client:
        text = client.get("/").text
    named = "".join(re.findall(r"<label.*?</label>", text, re.S)) + "".join(re.findall(r'for="\w+"', text))
    controls = re.findall(r'<(?:select|input|textarea) id="([\w-]+)"', text)
    assert len(controls) == 10
    assert all(f'id="{name}"' in named or f'for="{name}"' in named for name in controls)


def test_two_models_stand_side_by_side(model):
    other = Settings(name="other", limits=Limits(step_tokens=16, max_rows=4, block=4), threads=1)
    first = Settings(name="tiny", limits=Limits(step_tokens=16, max_rows=4, block=4), threads=1)
    app = build(model, first, Rules(), [(model, other)])
    with TestClient(app) as client:
        assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["tiny", "other"]
        body = {"model": "other", "prompt": "say", "max_tokens": 3, "temperature": 0, "ignore_eos": True}
        assert client.post("/v1/completions", json=body).json()["model"] == "other"
        written = {name: client.get("/v1/experts", params={"model": name}).json()["engine"]["generated_tokens"]
                   for name in ("tiny", "other")}
        assert written == {"tiny": 0, "other": 3}
        refused = client.post("/v1/completions", json=body | {"model": "third"})
        assert refused.status_code == 404 and "expected 'tiny' or 'other'" in refused.json()["error"]["message"]
        text = client.get("/metrics").text
        assert 'generation_tokens_total{model_name="other"} 3.0' in text
        assert 'generation_tokens_total{model_name="tiny"} 0.0' in text


def test_two_models_of_one_name_are_refused(model):
    settings = Settings(name="tiny", limits=Limits(block=4), threads=1)
    with pytest.raises(ValueError, match="under one name"):
        build(model, settings, Rules(), [(model, settings)])


@pytest.mark.slow
def test_a_browser_shows_which_expert_wrote_what(model, tmp_path):
    browser = os.environ.get("MIXWELL_BROWSER")
    if not browser:  # a browser has clocks of its own, so that it is asked for
        pytest.skip("MIXWELL_BROWSER names no Chromium")
    limits = Limits(step_tokens=16, max_rows=4, block=4)
    app = build(model, Settings(name="tiny", limits=limits, threads=1), Rules(),
                [(model, Settings(name="other", limits=limits, threads=1))])
    page = TestClient(app).get("/").text
    driven = page.replace("</body>", '<script src="drive.js"></script></body>')
    app.app.get("/driven")(lambda: HTMLResponse(driven))
    app.app.get("/drive.js")(lambda: Response(DRIVE, media_type="text/javascript"))
    with listening(app) as address:
        shown = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=600000",
             f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom",
             address.removesuffix("/v1") + "/driven"], capture_output=True, text=True, timeout=600, check=True)
    assert "Uncaught" not in shown.stderr and 'data-done="yes"' in shown.stdout
    assert shown.stdout.count("<article") == 5
    assert "<dt>one</dt><dd>3</dd><dt>to</dt><dd>&lt;b&gt;</dd>" in shown.stdout and "no arguments" in shown.stdout
    assert 'aria-label="Copy the call of add"' in shown.stdout and "the tools are no JSON: " in shown.stdout
    assert len(re.findall(r'<span style="--hue', shown.stdout)) >= 6
    assert re.search(r"Token 1, “.*?”: experts \d, \d in layer 0", shown.stdout, re.S)
    assert '<option value="prose">prose</option>' in shown.stdout and "Load by expert" in shown.stdout
