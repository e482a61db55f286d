"""How far a stage is: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Callable, Optional

from data_prep.errors import DataError

SAY_EVERY = 10.0        # seconds
LEAST_SHARE = 0.001     # done before the time left is worth a guess


def now_and_then(say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Callable[[str], None]:
    """A function that passes a message on to ``say`` at most every 10 seconds, and not in the first 10."""
    last = clock()

    def tell(message: str) -> None:
        nonlocal last
        if clock() - last >= SAY_EVERY:
            last = clock()
            say(message)

    return tell


class Progress:
    """Text done, speed, share done and time left of one stage. Shown on a terminal as a bar, else told to ``say``.

    stage: how the line begins.
    total_bytes: text to do; None when unknown. The end may come sooner: the source may hold less.
    clock: seconds, as ``time.monotonic``.
    """

    def __init__(self, say: Callable[[str], None], stage: str, total_bytes: Optional[int] = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        if total_bytes is not None and total_bytes < 0:
            raise DataError(f"{stage}: a total of {total_bytes} bytes of text; it must be 0 or more")
        self._stage, self._total, self._clock = stage, total_bytes, clock
        self._tell = now_and_then(say, clock)
        self._began = clock()
        self._done = 0          # bytes of text, skipped ones too
        self._skipped = 0
        self._read: Optional[float] = None
        self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def skip(self, text_bytes: int) -> None:
        """Bytes found done already: they count as done, not as speed."""
        self._skipped += text_bytes
        self._done += text_bytes

    def update(self, text_bytes: int, share_read: Optional[float] = None) -> None:
        """Bytes of text done just now; how much of the source is read (0 to 1), as by the position in a compressed file."""
        self._done += text_bytes
        self._read = self._read if share_read is None else share_read
        if sys.stderr.isatty():
            self._draw()
        else:
            self._tell(self.line())

    def close(self) -> None:
        """Leave the bar, if there is one, as it is; may be called twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def share(self) -> Optional[float]:
        """Share done, 0 to 1; None when neither a total nor a position is known."""
        known = [] if self._read is None else [self._read]
        if self._total is not None:
            known.append(self._done / self._total if self._total else 1.0)
        return min(max(known), 1.0) if known else None

    def line(self) -> str:
        """As in ``measure: 412.3 MB, 61%, 25.1 MB/s, 10s left``."""
        seconds = self._clock() - self._began
        speed = (self._done - self._skipped) / seconds if seconds > 0 else 0.0
        share = self.share()
        words = [f"{self._stage}: {self._done / 1e6:,.1f} MB"]
        if share is not None:
            words.append(f"{100 * share:.0f}%")
        words.append(f"{speed / 1e6:,.1f} MB/s")
        if share is not None and share >= LEAST_SHARE and speed > 0:
            words.append(f"{_duration(self._done / share * (1 - share) / speed)} left")
        return ", ".join(words)

    def _draw(self) -> None:
        if self._bar is None:
            from tqdm import tqdm

            form = "{desc}" if self.share() is None else "|{bar:24}| {desc}"
            self._bar = tqdm(total=1.0, bar_format=form)
        self._bar.n = self.share() or 0.0
        self._bar.set_description_str(self.line())


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {seconds:02d}s" if minutes else f"{seconds}s"
