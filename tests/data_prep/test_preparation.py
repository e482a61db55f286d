"""The whole preparation through the real command: the same bytes however it is run, killed or spread out."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cram import forked
from tests.data_prep.corpus import ODD_TEXTS, prose

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Two files, about 3 MB, with exact and near copies, short and odd documents."""
    folder = tmp_path_factory.mktemp("corpus")
    texts, rng = prose(2400), random.Random(0)
    texts += [texts[number] for number in range(0, 300, 3)]
    texts += [texts[number].replace(".", ",", 1) + f" Copy {number} ends here." for number in range(300, 700, 4)]
    texts += [*ODD_TEXTS, "", "short", "lorem ipsum " * 40]
    rng.shuffle(texts)
    for name, part in (("a", texts[::2]), ("b", texts[1::2])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    return folder


def command(corpus: Path, out: Path, *settings: str) -> list[str]:
    return [sys.executable, "-m", "cram", "data", "name=it", f"out={out}", "data.source=files", f"data.files={corpus}/*.jsonl",
            "data.part_bytes=150000", "data.validation_fraction=0.05", "tokenizer.vocab_size=800", *settings]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}


def run(corpus: Path, out: Path, *settings: str, **changes: str) -> dict[str, bytes]:
    """Run the command to its end; the bytes of every file of every artifact, but for the clock in stage.json."""
    how = subprocess if changes or "data.engine=ray" in settings else forked    # where the interpreter's start matters: real
    done = how.run(command(corpus, out, *settings), env=environment(**changes), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return files(out)


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out / "artifacts").as_posix(): path.read_bytes() for path in sorted((out / "artifacts").rglob("*"))
            if path.is_file() and path.name != "stage.json" and ".locks" not in path.parts}


@pytest.fixture(scope="module")
def straight(corpus, tmp_path_factory) -> dict[str, bytes]:
    made = run(corpus, tmp_path_factory.mktemp("straight"), "data.workers=1")
    assert sum(name.endswith(".bin") for name in made) > 10
    return made


def same(made: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert made.keys() == expected.keys()
    assert [name for name in made if made[name] != expected[name]] == []


@pytest.mark.slow
def test_two_processes_and_another_hash_seed(corpus, straight, tmp_path):
    same(run(corpus, tmp_path / "a", "data.workers=2", PYTHONHASHSEED="1"), straight)
    same(run(corpus, tmp_path / "b", "data.workers=1", PYTHONHASHSEED="2"), straight)


@pytest.mark.slow
def test_packed_with_best_fit_the_same(corpus, tmp_path):
    settings = ["data.packing=best-fit", "tokenizer.type=wordpiece"]
    same(run(corpus, tmp_path / "a", "data.workers=2", *settings), run(corpus, tmp_path / "b", "data.workers=1", *settings))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills(corpus, straight, tmp_path):
    rng, finished_parts = random.Random(7), []
    for _ in range(20):
        with forked.Popen(command(corpus, tmp_path, "data.workers=2"), env=environment(), cwd=ROOT, start_new_session=True,
                              stdout=forked.DEVNULL, stderr=forked.DEVNULL) as child:
            time.sleep(rng.uniform(0.3, 2.5))
            child.send_signal(signal.SIGKILL)
        finished_parts.append(len(list(tmp_path.rglob("part-*.json"))) + len(list(tmp_path.rglob("train-*.json"))))
    assert finished_parts == sorted(finished_parts)                 # nothing that was finished is lost
    same(run(corpus, tmp_path, "data.workers=2"), straight)
    assert not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.slow
def test_on_a_ray_cluster(corpus, straight, tmp_path):
    same(run(corpus, tmp_path, "data.engine=ray", "data.workers=2"), straight)


@pytest.mark.slow
def test_thresholds_change_without_measuring_again(corpus, tmp_path):
    def text(*settings: str) -> str:
        arguments = command(corpus, tmp_path, *settings)
        arguments[arguments.index("data")] = "text"
        return forked.run(arguments, env=environment(), cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "measure: missing" in text()
    again = text("data.filters.min_chars=900")
    assert "measure: fresh" in again and "text: changed: data.filters.min_chars 200 -> 900" in again
