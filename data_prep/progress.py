"""A progress line now and then."""

from __future__ import annotations

import time
from typing import Callable

SAY_EVERY = 10.0        # seconds


def now_and_then(say: Callable[[str], None]) -> Callable[[str], None]:
    """A function that passes a message on to ``say`` at most every 10 seconds, and not in the first 10."""
    last = time.monotonic()

    def tell(message: str) -> None:
        nonlocal last
        if time.monotonic() - last >= SAY_EVERY:
            last = time.monotonic()
            say(message)

    return tell
