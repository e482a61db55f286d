"""Which benchmarks there are, and choosing among them by name: ``blimp,glue.mrpc``, a group (``glue``), ``pairs:FILE``."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Sequence

from cram.errors import CramError
from cram.evaluate.task import Task


def all_tasks() -> dict[str, Task]:
    """Every benchmark by its name, in the order in which results are shown."""
    from cram.evaluate import glue, probe, superglue, zero_shot

    return {task.name: task for part in (zero_shot, glue, superglue, probe) for task in part.TASKS}


def choose_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks meant by ``names``, each once, in the order given. CramError for a name that is neither task nor group."""
    from cram.evaluate.minimal_pairs import pairs_task

    tasks, chosen = all_tasks(), {}
    for name in names:
        if name.startswith("pairs:"):
            if not Path(name.removeprefix("pairs:")).is_file():
                raise CramError(f"evaluate.tasks: {name}: no such file; correct the path")
            found = [pairs_task(name.removeprefix("pairs:"))]
        else:
            members = [task for task in tasks.values() if name in (group(task), "all")]
            found = [tasks[name]] if name in tasks else members
        if not found:
            known = [*tasks, *dict.fromkeys(map(group, tasks.values())), "all"]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "cram evaluate --list names them all"
            raise CramError(f"evaluate.tasks: no benchmark '{name}'; {hint}")
        chosen.update({task.name: task for task in found})
    return list(chosen.values())


def group(task: Task) -> str:
    """``glue`` of ``glue.mrpc``."""
    return task.name.partition(".")[0]


def list_tasks() -> list[str]:
    """A line for each benchmark: name, whom it can score, what it is, where it is from."""
    return [f"{task.name:<22} {'/'.join(task.kinds):<22} {task.what} ({task.source})" for task in all_tasks().values()]
