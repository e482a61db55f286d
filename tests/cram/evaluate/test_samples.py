"""Generated text and filled blanks, with a real byte-level tokenizer and models made to order."""

import pytest
import tokenizers
import torch

from cram import schema
from cram.errors import CramError
from cram.evaluate.samples import encode_blanks, fill_blanks, generate, one_sample

TEXT = ["Returns the number of the array.", "Returns the name of the array.", "If True, the copy is returned."] * 4
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def bpe():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXT, tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL_TOKENS, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.encode_special_tokens = True
    return tokenizer


class Says(torch.nn.Module):
    """Hidden state: the position; logits: the given scores at that position."""

    causal = True

    def __init__(self, scores_NV):
        super().__init__()
        self.scores_NV, self.vocab_size = scores_NV, scores_NV.shape[1]

    def forward(self, ids_N, documents, causal=None):
        self.seen_causal = self.causal if causal is None else causal
        assert documents.row == len(ids_N)
        return torch.arange(len(ids_N))[:, None]

    def logits(self, x_PD):
        return self.scores_NV[x_PD[:, 0]]


def script(tokenizer, ids, at):
    scores = torch.zeros(64, tokenizer.get_vocab_size())
    for i, token in enumerate(ids):
        scores[at + i, token] = 9.0
    return scores


def test_greedy_follows_the_likeliest_token_and_stops_at_sep(bpe):
    prompt, more = "Returns the", bpe.encode(" number of").ids
    length = len(bpe.encode(prompt).ids)
    scores = script(bpe, [*more, 3], at=length)
    scores[:, :3] = scores[:, 4] = 99.0  # [PAD] [UNK] [CLS] [MASK] are never said
    assert generate(Says(scores), bpe, prompt, tokens=20, temperature=0) == "Returns the number of"
    assert generate(Says(scores), bpe, prompt, tokens=1, temperature=0) == "Returns the number"


def test_temperature_is_seeded_and_leaves_the_global_generator_alone(bpe):
    model = Says(torch.zeros(64, bpe.get_vocab_size()))
    before = torch.get_rng_state()
    texts = [generate(model, bpe, "If", tokens=20, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2] and texts[0].startswith("If")
    assert torch.equal(before, torch.get_rng_state())


def test_a_low_temperature_is_nearly_greedy(bpe):
    scores = torch.linspace(0, 5, bpe.get_vocab_size()).repeat(64, 1)
    greedy = generate(Says(scores), bpe, "If", tokens=5, temperature=0)
    assert generate(Says(scores), bpe, "If", tokens=5, temperature=1e-4) == greedy


def test_mask_stands_for_a_word_with_the_space_before_it(bpe):
    whole = [2, *bpe.encode("Returns the number of the array.").ids, 3]
    blank = encode_blanks(bpe, "Returns the [MASK] of the array.")
    number = bpe.token_to_id("Ġnumber")
    assert number is not None
    assert blank == [4 if token == number else token for token in whole]  # nothing but that one token differs
    assert encode_blanks(bpe, "[MASK] the")[:2] == [2, 4]
    assert encode_blanks(bpe, "re[MASK]") == [2, *bpe.encode("re").ids, 4, 3]
    assert encode_blanks(bpe, "the [MASK] [MASK].").count(4) == 2


def test_wordpiece_blanks():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXT, tokenizers.trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=SPECIAL_TOKENS))
    whole = [2, *tokenizer.encode("Returns the number of").ids, 3]
    blank = encode_blanks(tokenizer, "Returns the [MASK] of")
    assert blank == [4 if token == tokenizer.token_to_id("number") else token for token in whole]


@pytest.mark.parametrize("hybrid", [False, True])
def test_blanks_are_filled_with_the_likeliest_ordinary_tokens(bpe, hybrid):
    """From both sides; a hybrid model, which is built causal, says a token at the position before it."""
    sentence = "Returns the [MASK] of"
    at = encode_blanks(bpe, sentence).index(4) - hybrid
    scores = torch.zeros(64, bpe.get_vocab_size())
    number, name = bpe.token_to_id("Ġnumber"), bpe.token_to_id("Ġname")
    scores[at, number], scores[at, name], scores[at, 4] = 9.0, 8.0, 10.0
    model = Says(scores)
    model.causal = hybrid
    [filled] = fill_blanks(model, bpe, sentence, top=2)
    assert model.seen_causal is False
    probabilities = scores[at].softmax(0)
    assert [choice["token"] for choice in filled] == [" number", " name"]
    assert [choice["probability"] for choice in filled] == pytest.approx(probabilities[[number, name]].tolist())


def test_nothing_to_fill_is_an_error(bpe):
    with pytest.raises(CramError, match=r"evaluate.blanks: 'no gap' has no \[MASK\]"):
        encode_blanks(bpe, "no gap")


def test_one_sample_for_the_middle_of_a_run(bpe):
    evaluate = schema.Evaluate(prompts=["If True, the"], blanks=["If True, the [MASK] is"])
    scores = script(bpe, [*bpe.encode(" copy").ids, 3], at=len(bpe.encode("If True, the").ids))
    assert one_sample(Says(scores), bpe, evaluate) == "If True, the copy"
    masked = Says(torch.zeros(64, bpe.get_vocab_size()))
    masked.causal = False
    masked.scores_NV[:, bpe.token_to_id("Ġcopy")] = 9.0
    assert one_sample(masked, bpe, evaluate).startswith("If True, the [MASK] is  ->  ' copy', ")
    for model in (Says(scores), masked):
        assert one_sample(model, bpe, schema.Evaluate(prompts=[], blanks=[])) is None
