"""Fine-tuning against one example at a time, and on rules that are there to be learned or not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from cram.errors import CramError
from cram.evaluate import finetune as tuning
from cram.evaluate import reading
from cram.evaluate.reading import Example, encode, shorten
from cram.evaluate.subject import Subject
from cram.model import build
from cram.ops import Documents
from cram.schema import Config
from cram.schema_after import Finetune

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
WORDS = [f"w{number}" for number in range(40)]


def make_subject(kind="masked", row=64, **model):
    words = [f"[{name.upper()}]" for name in SPECIAL] + WORDS
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = Config()
    config.model = replace(config.model, **{"layers": 1, "width": 32, "heads": 2, "zero_init": False, "init_std": 0.1, **model})
    config.objective.type = kind
    network = build(config.model, len(words), kind != "masked", seed=1).eval()
    return Subject("tiny", network, tokenizer, SPECIAL, kind, row, "cpu", {}, Path("."), config)


def sentence(rng, length):
    return " ".join(rng.choice(WORDS[1:], length))


def planted(n, seed, pairs=False):
    """Label 1 where the word w0 is somewhere; of a pair, in the second sentence."""
    rng, examples = np.random.default_rng(seed), []
    for _ in range(n):
        words = sentence(rng, rng.integers(3, 9)).split()
        label = int(rng.integers(2))
        if label:
            words[rng.integers(len(words))] = "w0"
        texts = (sentence(rng, 4), " ".join(words)) if pairs else (" ".join(words),)
        examples.append(Example((texts,), label))
    return examples


def learn(subject, examples, tests, classes=2, say=print, seed=0, random_init=False, **settings):
    settings = Finetune(**{"epochs": 5, "lr": 3e-3, "batch": 16, "length": 32, **settings})
    train, test = (encode(subject, some, settings.length) for some in (examples, tests))
    return tuning.finetune(subject, classes, train, {"": test}, settings, seed, say, random_init)[""]


def hit_rate(predictions, examples):
    return float(np.mean(predictions == [example.label for example in examples]))


@pytest.mark.parametrize("kind, pairs", [("masked", False), ("masked", True), ("causal", True), ("hybrid", False)])
def test_a_planted_rule_is_learned(kind, pairs):
    train, test = planted(400, 0, pairs), planted(200, 1, pairs)
    assert hit_rate(learn(make_subject(kind), train, test), test) > 0.9


def test_shuffled_labels_stay_at_chance():
    train, test = planted(400, 0), planted(400, 1)
    labels = np.random.default_rng(2).integers(0, 2, len(train))
    shuffled = [example._replace(label=int(label)) for example, label in zip(train, labels)]
    assert abs(hit_rate(learn(make_subject(), shuffled, test), test) - 0.5) < 0.15


def test_numbers_are_learned_in_their_own_unit():
    def lengths(n, seed):
        rng = np.random.default_rng(seed)
        counts = rng.integers(0, 6, n)
        return [Example(((" ".join(["w0"] * count + ["w1"] * (6 - count)),),), 100 + 10 * float(count)) for count in counts]

    test = lengths(100, 1)
    predicted = learn(make_subject(), lengths(300, 0), test, classes=0)
    assert predicted == pytest.approx([example.label for example in test], abs=8)


def test_one_of_several_sequences_is_chosen():
    def choices(n, seed):
        rng, examples = np.random.default_rng(seed), []
        for right in rng.integers(0, 3, n):
            texts = [(sentence(rng, 3), sentence(rng, rng.integers(2, 6))) for _ in range(3)]
            texts[right] = (texts[right][0], texts[right][1] + " w0")
            examples.append(Example(tuple(texts), int(right)))
        return examples

    test = choices(100, 1)
    assert hit_rate(learn(make_subject(), choices(300, 0), test, classes=3), test) > 0.9


def tuner_of(subject, examples, classes=2, **settings):
    settings = Finetune(**{"length": 32, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tuning.Tuner(subject, classes, encode(subject, examples, settings.length), settings, 0, print)


@pytest.mark.parametrize("kind", ["masked", "causal", "hybrid"])
@pytest.mark.parametrize("document_mask", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "token"])
def test_packed_equals_one_at_a_time_in_a_row_of_its_own(kind, document_mask, pooling):
    """Also for a model whose attention crosses documents: there the oracle is its own model, a row a sequence."""
    subject, examples = make_subject(kind, document_mask=document_mask), planted(20, 0, pairs=True)
    tuner = tuner_of(subject, examples, pooling=pooling)
    with torch.no_grad():
        together = tuner.outputs(tuner.train_set, np.arange(20))
        for number, ids in enumerate(tuner.train_set.sequences):
            alone = Documents.from_lengths([len(ids)])
            hidden = subject.model(torch.from_numpy(ids), alone, False if kind == "hybrid" else None)
            token = hidden[-1:] if kind == "causal" else hidden[:1]
            expected = tuner.head(hidden.mean(0, keepdim=True) if pooling == "mean" else token)[0]
            torch.testing.assert_close(together[number], expected, atol=1e-5, rtol=1e-5)
    assert len(set(map(len, tuner.train_set.sequences))) > 3  # ragged indeed


def test_predictions_come_back_in_order():
    subject, examples = make_subject(), planted(50, 0)
    tuner = tuner_of(subject, examples)
    tuner.head.classifier.weight.data.mul_(100)
    with torch.no_grad():
        one_by_one = [int(tuner.outputs(tuner.train_set, np.array([number])).argmax()) for number in range(50)]
    assert tuner.predict(tuner.train_set).tolist() == one_by_one and len(set(one_by_one)) == 2


def gradients(tuner, tokens):
    loss = tuner.accumulate(np.arange(len(tuner.train_set)), tokens)
    return loss, [p.grad.clone() for p in (*tuner.model.parameters(), *tuner.head.parameters()) if p.grad is not None]


@pytest.mark.parametrize("classes", [2, 0])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(classes):
    tuner = tuner_of(make_subject(), planted(16, 0), classes)
    whole, parts = gradients(tuner, 10_000), gradients(tuner, 20)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    for a, b in zip(whole[1], parts[1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_memory_that_runs_out_halves_the_pass_not_the_batch(monkeypatch):
    """Passes of more than 100 tokens fail: the same predictions come out as with passes of 100 from the start."""
    said, train = [], planted(48, 0)
    model_read, limit = reading.read, 100

    def scarce(model, sequences, *rest):
        if sum(map(len, sequences)) > limit:
            raise torch.OutOfMemoryError("no room")
        return model_read(model, sequences, *rest)

    monkeypatch.setattr(reading, "read", scarce)
    found = learn(make_subject(), train, train, epochs=1, say=said.append)
    assert [line for line in said if "64 tokens from now on" in line] and all("the batch stays" in line for line in said)
    monkeypatch.undo()
    monkeypatch.setitem(tuning.PASS_TOKENS, "cpu", 64)
    assert np.array_equal(found, learn(make_subject(), train, train, epochs=1))
    monkeypatch.setattr(reading, "read", scarce)
    limit = 5
    with pytest.raises(CramError, match="out of memory.*evaluate.finetune.length"):
        learn(make_subject(), train, train)


def test_same_seed_same_bits_and_the_subject_is_left_alone():
    subject, train = make_subject(), planted(48, 0)
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    raw = dict(classes=0, epochs=2)
    first, again, other = (learn(subject, train, train, seed=seed, **raw) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert torch.equal(state, torch.get_rng_state()) and not subject.model.training
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    assert all(parameter.grad is None for parameter in subject.model.parameters())
    assert subject.model.config == subject.config.model


def test_random_weights_are_those_of_an_untrained_model():
    subject = make_subject(document_mask=False)
    with torch.no_grad():
        subject.model.embedding.weight.zero_()  # "trained" to be useless
    fresh = tuning.learner(subject, 5, random_init=True)
    expected = build(subject.config.model, subject.model.vocab_size, False, 5)
    for a, b in zip(fresh.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.count_nonzero(tuning.learner(subject, 5).embedding.weight) == 0
    with pytest.raises(CramError, match="only a run.*evaluate.finetune.control=false"):
        tuning.learner(replace(subject, config=None), 0, random_init=True)


class Foreign(torch.nn.Module):
    """Somebody else's model behind the same call: a bag of embeddings with dropout, its parameters frozen."""

    def __init__(self):
        super().__init__()
        self.causal, self.vocab_size = False, len(WORDS) + 5
        self.table = torch.nn.Embedding(self.vocab_size, 24).half().requires_grad_(False)
        self.dropout = torch.nn.Dropout(0.1)

    def forward(self, ids_N, documents, causal=None):
        x_ND = self.dropout(self.table(ids_N))
        size = torch.unique_consecutive(documents.start_N, return_counts=True)[1].tolist()
        return torch.cat([part.cumsum(0).flip(0) for part in x_ND.split(size)])  # the first token holds the sum


def test_a_model_of_others_is_fine_tuned_too():
    subject = replace(make_subject(), model=Foreign().eval(), config=None)
    train, test = planted(400, 0), planted(200, 1)
    first = learn(subject, train, test, lr=1e-2)
    assert hit_rate(first, test) > 0.9
    assert np.array_equal(first, learn(subject, train, test, lr=1e-2))  # its dropout is seeded
    assert subject.model.table.weight.dtype == torch.float16 and not subject.model.table.weight.requires_grad


def test_a_loss_that_is_no_number_is_said():
    subject = make_subject()
    with torch.no_grad():
        subject.model.embedding.weight[5] = float("nan")
    with pytest.raises(CramError, match="the loss is nan at step 1 of 2; lower evaluate.finetune.lr"):
        learn(subject, [Example((("w0",),), 0)] * 20, planted(5, 0), epochs=1)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_rates_rise_fall_and_end_near_zero(monkeypatch, schedule):
    rates = []

    class Watched(torch.optim.SGD):
        def __init__(self, groups, lr, **rest):
            super().__init__(groups, lr=lr)

        def step(self):
            rates.append(self.param_groups[0]["lr"])

    monkeypatch.setattr(tuning.torch.optim, "AdamW", Watched)
    learn(make_subject(), planted(100, 0), planted(5, 0), epochs=2, batch=10, schedule=schedule, warmup=0.2, lr=1e-3)
    assert len(rates) == 20 and max(rates) == rates[4] and 0 < rates[-1] < 5e-5
    assert rates[:4] == sorted(rates[:4]) and rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[:4] == pytest.approx([1e-3 * (step + 0.5) / 4 for step in range(4)])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(), max_size=30), st.lists(st.integers(), max_size=30), st.integers(0, 40))
def test_the_longer_sentence_is_cut_first(a, b, room):
    left, right = list(a), list(b)
    while len(left) + len(right) > room:
        (left if len(left) > len(right) else right).pop()
    assert shorten(a, b, room) == (left, right)


def test_sequences_read_as_documented():
    subject = make_subject()
    examples = [Example((("w0 w1",),), 1), Example((("w2 w3 w4 w5 w6 w7", "w8"),), 0)]
    encoded = encode(subject, examples, 8)
    assert [ids.tolist() for ids in encoded.sequences] == [[2, 5, 6, 3], [2, 7, 8, 9, 10, 3, 13, 3]]
    assert (encoded.cut, encoded.ways, len(encoded)) == (1, 1, 2)


def test_median_and_spread_over_seeds(monkeypatch):
    values = iter([0.5, 0.9, 0.6, 0.7])
    monkeypatch.setattr(tuning, "finetune", lambda *arguments: {})
    measure = lambda found: {"accuracy": next(values)}  # noqa: E731
    result = tuning.over_seeds(None, 2, None, {}, Finetune(seeds=4), measure, "accuracy", print)
    assert (result["score"], result["low"], result["high"]) == (pytest.approx(0.65), 0.5, 0.9)
    assert result["metrics"]["accuracy"] == {"low": 0.5, "q1": pytest.approx(0.575), "median": pytest.approx(0.65),
                                             "q3": pytest.approx(0.75), "high": 0.9}
    assert [run["seed"] for run in result["runs"]] == [0, 1, 2, 3] and "4 seeds" in result["spread"]


@pytest.mark.parametrize("wrong, message", [
    ({"epochs": 6}, "epochs=6: .*no more than 5"), ({"epochs": 0}, "epochs=0"), ({"batch": 0}, "batch=0: must be at least 1"),
    ({"seeds": 0}, "seeds=0"), ({"lr": 0.0}, "lr=0.0: must be more than 0"), ({"warmup": 1.5}, "warmup=1.5"),
    ({"length": 3}, "length=3: must be at least 8"), ({"clip": -1.0}, "clip=-1.0"), ({"max_examples": 0}, "max_examples=0")])
def test_settings_that_cannot_be(wrong, message):
    with pytest.raises(CramError, match=f"evaluate.finetune.{message}"):
        tuning.refuse(Finetune(**wrong))
    tuning.refuse(Finetune())
