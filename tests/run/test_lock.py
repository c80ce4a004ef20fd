"""One run at a time in a folder: who holds it is said, and what a dead one left holds nothing."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from mixwell.core.errors import MixwellError
from mixwell.run import engine, lock

CONTEXT = multiprocessing.get_context("fork")


def hold(out, ready):
    with lock.locked(out):
        ready.set()
        time.sleep(600)


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path."""
    ready = CONTEXT.Event()
    other = CONTEXT.Process(target=hold, args=(tmp_path, ready))
    other.start()
    assert ready.wait(600)
    yield other
    other.kill()
    other.join()


def test_a_second_run_is_refused_with_process_and_age(holder, tmp_path, monkeypatch):
    assert lock.held(tmp_path) and not lock.signed(tmp_path).ended
    now = time.time()
    monkeypatch.setattr(lock.time, "time", lambda: now + 150)
    words = rf"is in use by process {holder.pid}, for 2.min.3\d.s now; wait for it to end, or choose another folder"
    with pytest.raises(MixwellError, match=words), lock.locked(tmp_path):
        pass


def test_a_dead_run_holds_nothing(holder, tmp_path):
    holder.kill()
    holder.join()
    assert lock.signed(tmp_path).ended and not lock.held(tmp_path)
    with engine.locked(tmp_path):
        assert lock.signed(tmp_path).process == os.getpid() and lock.held(tmp_path)


def outlive(out, child):
    """Takes the lock, hands it to a child and ends."""
    with lock.locked(out):
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        child.value = pid
        os._exit(0)


def test_what_a_dead_run_left_running_is_told_from_the_run(tmp_path):
    child = CONTEXT.Value("i", 0)
    first = CONTEXT.Process(target=outlive, args=(tmp_path, child))
    first.start()
    first.join()
    words = f"held by what process {first.pid} left running when it ended"
    with pytest.raises(MixwellError, match=words), lock.locked(tmp_path):
        pass
    os.kill(child.value, signal.SIGKILL)


def test_a_number_that_another_process_has_now_is_told_apart(tmp_path):
    own = lock.Holder.own()
    assert not own.ended
    assert lock.Holder(process=own.process, born="1", host=own.host, since=0.0).ended
    assert not lock.Holder(process=own.process, born="1", host="elsewhere", since=0.0).ended


@pytest.mark.parametrize("text", ["", "123", "{}", "[" * 10_000,
                                  '{"process": "x", "born": 1, "host": [], "since": null}'])
def test_a_lock_that_says_nothing_is_no_trouble(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    assert lock.signed(tmp_path) is None
    with lock.locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()


def test_a_disk_without_locks_is_refused(tmp_path, monkeypatch):
    def flock(file, flags):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with pytest.raises(MixwellError, match="a disk that keeps no locks"), lock.locked(tmp_path):
        pass
