"""How a launch is found: the table, its gaps, and the script that fills it."""

import importlib.util
import json
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cram._kernels import launch
from cram._kernels.ahead import CARDS
from cram._kernels.launch import FLOAT32, HEAD_DIMS, SAFE, Launch, choose, key, padded
from cram._kernels.tune import DIRECTIONS, owned

KEYS = [(architecture, head_dim, causal, direction) for architecture in CARDS for head_dim in HEAD_DIMS
        for causal in (False, True) for direction in DIRECTIONS]


@pytest.fixture(scope="module")
def shipped():
    return json.loads(launch.TABLE.read_text())["launches"]


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Put another table in place; the shipped one is back afterwards."""
    def clear():
        launch.table.cache_clear()
        choose.cache_clear()

    def put(rows):
        path = tmp_path / "table.json"
        path.write_text(json.dumps({"launches": {name: one._asdict() for name, one in rows.items()}}))
        monkeypatch.setattr(launch, "TABLE", path)
        clear()
        return path

    clear()
    yield put
    clear()


@pytest.fixture(scope="module")
def script(root):
    spec = importlib.util.spec_from_file_location("tune_script", root / "scripts" / "tune.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_shipped_table_is_complete_and_well_formed(shipped):
    assert set(shipped) == {key(*one) for one in KEYS}
    for name, row in shipped.items():
        one = Launch(*(row[field] for field in Launch._fields))
        assert one.block_m in (16, 32, 64, 128) and one.block_n in (16, 32, 64, 128), name  # tl.dot wants 16, tl.arange 2^n
        assert one.warps in (1, 2, 4, 8) and one.stages in (1, 2, 3, 4), name
        assert all(type(number) is int for number in one), name
        if row["how"] == "ahead":
            assert row["milliseconds"] is None and "card" not in row, name
        else:
            assert row["how"] == "measured" and row["milliseconds"] > 0 and row["card"], name


def test_the_shipped_table_is_used_without_a_word(shipped):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one in KEYS:
            row = shipped[key(*one)]
            assert choose(*one, torch.bfloat16) == Launch(row["block_m"], row["block_n"], row["warps"], row["stages"])


def test_every_part_of_the_key_counts(table):
    """A table in which no two rows are alike."""
    rows = {key(*one): Launch(64, 32, 4, i) for i, one in enumerate(KEYS)}
    table(rows)
    assert [choose(*one, torch.float16).stages for one in KEYS] == list(range(len(KEYS)))


@given(st.integers(1, 128))
def test_padding_is_to_the_next_compiled_head_dimension(head_dim):
    size = padded(head_dim)
    assert size in HEAD_DIMS and size >= head_dim and not any(head_dim <= other < size for other in HEAD_DIMS)


@pytest.mark.parametrize("head_dim, row", [(2, 32), (32, 32), (34, 64), (64, 64), (96, 128), (128, 128)])
def test_a_padded_head_takes_the_row_of_the_size_it_is_padded_to(table, head_dim, row):
    table({key("sm_90", size, False, "dq"): Launch(64, 64, 4, size) for size in HEAD_DIMS})
    assert choose("sm_90", head_dim, False, "dq", torch.bfloat16).stages == row


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_unknown_card_gets_the_safe_launch_and_one_warning(table, direction):
    table({})
    with pytest.warns(UserWarning) as said:
        found = [choose("sm_999", 64, True, direction, torch.bfloat16) for _ in range(5)]
    assert found == [SAFE[direction]] * 5 and len(said) == 1
    assert f"'sm_999 64 causal {direction}'" in str(said[0].message) and "scripts/tune.py" in str(said[0].message)


def test_float32_takes_the_launch_for_checking_on_any_card(table):
    table({})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {choose(architecture, 128, True, "dkv", torch.float32) for architecture in ("sm_80", "sm_999", "cpu")}
    assert found == {FLOAT32}


def test_owned_rows():
    assert owned("forward", Launch(128, 64, 8, 3)) == owned("dq", Launch(128, 64, 8, 3)) == (128, 64)
    assert owned("dkv", Launch(128, 64, 8, 3)) == (64, 128)


# ---- scripts/tune.py


def test_rewriting_changes_the_rows_given_and_no_others(table, script):
    path = table({key(*one): Launch(64, 32, 4, 1) for one in reversed(KEYS)})
    before = json.loads(path.read_text())["launches"]
    changed = {key("sm_90", 64, True, "dkv"): script.entry(Launch(32, 128, 8, 2), "measured", 1.25, card="H100")}
    script.rewrite(path, changed)
    launch.table.cache_clear()
    after = json.loads(path.read_text())["launches"]
    assert after == before | changed and list(after) == [key(*one) for one in KEYS]
    assert choose("sm_90", 64, True, "dkv", torch.bfloat16) == Launch(32, 128, 8, 2)
    assert len(path.read_text().splitlines()) == len(KEYS) + 3, "one row a line"
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no temporary file stays"


def test_ahead_of_time_the_first_of_the_search_is_taken_for_every_row(table, script, monkeypatch):
    path = table({"sm_80 64 full dq": Launch(16, 16, 4, 1)})

    def search(direction, architecture, head_dim, run):
        compiled = type("Compiled", (), {"registers": 0, "stack": 0, "shared": 0})
        return [type("Found", (), {"launch": Launch(head_dim, 16, 4, stages), "clocks": 1.0, "compiled": compiled})
                for stages in (2, 3)]

    monkeypatch.setattr(script, "search", search)
    script.tune_ahead("sm_90", path, map, lambda line: None)
    rows = json.loads(path.read_text())["launches"]
    assert rows.pop("sm_80 64 full dq")["block_m"] == 16
    assert set(rows) == {key(*one) for one in KEYS if one[0] == "sm_90"}
    for name, row in rows.items():
        assert row == {"block_m": int(name.split()[1]), "block_n": 16, "warps": 4, "stages": 2, "milliseconds": None,
                       "how": "ahead"}


class Clock:
    """Stands for a timer: the seconds of a call are what the call returns."""

    def warm_up(self, ready, calls):
        from cram.bench.measure import Pace
        ready()()
        return Pace(0.0)

    def turn(self, ready, pace):
        return ready()()


def test_the_fastest_over_all_loads_is_taken_and_a_wrong_one_left_out(script):
    first, second, wrong, broken = (Launch(64, 64, 4, stages) for stages in (1, 2, 3, 4))
    others = {"forward": first, "dq": first, "dkv": first}

    class Load:
        def __init__(self, seconds):
            self.seconds = seconds

        def right(self, direction, launches):
            assert launches[direction] != wrong

        def call(self, direction, launches):
            assert {**launches, direction: first} == others, "only the kernel in question varies"
            if launches[direction] == broken:
                raise RuntimeError("out of shared memory")
            return self.seconds[launches[direction]]

    loads, told = [Load({first: 1.0, second: 3.0}), Load({first: 1.0, second: 0.2})], []
    best, mean = script.fastest("dq", others, [first, second, wrong, broken], loads, Clock(), 3, told.append)
    assert best == second and mean == pytest.approx(1e3 * 0.6 ** 0.5)
    assert sum("left out" in line for line in told) == 1
    with pytest.raises(RuntimeError, match="no launch"):
        script.fastest("dq", others, [wrong], loads, Clock(), 3, told.append)


def test_without_a_card_the_script_says_so(script, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        script.main(["--card"])
    assert stop.value.code == 2 and "no CUDA card" in capsys.readouterr().err
