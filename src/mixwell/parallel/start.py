"""The processes of a run on one machine, started as torchrun starts them, without what torchrun prints where one fails.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence

from mixwell.core.machine import physical_cores

LOOK_S = 0.1  # between two looks whether a process has ended


def start(processes: int, words: Sequence[str]) -> int:
    """Run `mixwell WORDS` in so many processes; the exit status of the first that failed, 0 where none did.

    Each computes with its share of the cores unless OMP_NUM_THREADS says otherwise. Where one fails the others are
    ended. Ctrl-C and SIGTERM end all, and raise `KeyboardInterrupt`.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # the processes say themselves what went wrong
    share = max(1, physical_cores() // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=processes, rdzv_backend="c10d",
                          rdzv_endpoint="localhost:0", run_id=uuid.uuid4().hex, max_restarts=0, monitor_interval=LOOK_S)
    try:
        elastic_launch(config, sys.executable)("-m", "mixwell", *words)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 1
    except SignalException as stop:
        raise KeyboardInterrupt from stop
    finally:
        logging.disable(logging.NOTSET)
    return 0
