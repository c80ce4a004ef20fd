"""The standard library as four domains: what is in each, the same everywhere, and no text in two of them."""

import ast
import sysconfig
import types

import pytest

from mixwell.core.errors import MixwellError
from mixwell.run import datasets
from mixwell.run.datasets import load, standard_library

LIMIT = 60_000


@pytest.fixture(scope="module")
def library():
    return standard_library(LIMIT)


def size(documents):
    return sum(len(d.text.encode()) for d in documents)


def docstrings(text):
    nodes = [n for n in ast.walk(ast.parse(text))
             if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]
    return [found for n in nodes if (found := ast.get_docstring(n, clean=False))]


def test_four_domains_filled_to_the_limit(library):
    assert list(library) == ["code", "tests", "reference", "docstrings"]
    for documents in library.values():
        assert LIMIT - 500 < size(documents) <= LIMIT
        assert len({d.text for d in documents}) == len({d.path for d in documents}) == len(documents)


def test_names_tell_nothing_of_the_machine(library):
    root = sysconfig.get_path("stdlib")
    for domain in ("code", "tests", "docstrings"):
        for document in library[domain]:
            assert not document.path.startswith("/") and "\\" not in document.path
            assert (root + "/").replace("//", "/") not in document.text
    assert all({"test", "tests", "idle_test"} & set(d.path.split("/")) for d in library["tests"])
    assert not any({"test", "tests", "idle_test"} & set(d.path.split("/")[:-1]) for d in library["code"])


def test_the_same_again_and_more_of_the_same_with_a_higher_limit(library):
    assert standard_library(LIMIT) == library
    for domain, documents in standard_library(LIMIT // 2).items():
        whole = documents[:-1]  # the last one is cut
        assert whole == library[domain][: len(whole)] and len(whole) > 1
        assert library[domain][len(whole)].text.startswith(documents[-1].text)


def test_code_and_docstrings_share_no_text(library):
    code = {d.path: d.text for d in library["code"][:-1]}
    assert not any(docstrings(text) for text in code.values())
    both = [d for d in library["docstrings"] if d.path in code]
    assert len(both) > 2
    for document in both:
        paragraphs = [p for p in document.text.split("\n\n") if len(p) > 60]
        assert not any(p in code[document.path] for p in paragraphs)


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A library of a few files."""
    files = {
        "a.py": '"""Module a."""\nX = 1\n', "copy_of_a.py": '"""Module a."""\nX = 1\n', "test/test_a.py": "assert 1\n",
        "pkg/idle_test/x.py": "assert 2\n",
        "pkg/b.py": 'def f():\n    """Only that, naïve."""\n\n\ndef g(): "é"; return 2\n',
        "bad.py": "def (", "site-packages/c.py": "C = 1\n", "encodings/cp1.py": "T = 1\n", "empty.py": " \n",
        "_sysconfigdata_x.py": "P = '/home'\n", "config-3/d.py": "D = 1\n", "a.txt": "no module",
    }
    for name, text in files.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "lib/test/latin.py").write_bytes(b"# \xe9\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "lib"))
    topics = types.SimpleNamespace(topics={"if": "The if statement\n", "for": "The for statement\n"})
    monkeypatch.setattr(datasets.importlib, "import_module", lambda name: topics)
    return tmp_path / "lib"


def test_what_is_taken_and_what_is_left_out(planted):
    found = {domain: {d.text for d in documents} for domain, documents in standard_library().items()}
    assert found == {
        "code": {"X = 1\n", 'def f():\n    pass\n\n\ndef g(): pass; return 2\n'},
        "tests": {"assert 1\n", "assert 2\n"},
        "reference": {"The if statement\n", "The for statement\n"},
        "docstrings": {"Module a.\n", "Only that, naïve.\n\né\n"},
    }


def test_a_limit_cuts_the_last_document_at_a_line(planted):
    (planted / "test/test_a.py").write_text("one\ntwo\nthree\n")
    (planted / "pkg/idle_test/x.py").unlink()
    assert [d.text for d in standard_library(9)["tests"]] == ["one\ntwo\n"]


def test_a_python_without_tests_or_topics_says_so(planted, monkeypatch):
    for path in ("test/test_a.py", "pkg/idle_test/x.py"):
        (planted / path).unlink()
    with pytest.raises(MixwellError, match=r"ships no text for the domain 'tests'; run with a full Python"):
        standard_library()
    (planted / "test/test_a.py").write_text("assert 1\n")

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(datasets.importlib, "import_module", missing)
    with pytest.raises(MixwellError, match="'reference'"):
        standard_library()


def test_data_sets_go_by_name(planted):
    assert load("standard-library", 50) == standard_library(50)
    with pytest.raises(MixwellError, match=r"no data set 'standard-libary'\. Did you mean 'standard-library'"):
        load("standard-libary")
    with pytest.raises(MixwellError, match="max_bytes_per_domain 0: expected at least 1"):
        standard_library(0)
