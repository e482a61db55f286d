"""What a worker does, whatever runs it and carries its bytes: a function for each item, and outcomes that can be sent back."""

from __future__ import annotations

import pickle
import traceback
from typing import Any, Callable, NamedTuple, Optional

from data_prep.errors import DataError

REMEDY = "if memory ran out, set fewer data.workers or a smaller data.part_bytes; the same command goes on where it stopped"
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Task(NamedTuple):
    """What every worker does: ``function(item)``, or ``function(item, start(*start_args))`` with ``start`` called once."""

    function: Callable[..., Any]
    start: Optional[Callable[..., Any]] = None
    start_args: tuple = ()

    def begin(self) -> Any:
        """What a worker does first; the result goes to ``apply``."""
        return None if self.start is None else self.start(*self.start_args)

    def apply(self, item: Any, state: Any) -> Any:
        """The value for one item."""
        return self.function(item) if self.start is None else self.function(item, state)


class Outcome(NamedTuple):
    """What came of a call: its value, or the exception it raised."""

    value: Any
    error: Optional[Exception] = None

    def get(self) -> Any:
        """The value; raises the exception."""
        if self.error is not None:
            raise self.error
        return self.value


def attempt(function: Callable[..., Any], *args: Any) -> Outcome:
    """Call it. A DataError is kept as it is; another exception gets the traceback as a note."""
    try:
        return Outcome(function(*args))
    except DataError as error:
        return Outcome(None, error)
    except MemoryError:
        return Outcome(None, DataError(f"a worker found no memory; {REMEDY}"))
    except Exception as error:
        return Outcome(None, _sendable(error))


def _sendable(error: Exception) -> Exception:
    """The exception with a note of where it happened; a RuntimeError in place of one that cannot be pickled."""
    note = "In the worker:\n" + "".join(traceback.format_exception(error)).rstrip()
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:       # whatever the exception's own constructor raises
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note(note)
    return copy


def pickled(content: Any, what: str) -> bytes:
    """Bytes to send. Raises TypeError, naming ``what``, for a local function, an open file and the like."""
    try:
        return pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(f"{what} cannot be sent between processes: {error}; "
                        "functions must be at the top level of a module") from error


class Session:
    """A task inside a worker. begun: the outcome of ``start``, without its value."""

    def __init__(self, task: bytes) -> None:
        self._task = attempt(pickle.loads, task)
        self._state = attempt(self._task.value.begin) if self._task.error is None else self._task
        self.begun = Outcome(None, self._state.error)

    def answer(self, content: bytes) -> bytes:
        """A pickled item in, its pickled outcome out."""
        item = attempt(pickle.loads, content)
        return packed(attempt(self._task.value.apply, item.value, self._state.value) if item.error is None else item)


def packed(outcome: Outcome) -> bytes:
    """Pickled; a value that cannot be becomes the error that says so."""
    sent = attempt(pickled, outcome, "a result")
    return sent.value if sent.error is None else pickle.dumps(Outcome(None, sent.error))
