"""A process that loads damaged model folders, so that one which hangs or takes all memory ends that process alone."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.mutations import ASLEEP_S, LONGEST, PATIENCE_S


def fingerprint(folder: Path) -> dict[str, str]:
    """All that a folder gives: logits, ids of a text, lineage."""
    import torch

    from mixwell.core.files import digest
    from mixwell.lm.model import load

    model = load(folder).eval()
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        logits = model(tokens).logits_BTV
    ids = [] if model.tokenizer is None else model.tokenizer.encode("to be or not to be")
    return {"logits": digest(logits.numpy().tobytes()), "ids": digest(ids), "lineage": digest(list(model.lineage))}


def look(folder: Path) -> dict[str, Any]:
    """What loading a folder ends in, and the seconds of this process that it took."""
    begun = time.process_time()
    return {**_look(folder), "seconds": time.process_time() - begun}


def _look(folder: Path) -> dict[str, Any]:
    from mixwell.core.errors import MixwellError

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            found = fingerprint(folder)
        except MixwellError as error:
            line = str(error)
            fair = line.isprintable() and len(line) < LONGEST
            return {"outcome": "refused" if fair else "traceback", "words": repr(line)}
        except BaseException as error:
            import traceback
            last = traceback.extract_tb(error.__traceback__)[-3:]
            where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(last))
            return {"outcome": "traceback", "words": f"{type(error).__name__}: {error} ({where})"[:600]}
    return {"outcome": "loaded", "found": found, "warned": [str(w.message) for w in heard]}


def serve(sound: Path, asked: Connection) -> None:
    """Look at a sound folder, so that all is imported, then at those that are asked for."""
    import resource

    look(sound)
    resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))  # so that an absurd request fails at once
    asked.send("ready")
    for folder in iter(asked.recv, None):
        asked.send(look(folder))


class Looker:
    """A process that looks at folders, with a limit of time for each."""

    def __init__(self, sound: Path) -> None:
        self._sound = sound
        self._start()

    def _start(self) -> None:
        split = multiprocessing.get_context("fork")  # what is imported already need not be again
        self._pipe, theirs = split.Pipe()
        self._process = split.Process(target=serve, args=(self._sound, theirs), daemon=True)
        self._process.start()
        theirs.close()
        assert self._pipe.recv() == "ready"

    def look(self, folder: Path) -> dict[str, Any]:
        """What becomes of a folder."""
        self._pipe.send(folder)
        hangs = self._hangs()
        if not hangs:
            try:
                return self._pipe.recv()
            except (EOFError, ConnectionError):
                pass
        self.close()
        code = self._process.exitcode
        self._start()
        words = f"the process ended with {code}"
        return {"outcome": "hang" if hangs else "traceback", "words": words, "seconds": PATIENCE_S}

    def _hangs(self) -> bool:
        """Wait for an answer; a process that is stopped, or gets no processor, is waited for as long as that lasts."""
        state, before_s = self._state()
        waited_s = 0.0
        while not self._pipe.poll(0.25):
            state, used_s = self._state()
            waited_s += 0.25 if state == "S" else 0.0
            if used_s - before_s > PATIENCE_S or waited_s > ASLEEP_S:
                return True
        return False

    def _state(self) -> tuple[str, float]:
        """The state that the system gives (S: asleep) and the seconds of processor used."""
        text = Path(f"/proc/{self._process.pid}/stat").read_text()
        fields = text.rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return fields[0], ticks / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
