"""Reading a race."""

import re

import pytest

from cram.errors import CramError
from cram.race.adapters import BUILT_IN, find as find_adapter
from cram.race.race_file import FOLDER, adapt, find, read, shipped

GOOD = """kind: causal
budget: 10s
ours: me
ladder: [1/3, 0.5]
competitors:
  me:
    adapter: cram
    settings: {train.sequence_schedule: [[0, 64], [0.5, 128]], model.tied: on}
  peer:
    adapter: nanogpt
    tune: {share: 1/4, choices: [{learning_rate: 1e-3}, {learning_rate: 3e-3}]}
    speed: {n_layer: 4}
"""


def write(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_a_race_is_read_and_its_settings_stay_as_they_are_written(tmp_path):
    race = read(write(tmp_path, GOOD))
    assert (race.name, race.kind, race.budget, race.ours, race.seeds) == ("mine", "causal", 10.0, "me", 3)
    assert race.ladder == pytest.approx((1 / 3, 0.5)) and race.shares("peer") == (1.0,) and len(race.shares("me")) == 3
    assert race.entries["me"].settings == {"train.sequence_schedule": "[[0, 64], [0.5, 128]]", "model.tied": "on"}
    assert race.entries["peer"].choices == ({"learning_rate": "1e-3"}, {"learning_rate": "3e-3"})
    assert race.entries["peer"].share == 0.25


def test_settings_may_be_tried_with_the_whole_budget_but_a_rung_of_the_ladder_is_less(tmp_path):
    assert read(write(tmp_path, GOOD.replace("share: 1/4", "share: 1"))).entries["peer"].share == 1.0
    with pytest.raises(CramError, match="ladder: write a share between 0 and 1"):
        read(write(tmp_path, GOOD.replace("[1/3, 0.5]", "[1/3, 1]")))


@pytest.mark.parametrize("change, line, told", [
    (("kind: causal", "kind: causl"), 1, "write causal or masked"),
    (("budget: 10s", "budget: 300 steps"), None, "no time"),
    (("budget: 10s", "budgt: 10s"), 2, "did you mean 'budget'"),
    (("budget: 10s\n", ""), 1, "budget is missing"),
    (("ours: me", "ours: nobody"), None, "name one of me, peer"),
    (("[1/3, 0.5]", "[3]"), 4, "share between 0 and 1"),
    (("[1/3, 0.5]", "[1/0]"), 4, "share between 0 and 1"),
    (("share: 1/4", "share: 3/2"), 11, "or 1 for all of it"),
    (("speed: {n_layer: 4}", "speed: []"), 12, "the list is empty"),
    (("adapter: nanogpt", "adaptr: nanogpt"), 10, "did you mean 'adapter'"),
    (("choices: [{learning_rate: 1e-3}, {learning_rate: 3e-3}]", "choices: []"), 11, "list the settings to try"),
    (("  peer:", "  me:"), 9, "there twice"),
    (("kind: causal", "kind: [causal"), 2, "not valid YAML"),
])
def test_what_is_wrong_is_named_with_its_line(change, line, told, tmp_path):
    assert change[0] in GOOD
    with pytest.raises(CramError, match=re.escape(told)) as error:
        read(write(tmp_path, GOOD.replace(*change, 1)))
    if line is not None:
        assert f"mine.yaml:{line}:" in str(error.value)


@pytest.mark.parametrize("name", ["causal", "causal_card", "masked", "masked_card"])
def test_shipped_races_are_read_by_their_name_and_no_configuration_of_a_run(name):
    from cram.config import find as find_configuration

    race = read(find(name))
    assert race.entries[race.ours].adapter == "cram" and len(race.entries) > 1 and name in shipped()
    for entry in race.entries.values():
        adapter = find_adapter(entry.adapter)
        assert race.kind in adapter.KINDS
        assert adapter.context(entry.settings) > 0 and adapter.tokens_per_step(entry.settings) > 0
    sizes = {adapter.tokens_per_step(settings) // adapter.context(settings) * 1j + adapter.context(settings)
             for adapter, settings in ((find_adapter(entry.adapter), {**entry.settings, **entry.speed[0], **change})
                                       for entry in race.entries.values() for change in entry.speed)}
    assert len(sizes) == 1                      # speed: the same rows of the same length for all
    with pytest.raises(CramError) as error:
        find_configuration(name)
    assert "races/" not in str(error.value)


def test_every_adapter_that_comes_with_us_answers_what_the_referee_asks():
    assert {path.stem for path in (FOLDER.parents[1] / "cram" / "race" / "adapters").glob("[a-z]*.py")} == set(BUILT_IN)
    for name in BUILT_IN:
        assert find_adapter(name).UNITS
    with pytest.raises(CramError, match="possible: autoresearch"):
        find_adapter("nobody")


def test_the_command_line_changes_what_it_may(tmp_path):
    race = adapt(read(write(tmp_path, GOOD)), budget="2m", seeds=5, threads=1, text=["data.source=files"])
    assert (race.budget, race.seeds, race.threads, race.text) == (120.0, 5, 1, ("demo", "data.source=files"))
    tiny = adapt(race, tiny=True)
    assert tiny.budget == 20 and tiny.seeds == 2 and tiny.ladder == (0.5,)
    for wrong in ({"text": ["model.layers=3"]}, {"seeds": 0}, {"budget": "3 steps"}):
        with pytest.raises(CramError):
            adapt(race, **wrong)
