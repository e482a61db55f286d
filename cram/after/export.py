"""A run as a folder that transformers loads without our code: weights, tokenizer, generation defaults, model card.

The folder is written under another name, read back, compared with the run, and only then gets its own: it is there whole
and right, or not at all.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import torch
from torch import Tensor

from cram.after.architectures import Target, as_run, target
from cram.after.hf_tokenizer import stock_tokenizer
from cram.after.imported import need_transformers, quiet
from cram.after.model_card import model_card
from cram.errors import CramError
from cram.evaluate.samples import encode_blanks
from cram.evaluate.subject import Subject, open_subject
from cram.ops import Documents
from data_prep.files import replace_durably, sync
from data_prep.shards import Shards

TOLERANCE = 1e-5  # of logits, absolute up to 1, beyond it relative to the largest: what float32 leaves of equality
DTYPES = ("float32", "bfloat16", "float16")


def export(run_folder: Path, out: Path, say: Callable[[str], None], *, dtype: str = "float32", force: bool = False) -> Target:
    """Write the run as a folder for ``AutoModelForMaskedLM`` or ``AutoModelForCausalLM``. Returns the class it is for.

    A hybrid run is exported as the causal model that it also is. dtype: of the stored weights. force: replace an export
    that is there. Raises CramError when the model is none that a stock class computes (with all that is in the way), when
    the folder is there, or when what was written is not what the run computes.
    """
    need_transformers()
    subject = open_subject(run_folder, device="cpu", say=say)
    if subject.config is None:
        raise CramError(f"{run_folder}: is a Hugging Face model already; give a run's folder, such as runs/demo")
    if "scheme" in subject.notes:
        raise CramError(f"{run_folder}: is quantized; export the run that it was made from")
    if "unfinished" in subject.notes:
        raise CramError(f"{run_folder}: this run is not finished ({subject.notes['unfinished']} spent); the command that made "
                        "it resumes it")
    causal = subject.kind != "masked"
    chosen = target(as_run(subject.model, subject.row), causal)
    _refuse_existing(out, force)
    if subject.kind == "hybrid":
        say(f"{subject.name} is hybrid: exported is the CAUSAL model that it is; no stock class predicts a hidden token at the "
            "position before it, so its masked half stays here")
    temporary = out.parent / f".{out.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed while it wrote
    temporary.mkdir(parents=True)
    try:
        with quiet():
            error = _write(subject, chosen, temporary, dtype)
        for path in sorted(temporary.rglob("*")):
            sync(path)
        sync(temporary)
        _rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = sum(path.stat().st_size for path in out.iterdir())
    say(f"{out}: {chosen.name}, {size / 1e6:.1f} MB in {dtype}; logits within {error:.1e} of the run's" + (
        "" if dtype == "float32" else f", of what {dtype} makes of its weights"))
    return chosen


def stock_model(subject: Subject, chosen: Target) -> Any:
    """The run's model as an instance of the stock class, float32, in evaluation mode."""
    import transformers

    special, causal = subject.special, subject.kind != "masked"
    ids = {"pad_token_id": special["pad"], "bos_token_id": special["cls"], "eos_token_id": special["sep"]}
    if not causal:
        ids |= {"cls_token_id": special["cls"], "sep_token_id": special["sep"], "mask_token_id": special["mask"]}
    maker = getattr(transformers, chosen.name, None)
    if maker is None:
        raise CramError(f"transformers {transformers.__version__} has no {chosen.name}, which this model exports to; a newer "
                        "one has: pip install -U 'cram-lm[eval]'")
    config = maker.config_class(**chosen.settings(subject.model, subject.row), **ids)
    model = maker(config).eval()
    with torch.no_grad():
        weights = chosen.weights(subject.model, subject.row)
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    if causal:
        never = sorted(special[name] for name in ("pad", "unk", "cls", "mask"))
        model.generation_config = transformers.GenerationConfig(
            pad_token_id=special["pad"], bos_token_id=special["cls"], eos_token_id=special["sep"], suppress_tokens=never)
    return model


@torch.no_grad()
def difference(ours: Callable[[list[int]], Tensor], theirs: Any, rows: list[list[int]], pad: int) -> float:
    """Largest difference of logits over rows of token ids, in a batch padded on the right and one by one; of logits beyond 1
    relative to the largest. ours(ids): logits [N, V] of one row. theirs: a model of transformers."""
    longest, shares = max(map(len, rows)), [0.0]
    ids_BT = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    seen_BT = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
    batch_BTV = theirs(input_ids=ids_BT, attention_mask=seen_BT.long()).logits.float()
    for row, padded_TV in zip(rows, batch_BTV):
        expected_NV = ours(row)
        for found_NV in (padded_TV[:len(row)], theirs(input_ids=torch.tensor([row])).logits[0].float()):
            share = float((found_NV - expected_NV).abs().max()) / max(1.0, float(expected_NV.abs().max()))
            shares.append(share if math.isfinite(share) else math.inf)
    return max(shares)


def _write(subject: Subject, chosen: Target, folder: Path, dtype: str) -> float:
    """Fill the folder and read it again. Returns the largest difference of logits; CramError when it is too large."""
    import transformers

    causal, rows, pad = subject.kind != "masked", probe(subject), subject.special["pad"]

    def ours(ids: list[int]) -> Tensor:
        return subject.model.logits(subject.model(torch.tensor(ids), Documents(None, None, len(ids))))

    model = stock_model(subject, chosen)
    mapped = difference(ours, model, rows, pad)
    _cast(model, getattr(torch, dtype)).save_pretrained(folder)
    for path in folder.glob("*.safetensors"):  # written for the owner alone
        path.chmod((folder / "config.json").stat().st_mode)
    stock_tokenizer(subject.tokenizer, subject.row, causal).save_pretrained(folder)
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
    again = auto.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    _cast(model, torch.float32)
    error = max(mapped, difference(lambda ids: model(input_ids=torch.tensor([ids])).logits[0], again, rows, pad))
    if type(again).__name__ != chosen.name or not error <= TOLERANCE:
        raise CramError(f"{subject.folder}: exported as {chosen.name}, the logits differ by {error:.1e}, more than "
                        f"{TOLERANCE:.0e}; nothing was written" + (
                            "; its head normalises twice, which a model.norm_eps below 1e-6 makes harmless"
                            if chosen.name.startswith("ModernBert") else ""))
    _check_tokenizer(subject, transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True), causal)
    replace_durably(folder / "README.md", model_card(subject, chosen.name, dtype).encode())
    return error


def _cast(model: Any, dtype: torch.dtype) -> Any:
    """The model with its weights in ``dtype``. Its buffers, the rotary frequencies, stay float32, as they do in loading."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def probe(subject: Subject) -> list[list[int]]:
    """Rows of token ids to compare models on: of the held-out text where it is there, else drawn at random; of three lengths,
    the longest a whole row. Some tokens are hidden where the model is a masked one."""
    lengths = [subject.row, max(1, subject.row * 2 // 3), max(1, subject.row // 7)]
    generator = np.random.default_rng(0)
    stream: Optional[np.ndarray] = None
    if (subject.folder / "data" / "manifest.json").exists():
        shards = Shards(subject.folder / "data", "validation")
        if shards.n_tokens >= sum(lengths):
            stream = np.array(shards.read(0, sum(lengths)), np.int64)
    if stream is None:
        stream = generator.integers(0, subject.model.vocab_size, sum(lengths))
    if subject.kind == "masked":
        stream[generator.random(len(stream)) < 0.15] = subject.special["mask"]
    rows = [piece.tolist() for piece in np.split(stream, np.cumsum(lengths)[:-1])]
    return [[subject.special["cls"], *row[1:]] for row in rows]


def _check_tokenizer(subject: Subject, stock: Any, causal: bool) -> None:
    """The texts of the configuration must become the ids that they are here."""
    texts = subject.config.evaluate.prompts if causal else subject.config.evaluate.blanks
    for text in texts:
        expected = [subject.special["cls"], *subject.encode(text)] if causal else encode_blanks(subject.tokenizer, text)
        if stock(text).input_ids != expected:
            raise CramError(f"{subject.folder / 'tokenizer'}: transformers reads {text!r} as {stock(text).input_ids}, not as "
                            f"{expected}; nothing was written. Another version of transformers may help")


def _refuse_existing(out: Path, force: bool) -> None:
    if not out.exists() or out.is_dir() and not any(out.iterdir()):
        return
    config = out / "config.json"
    ours = config.is_file() and '"model_type"' in config.read_text(errors="replace") and (out / "README.md").is_file()
    if not force or not ours:
        raise CramError(f"{out}: is there already" + (
            "; --force replaces it, or give another folder" if ours else ", and is no export; give another folder"))


def _rename(temporary: Path, out: Path) -> None:
    """Give the finished folder its name; what it replaces is out of the way before and gone after."""
    old = out.parent / f".{out.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)
