"""Models of transformers behind our evaluation: the same log-probabilities as transformers itself gives."""

import copy
import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from cram.after.export import export
from cram.after.imported import open_imported
from cram.errors import CramError
from cram.evaluate.heldout import score_heldout
from cram.evaluate.scoring import continuation_scores, pseudo_log_likelihood
from cram.evaluate.subject import open_subject
from cram.ops import Documents
from data_prep.shards import Shards
from tests.cram.after.made_run import made_run, randomise

SIZES = dict(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
             max_position_embeddings=64)
BERT = dict(pad_token_id=0, bos_token_id=2, eos_token_id=3)
MODELS = {  # class of transformers, configuration, names of the special tokens
    "bert": ("BertForMaskedLM", SIZES | dict(pad_token_id=0), "masked"),
    "bert for pretraining": ("BertForPreTraining", SIZES | dict(pad_token_id=0), "masked"),
    "roberta": ("RobertaForMaskedLM", SIZES | BERT, "masked"),
    "distilbert": ("DistilBertForMaskedLM", dict(vocab_size=300, dim=32, n_layers=2, n_heads=4, hidden_dim=40,
                                                 max_position_embeddings=64, pad_token_id=0), "masked"),
    "modernbert": ("ModernBertForMaskedLM", SIZES | BERT | dict(cls_token_id=2, sep_token_id=3, local_attention=6,
                                                                num_hidden_layers=4), "masked"),
    "eurobert": ("EuroBertForMaskedLM", SIZES | BERT | dict(mask_token_id=4), "masked"),
    "gpt2": ("GPT2LMHeadModel", dict(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=3,
                                     eos_token_id=3), "gpt2"),
    "llama": ("LlamaForCausalLM", SIZES | BERT | dict(num_key_value_heads=2), "llama"),
    "qwen3": ("Qwen3ForCausalLM", SIZES | dict(num_key_value_heads=2, head_dim=8, eos_token_id=3), "qwen3"),
}
TOKENS = {"masked": dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"),
          "gpt2": dict(bos_token="[SEP]", eos_token="[SEP]", unk_token="[SEP]"),
          "llama": dict(bos_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]"),
          "qwen3": dict(eos_token="[SEP]", pad_token="[PAD]")}
SPECIAL = {"masked": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}, "gpt2": {"pad": 0, "unk": 3, "cls": 3, "sep": 3},
           "llama": {"pad": 0, "unk": 1, "cls": 2, "sep": 3}, "qwen3": {"pad": 0, "cls": 3, "sep": 3}}
TEXTS = ["the query of a row", "token", "head key value norm scale weight", "In a [MASK] row.", "of of of"]


@pytest.fixture
def saved(tmp_path, tiny):
    """``saved("bert") -> folder`` with a model of random weights and the tiny tokenizer, truncating and padding as some do."""
    def make(name, **changes):
        maker, sizes, tokens = MODELS[name]
        maker = getattr(transformers, maker)
        randomise(maker(maker.config_class(**sizes, **changes))).save_pretrained(tmp_path / name)
        stock = Tokenizer.from_file(str(tiny["tokenizer"] / "tokenizer.json"))
        stock.enable_truncation(8)
        stock.enable_padding(length=8)
        PreTrainedTokenizerFast(tokenizer_object=stock, **TOKENS[tokens]).save_pretrained(tmp_path / name)
        return tmp_path / name
    return make


def log_probabilities(subject, texts):
    if subject.kind == "causal":
        return continuation_scores(subject, [([], subject.encode(text)) for text in texts]).log_p
    return pseudo_log_likelihood(subject, texts, "original").log_p


@torch.no_grad()
def expected_scores(folder, subject, sentences):
    """Sums of log-probabilities by transformers alone, one sequence at a time, float64."""
    special, scores = subject.special, []
    auto = AutoModelForCausalLM if subject.kind == "causal" else AutoModelForMaskedLM
    model = auto.from_pretrained(folder, dtype=torch.float64).eval()
    for ids in sentences:
        total = 0.0
        if subject.kind == "causal":
            logits_NV = model(torch.tensor([[special["cls"], *ids]])).logits[0]
            total = logits_NV.log_softmax(1)[torch.arange(len(ids)), ids].sum().item()
        else:
            row = [special["cls"], *ids, special["sep"]]
            for place in range(1, len(row) - 1):
                masked = [*row[:place], special["mask"], *row[place + 1:]]
                total += model(torch.tensor([masked])).logits[0, place].log_softmax(0)[row[place]].item()
        scores.append(total)
    return scores


@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_are_those_of_transformers(saved, tiny, name):
    folder = saved(name)
    subject = open_subject(folder, device="cpu")
    assert subject.kind == ("masked" if MODELS[name][2] == "masked" else "causal")
    assert subject.model.causal == (subject.kind == "causal")
    assert subject.special == SPECIAL[MODELS[name][2]] and subject.row == (63 if name == "roberta" else 64)
    assert subject.notes.get("opening") == (None if subject.kind == "masked" else [])  # this tokenizer adds nothing
    assert subject.name == name and subject.config is None and subject.model.vocab_size == 300
    plain = Tokenizer.from_file(str(tiny["tokenizer"] / "tokenizer.json"))
    plain.encode_special_tokens = True
    sentences = [subject.encode(text) for text in TEXTS]
    assert sentences == [plain.encode(text, add_special_tokens=False).ids for text in TEXTS]  # neither cut nor padded
    found = log_probabilities(subject, TEXTS)
    assert found == pytest.approx(expected_scores(folder, subject, sentences), rel=1e-5, abs=1e-4)
    assert found.std() > 1


@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2", "llama"])
@torch.no_grad()
def test_a_ragged_stream_is_its_documents_one_by_one(saved, name):
    subject = open_imported(saved(name))
    ids_N = torch.randint(5, 300, (40,), generator=torch.Generator().manual_seed(0))
    start_N = torch.tensor([0] * 3 + [3] * 14 + [17] + [0] * 2 + [20] * 20, dtype=torch.int32)
    end_N = torch.tensor([3] * 3 + [17] * 14 + [18] + [0] * 2 + [40] * 20, dtype=torch.int32)
    packed_ND = subject.model(ids_N, Documents(start_N, end_N, 40))
    for begin, end in ((0, 3), (3, 17), (17, 18), (20, 40)):
        alone_ND = subject.model(ids_N[begin:end], Documents(None, None, end - begin))
        torch.testing.assert_close(packed_ND[begin:end], alone_ND, rtol=1e-4, atol=1e-5)
    assert packed_ND[18:20].abs().sum() == 0 and packed_ND.shape == (40, 32)  # tokens of no document
    rows_ND = subject.model(ids_N, Documents(None, None, 20))
    torch.testing.assert_close(rows_ND[20:], packed_ND[20:], rtol=1e-4, atol=1e-5)
    assert subject.model(ids_N[:2], Documents(start_N[18:20], end_N[18:20], 2)).abs().sum() == 0


@pytest.mark.parametrize("overrides", [("model.qk_norm=false", "model.bias=true"), ("objective.type=causal", "model.window=5")])
def test_an_exported_run_scores_as_the_run_does(tmp_path, tiny, small_config, overrides):
    run = made_run(tmp_path / "one", small_config(*overrides), tiny)
    export(run, tmp_path / "out", print)
    ours, theirs = open_subject(run, device="cpu"), open_subject(tmp_path / "out", device="cpu")
    assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]
    assert theirs.row == ours.row and theirs.special == {name: ours.special[name] for name in theirs.special}
    assert log_probabilities(theirs, TEXTS) == pytest.approx(log_probabilities(ours, TEXTS), rel=1e-5, abs=1e-4)
    shards = Shards(tiny["data"], "validation")
    ask = dict(row=32, mask_rate=0.15, max_tokens=1000, batch_tokens=256, device="cpu")
    assert score_heldout(theirs.model, shards, **ask) == pytest.approx(score_heldout(ours.model, shards, **ask), rel=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_copy_learns_and_the_original_stays(saved, name):
    model = open_imported(saved(name)).model
    twin, ids_N = copy.deepcopy(model), torch.arange(10, 20)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert len(list(twin.parameters())) == len({id(each) for each in twin.parameters()}) > 10
    assert twin.parameter_count() == model.parameter_count()
    twin.train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin.logits(twin(ids_N, Documents.from_lengths([4, 6]))).square().mean().backward()
    assert sum(parameter.grad is None for parameter in twin.parameters()) <= 2  # BERT's bias beside the layer's own
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not torch.equal(twin.head.weight, model.head.weight)
    assert not model.training and twin.training


def test_the_identity_follows_the_weights_and_the_tokenizer(saved, tmp_path):
    first = open_imported(saved("bert")).identity
    assert open_imported(tmp_path / "bert").identity == first
    other = saved("bert", layer_norm_eps=1e-5)
    model = AutoModelForMaskedLM.from_pretrained(other)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias[0] += 1e-3
    model.save_pretrained(other)
    changed = open_imported(other).identity
    assert changed["weights"] != first["weights"] and changed["tokenizer"] == first["tokenizer"]


@pytest.mark.parametrize("name, message", [("bert", "masked model cannot be asked as a causal one"),
                                           ("gpt2", "causal model cannot be asked as a masked one")])
def test_a_model_is_asked_for_what_it_is(saved, name, message):
    model = open_imported(saved(name)).model
    with pytest.raises(CramError, match=message):
        model(torch.arange(5), Documents(None, None, 5), causal=not model.causal)
    with pytest.raises(CramError, match="a document of 65 tokens is more than the 64 that this model can read"):
        model(torch.arange(65), Documents(None, None, 65))


def test_a_model_without_its_head_is_refused(saved):
    folder = saved("bert")
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained(folder)
    with pytest.raises(CramError, match="BertModel is no masked or causal language model"):
        open_imported(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(CramError, match="are not in the file, so they would be random"):
        open_imported(folder)


def test_logits_changed_behind_the_last_layer_are_refused(saved):
    folder = saved("llama")
    sizes = SIZES | BERT | dict(head_dim=8, num_key_value_heads=2, final_logit_softcapping=5.0)
    randomise(transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**sizes))).save_pretrained(folder)
    with pytest.raises(CramError, match="Gemma2ForCausalLM changes its logits behind the last linear layer"):
        open_imported(folder)


def test_what_a_configuration_claims_of_sight_is_tried(saved):
    folder = saved("bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertLMHeadModel"]}))  # is_decoder still false
    with pytest.raises(CramError, match="BertLMHeadModel sees what comes later, which is not what a causal model does"):
        open_imported(folder)
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertLMHeadModel"], "is_decoder": True}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **TOKENS["llama"]}))
    assert open_imported(folder).kind == "causal"


def test_what_the_tokenizer_puts_before_a_text_is_noted(saved, tiny):
    folder = saved("llama")
    stock = Tokenizer.from_file(str(tiny["tokenizer"] / "tokenizer.json"))
    stock.post_processor = TemplateProcessing(single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", 2)])
    PreTrainedTokenizerFast(tokenizer_object=stock, **TOKENS["llama"]).save_pretrained(folder)
    subject = open_imported(folder)
    assert subject.notes == {"opening": [2]} and subject.encode("row") == stock.encode("row").ids[1:]


def test_an_encoder_decoder_is_refused(saved):
    folder = saved("bert")
    config = transformers.T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    with pytest.raises(CramError, match="T5ForConditionalGeneration is no masked or causal language model of one stack"):
        open_imported(folder)


def test_a_masked_model_whose_tokenizer_has_no_mask_is_refused(saved):
    folder = saved("bert")
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "cls_token": "[CLS]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    with pytest.raises(CramError, match="the tokenizer of this masked model has no sep and no mask token"):
        open_imported(folder)


@pytest.mark.parametrize("damage, message", [
    (lambda folder: (folder / "config.json").write_text("{"), "transformers cannot load it"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), "transformers cannot load it"),
    (lambda folder: (folder / "model.safetensors").unlink(), "transformers cannot load it"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "transformers cannot load it"),
    (lambda folder: (folder / "config.json").write_text('{"model_type": "none such"}'), "transformers cannot load it")])
def test_a_damaged_folder_is_one_line(saved, damage, message):
    folder = saved("bert")
    damage(folder)
    with pytest.raises(CramError, match=message) as error:
        open_imported(folder)
    assert "\n" not in str(error.value)


def test_a_name_that_the_hub_does_not_have_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CramError, match="nobody/nothing-of-this-name: transformers cannot load it"):
        open_subject("hf:nobody/nothing-of-this-name", device="cpu")


def test_without_transformers_the_extra_is_named(saved, monkeypatch):
    folder = saved("bert")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CramError, match=r"pip install 'cram-lm\[eval\]'"):
        open_imported(folder)
