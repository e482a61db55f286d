"""Averages over benchmarks, each said exactly: which numbers, and that none is given while one of them is missing."""

from __future__ import annotations


def averages(results: dict[str, dict]) -> list[str]:
    """Lines about GLUE's averages, as soon as one of its tasks was scored."""
    from cram.evaluate.glue import glue_average, paper_average

    found = {name: result for name, result in results.items()
             if name.startswith("glue.") and name != "glue.wnli" and "skipped" not in result}
    if not found:
        return []
    lines = []
    for title, average in (("GLUE, average of the cramming paper", paper_average), ("GLUE, its own average", glue_average)):
        value, missing = average(found)
        names = dict.fromkeys(name.split()[0].removeprefix("glue.") for name in missing)
        lines.append(f"{title}: {100 * value:.1f}" if value is not None else f"{title}: none without {', '.join(names)}")
    return lines
