"""How good is a tokenizer? Compression by domain beside other tokenizers, and what its vocabulary is used for.

More bytes per token means shorter sequences and a longer reach for the same cost, but says nothing of the model's loss:
compare losses in bits per byte (Karpathy's nanochat does both). Two references need no file: ``bytes``, a token for
each byte, and ``words``, a token for each piece of GPT-4's pattern, the most that merges within words can reach.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Optional, Sequence, Union

import numpy as np
from tokenizers import Regex, Tokenizer, pre_tokenizers

from data_prep.artifact import read_manifest
from data_prep.domains import samples
from data_prep.encode import Encoder
from data_prep.errors import DataError
from data_prep.funnel import utf8_bytes
from data_prep.text import read_split
from data_prep.tokenizer import load_tokenizer
from data_prep.vocabulary import SPECIAL_TOKENS, WORDS

HELD_OUT = "held out"
BATCH = 1024                        # documents encoded at a time
RARE = 10                           # a token seen less often has learnt little
LONGEST = 20                        # tokens listed
MULTIPLE = 128                      # matrix sizes that tensor cores like
WORD = re.compile(r"[^\W\d_]+")


class Candidate(NamedTuple):
    """A tokenizer under comparison. encode: texts -> (ids, tokens of each document)."""

    tokenizer: Tokenizer
    encode: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
    unknown: Optional[int]


def evaluate(tokenizer_dir: Path, text_dir: Path, domains: Optional[Mapping[str, Union[Path, Sequence[str]]]] = None,
             references: Iterable[Path] = (), max_bytes: int = 20_000_000) -> dict[str, Any]:
    """Plain values for the page and for ``to_markdown``.

    domains: name -> a .txt file (one document), a .jsonl file (column ``text``) or a list of texts; the held-out split
    and the samples of domains.py come first. references: ``tokenizer.json`` files of Hugging Face.
    max_bytes: training text on which the use of the vocabulary is counted; a tenth of it is read of the held-out split.
    Raises DataError for files that cannot be read, empty domains and names used twice.
    """
    manifest = read_manifest(Path(tokenizer_dir), "tokenizer", ("type", "vocab_size", "lossless"))
    own = load_tokenizer(tokenizer_dir)
    candidates = {"this": _candidate(own, manifest["type"])}
    references = [Path(path) for path in references]
    for name, path in zip(names_of(references), references):
        _add(candidates, name, _candidate(_read_tokenizer(path), "unigram"))
    texts: dict[str, Sequence[str]] = {HELD_OUT: list(_first_documents(text_dir, "validation", max_bytes // 10)), **samples()}
    for name, source in (domains or {}).items():
        _add(texts, name, read_domain(source) if isinstance(source, (str, Path)) else list(source))
    return {"type": manifest["type"], "vocab_size": manifest["vocab_size"], "lossless": manifest["lossless"],
            "tokenizers": [*candidates, "bytes", "words"],
            "domains": [_compare(name, documents, candidates) for name, documents in texts.items()],
            "vocabulary": _vocabulary(candidates["this"], _first_documents(text_dir, "train", max_bytes))}


def read_domain(path: Union[str, Path]) -> list[str]:
    """The documents of a .txt or .jsonl file; DataError when it is neither, unreadable, or a line has no text."""
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if path.suffix == ".txt":
        return [content]
    if path.suffix != ".jsonl":
        raise DataError(f"{path}: a domain is a .txt or a .jsonl file")
    return [_text_of_line(path, number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]


def _text_of_line(path: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}: line {number} is no JSON ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DataError(f'{path}: line {number} has no string in column "text"')
    return row["text"]


def _first_documents(text_dir: Path, split: str, max_bytes: int) -> Iterable[str]:
    """Documents of a split until ``max_bytes`` are reached."""
    size = 0
    for batch in read_split(text_dir, split):
        for text in batch.column("text").to_pylist():
            yield text
            size += utf8_bytes(text)
            if size >= max_bytes:
                return


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); references are paths of tokenizer.json files") from None
    except ValueError as error:
        raise DataError(f"{path}: no tokenizer of Hugging Face ({str(error).splitlines()[0]})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def names_of(paths: Sequence[Path]) -> list[str]:
    """llama for llama.json, and for llama/tokenizer.json; with folders before it until no other reference is named so."""
    taken = [("this",), ("bytes",), ("words",), *map(_steps, paths)]
    return ["/".join(_shortest(steps, taken[:index] + taken[index + 1:])) for index, steps in enumerate(taken)][3:]


def _steps(path: Path) -> tuple[str, ...]:
    """The folders down to a reference, and what it is called."""
    path = Path(os.path.abspath(path))
    return path.parts[1:-1] if path.stem == "tokenizer" and len(path.parts) > 2 else (*path.parts[1:-1], path.stem)


def _shortest(steps: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The shortest end of ``steps`` that no other ends with; all of them where there is none."""
    ends = (steps[-length:] for length in range(1, len(steps)))
    return next((end for end in ends if all(other[-len(end):] != end for other in others)), steps)


def _add(named: dict[str, Any], name: str, value: Any) -> None:
    if name in named or name in ("bytes", "words"):
        raise DataError(f"{name}: two domains or two tokenizers have this name; rename the file")
    named[name] = value


def _candidate(tokenizer: Tokenizer, kind: str) -> Candidate:
    model = json.loads(tokenizer.to_str())["model"]
    unknown = model.get("unk_id")
    if model.get("unk_token"):
        unknown = tokenizer.token_to_id(model["unk_token"])
    return Candidate(tokenizer, Encoder(tokenizer, kind).encode, unknown)


# ---- one domain


def _compare(domain: str, texts: Sequence[str], candidates: Mapping[str, Candidate]) -> dict[str, Any]:
    size = sum(map(utf8_bytes, texts))
    if not size:
        raise DataError(f"{domain}: this domain has no text")
    words = [word for text in texts for word in WORD.findall(text)]
    rows = {name: _measure(candidate, texts, words, size) for name, candidate in candidates.items()}
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    pieces = sum(len(split.pre_tokenize_str(text)) for text in texts)
    rows["bytes"] = {"tokens": size, "bytes_per_token": 1.0}
    rows["words"] = {"tokens": pieces, "bytes_per_token": size / pieces}
    return {"name": domain, "documents": len(texts), "bytes": size, "words": len(words), "by_tokenizer": rows}


def _measure(candidate: Candidate, texts: Sequence[str], words: Sequence[str], size: int) -> dict[str, Any]:
    """Of one tokenizer on one domain; shares lie between 0 and 1, ``whole_words`` is None without words."""
    ids, counts = candidate.encode(texts)
    documents = np.split(ids, np.cumsum(counts)[:-1])
    same = sum(candidate.tokenizer.decode(document.tolist(), skip_special_tokens=False) == text
               for document, text in zip(documents, texts))
    whole = candidate.encode([f" {word}" for word in words])[1] == 1
    return {"tokens": len(ids), "bytes_per_token": size / max(len(ids), 1), "round_trip": same / len(texts),
            "unknown": 0.0 if candidate.unknown is None else float(np.sum(ids == candidate.unknown) / max(len(ids), 1)),
            "whole_words": float(np.mean(whole)) if words else None}


# ---- the vocabulary


def _vocabulary(candidate: Candidate, documents: Iterable[str]) -> dict[str, Any]:
    """How often each token occurs in training text. Special tokens, which text never gives, are left out."""
    size = candidate.tokenizer.get_vocab_size()
    seen = np.zeros(size, np.int64)
    for batch in _batches(documents):
        seen += np.bincount(candidate.encode(batch)[0], minlength=size)
    first = len(SPECIAL_TOKENS)
    seen_tokens = seen[first:]
    names = {number: candidate.tokenizer.decode([number], skip_special_tokens=False) for number in range(first, size)}
    longest = sorted(names, key=lambda number: (-len(names[number]), number))[:LONGEST]
    padded = -(-size // MULTIPLE) * MULTIPLE
    return {"tokens_counted": int(seen.sum()),
            "used": int(np.sum(seen_tokens > 0)), "used_share": float(np.mean(seen_tokens > 0)),
            "rare": int(np.sum(seen_tokens < RARE)), "rare_share": float(np.mean(seen_tokens < RARE)), "rare_below": RARE,
            "longest": [{"token": names[number], "id": number, "seen": int(seen[number])} for number in longest],
            "multiple": MULTIPLE, "padded_size": padded, "padding_rows": padded - size}


def _batches(documents: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


# ---- as text


def to_markdown(report: Mapping[str, Any]) -> str:
    """Tables of the report, for the terminal and for a file."""
    names, domains, use = report["tokenizers"], report["domains"], report["vocabulary"]
    lines = [f"# Tokenizer: {report['type']}, {report['vocab_size']:,} tokens", "", "Bytes per token (more is shorter):", "",
             *_table(["domain", "kB", *names],
                     [[row["name"], f"{row['bytes'] / 1e3:,.1f}",
                       *(_compression(row["by_tokenizer"][name]) for name in names)] for row in domains]),
             "", "\\* over 1% of the tokens are unknown: that text is lost, not compressed.",
             "", "This tokenizer:", "",
             *_table(["domain", "words kept whole", "unknown", "documents that come back unchanged"],
                     [[row["name"], *(_percent(row["by_tokenizer"]["this"][key])
                                      for key in ("whole_words", "unknown", "round_trip"))] for row in domains]),
             "", f"Vocabulary, over {use['tokens_counted']:,} tokens of training text:", "",
             f"* used: {use['used']:,} ({_percent(use['used_share'])}); seen fewer than {use['rare_below']} times: "
             f"{use['rare']:,} ({_percent(use['rare_share'])})",
             f"* size: {report['vocab_size']:,}, " + (
                 f"a multiple of {use['multiple']}" if not use["padding_rows"] else
                 f"no multiple of {use['multiple']}: {use['padding_rows']} rows short of {use['padded_size']:,}"),
             "* longest tokens: " + ", ".join(f"`{json.dumps(entry['token'], ensure_ascii=False)}`"
                                              for entry in use["longest"])]
    return "\n".join(lines) + "\n"


def _compression(row: Mapping[str, Any]) -> str:
    return f"{row['bytes_per_token']:.2f}" + "*" * (row.get("unknown", 0) > 0.01)


def _percent(share: Optional[float]) -> str:
    return "-" if share is None else f"{100 * share:.2f}%"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
