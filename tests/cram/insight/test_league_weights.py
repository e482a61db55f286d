"""Scores measured again: from the weights and the held-out text in a package, or from a run's folder."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from cram.insight.league import weights
from cram.insight.league.card import read_card, write_card
from cram.insight.league.standings import judge
from tests.cram.insight.league_runs import Forgery, body, runs


def quiet(line):
    pass


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """A folder with the card of ``causal`` and its weights; and the card's body."""
    folder, card = tmp_path_factory.mktemp("packaged"), json.loads(json.dumps(body("causal")))
    card["weights"]["package"] = weights.write_package(runs() / "causal", folder / "causal.safetensors")
    write_card(folder / "causal.card.json", card)
    return folder, card


def test_a_score_measured_again_holds(packaged):
    folder, _ = packaged
    card = read_card(folder / "causal.card.json")
    assert weights.rescore_package(card, weights.package_of(card)) == []
    assert weights.run_of(card, runs()) == runs() / "causal"
    assert weights.rescore_run(card, runs() / "causal") == []


def test_a_lie_too_small_for_the_curve_is_found_by_the_weights(packaged, tmp_path):
    folder, signed = packaged
    forged = Forgery("causal")
    forged.body["weights"] = signed["weights"]
    scores = forged.body["scores"]
    for name in ("loss", "bits_per_byte"):
        scores["held_out"][name] *= 0.97
    scores["gain_over_unigram"] = 1 - scores["held_out"]["loss"] / scores["baselines"]["unigram"]["loss"]
    path = forged.write(tmp_path / "lie.card.json")
    shutil.copy(folder / "causal.safetensors", tmp_path)
    [alone] = judge([path], say=quiet)
    assert alone.accepted  # a card alone cannot tell
    [entry] = judge([path], rescore=lambda card: weights.rescore_package(card, weights.package_of(card)), say=quiet)
    assert not entry.accepted and "measured again: score loss" in entry.reasons[0]


def test_weights_of_another_run_are_found(packaged, tmp_path):
    folder, signed = packaged
    forged = Forgery("causal")
    forged.body["weights"]["package"] = weights.write_package(runs() / "steps", tmp_path / "causal.safetensors")
    card = read_card(forged.write(tmp_path / "causal.card.json"))
    assert weights.rescore_package(card, weights.package_of(card))
    shutil.copy(folder / "causal.safetensors", tmp_path / "causal.safetensors")
    assert "another sha256" in weights.rescore_package(card, weights.package_of(card))[0]
    assert "another sha256" in weights.rescore_run(read_card(Forgery.honest("steps")), runs() / "other")[0]


def test_an_easier_text_under_the_hash_of_the_contests_is_found(packaged, tmp_path):
    """Held-out text as announced, but other tokens packed for it, all hashes made anew."""
    from data_prep.files import file_hash

    folder, _ = packaged
    run = tmp_path / "easy"
    shutil.copytree(runs() / "causal", run)
    data = run / "data"
    manifest, path = json.loads((data / "manifest.json").read_text()), data / "validation-00000.bin"
    tokens = np.fromfile(path, dtype=np.uint16)
    tokens[tokens > 4] = 5
    tokens.tofile(path)
    manifest["splits"]["validation"]["shards"][0]["xxh3_128"] = file_hash(path)
    (data / "manifest.json").write_text(json.dumps(manifest))
    forged = Forgery("causal")
    for file in (path, data / "manifest.json"):
        forged.body["stages"]["data"]["files"][file.name]["xxh3_128"] = file_hash(file)
    forged.body["weights"]["package"] = weights.write_package(run, tmp_path / "easy.safetensors")
    card = read_card(forged.write(tmp_path / "easy.card.json"))
    assert "are not what its tokenizer makes of the text" in weights.rescore_package(card, weights.package_of(card))[0]
    assert "are not what its tokenizer makes of the text" in weights.rescore_run(card, run)[0]


def test_a_package_without_its_tokenizer_is_not_called_rescored(packaged, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder, signed = packaged
    with safe_open(folder / "causal.safetensors", "pt") as opened:
        kept = {name: opened.get_tensor(name) for name in opened.keys() if not name.endswith("tokenizer.json")}
        save_file(kept, tmp_path / "causal.safetensors", opened.metadata())
    forged = Forgery("causal")
    forged.body["weights"]["package"] = {"file": "causal.safetensors", "sha256": hashlib.sha256(
        (tmp_path / "causal.safetensors").read_bytes()).hexdigest()}
    card = read_card(forged.write(tmp_path / "causal.card.json"))
    assert weights.rescore_package(card, weights.package_of(card)) is None
