"""What a command printed beside what a lesson says that it prints.

Lines must be the same but for their numbers, which may differ by the stated tolerance, or by one unit in the last digit that is
shown. A line of ``...`` stands for any lines, ``...`` within a line for any words, and then its numbers do not count. What
depends on the machine's speed or on a folder's hash is no matter of right or wrong, and is not compared: seconds, tokens a
second, ETA, shares of an account of seconds, twelve hex digits.
"""

from __future__ import annotations

import difflib
import re
from typing import Iterator, NamedTuple, Optional, Sequence

SKIP = "..."
ANY = 1e18           # a tolerance that lets every number pass
# Alternatives are tried in this order, so a share goes with its seconds.
MACHINE = re.compile(
    r"[\d.,]+ s +[\d.]+%|[\d.,]+ (?:s|ms|tokens/s)(?= |$|[,;.)])|ETA \d+[hms](?: \d+[hms])*|\b[0-9a-f]{12}\b")
NUMBER = re.compile(r"(?<![A-Za-z_\d.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


class Difference(NamedTuple):
    """expected: the line of the lesson; found: what was there, or the likest of what was printed, if anything was."""

    expected: str
    found: Optional[str]


def differences(expected: Sequence[str], printed: Sequence[str], tolerance: float) -> list[Difference]:
    """The expected lines that were not printed; a line printed where none is expected counts as well (expected: '')."""
    return [Difference(wanted, found) for wanted, found, same in pairs(expected, printed, tolerance) if not same]


def pairs(expected: Sequence[str], printed: Sequence[str], tolerance: float) -> Iterator[tuple[str, Optional[str], bool]]:
    """(expected line, its printed line, whether they agree), ``...`` left out; a superfluous printed line with ''.

    What stands between two ``...`` is looked for as a whole, the first and the last part where they must be.
    """
    parts: list[list[str]] = [[]]
    for line in expected:
        if line == SKIP:
            parts.append([])
        else:
            parts[-1].append(line)
    first, *middle = parts
    last = middle.pop() if middle else []
    yield from beside(first, printed, tolerance)
    place = min(len(first), len(printed))
    end = max(place, len(printed) - len(last))
    for part in middle:
        here = find(part, printed[:end], place, tolerance)
        if here is None:
            here = find(part, printed[:end], place, ANY)
        if here is None:
            yield from ((line, likest(line, printed[place:end]), False) for line in part)
        else:
            yield from beside(part, printed[here:], tolerance)
            place = here + len(part)
    yield from beside(last, printed[end:], tolerance)
    if len(parts) == 1 and place < len(printed):
        yield "", printed[place], False


def beside(part: Sequence[str], printed: Sequence[str], tolerance: float) -> Iterator[tuple[str, Optional[str], bool]]:
    """The lines of a part and those printed where it begins."""
    for number, line in enumerate(part):
        found = printed[number] if number < len(printed) else None
        yield line, found, found is not None and agrees(line, found, tolerance)


def find(part: Sequence[str], printed: Sequence[str], start: int, tolerance: float) -> Optional[int]:
    """Where the lines of a part are first printed one after another, from ``start`` on."""
    return next((place for place in range(start, len(printed) - len(part) + 1)
                 if all(same for *_, same in beside(part, printed[place:], tolerance))), None)


def likest(wanted: str, printed: Sequence[str]) -> Optional[str]:
    return next(iter(difflib.get_close_matches(wanted, printed, n=1, cutoff=0.3)), None)


def agrees(wanted: str, line: str, tolerance: float) -> bool:
    """Whether a printed line is the expected one."""
    if SKIP in wanted:
        wanted, line = (" ".join(NUMBER.sub("0", MACHINE.sub("#", text)).split()) for text in (wanted, line))
        return re.fullmatch(".*".join(map(re.escape, wanted.split(SKIP))), line) is not None
    wanted, line = (" ".join(MACHINE.sub("#", text).split()) for text in (wanted, line))
    if NUMBER.sub("0", wanted) != NUMBER.sub("0", line):
        return False
    return all(near(a, b, tolerance) for a, b in zip(NUMBER.findall(wanted), NUMBER.findall(line)))


def near(a: str, b: str, tolerance: float) -> bool:
    """Whether two numbers as they are written differ by no more than the tolerance, or by a unit of the last place."""
    x, y = (float(text.replace(",", "")) for text in (a, b))
    mantissa, _, exponent = a.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2])) if "." in mantissa or exponent else 0.0
    return abs(x - y) <= max(tolerance * max(abs(x), abs(y)), unit * 1.001)


def rewritten(expected: Sequence[str], printed: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the expected lines with the numbers of this run, those that nothing printed resembles). An empty expectation becomes all
    that was printed."""
    if not expected:
        return list(printed), []
    found = {number: (line, same) for number, (_, line, same) in
             zip((number for number, line in enumerate(expected) if line != SKIP), pairs(expected, printed, ANY))}
    lost = [line for number, line in enumerate(expected) if line != SKIP and not found[number][1]]
    return [line if SKIP in line or not found[number][1] else found[number][0] for number, line in enumerate(expected)], lost
