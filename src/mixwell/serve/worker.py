"""The engine on a thread of its own, and its events on the event loop of whoever asked."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from queue import SimpleQueue

import torch

from mixwell.core.errors import MixwellError
from mixwell.serve.engine import Engine
from mixwell.serve.request import Event, Row

LOG = logging.getLogger("mixwell.serve")
FAULT = "the server failed at this request; its log says why."


class Busy(MixwellError):
    """More rows wait than may."""


class Answers:
    """The events of some rows, as they come; iterate over them once."""

    def __init__(self, worker: Worker, rows: Sequence[Row]) -> None:
        self.worker, self.rows = worker, rows
        self.open = len(rows)
        self.queue: asyncio.Queue[Event] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while self.open:
            event = await self.queue.get()
            self.open -= event.finish is not None
            yield event

    def cancel(self) -> None:
        """Let go of what is not over yet: nobody reads it."""
        self.worker.cancel(self)


class Worker:
    """Runs an engine. All methods belong to the event loop; the engine is touched by the thread alone."""

    def __init__(self, engine: Engine, most_waiting: int = 64, threads: int | None = None) -> None:
        self.engine, self.threads = engine, threads
        self.most = engine.scheduler.max_rows + most_waiting
        self.open: dict[Row, Answers] = {}
        self._orders: SimpleQueue[tuple[str, Row | None]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to work for the running event loop."""
        self.loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="mixwell engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End; rows that are not over get an error."""
        if self._thread is not None:
            self._orders.put(("stop", None))
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def submit(self, rows: Sequence[Row]) -> Answers:
        """Hand rows over. Raises `Busy` where too many wait, and `MixwellError` for rows that cannot be answered."""
        for row in rows:
            self.engine.check(row)
        if len(rows) > self.most:
            raise MixwellError(f"the request asks for {len(rows)} answers; expected {self.most} at most.")
        if len(self.open) + len(rows) > self.most:
            raise Busy(f"{len(self.open)} answers are under way or waiting; try again later.")
        answers = Answers(self, rows)
        for row in rows:
            self.open[row] = answers
            self._orders.put(("submit", row))
        return answers

    def cancel(self, answers: Answers) -> None:
        """Give up on rows that are not over."""
        for row in answers.rows:
            if self.open.pop(row, None) is not None:
                self._orders.put(("cancel", row))

    def _deliver(self, events: Sequence[Event]) -> None:
        """Put events where they are waited for."""
        for event in events:
            answers = self.open.get(event.row)
            if answers is None:  # cancelled meanwhile
                continue
            if event.finish is not None:
                del self.open[event.row]
            answers.queue.put_nowait(event)

    def _run(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)
        while self._obeys():
            try:
                events = self.engine.step()
            except Exception:  # one broken step must not take the server down
                LOG.exception("a step failed")
                events = self.engine.fail(FAULT)
            self._tell(events)
        self._tell(self.engine.fail("the server is stopping."))

    def _tell(self, events: Sequence[Event]) -> None:
        if events and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._deliver, events)

    def _obeys(self) -> bool:
        """Do what was asked meanwhile, waiting for something where there is nothing to do; False once told to stop."""
        while not self.engine.busy or not self._orders.empty():
            what, row = self._orders.get()
            if row is None:
                return False
            if what == "submit":
                self.engine.submit(row)
            else:
                self.engine.cancel(row)
        return True
