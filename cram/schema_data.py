"""The keys of data preparation: ``data`` and ``tokenizer``. The other sections are in schema.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Optional


def key(default: Any, help: str) -> Any:
    """A dataclass field with its meaning attached (mutable defaults are copied)."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class Edits:
    """What changes the text of a document before it is judged; every line or mark removed is counted."""

    mojibake: bool = key(
        False, "repair text that was decoded with the wrong encoding (cafÃ© -> café); needs the extra 'web' (ftfy)")
    emails: bool = key(False, "replace e-mail addresses by email@example.com (as datatrove)")
    ips: bool = key(False, "replace public IPv4 addresses by 192.0.2.1, an address reserved for documentation (RFC 5737)")
    citations: bool = key(
        False, "remove Wikipedia's citation marks, as [1] and [citation needed] (C4, Raffel et al. 2020, section 2.2)")
    terminal_punctuation: bool = key(False, "keep only lines that end in . ? ! or a quotation mark, and not in '...' (C4)")
    min_line_words: Optional[int] = key(None, "remove lines of fewer words (C4: 3)")
    max_line_word_chars: Optional[int] = key(None, "remove lines with a longer word (C4: 1000)")
    javascript_lines: bool = key(False, "remove lines that mention 'javascript' (C4)")
    policy_lines: bool = key(False, "remove lines such as 'terms of use' or 'cookie policy' (C4)")
    url_lines: bool = key(
        False, "remove lines that are a web address and at most two more words (after RefinedWeb, Penedo et al. 2023)")
    counter_lines: bool = key(False, "remove lines such as '3 likes' or 'Read more' (RefinedWeb, Penedo et al. 2023, G.2)")
    max_line_uppercase: Optional[float] = key(
        None, "remove lines with a larger share of capitals among letters (RefinedWeb: 0.5)")
    max_line_digits: Optional[float] = key(
        None, "remove lines with a larger share of digits among non-space characters (RefinedWeb: all, as 0.999999)")


@dataclass
class Filters:
    """Rules that drop whole documents; null or false switches a rule off. The rule sets in configs/filters/ set all of them."""

    order: list[str] = key(
        [], "a document is counted under the first rule that drops it: these rules come first, in this order, then the "
        "others as listed here")
    min_chars: Optional[int] = key(200, "drop documents shorter than this many characters")
    max_chars: Optional[int] = key(1_000_000, "drop documents longer than this many characters")
    min_alpha_fraction: Optional[float] = key(
        0.5, "drop documents with a smaller share of alphabetic characters among non-space characters")
    max_word_length: Optional[int] = key(
        1000, "drop documents holding a longer run of non-space characters (C4, Raffel et al. 2020, section 2.2)")
    max_repeated_line_fraction: Optional[float] = key(
        0.3, "drop documents where a larger share of lines repeats an earlier line (Gopher, Rae et al. 2021, table A1)")
    placeholder_text: bool = key(True, "drop documents containing 'lorem ipsum' (C4, section 2.2)")
    curly_bracket: bool = key(False, "drop documents containing '{', likely code (C4)")
    min_sentences: Optional[int] = key(None, "drop documents with fewer sentences (C4: 5)")
    bad_words: Optional[str] = key(None, "file with one word or phrase a line: drop documents that contain one (C4)")
    max_replacement_fraction: Optional[float] = key(
        None, "drop documents with a larger share of U+FFFD, the mark of a broken encoding, among characters")
    languages: list[str] = key(
        [], "keep documents in these languages (ISO 639-1 codes, as en); [] keeps all; needs data.identify_language")
    min_language_probability: float = key(0.65, "least probability of the language (FineWeb: 0.65)")
    max_url_words: Optional[float] = key(
        None, "drop documents with a larger share of words that are web addresses (NeMo Curator: 0.2)")
    max_removed_words: Optional[float] = key(
        None, "drop documents of which data.edits removed a larger share of words (RefinedWeb: 0.05)")
    # Gopher quality: Rae et al. 2021, section A1.1
    min_words: Optional[int] = key(
        None, "drop documents with fewer words (of at least one character that is no punctuation; Gopher: 50)")
    max_words: Optional[int] = key(None, "drop documents with more such words (Gopher: 100,000)")
    min_mean_word_length: Optional[float] = key(
        None, "drop documents whose words are shorter on average, characters (Gopher: 3)")
    max_mean_word_length: Optional[float] = key(
        None, "drop documents whose words are longer on average, characters (Gopher: 10)")
    max_hash_ratio: Optional[float] = key(None, "drop documents with more '#' a word (Gopher: 0.1)")
    max_ellipsis_ratio: Optional[float] = key(None, "drop documents with more '...' and '…' a word (Gopher: 0.1)")
    max_bullet_lines: Optional[float] = key(
        None, "drop documents with a larger share of lines that begin with a bullet (Gopher: 0.9)")
    max_ellipsis_lines: Optional[float] = key(
        None, "drop documents with a larger share of lines that end in an ellipsis (Gopher: 0.3)")
    min_alpha_words: Optional[float] = key(None, "drop documents with a smaller share of words with a letter (Gopher: 0.8)")
    min_stop_words: Optional[int] = key(
        None, "drop documents with fewer different words of: the be to of and that have with (Gopher: 2)")
    # Gopher repetition: Rae et al. 2021, table A1
    max_duplicate_lines: Optional[float] = key(
        None, "drop documents with a larger share of lines that repeat an earlier one (Gopher: 0.3)")
    max_duplicate_paragraphs: Optional[float] = key(
        None, "drop: larger share of paragraphs that repeat an earlier one (Gopher: 0.3)")
    max_duplicate_line_chars: Optional[float] = key(None, "drop: larger share of characters in such lines (Gopher: 0.2)")
    max_duplicate_paragraph_chars: Optional[float] = key(
        None, "drop: larger share of characters in such paragraphs (Gopher: 0.2)")
    max_top_2gram_chars: Optional[float] = key(
        None, "drop: larger share of characters in the most frequent 2-gram of words (Gopher: 0.20)")
    max_top_3gram_chars: Optional[float] = key(None, "3-gram (Gopher: 0.18)")
    max_top_4gram_chars: Optional[float] = key(None, "4-gram (Gopher: 0.16)")
    max_duplicate_5gram_chars: Optional[float] = key(
        None, "drop: larger share of characters in 5-grams of words that repeat an earlier one (Gopher: 0.15)")
    max_duplicate_6gram_chars: Optional[float] = key(None, "6-grams (Gopher: 0.14)")
    max_duplicate_7gram_chars: Optional[float] = key(None, "7-grams (Gopher: 0.13)")
    max_duplicate_8gram_chars: Optional[float] = key(None, "8-grams (Gopher: 0.12)")
    max_duplicate_9gram_chars: Optional[float] = key(None, "9-grams (Gopher: 0.11)")
    max_duplicate_10gram_chars: Optional[float] = key(None, "10-grams (Gopher: 0.10)")
    # FineWeb: Penedo et al. 2024, section 3.6
    min_punctuated_lines: Optional[float] = key(
        None, "drop documents with a smaller share of lines that end in punctuation (FineWeb: 0.12)")
    max_short_lines: Optional[float] = key(
        None, "drop documents with a larger share of lines of at most 30 characters (FineWeb: 0.67)")
    max_duplicated_line_chars: Optional[float] = key(
        None, "drop: larger share of characters in duplicated lines, copies only (FineWeb: 0.1, in its code 0.01)")
    max_newline_ratio: Optional[float] = key(None, "drop documents with more newlines a word (FineWeb: 0.3)")
    max_contaminated_ngrams: Optional[int] = key(
        0, "drop documents that share more 13-grams of words with data.decontaminate (GPT-3, Brown et al. 2020, appendix C)")
    max_tokens_per_char: Optional[float] = key(
        None, "drop documents with more tokens per character than this (token compression, Geiping & Goldstein 2023, "
        "section 4.4: 0.25 to 0.3); decided after tokenization")


@dataclass
class NearDedup:
    """Near-duplicates: one-permutation MinHash (Li, Owen & Zhang 2012) with densification, bands, connected components."""

    mode: Literal["drop", "keep", "off"] = key(
        "drop", "drop: keep the first document of each cluster, in reading order; keep: keep all, on one side of the split; "
        "off")
    shingle_words: int = key(5, "words a shingle (FineWeb: 5)")
    bands: int = key(14, "bands of the signature; two documents are candidates when one band agrees")
    rows: int = key(
        8, "values a band: probability 1 - (1 - J^rows)^bands at Jaccard similarity J (FineWeb: 14 x 8, 0.92 at 0.8)")
    verify: Optional[float] = key(
        None, "ask for this Jaccard similarity of the shingles, of each candidate with the first and the previous one of its "
        "band; null: trust the bands")


@dataclass
class Data:
    """Where text comes from and how it becomes packed shards."""

    source: Literal["installed-docs", "files", "hub"] = key(
        "installed-docs", "installed-docs: docstrings of installed Python packages; files: local txt, jsonl or parquet "
        "(.gz .xz .zst); hub: a Hugging Face dataset (parquet or JSON)")
    packages: list[str] = key(
        ["torch", "numpy", "pandas", "networkx", "datasets", "huggingface_hub"],
        "installed-docs: import names of the packages to read")
    files: list[str] = key([], "files: paths or glob patterns, relative to the working directory, read in sorted order")
    dataset: Optional[str] = key(None, "hub: dataset id, e.g. HuggingFaceFW/fineweb-edu")
    subset: Optional[str] = key(None, "hub: configuration (subset) name, e.g. sample-10BT")
    split: str = key("train", "hub: split name")
    revision: Optional[str] = key(None, "hub: commit hash or tag, for a reproducible run")
    mirror: Optional[str] = key(
        None, "hub: folder laid out <dataset>/[<subset>/]<split>.jsonl[.xz|.gz|.zst] or .parquet; read instead of the network")
    licence: Optional[str] = key(
        None, "licence of the text, for the record; null: what the packages or the dataset on the hub state")
    text_field: str = key("text", "jsonl, parquet, hub: the column that holds the text")
    max_bytes: Optional[int] = key(None, "stop reading after this many bytes of text (UTF-8, before filters)")
    invalid_utf8: Literal["refuse", "replace", "cp1252"] = key(
        "refuse", "txt and jsonl: bytes that are no UTF-8 end the run with their place; replace: become U+FFFD; cp1252: "
        "their line is read as Windows-1252, the web's usual one-byte encoding")
    edits: Edits = field(default_factory=Edits)
    filters: Filters = field(default_factory=Filters)
    identify_language: bool = key(False, "measure the language of each document; needs the extra 'web' (py3langid)")
    exact_dedup: bool = key(True, "drop documents whose normalised text was seen before (128-bit xxh3)")
    near_dedup: NearDedup = field(default_factory=NearDedup)
    decontaminate: list[str] = key(
        [], "evaluation sets to keep out of the text: jsonl files, folders of them, or names in data.mirror, such as "
        "nyu-mll/blimp; every string in a row counts")
    validation_files: list[str] = key([], "hold out these files instead of a share of the documents; read like data.files")
    validation_fraction: float = key(0.01, "share of documents held out, chosen by document hash so it never moves")
    validation_max_bytes: int = key(
        2_000_000, "held-out text kept for evaluation, bytes; further held-out documents are dropped, never trained on")
    part_bytes: int = key(
        16_000_000, "text a part, bytes: what one process reads, measures and packs at a time; a part becomes a shard")
    packing: Literal["stream", "best-fit"] = key(
        "stream", "stream: documents end to end, rows cut through them; best-fit: documents fitted into rows of "
        "train.sequence_length, longer ones cut (Ding et al. 2024); padding under 0.5% where long documents can fill the "
        "gaps, the manifest says")
    engine: Literal["processes", "ray"] = key(
        "processes", "where parts are worked on: processes of this machine, or a Ray cluster (extra 'ray'; RAY_ADDRESS "
        "names it)")
    workers: Optional[int] = key(
        None, "processes; null: one a CPU core of this machine (ray: as many as the cluster has cores)")


@dataclass
class Tokenizer:
    """The vocabulary, trained on the training split only."""

    type: Literal["bpe", "wordpiece", "unigram"] = key(
        "bpe", "bpe: byte-level, lossless (GPT-2); wordpiece: BERT's, lower-cased, lossy; unigram: SentencePiece's (Kudo "
        "2018), lossy")
    vocab_size: int = key(
        32768, "vocabulary size with special tokens; up to 65,536 a token takes 2 bytes, above 4; multiple of 128 suits GPUs")
    sample_bytes: int = key(500_000_000, "train on at most this many bytes of text (pair counts are 32-bit: at most 10 GB)")
    min_frequency: int = key(2, "bpe, wordpiece: pairs rarer than this are never merged")
