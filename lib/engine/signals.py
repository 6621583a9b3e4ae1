"""Ctrl-C and termination: the current step is finished and saved before the run ends."""

import os
import signal
import sys
import threading
import time

PATIENCE = 3.0  # s; a launcher such as torchrun passes on the Ctrl-C that the terminal has already sent


class Interrupted(Exception):
    """A signal asked the run to stop; the message tells what was saved. Scripts print it and leave with status 130."""


class StopSignals:
    """While entered, SIGINT or SIGTERM only sets `requested`; another one, seconds later, ends the process as usual."""

    def __init__(self) -> None:
        self.requested = False
        self.since = 0.0
        self.old: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            self.old = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore()

    def _stop(self, number: int, frame: object) -> None:
        if not self.requested:
            self.requested, self.since = True, time.monotonic()
            # not print: the signal may have come in the middle of one
            os.write(sys.__stderr__.fileno(), b"\nstopping after this step; once more to stop at once\n")
        elif time.monotonic() - self.since > PATIENCE:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        while self.old:
            number, handler = self.old.popitem()
            signal.signal(number, handler)
