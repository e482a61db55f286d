"""Tiny random models of transformers with tokenizers of every kind, as subjects of our evaluation."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from cram.evaluate.subject import Subject

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ["The unhappy walkers were walking slowly towards the unwalkable mountains.",
         "Nobody's dog has ever barked; many cats haven't.", "Naïve café owners paid 12,345 euros - twice!",
         "A guardian angel. In my palm is a clear stone, and inside it is a small ivory statuette.",
         "Which piece of safety equipment is used to keep mold spores from entering the respiratory system?"]
IDS = {name.strip("[]").lower(): number for number, name in enumerate(SPECIAL)}


def byte_bpe(size=330):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tokenizer


def wordpiece(size=160):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIAL,
                                                                   show_progress=False))
    return tokenizer


def unigram(split=True, size=120):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=size, special_tokens=SPECIAL, unk_token="[UNK]",
                                                                 show_progress=False))
    return tokenizer


class Wrapped(torch.nn.Module):
    """One document at a time through the model itself; hidden states are its logits already."""

    def __init__(self, model, causal):
        super().__init__()
        self.model, self.causal, self.vocab_size = model, causal, model.config.vocab_size

    def forward(self, ids_N, documents, causal=None):
        start_N, end_N = documents.bounds(len(ids_N), ids_N.device)
        spans = sorted(set(zip(start_N.tolist(), end_N.tolist())))
        return torch.cat([self.model(input_ids=ids_N[None, start:end]).logits[0] for start, end in spans])

    def logits(self, x_PD):
        return x_PD.float()


def subject_of(model, tokenizer, kind, row, **notes):
    return Subject("tiny", Wrapped(model, kind == "causal").eval(), tokenizer, IDS, kind, row, "cpu", {}, Path("tiny"),
                   notes=notes)


def gpt2(row=48):
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = byte_bpe()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=tokenizer.get_vocab_size(), n_positions=row, n_embd=32, n_layer=2, n_head=2,
                                       initializer_range=0.3, bos_token_id=3, eos_token_id=3))
    return model, tokenizer


def bert(row=64):
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = wordpiece()
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2,
                                       num_attention_heads=2, intermediate_size=64, max_position_embeddings=row,
                                       initializer_range=0.3))
    return model, tokenizer
