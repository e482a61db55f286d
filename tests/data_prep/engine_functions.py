"""Functions that the tests of the engines send to workers."""

import os
import signal
import time
from pathlib import Path

from data_prep.engine import run
from data_prep.errors import DataError


class Picky(Exception):
    """An exception that pickles but cannot be made again from its arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Item:
    """An item that a weak reference can watch."""

    def __init__(self, number):
        self.number = number


def number_of(item):
    return item.number


def square(number):
    return number * number


def where(number):
    """Long enough for every worker to get its turn."""
    time.sleep(0.05)
    return os.getpid()


def slow(number):
    """Later items finish first."""
    time.sleep(0.4 if number == 0 else 0.0)
    return number


def fail(number):
    if number == 3:
        raise DataError("part 3: is damaged; download it again")
    return number


def fail_inside(number):
    return number // (number - 3)


def fail_pickily(number):
    raise Picky("this", "that")


def exhaust(number):
    raise MemoryError


def open_file(number):
    return open(os.devnull)


def die(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def leave(number):
    os._exit(7)


def die_once(number, folder):
    """Dies in the middle of item 3 the first time."""
    if number == 3 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def sleep_long(number, folder):
    """Leaves its process id, then works for a long time."""
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)


def sleep_after_first(number, folder):
    return number if number == 0 else sleep_long(number, folder)


def square_slowly(number):
    time.sleep(1.0)
    return number * number


def node(number):
    """The Ray node that does the work."""
    import ray

    time.sleep(0.2)
    return ray.get_runtime_context().get_node_id()


def size(batch):
    return batch.num_rows, batch.nbytes


def threads(number):
    return os.environ["TOKENIZERS_PARALLELISM"], os.environ["RAYON_NUM_THREADS"], os.environ["OMP_NUM_THREADS"]


def load(folder, base):
    """A start: leaves a file for every call."""
    time.sleep(0.1)
    Path(folder, f"{os.getpid()}-{time.monotonic_ns()}").touch()
    return base


def load_badly(message):
    raise DataError(message)


def add(number, base):
    time.sleep(0.05)
    return number + base


def write(number, folder):
    """What stages do: a file a part."""
    path = Path(folder, f"part-{number:05d}.txt")
    path.write_text(f"{number}\n" * number)
    return path.name


def squares_from_here(workers):
    """The engine inside a process that is a worker itself."""
    return sorted(run(square, range(4), workers=workers))
