"""What a process takes of the machine."""

from __future__ import annotations

import os
from pathlib import Path


def resident_bytes(process: int | str = "self") -> int | None:
    """Memory of this process, or of the one of that number, that is resident now, in bytes; None where the system does
    not tell."""
    try:
        _, resident, *_ = Path(f"/proc/{process}/statm").read_text().split()
    except OSError:
        return None
    return int(resident) * os.sysconf("SC_PAGE_SIZE")
