"""The weights beside a card, with the text they were scored on; and the score measured again.

One safetensors file: the model's tensors, and as bytes the packed held-out text, so that a teacher needs nothing else. The
text has to have the hashes that the card's data stage named, which the run's id rests on; and the packed tokens have to be what
the tokenizer, which lies there too, makes of it, or an easier text could be scored under the hash of the contest's.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np
import xxhash

from cram.errors import CramError
from cram.insight.league.card import Card
from data_prep.errors import DataError
from data_prep.files import file_hash, replace_durably

FILE, MODEL = "file:", "model:"
TOKENIZER = "tokenizer.json"
TIED = "head.weight"  # where the model is tied, the embedding once more
SHAPE = ("depth", "window", "rope_base")
TOLERANCE = 1e-3  # relative: another device adds in another order
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}


def write_package(folder: Path, path: Path) -> dict[str, str]:
    """Write the weights and held-out text of the run in ``folder``; what the card says of the file."""
    import torch
    from safetensors.torch import save

    from cram.checkpoint import load_model
    model = load_model(folder / "pretrain")
    tensors = {MODEL + name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()
               if not (name == TIED and model.config.tied)}
    for source in [*held_out_files(folder / "data"), folder / "tokenizer" / TOKENIZER]:
        tensors[FILE + source.name] = torch.from_numpy(np.frombuffer(source.read_bytes(), dtype=np.uint8).copy())
    shape = json.dumps({name: getattr(model, name) for name in SHAPE} | {"vocab_size": model.vocab_size})
    replace_durably(path, content := save(tensors, metadata={"shape": shape}))
    return {"file": path.name, "sha256": hashlib.sha256(content).hexdigest()}


def held_out_files(folder: Path) -> Iterator[Path]:
    """What of the packed data a score rests on."""
    yield from sorted(path for path in folder.glob("validation*") if path.is_file())
    yield folder / "manifest.json"
    yield folder / "token_counts.npy"


def package_of(card: Card) -> Optional[Path]:
    """The package that a card names, where it lies beside it."""
    package = card.body["weights"].get("package")
    if not package:
        return None
    path = card.path.parent / Path(str(package["file"])).name  # beside the card, whatever path somebody wrote there
    return path if path.is_file() else None


def run_of(card: Card, runs: Path) -> Optional[Path]:
    """The run with the card's id among the folders in ``runs``."""
    for ledger in sorted(runs.glob("*/pretrain/ledger.jsonl")):
        with open(ledger, "rb") as file:
            first = file.readline()
        if f'"run_id": {json.dumps(card.body["run_id"])}'.encode() in first:
            return ledger.parents[1]
    return None


def rescore_package(card: Card, path: Path) -> Optional[list[str]]:
    """Score the weights in the package; reasons why the card's score is not theirs. None: an older package, without the
    tokenizer, of which nobody can say what text its tokens are."""
    from safetensors import SafetensorError, safe_open

    told = card.body["weights"]["package"]
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != told["sha256"]:
            return [f"{path.name}: not the weights that the card names (another sha256)"]
    listed = card.stages["data"]["files"] or {}
    try:
        with tempfile.TemporaryDirectory(prefix="cram-league-") as work, safe_open(path, "pt") as opened:
            shape = json.loads(opened.metadata()["shape"])
            if FILE + TOKENIZER not in opened.keys():
                return None
            for name in [name for name in opened.keys() if name.startswith(FILE)]:
                inside, content = name.removeprefix(FILE), opened.get_tensor(name).numpy().tobytes()
                if inside != TOKENIZER and xxhash.xxh3_128(content).hexdigest() != listed.get(inside, {}).get("xxh3_128"):
                    return [f"{path.name}: its {inside} is not the held-out text that the run's data names"]
                (Path(work) / Path(inside).name).write_bytes(content)
            model = _build(card, shape, {name.removeprefix(MODEL): opened.get_tensor(name) for name in opened.keys()
                                         if name.startswith(MODEL)})
            return other_text(card, Path(work), Path(work) / TOKENIZER) or differences(card, measure(card, model, Path(work)))
    except (SafetensorError, CramError, DataError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        return [f"{path.name}: not the weights and text of this run ({str(error).splitlines()[0]})"]


def rescore_run(card: Card, folder: Path) -> list[str]:
    """Score the newest checkpoint of the run in ``folder``; reasons why the card's score is not its."""
    from cram.checkpoint import load_model

    state = folder / "pretrain" / "checkpoints" / f"step-{card.body['weights']['step']:08d}" / "state.pt"
    if not state.is_file():
        return [f"{folder}: has no checkpoint of step {card.body['weights']['step']:,}"]
    with open(state, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != card.body["weights"]["sha256"]:
            return [f"{state}: not the weights that the card names (another sha256)"]
    listed = card.stages["data"]["files"] or {}
    for source in held_out_files(folder / "data"):
        if not source.is_file() or file_hash(source) != listed.get(source.name, {}).get("xxh3_128"):
            return [f"{source}: not the held-out text that the run's data names"]
    try:
        return (other_text(card, folder / "data", folder / "tokenizer" / TOKENIZER)
                or differences(card, measure(card, load_model(folder / "pretrain"), folder / "data")))
    except (CramError, DataError, OSError, KeyError, ValueError) as error:
        return [f"{folder}: cannot be scored again ({error})"]


def other_text(card: Card, data: Path, tokenizer: Path) -> list[str]:
    """Reasons why the packed tokens in ``data`` are not those of its ``validation.jsonl``, by the tokenizer in that file."""
    from tokenizers import Tokenizer

    from data_prep.encode import Encoder
    from data_prep.shards import Shards

    serialised, shards = tokenizer.read_bytes(), Shards(data, "validation", verify=True)
    named = {shards.manifest["tokenizer_sha256"], card.body["data"]["tokenizer_sha256"]}
    if named != {hashlib.sha256(serialised).hexdigest()}:
        return [f"{tokenizer.name}: not the tokenizer that card and data name (another sha256)"]
    loaded = Tokenizer.from_buffer(serialised)
    loaded.encode_special_tokens = True
    texts = [json.loads(line)["text"] for line in (data / "validation.jsonl").read_bytes().split(b"\n") if line]
    ids, counts = Encoder(loaded, "unigram").encode(texts)
    if len(texts) != shards.n_documents or [len(text.encode()) for text in texts] != shards.document_bytes.tolist():
        return ["its held-out text is not the one that its tokens were counted for"]
    ends = counts.cumsum()
    for number, (start, end) in enumerate(zip(ends - counts, ends)):
        if not np.array_equal(shards.read_document(number)[1:-1], ids[start:end]):  # without [CLS] and [SEP]
            return [f"the tokens of held-out document {number} are not what its tokenizer makes of the text"]
    return []


def measure(card: Card, model: Any, data: Path) -> dict[str, dict]:
    """{"score": held-out, "uniform": ..., ...} as the evaluate stage measures it, on the packed data in ``data``."""
    from cram.evaluate.baselines import compression_baselines, token_baselines
    from cram.evaluate.heldout import held_out_targets, score_heldout
    from cram.evaluate.subject import choose
    from data_prep.shards import Shards

    config, device, shards = card.config, choose("auto"), Shards(data, "validation", verify=True)
    ask = dict(mask_rate=config.evaluate.mask_rate, max_tokens=config.evaluate.tokens)
    found = score_heldout(model.to(device).eval(), shards, row=config.train.sequence_length, device=device,
                          batch_tokens=BATCH_TOKENS[device], hybrid=config.objective.type == "hybrid", **ask)
    targets = held_out_targets(shards, causal=model.causal, **ask)
    baselines = token_baselines(targets, shards, shards.token_counts(), causal=model.causal)
    if model.causal:
        baselines |= compression_baselines(targets, data / "validation.jsonl")
    return {"score": found} | baselines


def differences(card: Card, measured: dict[str, dict]) -> list[str]:
    """Where the card departs from what was measured by more than the tolerance."""
    told, reasons = {"score": card.scores["held_out"], **card.scores["baselines"]}, []
    for title, row in measured.items():
        for name in ("loss", "bits_per_byte", "masked_loss"):
            now, then = row.get(name), told.get(title, {}).get(name)
            if now is not None and (then is None or abs(now - then) > TOLERANCE * abs(now)):
                reasons.append(f"measured again: {title} {name.replace('_', ' ')} {now:.4f}, but the card says "
                               f"{'nothing' if then is None else f'{then:.4f}'}")
    return reasons


def _build(card: Card, shape: dict[str, Any], state: dict[str, Any]):
    from cram.insight.league.formula import counted
    from cram.model import build

    if shape["vocab_size"] != card.body["data"]["vocab_size"]:
        raise CramError("weights for another vocabulary than the card's")
    if sum(tensor.numel() for tensor in state.values()) < counted(card)[0]:  # before memory is taken for all of them
        raise CramError("fewer numbers than the configuration has parameters")
    model = build(card.config.model, shape["vocab_size"], card.config.objective.type != "masked")
    model.load_state_dict(state | ({TIED: state["embedding.weight"]} if card.config.model.tied else {}))
    for name in SHAPE:
        setattr(model, name, shape[name])
    return model
