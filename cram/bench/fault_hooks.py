"""What a process under test imports before anything else (``sitecustomize.py``), so that a fault strikes inside it."""

from __future__ import annotations

from pathlib import Path

# The time of day jumps by years, forwards and backwards, several times a second.
CLOCK = '''
import datetime, time

real_time, JUMPS = time.time, (0.0, 9e7, -9e7, 4e8, -3.6e3)

def time_of_day():
    return real_time() + JUMPS[int(time.monotonic() * 7) % len(JUMPS)]

class Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time_of_day(), tz)

    @classmethod
    def utcnow(cls):
        return cls.now(datetime.timezone.utc).replace(tzinfo=None)

time.time, time.time_ns = time_of_day, lambda: int(1e9 * time_of_day())
datetime.datetime = Jumping
'''
# The gradients of some backward passes are no numbers: of passes FIRST up to, but without, LAST.
NOT_A_NUMBER = '''
import torch

real_backward, count = torch.Tensor.backward, [0]

def backward(loss, *arguments, **options):
    count[0] += 1
    return real_backward(loss * (float("nan") if {first} <= count[0] < {last} else 1.0), *arguments, **options)

torch.Tensor.backward = backward
'''


def write(folder: Path, text: str) -> Path:
    """A folder for the search path of a process whose ``sitecustomize.py`` is ``text``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(text)
    return folder
