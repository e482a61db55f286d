"""Scores of texts: against lm-evaluation-harness and minicons, one by one, and whatever the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cram import schema
from cram.errors import CramError
from cram.evaluate.scoring import (Query, answers, continuation_scores, encode_pair, log_likelihoods, pseudo_log_likelihood,
                                   word_ends)
from cram.evaluate.subject import Subject
from cram.model import Transformer
from cram.ops import Documents
from tests.cram.evaluate import reference_models as reference

SENTENCES = [*reference.TEXTS, "The cats walk.", "The cats walks.", "unwalkable", "A dog's café, naïve!"]
VOCAB = 23


class Numbers:
    """A tokenizer of numbers: "7 9" is the tokens 7 and 9, and every token a word."""

    class Encoding:
        def __init__(self, text):
            self.ids = [int(word) for word in text.split()]
            self.word_ids = list(range(len(self.ids)))
            self.offsets = [(0, 0)] * len(self.ids)

    def encode(self, text, add_special_tokens):
        return self.Encoding(text)


def ours(kind, *, document_mask=True, row=32, seed=0):
    config = schema.Model(layers=2, width=32, heads=2, zero_init=False, init_std=0.2, document_mask=document_mask)
    torch.manual_seed(seed)
    model = Transformer(config, VOCAB, kind != "masked")
    return Subject("tiny", model, Numbers(), reference.IDS, kind, row, "cpu", {}, ".")


def log_p(subject, seen, causal=None):
    """float64 [N, V]: the model read on one sequence alone."""
    documents = Documents.from_lengths([len(seen)])
    with torch.no_grad():
        hidden = subject.model.eval()(torch.tensor(seen), documents, causal)
        return subject.model.logits(hidden).double().log_softmax(-1).numpy()


token_lists = st.lists(st.integers(5, VOCAB - 1), min_size=1, max_size=9)


# --- causal ---------------------------------------------------------------------------------------------------------

@settings(max_examples=15, deadline=None)
@given(pairs=st.lists(st.tuples(st.lists(st.integers(5, VOCAB - 1), max_size=9), token_lists), min_size=1, max_size=12),
       batch_tokens=st.sampled_from([1, 17, 4096]), document_mask=st.booleans(), seed=st.integers(0, 3))
def test_continuations_equal_one_by_one_in_any_order_and_batch(pairs, batch_tokens, document_mask, seed):
    subject = ours("causal", document_mask=document_mask)
    scores = continuation_scores(subject, pairs, batch_tokens=batch_tokens)
    order = np.random.default_rng(seed).permutation(len(pairs))
    shuffled = continuation_scores(subject, [pairs[place] for place in order])
    assert shuffled.log_p == pytest.approx(scores.log_p[order], abs=1e-4)
    for (context, continuation), found, count, greedy in zip(pairs, scores.log_p, scores.tokens, scores.greedy):
        table = log_p(subject, [2, *context, *continuation])[len(context):-1]
        assert found == pytest.approx(table[range(len(continuation)), continuation].sum(), abs=1e-4)
        assert count == len(continuation) and greedy == (table.argmax(1) == continuation).all()


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_ragged_batches_equal_batches_of_one_length(ragged, kind):
    subject, rng = ours(kind), np.random.default_rng(0)
    queries = []
    for item in range(20):
        ids = rng.integers(5, VOCAB, rng.integers(2, 12)).tolist()
        queries.append(Query(item, ids, (0, len(ids) - 1), (7, 8)))
    for query, nats_P, hits_P in answers(subject, queries, ragged=ragged, batch_tokens=64):
        table = log_p(subject, query.ids)[list(query.positions)]
        assert -nats_P == pytest.approx(table[range(2), query.labels], abs=1e-4)
        assert (hits_P == (table.argmax(1) == query.labels)).all()


def test_continuations_equal_the_harness():
    """HFLM of lm-evaluation-harness, with texts longer than the row among them: per example to 1e-4."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    model, tokenizer = reference.gpt2(row=48)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]", pad_token="[PAD]")
    harness = HFLM(pretrained=model, tokenizer=fast, device="cpu", max_length=48, batch_size=4)
    requests = [("", SENTENCES[0]), ("The dog ", "barked twice."), ("The dog", " barked twice."), ("A", "n"),
                (" ".join(SENTENCES[:4]), " and a very small cat"), ("In  ", " my palm"), ("Naïve caf", "é owners")]
    expected = harness.loglikelihood([Instance("loglikelihood", {}, request, 0) for request in requests], disable_tqdm=True)
    subject = reference.subject_of(model, tokenizer, "causal", 48, opening=[])
    subject.special = subject.special | {"cls": 3}  # GPT-2 opens with what ends a document
    scores = log_likelihoods(subject, requests)
    assert scores.log_p == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert scores.greedy.tolist() == [greedy for _, greedy in expected]
    assert scores.truncated == 1


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 40), row=st.integers(1, 12))
def test_a_continuation_longer_than_the_row_is_scored_in_the_windows_of_the_harness(length, row):
    from lm_eval.utils import get_rolling_token_windows

    subject, tokens = ours("causal", row=row), np.random.default_rng(length).integers(5, VOCAB, length).tolist()
    expected = 0.0
    for seen, predicted in get_rolling_token_windows(tokens, 2, row, 1):
        table = log_p(subject, seen)[-len(predicted):]
        expected += table[range(len(predicted)), predicted].sum()
    scores = continuation_scores(subject, [([], tokens)])
    assert scores.log_p[0] == pytest.approx(expected, abs=1e-3)
    assert (scores.tokens[0], scores.truncated) == (length, length > row)


def test_the_split_of_context_and_continuation_is_that_of_the_harness():
    subject = reference.subject_of(*reference.gpt2(), "causal", 48)
    for context, continuation in [("The dog ", "barked"), ("The dog", " barked"), ("A  ", "cat"), ("wal", "king"), ("", " x")]:
        whole = subject.encode(context + continuation)
        context_ids, continuation_ids = encode_pair(subject, context, continuation)
        assert context_ids == subject.encode(context.rstrip())
        assert continuation_ids == whole[len(context_ids):]


# --- masked ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("variant", ["original", "within_word_l2r"])
def test_pseudo_log_likelihood_equals_minicons(variant, monkeypatch):
    from minicons.scorer import MaskedLMScorer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    # minicons 0.3 calls a method that transformers 5 dropped
    monkeypatch.setattr(PreTrainedTokenizerFast, "batch_encode_plus", PreTrainedTokenizerFast.__call__, raising=False)
    model, tokenizer = reference.bert()
    subject = reference.subject_of(model, tokenizer, "masked", 64)
    theirs = type(tokenizer).from_str(tokenizer.to_str())
    theirs.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    scorer = MaskedLMScorer(model, "cpu", tokenizer=PreTrainedTokenizerFast(tokenizer_object=theirs, **names))
    expected = [sum(score for _, score in scorer.token_score(sentence, PLL_metric=variant)[0]) for sentence in SENTENCES]
    assert pseudo_log_likelihood(subject, SENTENCES, variant).log_p == pytest.approx(expected, abs=1e-4)


def test_the_variants_differ_where_words_have_several_tokens_and_there_alone():
    subject = reference.subject_of(*reference.bert(), "masked", 64)
    one, other = (pseudo_log_likelihood(subject, SENTENCES, variant).log_p for variant in ("original", "within_word_l2r"))
    for sentence, left, right in zip(SENTENCES, one, other):
        encoding = subject.tokenizer.encode(sentence, add_special_tokens=False)
        split = len(set(encoding.word_ids)) < len(encoding.ids)
        assert (abs(left - right) > 1e-3) == split


@settings(max_examples=15, deadline=None)
@given(sentences=st.lists(token_lists, min_size=1, max_size=6), context=st.lists(st.integers(5, VOCAB - 1), max_size=4),
       batch_tokens=st.sampled_from([1, 40, 4096]), kind=st.sampled_from(["masked", "hybrid"]))
def test_pseudo_log_likelihood_equals_one_by_one(sentences, context, batch_tokens, kind):
    subject = ours(kind, document_mask=kind == "hybrid")
    contexts = [" ".join(map(str, context))] * len(sentences)
    scores = pseudo_log_likelihood(subject, [" " + " ".join(map(str, tokens)) for tokens in sentences], contexts=contexts,
                                   batch_tokens=batch_tokens)
    for tokens, found in zip(sentences, scores.log_p):
        ids, expected = [2, *context, *tokens, 3], 0.0
        for place in range(1 + len(context), len(ids) - 1):
            seen = [*ids[:place], 4, *ids[place + 1:]]
            expected += log_p(subject, seen, causal=False)[place - (kind == "hybrid"), ids[place]]
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_sentence_longer_than_the_row_is_predicted_from_the_row_around_each_token():
    subject, tokens = ours("masked", row=9), list(range(5, 20))
    expected = 0.0
    for place, token in enumerate(tokens):
        low = min(max(0, place - 3), len(tokens) - 7)
        seen = [2, *tokens[low:low + 7], 3]
        seen[place - low + 1] = 4
        expected += log_p(subject, seen)[place - low + 1, token]
    scores = pseudo_log_likelihood(subject, [" ".join(map(str, tokens)), "5 6"])
    assert scores.log_p[0] == pytest.approx(expected, abs=1e-4)
    assert scores.truncated == 1


@pytest.mark.parametrize("make", [reference.byte_bpe, reference.wordpiece, reference.unigram,
                                  lambda: reference.unigram(split=False)], ids=["bytes", "wordpiece", "unigram", "unsplit"])
def test_words_are_what_white_space_separates(make):
    """In text without punctuation, for every kind of tokenizer, whatever the pre-tokenizer cuts."""
    tokenizer = make()

    @settings(max_examples=60, deadline=None)
    @given(words=st.lists(st.text("walkingdoéñ", min_size=1, max_size=7), min_size=1, max_size=5))
    def check(words):
        text = " ".join(words)
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ends = word_ends(text, encoding)
        assert len(ends) == len(encoding.ids) and len(set(ends)) == len(words)
        begin = 0
        for word, end in zip(words, sorted(set(ends))):
            assert ends[begin:end] == [end] * (end - begin)
            covered = {place for span in encoding.offsets[begin:end] for place in range(*span)}
            assert "".join(text[place] for place in sorted(covered)).strip() == word
            begin = end

    check()


# --- faults ---------------------------------------------------------------------------------------------------------

class Narrow(torch.nn.Module):
    """Runs out of memory with more than ``most`` tokens."""

    def __init__(self, model, most):
        super().__init__()
        self.model, self.most, self.causal, self.vocab_size = model, most, model.causal, model.vocab_size

    def forward(self, ids_N, documents, causal=None):
        if len(ids_N) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(ids_N, documents, causal)

    def logits(self, x_PD):
        return self.model.logits(x_PD)


def test_out_of_memory_goes_on_with_fewer_tokens_and_says_it_once():
    subject, pairs = ours("causal"), [([], [5 + n % 7] * (3 + n % 5)) for n in range(60)]
    expected = continuation_scores(subject, pairs)
    subject.model, said = Narrow(subject.model, 20), []
    scores = continuation_scores(subject, pairs, say=said.append)
    assert scores.log_p == pytest.approx(expected.log_p, abs=1e-4)
    assert len(said) == 1 and "out of memory with" in said[0]
    subject.model.most = 4
    with pytest.raises(CramError, match="no memory for one sequence of 7 tokens"):
        continuation_scores(subject, pairs, say=said.append)


def test_other_errors_are_not_taken_for_memory():
    subject = ours("causal")
    subject.model.logits = lambda x_PD: torch.zeros(1, 2) @ torch.zeros(3, 1)
    with pytest.raises(RuntimeError, match="shapes"):
        continuation_scores(subject, [([], [5])])


def test_what_is_the_same_gets_the_same_score_to_the_last_bit():
    subject = ours("causal")
    pairs = [([], [5, 6, 7]), *(([], [8 + n % 9, 9, 10]) for n in range(40)), ([], [5, 6, 7])]
    scores = continuation_scores(subject, pairs, batch_tokens=24)
    assert scores.log_p[0] == scores.log_p[-1]


def test_wrong_questions_are_refused():
    with pytest.raises(CramError, match="text 2 of 3 has no token"):
        continuation_scores(ours("causal"), [([5], [6]), ([5], []), ([5], [7])])
    with pytest.raises(CramError, match="text 1 of 1 has no token"):
        pseudo_log_likelihood(ours("masked"), [""])
    with pytest.raises(CramError, match="use original or within_word_l2r"):
        pseudo_log_likelihood(ours("masked"), ["5"], "word")
    with pytest.raises(CramError, match="causal model has no pseudo-log-likelihood"):
        pseudo_log_likelihood(ours("causal"), ["5"])


def test_training_mode_is_restored():
    subject = ours("causal")
    subject.model.train()
    continuation_scores(subject, [([], [5])])
    assert subject.model.training
