"""The measure, against NumPy in float64 and against our own evaluation."""

import importlib.util
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from cram.race.blimp import accuracy, request
from cram.race.course import Course
from cram.race.scoring import PROGRAMS, Answer, count, of_rows, windows

VOCABULARY = 11


@pytest.fixture(scope="module")
def scoring_loop():
    spec = importlib.util.spec_from_file_location("scoring_loop", PROGRAMS / "scoring_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def course(tiny, tmp_path):
    def make(kind="causal", heldout_bytes=4000):
        return Course(kind, tmp_path, tiny["text"], tiny["tokenizer"], tiny["data"], tmp_path / "text.yaml", heldout_bytes,
                      0.15)
    return make


def bigram(seed=0, vocabulary=VOCABULARY):
    return np.random.default_rng(seed).normal(size=(vocabulary, vocabulary))


def oracle(table_VV, request):
    """Nats and hits one prediction at a time, in float64."""
    nats, hits = [], []
    for row in range(len(request.starts) - 1):
        ids = request.ids[request.starts[row]:request.starts[row + 1]]
        for k in range(request.firsts[row], request.firsts[row + 1]):
            scores = table_VV[ids[request.positions[k]]]
            nats.append(math.log(np.exp(scores).sum()) - scores[request.labels[k]])
            hits.append(scores.argmax() == request.labels[k])
    return np.array(nats), np.array(hits)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_rows_ask_for_every_prediction_once_where_it_stands(length, context, seed):
    rng = np.random.default_rng(seed)
    inputs, places = rng.integers(0, VOCABULARY, length), np.flatnonzero(rng.random(length) < 0.5)
    labels = rng.integers(0, VOCABULARY, len(places))
    asked = windows(inputs, places, labels, context)
    found = [(asked.starts[row] + asked.positions[k], asked.labels[k]) for row in range(len(asked.starts) - 1)
             for k in range(asked.firsts[row], asked.firsts[row + 1])]
    assert found == list(zip(places, labels))
    assert np.diff(asked.starts).max(initial=0) <= context and (np.diff(asked.starts) > 0).all()
    assert (asked.positions < context).all()


@pytest.mark.parametrize("elements", [1, 2**24])    # one row at a time, or all at once
def test_the_loop_agrees_with_an_oracle(scoring_loop, elements, monkeypatch):
    monkeypatch.setattr(scoring_loop, "ELEMENTS", {"cpu": elements})
    rng, table_VV = np.random.default_rng(1), bigram()
    asked = of_rows([(rng.integers(0, VOCABULARY, length), range(0, length, 2), rng.integers(0, VOCABULARY, (length + 1) // 2))
                     for length in (7, 3, 7, 1, 5, 7)])
    logits = torch.from_numpy(table_VV)
    nats, hits = scoring_loop.score(lambda ids_RT, row_P, position_P: logits[ids_RT[row_P, position_P]], asked._asdict(),
                                    VOCABULARY, "cpu")
    right_nats, right_hits = oracle(table_VV, asked)
    assert np.allclose(nats, right_nats, rtol=1e-5) and (hits == right_hits).all()


def test_bits_per_byte_are_those_of_the_content_over_the_bytes_of_the_text(course):
    course = course()
    inputs, places, labels = course.targets()
    table_VV = bigram(vocabulary=course.vocab_size)
    nats, hits = oracle(table_VV, windows(inputs, places, labels, 16))
    texts = [course.held_out.read_document(number) for number in range(course.documents)]
    bits, special = 0.0, course.special
    for text in texts:      # [CLS] opens, [SEP] closes; each token of content by the token before it
        assert text[0] == special["cls"] and text[-1] == special["sep"]
        for before, token in zip(text[:-2], text[1:-1]):
            bits += (math.log(np.exp(table_VV[before]).sum()) - table_VV[before][token]) / math.log(2)
    found = count(Answer(nats, hits, 0), course, labels)
    assert found["bits_per_byte"] == pytest.approx(bits / int(course.held_out.document_bytes[:len(texts)].sum()), rel=1e-9)


@given(heldout_bytes=st.integers(1, 10_000))
@settings(deadline=None, max_examples=20)
def test_whole_documents_up_to_the_bytes_asked_for(tiny, heldout_bytes):
    course = Course("causal", None, tiny["text"], tiny["tokenizer"], tiny["data"], None, heldout_bytes, 0.15)
    sizes = course.held_out.document_bytes
    assert course.bytes == sizes[:course.documents].sum()
    assert course.documents == 1 or course.bytes <= heldout_bytes
    assert course.documents == len(sizes) or course.bytes + sizes[course.documents] > heldout_bytes


def test_the_mask_hides_its_share_and_is_the_same_for_all(course):
    first, second = course("masked").targets(), course("masked").targets()
    assert all((a == b).all() for a, b in zip(first, second))
    inputs, places, labels = first
    stream = course("masked").stream_N
    assert (labels == stream[places]).all() and (stream[places] >= 5).all()
    assert len(places) == round(0.15 * (stream >= 5).sum())
    assert (np.delete(inputs, places) == np.delete(stream, places)).all()


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A few steps of a small model of ours: (kind -> folder)."""
    from cram.config import load
    from cram.train import pretrain

    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        config = load("demo_gpt" if kind == "causal" else "demo",
                      ["budget=3 steps", "model.width=32", "model.heads=2", "train.sequence_length=32",
                       "train.batch_tokens=512", "train.validation_tokens=512", "train.threads=1", "telemetry.energy=false"])
        pretrain(config, tiny["data"], tiny["tokenizer"], folder, "run", lambda line: None)
        return folder
    return make


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_our_own_model_scores_as_its_evaluation_says(kind, course, trained, scoring_loop, tiny, monkeypatch):
    from cram.evaluate.heldout import score_heldout
    from cram.evaluate.minimal_pairs import pair_scores
    from cram.evaluate.subject import open_run

    course = course(kind)
    folder = trained(kind)
    subject = open_run("run", folder, tiny["tokenizer"], device="cpu", say=lambda line: None)
    monkeypatch.setitem(sys.modules, "scoring_loop", SimpleNamespace(serve=lambda load: None))
    spec = importlib.util.spec_from_file_location("cram_score", PROGRAMS / "cram_score.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    logits, parameters = program.load({"checkpoint": str(folder), "tokenizer": str(tiny["tokenizer"]), "device": "cpu"})
    inputs, places, labels = course.targets()
    nats, hits = scoring_loop.score(logits, windows(inputs, places, labels, 32)._asdict(), course.vocab_size, "cpu")
    right = score_heldout(subject.model, course.held_out, row=32, mask_rate=0.15, max_tokens=len(course.stream_N))
    found = count(Answer(nats, hits, parameters), course, labels)
    assert found == pytest.approx({key: right[key] for key in found}, rel=1e-5)
    assert parameters == sum(each.numel() for each in subject.model.parameters())

    pairs = [{"good": "the model of the data", "bad": "the of model data", "paradigm": name} for name in ("a", "b")]
    asked, sentence = request(pairs, subject.tokenizer, kind, course.special)
    nats, _ = scoring_loop.score(logits, asked._asdict(), course.vocab_size, "cpu")
    right = pair_scores(subject, pairs)
    assert np.allclose(-np.bincount(sentence, weights=nats).reshape(-1, 2), right, rtol=1e-4)


def test_blimp_is_the_mean_over_paradigms_and_a_tie_is_wrong():
    pairs = [{"paradigm": "a"}, {"paradigm": "a"}, {"paradigm": "b"}]
    cost = np.array([1.0, 2.0, 3.0, 3.0, 1.0, 5.0])     # right, tie, right
    assert accuracy(pairs, cost, np.arange(6)) == pytest.approx((0.5 + 1.0) / 2)
