"""``cram lesson``: the course. Lessons and labs are listed, read, run and compared; their exercises are judged."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable, Optional

from cram.errors import CramError
from cram.insight.lesson import course
from cram.insight.lesson.course import Lesson
from cram.insight.lesson.text import FOLDER, write_text

EXPERIMENTS = ("text", "kinds", "tiles")
EVERYTHING = "all"
RUNS = FOLDER.parent


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram lesson`` with these arguments; returns the exit code: 1 where a run differs from the lesson, or an answer is
    wrong. CramError for a wrong one."""
    parser.description = ("the course: cram lesson lists it, cram lesson 3 prints a lesson, --run makes its runs and "
                          "compares, --check 2 ANSWER judges an exercise")
    parser.epilog = ("beside the lessons: cram lesson text (write the text of the course into runs/lessons/text), cram lesson "
                     "kinds RUN (what happened to each kind of page), cram lesson tiles (attention in tiles)")
    parser.add_argument("what", nargs="?", help="a lesson or lab: 3, packing, lab1; all (with --run); or text, kinds, tiles")
    parser.add_argument("of", nargs="?", help="kinds: a run's folder")
    parser.add_argument("--run", action="store_true", help="run its commands and compare what they print with the lesson")
    parser.add_argument("--check", nargs="+", metavar=("EXERCISE", "ANSWER"), help="judge an answer: a number, a word or a run")
    parser.add_argument("--update", action="store_true", help="rewrite the lesson's excerpts from a run, to keep it true")
    parser.add_argument("--out", type=Path, help="folder to work in (default: course/<lesson>; --check: here, if runs of "
                        "lessons are here)")
    parser.add_argument("--documents", default="40,24,64", help="tiles: lengths of the documents, tokens")
    parser.add_argument("--tile", type=int, default=32, help="tiles: tokens of a tile")
    options = parser.parse_intermixed_args(arguments)
    if sum((options.run, options.check is not None, options.update)) > 1:
        raise CramError("--run, --check and --update: one at a time")
    if options.what is None:
        if options.run or options.check or options.update:
            raise CramError("which lesson? cram lesson lists them")
        for line in contents():
            say(line)
        return 0
    if options.what in EXPERIMENTS:
        return experiment(options, say)
    if options.what == EVERYTHING:
        return everything(options, say)
    lesson = course.find_lesson(options.what)
    if options.check is not None:
        return check(lesson, options.check, options.out, say)
    if options.run or options.update:
        from cram.insight.lesson.console import run_and_compare, update
        return int((update if options.update else run_and_compare)(lesson, work_folder(lesson, options.out), say) > 0)
    say(course.plain(lesson.text))
    say(f"\n(all of it at once: cram lesson {lesson.number} --run)")
    return 0


def everything(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """``cram lesson all --run``: every lesson in turn, each in a folder of its own; 1 when one differs."""
    from cram.insight.lesson.console import run_and_compare

    if not options.run:
        raise CramError("cram lesson all goes with --run alone; read and judge one lesson at a time")
    found = course.lessons()
    wrong = [lesson.number for lesson in found
             if run_and_compare(lesson, work_folder(lesson, options.out and options.out / lesson.folder), say)]
    say(f"{len(found) - len(wrong)} of {len(found)} lessons as they say" + f"; not: {', '.join(wrong)}" * bool(wrong))
    return int(bool(wrong))


def contents() -> list[str]:
    """A line a lesson."""
    found = course.lessons()
    lines = [f"{lesson.number:<5} {lesson.minutes:>3} min  {lesson.title}" for lesson in found]
    return [*lines, f"{sum(lesson.minutes for lesson in found)} minutes in all; cram lesson 1 prints the first"]


def work_folder(lesson: Lesson, out: Optional[Path]) -> Path:
    return out if out is not None else Path("course") / lesson.folder


def check(lesson: Lesson, asked: list[str], out: Optional[Path], say: Callable[[str], None]) -> int:
    """Judge one exercise; 1 when the answer is wrong."""
    from cram.insight.lesson import exercises_labs, exercises_scale, exercises_text, exercises_train
    from cram.insight.lesson.judge import Asked

    checks = {**exercises_text.CHECKS, **exercises_train.CHECKS, **exercises_scale.CHECKS, **exercises_labs.CHECKS}
    judge = checks.get((lesson.number, asked[0]))
    if judge is None:
        raise CramError(f"lesson {lesson.number} has no exercise {asked[0]!r}; possible: {', '.join(lesson.exercises)}")
    if len(asked) > 2:
        raise CramError(f"one answer, please, not {len(asked) - 1}")
    here = out is None and any(path.name != FOLDER.name for path in RUNS.glob("*"))
    runs = RUNS if here else work_folder(lesson, out) / RUNS
    right, why = judge(Asked(asked[1] if len(asked) == 2 else "", runs))
    say(f"{'right' if right else 'not yet'}: {why}")
    return 0 if right else 1


def experiment(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """``cram lesson text | kinds | tiles``"""
    if options.what == "text":
        write_text((options.out or Path()) / FOLDER)
        say(f"the text of the course is in {(options.out or Path()) / FOLDER}")
    elif options.what == "kinds":
        from cram.insight.lesson.kinds import kinds_lines

        if options.of is None:
            raise CramError("of which run? cram lesson kinds runs/lessons/web")
        for line in kinds_lines(Path(options.of)):
            say(line)
    else:
        from cram.insight.lesson.tiles import show

        try:
            lengths = [int(length) for length in options.documents.split(",")]
        except ValueError:
            raise CramError(f"--documents {options.documents}: lengths in tokens, such as 40,24,64") from None
        show(lengths, options.tile, say)
    return 0
