"""The language of documents: right on plain sentences, the same every time, on a sample of long texts."""

import sys
import time

import numpy as np
import pytest

from data_prep import language
from data_prep.errors import DataError
from data_prep.language import check_languages, identify, sample

SENTENCES = {
    "en": "The committee will meet again on Thursday to discuss the results of the survey.",
    "de": "Der Ausschuss trifft sich am Donnerstag wieder, um die Ergebnisse der Umfrage zu besprechen.",
    "fr": "Le comité se réunira de nouveau jeudi pour discuter des résultats de l'enquête.",
    "es": "El comité se reunirá de nuevo el jueves para hablar de los resultados de la encuesta.",
    "it": "Il comitato si riunirà di nuovo giovedì per discutere i risultati del sondaggio.",
    "pl": "Komisja spotka się ponownie w czwartek, aby omówić wyniki ankiety.",
    "ru": "Комитет снова соберётся в четверг, чтобы обсудить результаты опроса.",
    "el": "Η επιτροπή θα συνεδριάσει ξανά την Πέμπτη για να συζητήσει τα αποτελέσματα της έρευνας.",
    "he": "הוועדה תיפגש שוב ביום חמישי כדי לדון בתוצאות הסקר.",
    "ja": "委員会は木曜日に再び集まり、調査の結果について話し合います。",
    "zh": "委员会将于星期四再次开会讨论调查结果。",
}


def test_plain_sentences():
    codes, probabilities = identify(list(SENTENCES.values()))
    assert codes == list(SENTENCES)
    assert probabilities.dtype == np.float32 and probabilities.shape == (len(SENTENCES),)
    assert (probabilities > 0.65).all() and (probabilities <= 1).all()


def test_same_text_same_answer_whatever_stands_beside_it():
    texts = [sentence * 30 for sentence in SENTENCES.values()]
    codes, probabilities = identify(texts)
    again, probabilities_again = identify(texts[::-1])
    assert codes == again[::-1] and np.array_equal(probabilities, probabilities_again[::-1])


def test_texts_without_letters_have_no_language():
    codes, probabilities = identify(["", "12 345", "\U0001f600 !?", "\x00", "\u200f"])
    assert codes == ["und"] * 5 and not probabilities.any()
    codes, probabilities = identify([])
    assert codes == [] and probabilities.dtype == np.float32


def test_sample_reaches_from_the_first_character_to_the_last():
    assert sample("x" * language.SAMPLE_CHARS) == "x" * language.SAMPLE_CHARS
    text = "".join(chr(0x4E00 + number) for number in range(5000))
    piece = sample(text)
    assert len(piece) == language.SAMPLE_CHARS + language.PIECES - 1
    assert piece[0] == text[0] and piece[-1] == text[-1]
    assert all(part in text for part in piece.split("\n"))


def test_the_sample_sees_past_a_foreign_beginning():
    text = SENTENCES["de"] + " " + SENTENCES["en"] * 200
    assert identify([text])[0] == ["en"]


def test_long_documents_take_no_longer():
    identify(["warm"])
    start = time.process_time()
    assert identify([SENTENCES["fr"] * 100_000, SENTENCES["de"] * 100_000])[0] == ["fr", "de"]
    assert time.process_time() - start < 1


def test_codes_that_are_given():
    check_languages([*identify([*SENTENCES.values(), ""])[0], "yue"])
    check_languages([])
    assert {*language.OTHER_NAMES} <= {*language._identifier().labels}


@pytest.mark.parametrize("written, meant", [
    ("ger", "de"), ("deu", "de"), ("English", "en"), ("germann", "de"), ("EN", "en"), ("en-US", "en"), ("zh_CN", "zh"),
    ("xx", None)])
def test_codes_that_are_never_given(written, meant):
    advice = f"did you mean '{meant}'\\?" if meant else "known are ace, af, .*, de, .*, zu, zxx"
    with pytest.raises(DataError, match=rf"^data\.filters\.languages: '{written}' is no language .*; {advice}$"):
        check_languages(["en", written])


def test_absent_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    language._identifier.cache_clear()
    with pytest.raises(DataError, match=r"data\.identify_language needs py3langid.*pip install 'cram-lm\[web\]'"):
        identify(["text"])
    with pytest.raises(DataError, match=r"py3langid, which is not installed"):
        check_languages(["en"])
