"""The record of a run: what is cut, what is missing, and what no run has written is never followed."""

import json

import numpy as np
import pytest

from cram.budget import Budget
from cram.errors import CramError
from cram.record import Record, Replay


def write(folder, *progress):
    path = folder / "progress.f64"
    path.write_bytes(np.array(progress, dtype=np.float64).tobytes())
    return path


def read(path, steps):
    return Replay.read(str(path), Budget.parse(f"{steps} steps"))


def test_what_was_recorded_is_replayed(tmp_path):
    record = Record(tmp_path, 0)
    for progress in (0.25, 0.5, 0.6, 0.7):
        record.add(progress)
    record.cut(2)
    record.add(0.5)
    record.add(1.0)
    record.sync([[2, 96]])
    record.close()
    replay = read(tmp_path / "progress.f64", 4)
    assert replay.progress.tolist() == [0.25, 0.5, 0.5, 1.0] and replay.jumps == {2: 96}
    assert Replay.read(None, Budget.parse("4 steps")) is None


def test_jumps_that_are_no_more_are_removed(tmp_path):
    record = Record(tmp_path, 0)
    record.sync([[1, 8]])
    record.sync([])
    assert not (tmp_path / "jumps.json").exists()
    record.close()


@pytest.mark.parametrize("left", [16, 19])
def test_a_shortened_record_is_said_and_never_replayed(tmp_path, left):
    path, said = write(tmp_path, 0.1, 0.2, 0.3, 0.4), []
    path.write_bytes(path.read_bytes()[:left])
    record = Record(tmp_path, 4, said.append)
    record.add(1.0)
    record.close()
    assert said == [f"{path}: holds 2 of 4 steps: the run goes on, but cannot be replayed"]
    assert np.isnan(np.fromfile(path)).tolist() == [False, False, True, True, False]
    with pytest.raises(CramError, match="step 3 is missing, .* shortened .*; give the progress.f64"):
        read(path, 5)


def test_a_longer_record_is_cut_in_silence(tmp_path):
    write(tmp_path, 0.1, 0.2, 0.3)
    said = []
    Record(tmp_path, 2, said.append).close()
    assert said == [] and np.fromfile(tmp_path / "progress.f64").tolist() == [0.1, 0.2]


def test_a_full_disk_does_not_hide_what_ended_the_run():
    import io

    class Full(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            raise OSError(28, "No space left on device")

    record = Record.__new__(Record)
    record._file = io.BufferedWriter(Full())
    record.add(0.5)
    with pytest.raises(KeyError, match="the reason"):
        try:
            raise KeyError("the reason")
        finally:
            record.close()


@pytest.mark.parametrize("progress, told", [
    ((), "0 bytes are not eight for each step"), ((0.0, 1.0), "step 1 has progress 0, outside"),
    ((0.5, 1.5), "step 2 has progress 1.5"), ((0.5, -1.0), "step 2 has progress -1"),
    ((0.5, np.inf), "step 2 has progress inf"),
    ((0.2, 0.5, 0.4, 1.0), "progress falls after step 2"), ((0.5, 1.0, 1.0), "holds 3 steps; set budget='3 steps'")])
def test_a_record_that_no_run_has_written_is_refused(tmp_path, progress, told):
    path = write(tmp_path, *progress)
    with pytest.raises(CramError) as raised:
        read(path, 2 if len(progress) == 3 else max(len(progress), 1))
    assert str(raised.value).startswith(f"train.replay={path}: ") and told in str(raised.value) and ";" in str(raised.value)


def test_a_torn_record_is_refused(tmp_path):
    path = write(tmp_path, 0.5, 1.0)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CramError, match="13 bytes are not eight for each step"):
        read(path, 1)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"3", b"{}", b"[1]", b"[[1]]", b"[[1, 2, 3]]", b"[[1, 2.5]]",
                                     b"[[1, null]]", b"[[1, true]]", b"[[-1, 2]]", b'["12"]'])
def test_jumps_that_are_no_pairs_are_refused(tmp_path, content):
    path = write(tmp_path, 0.5, 1.0)
    (tmp_path / "jumps.json").write_bytes(content)
    with pytest.raises(CramError, match="jumps.json: .*; copy it again"):
        read(path, 2)
    (tmp_path / "jumps.json").write_text(json.dumps([[1, 2]]))
    assert read(path, 2).jumps == {1: 2}
