"""Ctrl-C and SIGTERM, put off while something is saved."""

import signal
import threading

import pytest

from mixwell.core.interrupts import Terminate, postponed

HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: Terminate()}


@pytest.fixture(autouse=True)
def handlers():
    """Those of a command, whatever the test runner has; they must stand again after each test."""
    usual = {number: signal.signal(number, handler) for number, handler in HANDLERS.items()}
    yield
    after = {number: signal.getsignal(number) for number in HANDLERS}
    for number, handler in usual.items():
        signal.signal(number, handler)
    assert after == HANDLERS


@pytest.mark.parametrize("number", HANDLERS)
def test_the_first_only_asks_and_is_done_when_the_work_says_so(number):
    said = []
    with pytest.raises(KeyboardInterrupt), postponed(lambda: said.append(1)) as asked:
        assert not asked.yes
        signal.raise_signal(number)
        assert asked.yes and said == [1]
        asked.stop()


@pytest.mark.parametrize("first", HANDLERS)
@pytest.mark.parametrize("second", HANDLERS)
def test_the_second_does_not_wait(first, second):
    said = []
    with pytest.raises(KeyboardInterrupt), postponed(lambda: said.append(1)):
        signal.raise_signal(first)
        signal.raise_signal(second)
    assert said == [1]


def test_it_is_known_which_one_came():
    terminate = Terminate()
    signal.signal(signal.SIGTERM, terminate)
    for number, came in ((signal.SIGINT, False), (signal.SIGTERM, True)):
        with pytest.raises(KeyboardInterrupt), postponed() as asked:
            signal.raise_signal(number)
            asked.stop()
        assert terminate.came == came
    signal.signal(signal.SIGTERM, HANDLERS[signal.SIGTERM])


def test_a_program_without_a_handler_is_ended_by_the_system_once_it_has_saved(monkeypatch):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with postponed() as asked:
        signal.raise_signal(signal.SIGTERM)
        delivered = []
        monkeypatch.setattr(signal, "raise_signal", lambda n: delivered.append((n, signal.getsignal(n))))
        with pytest.raises(KeyboardInterrupt):
            asked.stop()
    assert delivered == [(signal.SIGTERM, signal.SIG_DFL)]
    signal.signal(signal.SIGTERM, HANDLERS[signal.SIGTERM])


def test_an_ignored_ctrl_c_stays_ignored_and_sigterm_is_heard():
    """As in a job that a script put in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(KeyboardInterrupt), postponed() as asked:
        signal.raise_signal(signal.SIGINT)
        assert not asked.yes
        signal.raise_signal(signal.SIGTERM)
        assert asked.yes
        asked.stop()
    signal.signal(signal.SIGINT, HANDLERS[signal.SIGINT])


def test_a_handler_of_the_programs_own_stays():
    heard = []
    for number in HANDLERS:
        signal.signal(number, lambda n, frame: heard.append(n))
    with postponed() as asked:
        for number in HANDLERS:
            signal.raise_signal(number)
        assert not asked.yes
    assert heard == list(HANDLERS)
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


def test_only_the_main_thread_gets_signals():
    seen = []

    def work():
        with postponed() as asked:
            seen.append((asked.yes, {n: signal.getsignal(n) for n in HANDLERS}))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, HANDLERS)]
