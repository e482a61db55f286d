"""Workers that are processes: the same results as without them, few items at a time, and nothing left behind."""

import functools
import os
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from data_prep.engine import run
from data_prep.errors import DataError
from tests.data_prep import engine_functions as functions

SCRIPT = """
import functools, signal, sys
from tests.data_prep.engine_functions import sleep_long, square
from data_prep.engine import run
signal.signal(signal.SIGINT, signal.default_int_handler)    # whoever runs the tests in the background may ignore it
print("started", flush=True)
"""


def children():
    """Process ids of this process's children, zombies too."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = open(f"/proc/{name}/stat").read().rsplit(")", 1)[1].split()
        except FileNotFoundError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(name))
    return set(found)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    before, files = children(), len(os.listdir("/proc/self/fd"))
    yield
    assert children() <= before and len(os.listdir("/proc/self/fd")) <= files


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


# ---- results


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(-100, 100), max_size=12), st.sampled_from([1, 2, 3]))
def test_results_do_not_depend_on_the_number_of_workers(numbers, workers):
    assert sorted(run(functions.square, numbers, workers=workers)) == sorted((number, number ** 2) for number in numbers)


def test_files_do_not_depend_on_the_number_of_workers(tmp_path):
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        list(run(functools.partial(functions.write, folder=folder), range(9), workers=workers))
    contents = [sorted((path.name, path.read_bytes()) for path in (tmp_path / name).iterdir()) for name in "12"]
    assert contents[0] == contents[1] and len(contents[0]) == 9


def test_whoever_finishes_first_comes_first():
    assert [item for item, _ in run(functions.slow, range(4), workers=2)][-1] == 0


def test_work_is_done_elsewhere_by_as_many_as_asked_for():
    pids = {pid for _, pid in run(functions.where, range(20), workers=2)}
    assert len(pids) == 2 and os.getpid() not in pids


@pytest.mark.parametrize("items, workers", [(range(3), 1), (range(1), 2)])
def test_one_worker_or_one_item_needs_no_other_process(items, workers):
    assert {pid for _, pid in run(functions.where, items, workers=workers)} == {os.getpid()}


def test_as_many_workers_as_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 7})
    assert len({pid for _, pid in run(functions.where, range(30))}) == 3


def test_workers_run_one_thread_each():
    assert {value for _, value in run(functions.threads, range(3), workers=2)} == {("false", "1", "1")}


@pytest.mark.parametrize("workers", [1, 2])
def test_start_runs_once_a_worker(tmp_path, workers):
    found = run(functions.add, range(10), workers=workers, start=functions.load, start_args=(tmp_path, 100))
    assert sorted(found) == [(number, number + 100) for number in range(10)]
    assert len(list(tmp_path.iterdir())) == workers


def test_nothing_to_do(tmp_path):
    assert list(run(functions.add, [], workers=2, start=functions.load, start_args=(tmp_path, 0))) == []
    assert not list(tmp_path.iterdir())


# ---- lazy and bounded


@pytest.mark.parametrize("workers", [1, 2])
def test_items_are_pulled_only_when_there_is_room(workers):
    pulled = []
    work = run(functions.square, (pulled.append(number) or number for number in range(30)), workers=workers)
    assert not pulled
    for done, _ in enumerate(work):
        assert len(pulled) - done <= workers + 1
    assert len(pulled) == 30


def test_items_are_let_go():
    watched = weakref.WeakSet()

    def items():
        for number in range(20):
            item = functions.Item(number)
            watched.add(item)
            yield item
            del item

    most = 0
    for pair in run(functions.number_of, items(), workers=2):
        del pair
        most = max(most, len(watched))
    assert most <= 3 and not watched


def test_large_arrow_batches():
    batch = pa.record_batch({"text": pa.array(["x" * 1000] * 20_000), "number": np.arange(20_000)})
    sizes = [size for _, size in run(functions.size, (batch for _ in range(4)), workers=2)]
    assert sizes == [(batch.num_rows, batch.nbytes)] * 4 and batch.nbytes > 20_000_000


# ---- errors


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_the_data_arrives_as_it_was(workers):
    with pytest.raises(DataError, match="^part 3: is damaged; download it again$") as caught:
        list(run(functions.fail, range(20), workers=workers))
    assert type(caught.value) is DataError and not hasattr(caught.value, "__notes__")


def test_another_exception_brings_its_traceback():
    with pytest.raises(ZeroDivisionError) as caught:
        list(run(functions.fail_inside, range(20), workers=2))
    assert "in fail_inside" in caught.value.__notes__[0]


@pytest.mark.parametrize("function, kind, message", [
    (functions.fail_pickily, RuntimeError, "Picky: this and that"),
    (functions.exhaust, DataError, "no memory; .*fewer data.workers"),
    (functions.open_file, TypeError, "a result cannot be sent"),
    (functions.leave, DataError, "worker process ended with exit code 7; .*data.part_bytes"),
    (functions.die, DataError, "worker process was killed by SIGKILL; .*fewer data.workers"),
    (lambda number: number, TypeError, "the function cannot be sent .*top level of a module"),
])
def test_other_faults(function, kind, message):
    with pytest.raises(kind, match=message):
        list(run(function, range(8), workers=2))


def test_an_idle_worker_that_is_killed():
    work = run(functions.where, [0, 1, 2, 3], workers=2)
    _, pid = next(work)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DataError, match="killed by SIGKILL"):
        list(work)


def test_an_item_that_cannot_be_sent():
    with pytest.raises(TypeError, match="an item cannot be sent"):
        list(run(functions.square, [lambda: 1, lambda: 2], workers=2))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_start_that_fails(workers):
    with pytest.raises(DataError, match="^no tokenizer$"):
        list(run(functions.add, range(4), workers=workers, start=functions.load_badly, start_args=("no tokenizer",)))


def test_a_source_that_fails():
    def items():
        yield from range(5)
        raise DataError("corpus.jsonl:6: not JSON")

    with pytest.raises(DataError, match="corpus.jsonl:6"):
        list(run(functions.square, items(), workers=2))


def test_wrong_settings():
    with pytest.raises(DataError, match="data.workers is 0"):
        run(functions.square, [1], workers=0)
    with pytest.raises(DataError, match="data.engine is 'slurm'"):
        run(functions.square, [1], engine="slurm")


# ---- endings


def test_closing_stops_work_in_progress(tmp_path):
    work = run(functools.partial(functions.sleep_long, folder=tmp_path), iter([0, 1, 2]), workers=2)
    with pytest.raises(DataError, match="SIGTERM"):     # one is stopped from outside: the other is in the middle of its work
        killer = subprocess.Popen([sys.executable, "-c", f"""
import os, signal, time
while len(found := os.listdir({str(tmp_path)!r})) < 2:
    time.sleep(0.02)
os.kill(int(found[0]), signal.SIGTERM)
"""])
        next(work)
    killer.wait()
    assert len(os.listdir(tmp_path)) == 2 and not any(alive(int(pid)) for pid in os.listdir(tmp_path))


def test_closing_early():
    work = run(functions.slow, range(100), workers=2)
    next(work)
    assert len(children()) >= 2
    work.close()            # the fixture sees that nothing is left


@pytest.fixture
def parent(tmp_path, root):
    """A script in another process group, both of whose workers are in the middle of something."""
    (tmp_path / "pids").mkdir()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + "list(run(functools.partial(sleep_long, folder=sys.argv[1]), range(5), workers=2))\n")
    process = subprocess.Popen([sys.executable, script, tmp_path / "pids"], env={**os.environ, "PYTHONPATH": str(root)},
                               start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(os.listdir(tmp_path / "pids")) == 2, 20)
    yield process, [int(pid) for pid in os.listdir(tmp_path / "pids")]
    process.kill()
    process.communicate()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_do_not_outlive_a_killed_parent(parent, how):
    process, pids = parent
    assert all(map(alive, pids))
    process.send_signal(how)
    wait_until(lambda: not any(map(alive, pids)), 0.2 if sys.platform == "linux" else 5)


def test_interrupt(parent):
    """Ctrl-C reaches the whole group: the parent alone speaks, and its workers are gone before it is."""
    process, pids = parent
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    time.sleep(0.3)
    assert all(map(alive, pids))
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert not any(map(alive, pids))
    assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt") and output == "started\n"


# ---- whoever calls


@pytest.mark.parametrize("how", ["script", "module", "command", "standard input"])
def test_the_main_program_is_not_run_again(how, tmp_path, root):
    """A script needs no guard: workers do not import it."""
    program = SCRIPT + "print(sorted(run(square, range(4), workers=2)))\n"
    (tmp_path / "program.py").write_text(program)
    arguments = {"script": ["program.py"], "module": ["-m", "program"], "command": ["-c", program], "standard input": ["-"]}
    done = subprocess.run([sys.executable, *arguments[how]], input=program if how == "standard input" else None, text=True,
                          cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, timeout=60)
    assert done.stdout == "started\n[(0, 0), (1, 1), (2, 4), (3, 9)]\n" and done.stderr == ""


def test_inside_a_spawned_process(root):
    program = """
import multiprocessing
from tests.data_prep.engine_functions import squares_from_here
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(squares_from_here, (2,)))
"""
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(root)}, text=True,
                          capture_output=True, timeout=60)
    assert done.stdout == "[(0, 0), (1, 1), (2, 4), (3, 9)]\n" and done.stderr == ""
