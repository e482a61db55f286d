"""Programs whose settings stand in their source, run with others."""

import importlib.util
import sys

import pytest

from cram.race.scoring import PROGRAMS

SCRIPT = '''
import math
from dataclasses import dataclass
steps = 3000
made = []

@dataclass
class Model:
    size: int = 1
    layers: int = 1

for turn in range(2):
    rate = 0.1 if turn else 0.2
    made.append((Model(size=768, layers=12), steps, rate))
result = math.sqrt(steps)
'''


@pytest.fixture
def constants(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])     # put back afterwards
    spec = importlib.util.spec_from_file_location("race_constants", PROGRAMS / "constants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_constants_and_keywords_are_replaced_wherever_they_stand_and_the_file_stays(constants, script):
    found = constants.run(script, {"steps": 16, "rate": 0.5}, {"Model": {"size": 32}})
    assert found["result"] == 4.0
    assert [(model.size, model.layers, steps, rate) for model, steps, rate in found["made"]] == [(32, 12, 16, 0.5)] * 2
    assert script.read_text() == SCRIPT


def test_a_constant_that_is_not_there_is_refused(constants, script):
    with pytest.raises(ValueError, match="assigns nothing to depth"):
        constants.run(script, {"depth": 3})


def test_definitions_run_nothing_else(constants, script):
    found = constants.definitions(script, given=7)
    assert found["Model"](size=3).layers == 1 and found["given"] == 7 and "made" not in found and "steps" not in found
