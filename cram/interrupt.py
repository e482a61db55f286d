"""Leaving well when asked to: a signal sets a flag that the loop reads between steps."""

from __future__ import annotations

import signal


class Interrupted(SystemExit):
    """The run was asked to stop, is saved, and can be resumed. Exit status 143, as for SIGTERM."""

    def __init__(self):
        super().__init__(143)


class StopSignal:
    """Context in which SIGTERM, SIGINT and SIGUSR1 set ``received``; a second one raises KeyboardInterrupt."""

    def __init__(self):
        self.received = False
        self._before = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number, frame):
        if self.received:
            raise KeyboardInterrupt
        self.received = True

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
