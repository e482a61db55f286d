"""Every lesson and lab from start to end: what its commands print is what it says, and its exercises tell right from wrong.

The right answers come from what was printed, or from counting here; the wrong ones are those that students give.
"""

import json
import os
import re
import shutil
import statistics
import subprocess

import pytest

from cram.insight.lesson import console, course
from tests.conftest import ROOT
from tests.cram.insight.quick_shell import quick_shell

pytestmark = pytest.mark.slow


class Done:
    """A lesson that was run: what it printed, and a way to type more in its folder."""

    def __init__(self, number, folder, cram):
        self.lesson, self.folder, self.cram = course.find_lesson(number), folder, cram
        self.said = []
        self.differences = console.run_and_compare(self.lesson, folder, self.said.append, quick_shell)
        self.printed = "\n".join(self.said)

    def find(self, pattern, place=0):
        """A number that was printed."""
        return float(re.findall(pattern, self.printed)[place].replace(",", ""))

    def type(self, *arguments):
        done = self.cram(*arguments)
        assert done.code == 0, done.err
        return done.out

    def shell(self, line):
        """Type a line that is no single command of ours."""
        environment = os.environ | {"PATH": f"{self.folder}/.bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        subprocess.run(["bash", "-c", line], cwd=self.folder, env=environment, capture_output=True, check=False)

    def judge(self, exercise, right, *wrong):
        """The right answer is accepted, the others are not, and each is told why."""
        done = self.cram("lesson", self.lesson.number, "--check", exercise, right)
        assert done.code == 0 and done.out.startswith("right: "), (exercise, right, done)
        for answer in wrong:
            done = self.cram("lesson", self.lesson.number, "--check", exercise, answer)
            assert done.code == 1 and done.out.startswith("not yet: "), (exercise, answer, done)


@pytest.fixture
def lesson(tmp_path, monkeypatch, cram):
    def run(number):
        monkeypatch.chdir(tmp_path)
        done = Done(number, tmp_path, cram)
        assert done.differences == 0, done.printed
        return done
    return run


def test_tokenizer(lesson):
    done = lesson("1")
    done.type("data", "lessons/tiny", "name=larger", "tokenizer.vocab_size=1024")
    done.type("tokenizer", "lessons/tiny", "name=pieces", "tokenizer.type=wordpiece")
    done.judge("1", 9 / done.find(r"\| held out \| [\d.]+ \| ([\d.]+)"), 9, 8)
    tokens = [json.loads((done.folder / f"runs/lessons/{name}/data/manifest.json").read_text())["splits"]["train"]["tokens"]
              for name in ("tiny", "larger")]
    done.judge("2", f"{100 - 100 * tokens[1] / tokens[0]:.2f}%", 50, 100 * tokens[0] / tokens[1] - 100)
    done.judge("3", "no", "yes")


def test_filters(lesson):
    done = lesson("2")
    done.judge("1", 100 * (60 + 39) / (400 + 60 + 39), 80.2, 99)
    done.type("text", "lessons/web", "filters/c4", "name=web_c4")
    done.judge("2", 60 + 40 + 40, 680, 20)
    done.type("text", "lessons/web", "name=mine", "data.filters.min_stop_words=2")
    done.judge("3", "runs/lessons/mine", "runs/lessons/web", "web_gopher")


def test_packing(lesson):
    done = lesson("3")
    done.judge("1", 100 * done.find(r"in ([\d,]+) documents, 1 shard") / (done.find(r"data: ([\d,]+) training") / 128), 100, 1)
    done.type("data", "lessons/packing", "name=fit", "data.packing=best-fit")
    manifest = json.loads((done.folder / "runs/lessons/fit/data/manifest.json").read_text())["splits"]["train"]
    done.judge("2", 100 * manifest["padding_tokens"] / (manifest["tokens"] + manifest["padding_tokens"]), 20, 0)
    done.judge("3", 25.58, 25)


def test_kernel(lesson):
    lesson("4")


def test_budget(lesson):
    done = lesson("5")
    done.judge("1", 50, 25, 75)
    done.type("pretrain", "lessons/tiny", "name=by_tokens", "budget=6000 tokens")
    done.judge("2", "runs/lessons/by_tokens", "runs/lessons/tiny")
    shutil.copytree(done.folder / "runs/lessons/tiny/pretrain", done.folder / "forged")
    shutil.copytree(done.folder / "forged", done.folder / "edited")
    ledger = done.folder / "edited/ledger.jsonl"
    ledger.write_text(re.sub(r'"tokens": 102400', '"tokens": 99400', ledger.read_text()))
    done.judge("3", "edited", "forged")


def test_optimizer(lesson):
    done = lesson("6")
    done.type("run", "lessons/tiny", "name=mine", "optimizer.type=adamw", "optimizer.lr=0.01", "optimizer.embedding_lr=0.03")
    done.judge("1", "runs/lessons/mine", "runs/lessons/adamw", "runs/lessons/muon")
    parameters = done.find(r"plan: ([\d,]+) parameters")
    done.judge("2", parameters * 8, parameters * 4, parameters * 2)
    done.judge("3", 0.0625, 1)


def test_evaluation(lesson):
    done = lesson("7")
    kinds = re.findall(r"model +([\d.]+) +[\d.]+ +([\d.]+)", done.printed)
    loss, predicted = float(kinds[0][0]), done.find(r"([\d,]+) tokens predicted")
    done.judge("1", loss / 0.693147 * predicted / 8, loss * predicted, loss / 0.693147 * predicted)
    bits = [float(pair[1]) for pair in kinds[:3]]
    done.judge("2", statistics.stdev(bits), max(bits) - min(bits), statistics.pstdev(bits))
    low = done.find(r"pairs:pairs +accuracy +[\d.]+ +([\d.]+) to")
    done.judge("3", *(("yes", "no") if low > 50 else ("no", "yes")))


def test_scaling(lesson):
    done = lesson("8")
    record = json.loads((done.folder / "runs/lessons/scaling/tiny.json").read_text())
    floor, a, b, alpha, beta, gamma = record["fit"]["law"]
    n, loss = {size["name"]: size["n"] for size in record["sizes"]}["1x32"], done.find(r"1x64 48e3 tokens: loss ([\d.]+)")
    low, high = 1.0, 1e12     # halving an interval of the logarithm, instead of solving
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if floor + (a / n ** alpha + b / middle ** beta) ** gamma > loss else (low, middle)
    right, wrong = ("never", 1e6) if high == 1e12 else (f"{low:.0f}", "never")
    done.judge("3", right, wrong, 48_000)


def test_kill(lesson):
    done = lesson("lab1")
    done.type("pretrain", "lessons/tiny", "out=runs/lessons/again", "name=straight")
    done.judge("1", "runs/lessons/again/straight", "runs/lessons/killed")
    lost = done.find(r"  lost +([\d.]+) s")
    done.judge("2", lost, 10 * lost + 1)
    done.shell("cram pretrain lessons/tiny name=asked seed=1 & until test -d "
               "runs/lessons/asked/pretrain/checkpoints/step-00000025; do sleep 0.05; done; kill -TERM $!; wait $!")
    done.type("pretrain", "lessons/tiny", "name=asked", "seed=1")
    done.judge("3", "runs/lessons/asked", "runs/lessons/killed", "runs/lessons/again/straight")


def test_nan(lesson):
    done = lesson("lab2")
    done.judge("1", 2, 3, 0)
    done.judge("2", 10, 5)
    done.type("pretrain", "lessons/explode", "name=calm", "optimizer.lr=0.003", "optimizer.embedding_lr=0.03")
    done.judge("3", "runs/lessons/calm", "runs/lessons/explode")


def test_disk(lesson):
    done = lesson("lab3")
    size = max(path.stat().st_size for path in (done.folder / "runs/lessons/disk/pretrain/checkpoints").rglob("state.pt"))
    done.judge("1", size, size / 1024, 1_024_000)
    done.judge("2", size / 4 / done.find(r"plan: ([\d,]+) parameters"), 1, 3.5)
    done.type("pretrain", "lessons/tiny", "name=easy", "budget=5 steps")
    done.judge("3", "runs/lessons/disk", "runs/lessons/easy")


def test_rate(lesson):
    done = lesson("lab4")
    rows = {name: [json.loads(line) for line in (done.folder / f"runs/lessons/{name}/pretrain/metrics.jsonl").open()]
            for name in ("good", "hot")}
    good, hot = (next(row["loss"] for row in rows[name] if row["kind"] == "validation" and row["progress"] >= 0.5)
                 for name in rows)
    done.judge("1", hot - good, 5 * (hot - good), 0)
    done.judge("2", "no", "yes")
    done.type("run", "lessons/tiny", "name=mine", "optimizer.muon_lr=0.05")
    done.judge("3", "runs/lessons/mine", "runs/lessons/good", "runs/lessons/hot")


def test_a_lesson_that_no_longer_says_the_truth_is_found_and_written_anew(tmp_path):
    """Numbers beyond the tolerance, a line that is gone, a failing command; the update mends what can be."""
    path = tmp_path / "9_try.md"
    path.write_text("# Try\n<!-- minutes: 5 -->\n```console\n$ cram lesson\n...\n9 minutes in all; cram lesson 1 prints the "
                    "first\n$ cram lesson 99\n```\n")
    said, minutes = [], sum(lesson.minutes for lesson in course.lessons())
    assert console.run_and_compare(course.read_lesson(path), tmp_path / "a", said.append) == 2
    assert any(f"{minutes} minutes in all" in line for line in said) and "2 lines differ" in said[-1]
    assert console.update(course.read_lesson(path), tmp_path / "b", said.append) == 0
    assert f"...\n{minutes} minutes in all" in path.read_text() and "[exit code 2]\n```" in path.read_text()
    assert console.run_and_compare(course.read_lesson(path), tmp_path / "c", said.append) == 0
