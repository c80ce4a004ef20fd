"""The tests of one file, collected once and run against changed code, each time in a process split off.

Functions take on changed code in place (`put`), so that tests need not be collected again; code that ran when the file
was imported cannot, and is imported anew (`passes_anew`). Patience is counted in seconds of the processor, not of the
clock: a busy machine kills no mutant.
"""

from __future__ import annotations

import ast
import gc
import importlib.abc
import importlib.util
import io
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

SEEN = "__seen__"  # the name under which instrumented code tells its lines
SOUND_S = 900  # seconds of the processor for tests of the file as it stands
LEAST_S, TIMES = 10, 3  # for tests of a mutant: so many of them, and so many times what sound ones take
WALL_S = 3600.0  # for a test that waits without computing
split = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class File:
    """A method's file and its tests."""

    module: str
    path: Path
    tree: ast.Module
    tests: tuple[str, ...]


@dataclass
class Sound:
    """What was seen when the tests ran on the file as it stands."""

    passed: bool = False
    seconds: dict[str, float] = field(default_factory=dict)  # of each test
    lines: dict[str, set[int]] = field(default_factory=dict)  # statements that each test reached

    def order(self, line: int) -> list[str]:
        """The tests that reach a statement, the quickest first."""
        return sorted((test for test in self.lines if line in self.lines[test]), key=self.seconds.__getitem__)

    def patience_s(self) -> int:
        """For the tests of a mutant."""
        return LEAST_S + int(TIMES * sum(self.seconds.values()))


def codes(code: CodeType) -> Iterator[tuple[str, int, CodeType]]:
    """Every code inside a module's: its name, its first line, itself."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner.co_qualname, inner.co_firstlineno, inner
            yield from codes(inner)


def put(path: Path, tree: ast.Module) -> bool:
    """Give the functions of a file that is imported already the code of `tree`; False where one cannot take it.

    Of two lambdas on a line nobody knows which is which: made at import, they stay as they are.
    """
    found: dict[tuple[str, int], list[CodeType]] = {}
    for name, line, code in codes(compile(tree, str(path), "exec")):
        found.setdefault((name, line), []).append(code)
    try:
        for function in _functions(path):
            new = found[function.__code__.co_qualname, function.__code__.co_firstlineno]
            if len(new) == 1:
                function.__code__ = new[0]
    except (KeyError, ValueError):  # it is gone, or it closes over other names
        return False
    return True


def _functions(path: Path) -> list[FunctionType]:
    gc.unfreeze()  # what the tests froze is not listed
    alive = [thing for thing in gc.get_objects() if type(thing) is FunctionType]  # proxies answer isinstance by loading
    return [function for function in alive if function.__code__.co_filename == str(path)]


class _Telling(ast.NodeTransformer):
    """Adds to each statement of a function one before it that tells its line."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        for inner in ast.walk(node):
            for name in ("body", "orelse", "finalbody"):
                block = getattr(inner, name, None)
                if isinstance(block, list) and not isinstance(inner, ast.ClassDef):
                    setattr(inner, name, [part for statement in block for part in (_tell(statement), statement)])
        return node


def _tell(statement: ast.stmt) -> ast.stmt:
    call = ast.Call(ast.Name(SEEN, ast.Load()), [ast.Constant(statement.lineno)], [])
    return ast.fix_missing_locations(ast.copy_location(ast.Expr(call), statement))


class Bench:
    """A pytest plugin: collects as ever, then answers requests for runs instead of running by itself."""

    def __init__(self, file: File, requests: Connection) -> None:
        self.file, self.requests = file, requests
        self.reports: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what pytest says of each phase of a test."""
        self.reports.append(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """First the sound run, then a mutant for each request, until there is none."""
        importlib.import_module(self.file.module)  # where the tests have not yet
        items = {item.nodeid: item for item in session.items}
        sound = split_off(lambda: self._sound(items), SOUND_S) or Sound()
        self.requests.send(sound)
        for tree, line in iter(self.requests.recv, None):
            chosen = [items[test] for test in sound.order(line)]
            self.requests.send(split_off(lambda: self._passes(tree, chosen), sound.patience_s()))  # noqa: B023
        return True

    def _sound(self, items: dict[str, pytest.Item]) -> Sound:
        told: set[int] = set()
        setattr(sys.modules[self.file.module], SEEN, told.add)
        seen = Sound(put(self.file.path, _Telling().visit(self.file.tree)))
        for name, passed in self._run(list(items.values())):
            seen.passed &= passed
            seen.lines[name] = set(told)
            seen.seconds[name] = sum(report.duration for report in self.reports)
            told.clear()
        return seen

    def _passes(self, tree: ast.Module, items: Sequence[pytest.Item]) -> bool | None:
        """None where the code cannot be changed in place."""
        if not put(self.file.path, tree):
            return None
        return all(passed for _, passed in self._run(items))

    def _run(self, items: Sequence[pytest.Item]) -> Iterator[tuple[str, bool]]:
        for item, following in zip(items, [*items[1:], None]):
            self.reports.clear()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            yield item.nodeid, not any(report.failed for report in self.reports)


def split_off(work: Callable[[], Any], patience_s: int) -> Any:
    """What `work` gives back in a process of its own; False where it ends otherwise or computes for longer."""
    ours, theirs = split.Pipe(duplex=False)
    process = split.Process(target=_answer, args=(work, theirs, patience_s))
    process.start()
    theirs.close()
    answer = False
    with suppress(EOFError):
        answer = ours.recv() if ours.poll(WALL_S) else False
    process.kill()
    process.join()
    return answer


def _answer(work: Callable[[], Any], to: Connection, patience_s: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (patience_s, patience_s))
    with suppress(BaseException):
        to.send(work())
    os._exit(0)


class Workshop:
    """The process that holds a file's collected tests."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.pipe, theirs = split.Pipe()
        self.process = split.Process(target=_serve, args=(file, theirs))
        self.process.start()
        theirs.close()
        self.sound = Sound()
        with suppress(EOFError):
            self.sound = self.pipe.recv()

    def passes(self, tree: ast.Module, line: int) -> bool:
        """Whether the tests pass with the code of `tree`, whose change stands in the statement at `line`."""
        if line:
            self.pipe.send((tree, line))
            answer = self.pipe.recv()
            if answer is not None:
                return bool(answer)
        return bool(split_off(lambda: _passes_anew(self.file, tree), self.sound.patience_s()))

    def close(self) -> None:
        """End that process."""
        with suppress(BrokenPipeError):
            self.pipe.send(None)
        self.process.join()


def _serve(file: File, requests: Connection) -> None:
    _pytest(file.tests, [Bench(file, requests)])
    requests.close()
    os._exit(0)


def _passes_anew(file: File, tree: ast.Module) -> bool:
    sys.meta_path.insert(0, _Finder(file, compile(tree, str(file.path), "exec")))
    return _pytest(file.tests, []) == 0


def _pytest(tests: Sequence[str], plugins: Sequence[object]) -> int:
    if "torch" in sys.modules:  # who has not imported it yet will with OMP_NUM_THREADS=1, which the tests set
        sys.modules["torch"].set_num_threads(1)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return int(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests], plugins=list(plugins)))


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module from compiled code instead of from its file."""

    def __init__(self, file: File, code: CodeType) -> None:
        self.file, self.code = file, code

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The spec of that module alone."""
        if name != self.file.module:
            return None
        return importlib.util.spec_from_file_location(name, self.file.path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed code."""
        exec(self.code, module.__dict__)
