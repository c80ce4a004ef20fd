"""`compare`, `claims` and `apply` of an analysis from the command line."""

import json

import pytest
from typer.testing import CliRunner

from mixwell.cli.main import app
from tests.run import tiny


def call(*words):
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The recipe's file, the comparison's folder, what the command printed."""
    folder = tmp_path_factory.mktemp("cli")
    file = tiny.recipe_file(folder / "recipe", tokens=300)
    words = ("--vary", "moe.router=top_k,sinkhorn,{method: hash, k: 2}", "--budget", "tokens=600", "--seeds", "0,4",
             "--baseline", "sinkhorn", "--out", folder / "out")
    return file, folder / "out", words, call("compare", file, *words)


def test_compare_prints_the_answer_and_names_the_report(ran):
    _, out, _, done = ran
    assert done.exit_code == 2 and "hash(k=2) cannot run, the rest goes on: stage moe" in done.stdout
    assert done.stderr == "error: hash(k=2) failed; the report says why\n"
    lines = done.stdout.splitlines()
    assert lines[-1] == f"report: {out / 'report.html'}" and (out / "report.html").is_file()
    assert lines[-2].startswith(("No difference from sinkhorn", "Better than sinkhorn", "Worse than sinkhorn"))
    row = next(line for line in lines if line.startswith("sinkhorn  "))
    assert row.rstrip().endswith("baseline") and "±" in row
    assert any(line.startswith("moe-trained · top_k · seed 4 ") and "bits per byte" in line for line in lines)


def test_dry_run_and_report(ran, tmp_path):
    file, out, words, _ = ran
    done = call("compare", file, *words, "--dry-run")
    assert done.exit_code == 0 and "nothing to do" in done.stdout and "sinkhorn (baseline)" in done.stdout
    fresh = call("compare", file, *words[:-2], "--out", tmp_path / "new", "--dry-run")
    assert "together:" in fresh.stdout and not (tmp_path / "new").exists()
    again = call("report", out, "--out", tmp_path / "r.html")
    assert again.exit_code == 0 and "sinkhorn" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(("words", "told"), [
    (["compare"], "expected what to vary"),
    (["compare", "--vary", "moe.router"], "expected KEY=VALUE,VALUE"),
    (["compare", "--vary", "k=1,2", "--vary", "k=1,3"], "stands twice"),
    (["compare", "--vary", "train.lr=1e-3,2e-3", "--search", "asynchronous_gp"], "which need no features"),
    (["compare", "--vary", "train.lr=1e-3,2e-3", "--keep", "1"], "add --search METHOD"),
    (["compare", "--vary", "model=a,b", "--search", "one_rung"], "these models exist already"),
    (["compare", "--vary", "moe.router=[a"], "not YAML"),
    (["compare", "routers", "--vary", "model.router=top_k,sinkhrn"], "Did you mean 'sinkhorn'?"),
    (["compare", "--vary", "moe.num_experts=2,4", "--seeds", "x"], "--seeds"),
    (["claims", "expert"], "Did you mean 'experts'?"),
    (["apply", "experts.analysis.lod", "--in", "x"], "Did you mean 'load'?"),
    (["apply", "experts.analysis.load", "bins=2", "--in", "x"], "unknown key 'bins'"),
    (["apply", "convert.upcycle", "--in", "x", "num_experts=2"], "--out"),
])
def test_a_mistake_is_one_line(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    done = call(*words)
    assert done.exit_code == 2 and done.stdout.strip() == "" and not list(tmp_path.iterdir())
    assert done.stderr.startswith("error: ") and told in done.stderr and done.stderr.count("\n") == 1


# claims

@pytest.fixture
def three(monkeypatch):
    """Three claims: one holds, one breaks, one is to be tried for longer than there is time."""
    from mixwell import claims
    from mixwell.claims import running, sources
    from mixwell.claims.claim import Claim
    from mixwell.claims.record import Record, Task, Trial
    from mixwell.claims.work import Done

    def run(chosen, folder, *, jobs, until, report, pool):
        assert pool is None and jobs == 3 and until < float("inf")
        good, broken, slow = chosen
        for seed in range(8):
            task = Task(good.name, seed)
            good.busy.append(task)
            running._keep(good, task, Done(130.0, {"method": 1.0 + seed % 2, "baseline": 3.0}), folder)
            report(good, task, Done(130.0))
        broken.broken = "ValueError: [no]"
        report(broken, Task(broken.name, 0), Done(1.0))
        slow.record.trials[0] = Trial({"method": 1.0, "baseline": 1.0}, 2.0)

    monkeypatch.setattr(sources, "source", lambda name: "")
    names = ["experts.a", "experts.b", "experts.c"]
    monkeypatch.setattr(claims, "chosen", lambda prefixes: names)
    monkeypatch.setattr(running, "run", run)
    monkeypatch.setattr(running, "efforts", lambda names, folder: [
        running.Effort(name, Record(name, Claim("A [beats] B.", "bits"), "")) for name in names])


def test_claims_prints_saves_and_ends_with_an_error_where_one_broke(three, tmp_path):
    done = call("claims", "experts", "--jobs", 3, "--minutes", 5, "--save", tmp_path)
    assert done.exit_code == 2 and done.stderr == "error: 1 of 3 claims broke: experts.b\n"
    lines = [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]
    assert lines[0] == "experts.a a seed took 2 min 10 s; its budget is 2 min 00 s"
    assert lines[1] == "experts.a held +1.50 (+0.895 to +2.11) · bits · 8 seeds · 17 min 20 s"
    assert lines[2] == "A [beats] B."
    assert lines[3] == "experts.b broken ValueError: [no]"
    assert lines[4].startswith("2 claims: 1 held, 1 to be run. Took ")
    assert lines[5] == "1 of 3 are not finished; the same command goes on."
    assert [path.name for path in tmp_path.iterdir()] == ["experts.a.json"]


def test_claims_list_runs_nothing(three, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("claims", "--list")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert done.exit_code == 0 and lines == ["experts.a to be run", "experts.b to be run", "experts.c to be run"]
    assert not list(tmp_path.iterdir())


def test_claims_that_an_older_source_decided_are_named(three, tmp_path, monkeypatch):
    from mixwell.claims import pages, sources

    monkeypatch.chdir(tmp_path)
    call("claims", "experts", "--jobs", 3, "--minutes", 5, "--save", "kept")
    (tmp_path / "README.md").write_text(f"{pages.START}\n{pages.END}\n")
    told = "1 outcome is of an older source and will be tried anew: experts.a\n"
    assert told not in call("claims", "--write", "--save", "kept").stdout
    monkeypatch.setattr(sources, "source", lambda name: "changed")
    assert call("claims", "--write", "--save", "kept").stdout.endswith(told)
    lines = [" ".join(line.split()) for line in call("claims", "--list", "--save", "kept").stdout.splitlines()]
    assert lines == ["experts.a to be run held with an older source", "experts.b to be run", "experts.c to be run",
                     told.strip()]


def test_claims_write_makes_the_tables(three, tmp_path, monkeypatch):
    from mixwell.claims import pages

    monkeypatch.chdir(tmp_path)
    call("claims", "experts", "--jobs", 3, "--minutes", 5, "--save", tmp_path / "kept")
    (tmp_path / "README.md").write_text(f"{pages.START}\n{pages.END}\n")
    done = call("claims", "--write", "--save", "kept")
    assert done.exit_code == 0 and done.stdout.split() == ["written:", "kept/experts.md", "written:", "README.md"]
    assert "1 claim: 1 held." in (tmp_path / "kept" / "experts.md").read_text()
    assert "| all | 1 | 0 | 0 | 0 | 0 |" in (tmp_path / "README.md").read_text()


# analyses

@pytest.mark.parametrize(("name", "key"), [
    ("load", "counts"), ("entropy", "token_nats"), ("co_activation", "lift"), ("collapse", "scatter_ratio"),
    ("output_norm", "ranks"), ("repetition", "pairs"), ("similarity", "router"), ("specialisation", "shares")])
def test_every_analysis_runs_on_a_checkpoint(ran, name, key):
    file, out, _, _ = ran
    model = next(out.glob("stages/moe-trained-*/model"))
    done = call("apply", f"experts.analysis.{name}", "--in", model, "--data", file.parent / "left")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert key in found["layers"]["0"] and found["tokens"] > 500 and found["analysis"].endswith(name)


def test_an_analysis_counts_every_token_and_writes_a_file(ran, tmp_path):
    file, out, _, _ = ran
    model = next(out.glob("stages/moe-trained-*/model"))
    words = ("--text", file.parent / "left", "--out", tmp_path / "l.json")
    done = call("apply", "experts.analysis.load", "--in", model, *words)
    found = json.loads((tmp_path / "l.json").read_text())
    assert done.stdout.strip() == f"written: {tmp_path / 'l.json'}"
    assert sum(found["layers"]["0"]["counts"]) == 2 * found["tokens"], "two experts a token"


def test_an_analysis_of_int8_agrees_with_the_dequantised_weights(ran, tmp_path):
    import torch

    from mixwell.lm.model import load
    from mixwell.run.analyse import analyse
    from mixwell.run.apply import apply

    _, out, _, _ = ran
    model = next(out.glob("stages/moe-trained-*/model"))
    apply("precision.int8", model, out=tmp_path / "q", text=None)
    small = load(tmp_path / "q")
    found = analyse("similarity", small, text=ran[0].parent / "left")["layers"]["0"]["down"]["matrix"]
    mixer = small.layers[0].channel_mixer
    plain = (mixer.down_proj.double() * mixer.down_proj_scale.double()).flatten(1)
    unit = torch.nn.functional.normalize(plain, dim=-1)
    assert torch.allclose(torch.tensor(found, dtype=torch.float64), unit @ unit.T, atol=1e-6)
    norms = analyse("output_norm", small, text=ran[0].parent / "left")["layers"]["0"]
    assert norms["chance"] == 0.5 and 0 <= norms["hits"] <= 1


def test_a_dense_model_has_nothing_to_analyse(ran):
    model = next(ran[1].glob("stages/dense-*/model"))
    done = call("apply", "experts.analysis.load", "--in", model, "--data", ran[0].parent / "left")
    assert done.exit_code == 2 and "no layer that routes" in done.stderr
