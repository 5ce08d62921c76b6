"""What ends a command from outside: Ctrl-C, what job systems send before they kill, a terminal that is closed."""

import atexit
import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN = 1.0
"""Seconds after which a signal counts as a second one: a closed terminal, or make, sends the first several times."""
_received: list[float] = []
"""The first signal, and when it came."""


def catch_signals() -> None:
    """Have a signal end the command as Ctrl-C does, with what is unfinished removed; a second one ends it at once.

    One that the process was told to ignore, as by nohup, stays ignored.
    """
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    if not _received:
        _received[:] = number, time.monotonic()
        raise KeyboardInterrupt
    if time.monotonic() - _received[1] >= AGAIN:
        with suppress(OSError):
            os.write(2, b"lake: ended at once; the next writer removes what is unfinished\n")
        os._exit(128 + number)


def status() -> int:
    """Exit status of a command that was stopped."""
    return 128 + int(_received[0] if _received else signal.SIGINT)


class Lasting:
    """Standard error whose reader may go away: work goes on, and messages are lost."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if anybody reads."""
        with suppress(OSError):
            return int(self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Hand on what is written, if anybody reads."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        """All else is the stream's."""
        return getattr(self._stream, name)


def outlive_terminal() -> None:
    """Go on with the work whatever becomes of the terminal."""
    sys.stderr = Lasting(sys.stderr)


def end(code: object) -> None:
    """End the process at once if obstore was used: its waiting threads may abort an interpreter that shuts down.

    Returns where it was not, or where what was printed cannot be written.
    """
    if "obstore" not in sys.modules:
        return
    try:
        sys.stdout.flush()
    except OSError:
        return
    atexit._run_exitfuncs()
    os._exit(code if isinstance(code, int) else 0)
