"""The documentation's pages: every method has one, links lead somewhere, and nothing unknown is left out silently."""

import ast
import functools
import importlib
import json
import pkgutil
import posixpath
import re
import sys
from pathlib import Path

import markupsafe
import pytest

from mixwell.claims import sources
from mixwell.core import registry

ROOT = Path(__file__).parents[1]
if str(ROOT / "tools") not in sys.path:
    sys.path.append(str(ROOT / "tools"))

from docsite import book, cards, evidence, maths, options, rendering, trials  # noqa: E402  # after the path above

WRITTEN = {path.relative_to(ROOT / "docs").as_posix(): path.read_text(encoding="utf-8")
           for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "evidence"}


@pytest.fixture(scope="module")
def site():
    """Path -> Markdown of every page, with the open places of hand-written ones filled."""
    catalogue = book.read()
    filled = {path: book.filled(text, path, catalogue) for path, text in WRITTEN.items()}
    with pytest.MonkeyPatch.context() as patch:  # hundreds of claims use the same definitions, and no file changes
        patch.setattr(sources, "_file", functools.cache(sources._file))
        return filled | book.made(catalogue)


def test_every_method_has_a_page_with_its_card(site):
    for entry in registry.entries():
        text = site["methods/" + entry.name.replace(".", "/") + ".md"]
        heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert heads[: 4] == ["Equation", "Shapes", "Use", "Options"] and heads[-1] == "Source", entry.name
        assert f"# {markupsafe.escape(entry.title)}\n" in text
        assert re.search(rf"^from mixwell\.{entry.name} import .*\b{entry.object_name}\b", text, re.MULTILINE)
        for paper in entry.papers:
            assert str(markupsafe.escape(paper)) in text


def test_links_lead_to_pages(site):
    files = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*") if p.is_file()}
    there = files | set(site) | {path.removesuffix(".md") + ".html" for path in site}
    lost = []
    for path, text in site.items():
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        targets = re.findall(r'href="([^"]+)"', text) + re.findall(r"\]\(([^)\s]+)\)", prose)
        for target in targets:
            plain = target.split("?")[0].split("#")[0]
            if plain and not target.startswith("http"):
                found = posixpath.normpath(posixpath.join(posixpath.dirname(path), plain))
                lost += [] if found in there else [f"{path}: {target}"]
    assert not lost, lost[:10]


def test_the_navigation_names_every_page(site):
    def leaves(items):
        for item in items:
            if isinstance(item, dict):
                yield from leaves(item.values())
            elif isinstance(item, list):
                yield from leaves(item)
            else:
                yield item

    named = [path for path in leaves([book.navigation(book.read())]) if path != "catalogue.md"]
    made = {path for path in site if path.startswith(("methods/", "claims/"))}
    assert sorted(named) == sorted(made)


def test_the_catalogue_holds_what_its_script_narrows_by(site):
    text = site["catalogue.md"]
    rows = re.findall(r'<tr data-room="(\w+)" data-tag="([^"]*)" data-outcome="([^"]+)"', text)
    assert len(rows) == len(registry.entries())
    assert {tag for _, tags, _ in rows for tag in tags.split("|") if tag} == {
        tag for entry in registry.entries() for tag in entry.tags}
    script = (ROOT / "docs" / "assets" / "catalogue.js").read_text(encoding="utf-8")
    for name in ("words", "room", "tag", "outcome"):
        assert f'name="{name}"' in text and f'"{name}"' in script


@pytest.mark.parametrize("path", sorted(p for p in WRITTEN if p.startswith("api/")))
def test_what_the_reference_names_is_there(path):
    blocks = re.findall(r"^::: (\S+)(?:\n    options: \{members: \[(.+)\]\})?", WRITTEN[path], re.MULTILINE)
    assert blocks
    for name, members in blocks:
        found = pkgutil.resolve_name(name)
        assert found.__doc__
        assert all(hasattr(found, member) for member in members.split(", ") if member)


PAGES = {"README.md": (ROOT / "README.md").read_text(encoding="utf-8"), **WRITTEN}
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


OURS = [path for path, text in sorted(PAGES.items()) if any("mixwell" in block for block in PYTHON.findall(text))]


@pytest.mark.parametrize("path", OURS)
def test_what_code_of_a_page_imports_is_there(path):
    trees = [ast.parse(block) for block in PYTHON.findall(PAGES[path])]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = [(node.module, alias.name) for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    read = [("mixwell", node.attr) for node in nodes if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name) and node.value.id == "mixwell"]
    ours = [(module, name) for module, name in imported + read if module.split(".")[0] == "mixwell"]
    assert ours, "no block names anything of mixwell"
    for module, name in ours:
        assert getattr(importlib.import_module(module), name) is not None


@pytest.mark.parametrize("name", [
    "mixwell.load", "mixwell.apply", "mixwell.register_experts", "mixwell.pack_experts", "mixwell.experts.MoE",
    "mixwell.density.GaussianMixture", "mixwell.density.GaussianMixtureDensity", "mixwell.density.StudentTMixture"])
def test_names_that_the_readme_gave_once_stay(name):
    """Whatever moves inside, code that was written from the README keeps its imports."""
    module, _, public = name.rpartition(".")
    assert callable(getattr(importlib.import_module(module), public))
    assert public in dir(importlib.import_module(module))


@pytest.mark.parametrize(("text", "html"), [
    ("w_i E_i(x)", "w<sub>i</sub> E<sub>i</sub>(x)"),
    ("sum_{i in I(u^c)} p_i <= 1", "∑<sub>i ∈ I(u<sup>c</sup>)</sub> p<sub>i</sub> ≤ 1"),
    ("mu'_nk ~ N(mu_0, Sigma_k^-1)", "μ'<sub>nk</sub> ~ N(μ<sub>0</sub>, Σ<sub>k</sub><sup>−1</sup>)"),
    ("rows sum to 1; top_k", "rows sum to 1; top_k"),
    ("gate_up_proj, x_proj, log_rate", "gate_up_proj, x_proj, log_rate"),
    ("V_{l-1} and W_in, top-k", "V<sub>l−1</sub> and W<sub>in</sub>, top-k"),
    ("Gamma(nu/2) < `a_b <= mu`", "Gamma(ν/2) &lt; <code>a_b &lt;= mu</code>"),
    ("|W|_1 - a", "|W|<sub>1</sub> − a"),
    ("exp(-x) two-stage", "exp(−x) two-stage"),
])
def test_ascii_mathematics_becomes_html_and_words_stay(text, html):
    assert maths.formula(text) == html


def test_prose_links_papers_and_names_of_methods():
    seen = maths.prose("see\n `a.b` (arXiv:2401.04088), 1e-4 - x_i, z_loss", lambda code: f"[{code}]")
    link = '<a href="https://arxiv.org/abs/2401.04088">arXiv:2401.04088</a>'
    assert seen == f"see [a.b] ({link}), 1e-4 - x<sub>i</sub>, z_loss"


def test_equations_keep_the_lines_that_the_card_indents():
    assert maths.equation("a = b\n    c = d").count("<span") == 2
    assert maths.equation("a = b and\nc = w . H. E step:\ne = f").count("<span") == 2
    assert maths.equation("The bound\nis\n\n    a\n    + b\n\nwith a\nand b.").count("<span") == 4


def test_a_card_without_a_section_is_an_error():
    with pytest.raises(ValueError, match=r"x\.y: the card lacks Shapes, Reference, Differs, Fails when, Cost"):
        cards.parse("One line.\n\n**Equation:** y = x", "x.y")


def test_options_come_with_their_comments_and_defaults():
    def found(name):
        entry = registry.find(name)
        return {o.name: o for o in options.of(entry.module(), entry.load())}

    assert found("experts.routers.top_k")["k"] == options.Option("k", "int", "2", "experts per token, 1 to E")
    moe = found("experts.layers.moe")
    assert moe["num_experts"].default == "" and moe["router"].default == "{'method': 'top_k', 'k': 2}"
    assert moe["balance"].meaning.startswith("rule -> coefficient")  # two lines above the field
    assert len(found("sequence.mamba")) > 2  # inherited ones, too
    tol = found("density.mixtures.gaussian")["tol"]
    assert tol.default == "0.001" and tol.kind == "float" and tol.meaning.startswith("stop when a step gains less")


CLAIM = {"claim": "It is better.", "outcome": "held"}


def test_evidence_is_read_by_the_names_of_its_files(tmp_path):
    (tmp_path / "experts.routers.top_k__sparse.json").write_text(json.dumps({**CLAIM, "outcome": "undecided"}))
    found = evidence.read(tmp_path)
    assert {name: claim["outcome"] for name, claim in found.items()} == {"experts.routers.top_k__sparse": "undecided"}
    given = evidence.by_method(found, ["experts.routers.top_k", "experts.routers.hash"])
    assert list(given["experts.routers.top_k"]) == list(found) and given["experts.routers.hash"] == {}
    with pytest.raises(ValueError, match=r"top_k__sparse belongs to experts\.routers\.top_k, which is no method"):
        evidence.by_method(found, ["experts.routers.hash"])


def test_a_claim_that_an_older_source_decided_says_so():
    name = "experts.routers.hash"
    kept = {**CLAIM, "source": sources.source(name)}
    entries = (CLAIM, kept, {**kept, "source": "x"})
    told = [rendering.render("claim", claim=trials.shown(name, entry)) for entry in entries]
    assert ["An older source" in text for text in told] == [False, False, True]


@pytest.mark.parametrize("content", [[CLAIM], {**CLAIM, "outcome": "proved"}, {"claim": "held"}])
def test_evidence_of_an_unknown_form_is_an_error(tmp_path, content):
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a\.json holds no evidence \(expected an outcome: held"):
        evidence.read(tmp_path)
