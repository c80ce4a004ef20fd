"""`list`, `show`, `new`, `version`, and what the command may not import."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixwell.cli.main import app
from mixwell.cli.skeleton import FORMS
from mixwell.core import registry


def call(*words):
    return CliRunner().invoke(app, list(words))


def test_torch_is_not_imported_to_list_show_or_help():
    code = ("import sys, mixwell\nfrom typer.testing import CliRunner\nfrom mixwell.cli.main import app\n"
            "for words in (['list'], ['show', 'top_k'], ['--help'], ['run', '--help'], ['version'], ['--version'],"
            "              ['show', 'gaussian'], ['show', 'upcycle']):\n"
            "    assert CliRunner().invoke(app, words).exit_code == 0, words\n"
            "print(sorted({'torch', 'numpy', 'tokenizers', 'plotly', 'jinja2'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_list_gives_every_method_or_those_below_a_name():
    lines = call("list").stdout.splitlines()
    assert len(lines) == len(registry.entries())
    assert any(line.startswith("experts.routers.top_k ") and "2017" in line for line in lines)
    routers = call("list", "experts.routers").stdout.splitlines()
    assert routers and all(line.startswith("experts.routers.") for line in routers)
    assert call("list", "experts.routers.top_k").stdout.count("\n") == 1


def test_list_as_json_is_for_programs():
    found = json.loads(call("list", "convert", "--json").stdout)
    upcycle = next(e for e in found if e["name"] == "convert.upcycle")
    assert upcycle["year"] == 2022 and upcycle["papers"] and Path(upcycle["path"]).is_file()


def test_show_gives_card_options_papers_and_file():
    for name in ("top_k", "experts.routers.top_k"):
        text = call("show", name).stdout
        for part in ("**Equation:**", "k: int = 2  # experts per token", "Mixtral of Experts", "routers/top_k.py"):
            assert part in text
    assert "max_kl_nats: float = 0.02" in call("show", "int8").stdout


@pytest.mark.parametrize(("words", "told"), [
    (["list", "nothing.here"], "error: no method below 'nothing.here'."),
    (["list", "experts.router"], "Did you mean 'experts.routers'?"),
    (["list", "experts.routers.topk"], "Did you mean 'experts.routers.top_k'?"),
    (["new", "experts.router.mine"], "no family 'experts.router'. Did you mean 'experts.routers'?"),
    (["new", "density.a.b.mine"], "no family 'density.a.b'"),
    (["show", "experts.routers.topk"], "Did you mean 'experts.routers.top_k'?"),
    (["new", "expert.routers.mine"], "Did you mean 'experts'?"),
    (["new", "experts.routers.top_k"], "is there already"),
    (["new", "experts.routers.Mine"], "'Mine' is no name for a file"),
    (["new", "experts.routers.class"], "'class' is no name for a file"),
    (["new", "experts.routers.mine", "--title", 'a "b"'], "expected no double quotes"),
    (["new", "experts.routers.mine", "--root", "/"], "is no checkout of mixwell"),
    (["new", "experts.overflows.mine"], "no family 'experts.overflows'. Did you mean 'experts.overflow'?"),
])
def test_a_mistake_is_one_line_on_stderr(words, told):
    done = call(*words)
    assert done.exit_code == 2 and done.stdout == ""
    assert told in done.stderr and done.stderr.count("\n") == 1


def test_version_names_what_decides_the_numbers():
    assert call("version").stdout.startswith("mixwell 0.")
    assert call("--version").stdout == call("version").stdout and call("--version").exit_code == 0


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "src" / "mixwell").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("name", [f"{family}.mine" for family in FORMS])
def test_new_writes_a_method_that_the_registry_reads(checkout, name):
    done = call("new", name, "--title", "My own", "--paper", "A Paper", "--year", "2030", "--root", str(checkout))
    assert done.exit_code == 0 and done.stdout.count("written:") == 3
    file = checkout.joinpath("src/mixwell", *name.split(".")).with_suffix(".py")
    entry = registry._read(file, name)
    assert (entry.title, entry.papers, entry.year) == ("My own", ("A Paper",), 2030)
    for path in checkout.rglob("*.py"):
        ast.parse(path.read_text())
        assert "$" not in path.read_text()
        assert (path.parent / "__init__.py").exists() or path.parent == checkout


@pytest.mark.parametrize("family", FORMS)
def test_new_keeps_a_long_title_within_the_line(checkout, family):
    paper = "A Title of a Paper, as Papers Have Them: Long, with a Colon, and with year=2030 inside of It (Extended)"
    assert call("new", f"{family}.mine", "--paper", paper, "--year", "2030", "--root", str(checkout)).exit_code == 0
    for path in checkout.rglob("mine.py"):
        assert max(map(len, path.read_text().splitlines())) <= 120
    entry = registry._read(checkout.joinpath("src/mixwell", *family.split("."), "mine.py"), f"{family}.mine")
    assert (entry.papers, entry.year) == ((paper,), 2030)


def imported(path, name, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["experts.routers.mine", "experts.overflow.mine", "sequence.mine", "convert.mine",
                                  "parallel.federated.mine",
                                  "density.values.mine", "density.robust.mine", "density.mixtures.mine"])
def test_what_new_writes_fails_until_it_is_written(checkout, name, monkeypatch, generator):
    assert call("new", name, "--root", str(checkout)).exit_code == 0
    file = checkout.joinpath("src/mixwell", *name.split(".")).with_suffix(".py")
    entry = registry._read(file, name)
    imported(file, f"mixwell.{name}", monkeypatch)
    monkeypatch.setattr(registry, "find", lambda name: entry)
    test = imported(next(checkout.glob("tests/**/test_mine.py")), "test_mine", monkeypatch)
    with pytest.raises(NotImplementedError, match="write the equation of mine"):
        test.test_agrees_with_a_loop(generator)
    with pytest.raises(NotImplementedError, match="write the property"):
        test.test_keeps_what_only_its_paper_promises(generator)
    with pytest.raises(NotImplementedError, match="out of range"):
        test.test_refuses_what_cannot_be()
    with pytest.raises(AssertionError):
        test.test_card_is_written()
    written = checkout.joinpath("src/mixwell/claims", *name.split(".")).with_suffix(".py")
    claim = imported(written, "claim_mine", monkeypatch).CLAIM
    assert len(claim.sides["baseline"].settings()) == 3
    with pytest.raises(NotImplementedError, match="write how"):
        claim.sides["method"](None, 0, {"lr": 0.1})


# family -> what stands in the place of each line that raises, and the names that it needs
FILLED = {
    "experts.routers": (["return softmax_top_k(logits_TE, config.k)"], "mixwell.mixing: softmax_top_k"),
    "experts.layers": (["y = torch.relu(x_TD @ self.up_proj.T) @ self.down_proj.T; return Mixed(y)",
                        "return 4.0 * self.dim * self.config.hidden_dim"], ""),
    "experts.balance": (["return mean_scores(routing, context).square().sum()"],
                        "mixwell.experts.balance._parts: mean_scores"),
    "experts.overflow": (["tokens, k = routing.indices_TK.shape; "
                          "return serve(routing, by_choice(torch.arange(tokens), k), capacity, context)"],
                         "mixwell.experts.overflow._parts: by_choice, serve"),
    "experts.analysis": (["return {'filled': int((real(routing.indices_TK, context) >= 0).sum())}"],
                         "mixwell.experts.analysis._parts: real"),
    "sequence": (["return SequenceMixed(running_sum(self, x_BTD, cache, mask_BT) @ self.out_proj.T)",
                  "return 4.0 * self.dim * self.config.hidden_dim"], "running: running_sum"),
    "convert": (["return checkpoint.derive(tensors=dict(checkpoint.tensors))"], ""),
    "precision": (["return checkpoint.derive(tensors=dict(checkpoint.tensors))"], ""),
    "adapters": (["return y + (x @ A.T).sum(-1, keepdim=True)", "return A.sum(0).expand_as(weight)"], ""),
    "parallel.federated": (["return super().answer(client, message, memory, turn)"], ""),
    "scaling.laws": (["return self.linear({'A': 1.0, 'k': -np.log(runs['x'])})"], ""),
    "data.mixing": (["slopes_D = np.linalg.lstsq(runs.weights_ND, runs.losses_NM[:, target])[0]; "
                     "return lambda weights_ND, steps_N=None: weights_ND @ slopes_D"], ""),
    "data.online": (["return softmax(state['loss'])"], ""),
    "data.selection": (["return np.argsort(-loss_N)"], ""),
    "density.mixtures": (["return x_BD.T.double()",
                          "return -0.5 * (x_BD.double() ** 2 + np.log(2 * np.pi)).sum(1)",
                          "return params['means'], -0.5 * (params['means'] ** 2).sum(-1)",
                          "return {'means': share(sums.sums_SKP, sums.count_SK[..., None], 0.0)}",
                          "return rng.standard_normal((counts_K.sum(), 2)) + np.repeat(self.means_, counts_K, axis=0)"],
                         "mixwell.density.mixtures.em.exponential: share"),
    "density.values": (["return x_ND.exp().sum(-1)"], ""),
    "density.networks": (["return (x_ND @ self.weight_KD.T).logsumexp(-1)"], ""),
    "density.robust": (["return np.median(x_ND, axis=0)"], ""),
}
SAME_FORM = {"density.circuits": "density.networks", "density.clustering": "density.robust",
             "density.latent": "density.robust", "density.processes": "density.robust",
             "density.regression": "density.robust", "density.selection": "density.robust"}
RUNNING = """
def running_sum(mixer, x, cache, mask):
    h = x @ mixer.in_proj.T
    h = (h if mask is None else h * mask.unsqueeze(-1)).cumsum(1)
    if cache is not None:
        h = h if cache.state is None else h + cache.state
        cache.state, cache.length = h[:, -1:], cache.length + x.shape[1]
    return h
"""


def filled_in(path, family):
    """Put a trivial valid body in the place of each line that raises."""
    bodies, imports = FILLED[family]
    text = path.read_text()
    if imports:
        module, names = imports.split(": ")
        text = text.replace("import torch\n", f"import torch\nfrom {module} import {names}\n", 1)
    for body in bodies:
        text = re.sub(r"raise NotImplementedError\(.*\)", lambda found, body=body: body, text, count=1)
    assert "NotImplementedError" not in text
    path.write_text(text.replace("WRITE", "Says"))


# while tests are collected, they see the new methods alone: nobody waits for cases that would not be tried
NEW_ALONE = """
import sys
import pytest
from mixwell.core import registry

patch = pytest.MonkeyPatch()

def new(listed):
    def asked(*of):
        by_tests = sys._getframe(1).f_globals["__name__"].startswith("tests.")
        return tuple(entry for entry in listed(*of) if ".mine_" in entry.name or not by_tests)

    return asked

def pytest_collection():
    for name in ("entries", "family"):
        patch.setattr(registry, name, new(getattr(registry, name)))

def pytest_collection_finish():
    patch.undo()
"""


def test_what_new_writes_passes_its_familys_suite_once_filled_in(tmp_path):
    """In a copy of the checkout, so that the catalogue holds the new methods and nothing else changes."""
    own = Path(__file__).parents[2]
    shutil.copytree(own / "src", tmp_path / "src", copy_function=os.symlink)  # with what is compiled already
    shutil.copytree(own / "tests" / "contracts", tmp_path / "tests" / "contracts")
    shutil.copy(own / "tests" / "__init__.py", tmp_path / "tests")
    shutil.copy(own / "pyproject.toml", tmp_path)
    (tmp_path / "src" / "running.py").write_text(RUNNING)
    (tmp_path / "tests" / "contracts" / "conftest.py").write_text(NEW_ALONE)
    assert FORMS.keys() - FILLED.keys() == SAME_FORM.keys()
    assert all(FORMS[family] is FORMS[other] for family, other in SAME_FORM.items())
    names = {family: f"{family}.mine_{family.split('.')[-1]}" for family in FILLED}
    for family, name in names.items():
        assert call("new", name, "--root", str(tmp_path)).exit_code == 0
        filled_in(tmp_path.joinpath("src", "mixwell", *name.split(".")).with_suffix(".py"), family)
    slow = "test_density_sklearn.py"  # scikit-learn's own checks take longer than all the rest
    suites = [str(path) for path in (tmp_path / "tests" / "contracts").glob("test_*.py") if path.name != slow]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-vv", "-n", "0", "--assert=plain", "-k", "mine_", *suites],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "src")}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for name in names.values():
        shown = re.escape(name.removeprefix("density."))  # density's suites name their cases from there
        assert re.search(rf"\[(.+-)?{shown}(-.+)?\] PASSED", done.stdout), f"no check of {name} ran"
