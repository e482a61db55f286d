"""Workers on a Ray cluster of two machines (of one core each, all of them this one): as with processes."""

import builtins
import functools
import os
import signal
import time

import pytest

from data_prep import engine_ray
from data_prep.engine import run
from data_prep.errors import DataError
from tests.data_prep import engine_functions as functions

pytestmark = pytest.mark.slow
on_ray = functools.partial(run, engine="ray")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two nodes. The engine finds them by RAY_ADDRESS, as it would on a cluster."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        ray.shutdown()
    cluster.shutdown()


def test_the_same_files_as_with_processes(tmp_path):
    for name, work in (("processes", run), ("ray", on_ray)):
        folder = tmp_path / name
        folder.mkdir()
        found = list(work(functools.partial(functions.write, folder=folder), range(9), workers=2, shared=folder))
        assert sorted(found) == [(number, f"part-{number:05d}.txt") for number in range(9)]
    contents = [sorted((path.name, path.read_bytes()) for path in (tmp_path / name).iterdir()) for name in ("processes", "ray")]
    assert contents[0] == contents[1] and len(contents[0]) == 9         # and no probe is left


def test_both_machines_work():
    nodes = {node for _, node in on_ray(functions.node, range(12))}
    assert len(nodes) == 2


def test_relative_paths_mean_the_same(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    list(on_ray(functools.partial(functions.write, folder="out"), range(3), shared="out"))
    assert len(os.listdir(tmp_path / "out")) == 3


def test_start_and_threads(tmp_path):
    found = on_ray(functions.add, range(10), start=functions.load, start_args=(tmp_path, 100))
    assert sorted(found) == [(number, number + 100) for number in range(10)]
    assert len(list(tmp_path.iterdir())) <= 2
    assert {value for _, value in on_ray(functions.threads, range(3))} == {("false", "1", "1")}


def test_items_are_pulled_only_when_there_is_room():
    pulled = []
    work = on_ray(functions.square, (pulled.append(number) or number for number in range(20)))
    assert not pulled
    for done, _ in enumerate(work):
        assert len(pulled) - done <= 3
    assert len(pulled) == 20


def test_more_workers_than_cores():
    """Those that find no core wait for one; the others do the work."""
    assert sorted(on_ray(functions.square, range(6), workers=5)) == [(number, number ** 2) for number in range(6)]


@pytest.mark.parametrize("function, kind, message", [
    (functions.fail, DataError, "^part 3: is damaged; download it again$"),
    (functions.fail_inside, ZeroDivisionError, "division"),
    (functions.fail_pickily, RuntimeError, "Picky: this and that"),
    (functions.exhaust, DataError, "no memory; .*fewer data.workers"),
    (lambda number: number, TypeError, "the function cannot be sent .*top level of a module"),
])
def test_faults(function, kind, message):
    with pytest.raises(kind, match=message):
        list(on_ray(function, range(8)))


def test_a_start_that_fails():
    with pytest.raises(DataError, match="^no tokenizer$"):
        list(on_ray(functions.add, range(4), start=functions.load_badly, start_args=("no tokenizer",)))


def test_a_worker_that_is_killed_in_the_middle_is_replaced(tmp_path):
    found = list(on_ray(functools.partial(functions.die_once, folder=tmp_path), range(8)))
    assert (tmp_path / "died").exists() and sorted(found) == [(number, number ** 2) for number in range(8)]


def test_a_part_that_kills_every_worker_is_reported():
    with pytest.raises(DataError, match="tried a part 4 times and its worker died.*; if memory ran out, set fewer"):
        list(on_ray(functions.die, range(5)))


def test_closing_stops_work_in_progress(tmp_path):
    work = on_ray(functools.partial(functions.sleep_after_first, folder=tmp_path), range(9), workers=2)
    next(work)
    deadline = time.monotonic() + 20
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    work.close()
    (pid,) = [int(path.name) for path in tmp_path.iterdir()][:1]
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the worker goes on")


def test_a_machine_that_is_lost(cluster):
    """Its part is worked on again elsewhere."""
    lost = cluster.add_node(num_cpus=2)
    work = on_ray(functions.square_slowly, range(8), workers=4)
    next(work)
    cluster.remove_node(lost, allow_graceful=False)
    assert len(list(work)) == 7


def test_a_folder_that_is_not_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_ray, "_leave_probe", lambda folder: tmp_path / "elsewhere" / ".probe.tmp")
    with pytest.raises(DataError, match="elsewhere: machine .* does not see this folder; all machines .* must share it"):
        list(on_ray(functions.square, range(3), shared=tmp_path))


def test_no_ray(monkeypatch):
    real = builtins.__import__

    def without_ray(name, *args, **kwargs):
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(DataError, match=r"needs Ray; install it with: pip install 'cram-lm\[ray\]'"):
        list(on_ray(functions.square, range(3)))


def test_no_cluster(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **settings: (_ for _ in ()).throw(ConnectionError("no answer\nat all")))
    with pytest.raises(DataError, match="no Ray cluster .*: no answer; start one with: ray start --head"):
        list(on_ray(functions.square, range(3)))
