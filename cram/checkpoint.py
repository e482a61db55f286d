"""Checkpoints that are atomic, verified and exact.

A checkpoint is a folder ``checkpoints/step-00000123`` with ``state.pt`` and
``manifest.json`` (size and hash of the state, run id, step, and its own hash). It is written under a
temporary name, fsynced and renamed, so it is there whole or not at all. Loading takes the
newest whose every byte is as it was written; a damaged one is renamed ``*.corrupt``,
named aloud, and the one before it is used. States hold tensors and plain values only and
are read with ``weights_only=True``: a checkpoint cannot run code.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Callable, Optional

import torch
import xxhash

from cram.audit import Summary, read_ledger
from cram.errors import CramError
from data_prep.files import file_hash, sync

FORMAT = 1


def save(folder: Path, state: dict, *, step: int, run_id: str, keep: int, say: Callable[[str], None] = print) -> Path:
    """Write ``folder/step-...`` durably, then remove all but the newest ``keep``. Returns its path.

    On a full disk the oldest checkpoint goes, never the newest good one, and it is tried once more.
    Raises CramError when that is not enough; the checkpoints already there stay whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, temporary = folder / f"step-{step:08}", folder / f".step-{step:08}.tmp"
    for left in folder.glob(".step-*.tmp"):  # of a process that was killed while it wrote
        shutil.rmtree(left)
    try:
        try:
            write(temporary, state, step, run_id)
        except (OSError, RuntimeError) as error:
            spare = spare_checkpoint(folder) if disk_is_full(error, folder, state) else None
            if spare is None:
                raise
            say(f"the disk is full: checkpoint {spare.name} makes room for that of step {step}")
            shutil.rmtree(spare)
            write(temporary, state, step, run_id)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise CramError(f"{final}: could not be written ({str(error).splitlines()[0]}); {free_bytes(folder) / 1e6:.0f} MB are "
                        "free there. The checkpoint before it is whole: make room and run the same command again") from error
    if final.exists():  # the same step, saved again after a fall-back
        shutil.rmtree(final)
    os.rename(temporary, final)
    sync(folder)
    for old in list_checkpoints(folder)[keep:]:
        shutil.rmtree(old)
    return final


def write(path: Path, state: dict, step: int, run_id: str) -> None:
    """Fill the folder ``path`` durably with a state and its manifest; when that fails, nothing is left of it."""
    try:
        path.mkdir()
        torch.save(state, path / "state.pt")
        manifest = {"format": FORMAT, "step": step, "run_id": run_id, "torch": torch.__version__,
                    "bytes": (path / "state.pt").stat().st_size, "xxh3_128": file_hash(path / "state.pt")}
        (path / "manifest.json").write_text(json.dumps({**manifest, "self": manifest_hash(manifest)}, indent=1))
        for each in [*path.iterdir(), path]:
            sync(each)
    except (OSError, RuntimeError):
        shutil.rmtree(path, ignore_errors=True)
        raise


def state_bytes(state) -> int:
    """Size of the file that a state of nested dicts and lists becomes, never too small: every storage once, and what the
    archive puts around it. An optimizer makes its state at its first step; before, see ``most_bytes``."""
    storages: dict[tuple, int] = {}
    values, rest = [state], 0
    while values:
        value = values.pop()
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage.device, storage.data_ptr()] = storage.nbytes()
            rest += 512  # its entry and alignment in the archive, its lines in the pickle
        elif isinstance(value, dict):
            values += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            values += value
        else:
            rest += 16 + len(value if isinstance(value, (str, bytes)) else b"")
    return sum(storages.values()) + rest + 4096


def most_bytes(model: torch.nn.Module, config) -> int:
    """What a checkpoint of this run will take at most, told by its model (which may lie on the meta device): float32 weights,
    two moments each, and their moving average. config: ``cram.schema.Config``."""
    copies = 3 + (config.train.ema is not None)
    return copies * sum(4 * parameter.numel() + 512 for parameter in model.parameters()) + 65_536  # generators, guard, pickle


def refuse_full_disk(folder: Path, bytes_needed: int) -> None:
    """Before the clock starts: CramError unless ``folder`` can come to hold ``bytes_needed``, files already in it counted.

    bytes_needed: of all checkpoints at once, ``keep_checkpoints + 1`` times one, since the newest is there before the
    oldest goes.
    """
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = free_bytes(folder)
    if held + free < bytes_needed:
        raise CramError(f"{folder}: checkpoints need {bytes_needed / 1e6:,.1f} MB there, {(held + free) / 1e6:,.1f} MB are "
                        "free; make room, choose another disk with out=..., or keep fewer with train.keep_checkpoints=1")


def free_bytes(folder: Path) -> int:
    """What the disk that holds (or will hold) ``folder`` still takes from us."""
    return shutil.disk_usage(next(path for path in [folder, *folder.absolute().parents] if path.exists())).free


def disk_is_full(error: Exception, folder: Path, state: dict) -> bool:
    """Whether ``error`` in writing ``state`` came from a full disk: torch does not say, so the free space has to."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or free_bytes(folder) < state_bytes(state)


def spare_checkpoint(folder: Path) -> Optional[Path]:
    """The oldest checkpoint that is not the newest good one; None when there is no other."""
    checkpoints = list_checkpoints(folder)
    best = next((path for path in checkpoints if damage(path) is None), None)
    return next((path for path in reversed(checkpoints) if path != best), None)


def set_aside(folder: Path, step: int, why: str) -> None:
    """Rename the checkpoint of ``step``, if it is there, to ``step-... .why``: it is not loaded any more."""
    path = folder / f"step-{step:08}"
    if path.exists():
        aside = path.with_name(f"{path.name}.{why}")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)


def manifest_hash(manifest: dict) -> str:
    """xxh3-128 of a manifest without its own hash, hexadecimal."""
    fields = {name: value for name, value in manifest.items() if name != "self"}
    return xxhash.xxh3_128(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, newest first; leftovers of interrupted writes and corrupt ones are not listed."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdigit()),
                  key=lambda path: int(path.name[5:]), reverse=True)


def damage(path: Path) -> Optional[str]:
    """What is wrong with a checkpoint, or None when every byte is as written."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        expected_bytes, expected_hash = manifest["bytes"], manifest["xxh3_128"]
        size = (path / "state.pt").stat().st_size
        if manifest["format"] != FORMAT:
            return f"manifest.json: format {manifest['format']}, this version reads {FORMAT}"
        if manifest["step"] != int(path.name[5:]):
            return f"manifest.json: step {manifest['step']}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unreadable ({error})"
    if size != expected_bytes:
        return f"state.pt has {size} bytes, {expected_bytes} were written"
    if file_hash(path / "state.pt") != expected_hash:
        return "state.pt is not what was written (its hash differs)"
    if manifest.get("self") != manifest_hash(manifest):
        return "manifest.json is not what was written (its hash differs)"
    return None


def load_newest(folder: Path, run_id: Optional[str], say: Callable[[str], None], device="cpu") -> Optional[dict]:
    """The state of the newest good checkpoint, or None when there is none.

    run_id: refuse a checkpoint of another run (CramError); None: any. A damaged checkpoint is
    renamed to ``*.corrupt`` and the next older one taken.
    """
    for path in list_checkpoints(folder):
        problem = damage(path)
        if problem:
            set_aside(folder, int(path.name[5:]), "corrupt")
            say(f"checkpoint {path} is damaged: {problem}. Moved to {path.name}.corrupt; falling back to the one before it")
            continue
        manifest = json.loads((path / "manifest.json").read_text())
        if run_id is not None and manifest["run_id"] != run_id:
            raise CramError(f"{path}: belongs to run {manifest['run_id']}, not to {run_id}; "
                            "move it away or use another output folder")
        return torch.load(path / "state.pt", map_location=device, weights_only=True)
    return None


def last_step(ledger: Summary) -> int:
    """The step of the newest checkpoint that a ledger knows of."""
    return next((row["step"] for row in reversed(ledger.rows) if row["kind"] == "checkpoint"), 0)


def load_model(run_dir: Path, device="cpu", say: Callable[[str], None] = print):
    """The trained Transformer of a run, in evaluation mode, from its newest good checkpoint: the moving average of its
    weights where one was kept (``train.ema``). A hybrid model comes as a causal one.

    Raises CramError when ``run_dir`` holds no run or no checkpoint.
    """
    from cram.config import from_dict
    from cram.model import build

    if not (run_dir / "config.json").exists():
        raise CramError(f"{run_dir}: no trained run there (config.json is missing); run `cram pretrain` first")
    config = from_dict(json.loads((run_dir / "config.json").read_text()))
    state = load_newest(run_dir / "checkpoints", None, say, device)
    if state is None:
        raise CramError(f"{run_dir / 'checkpoints'}: no good checkpoint; the command that made the run resumes it, or says "
                        "what to do")
    ledger = read_ledger(run_dir / "ledger.jsonl") if (run_dir / "ledger.jsonl").exists() else None
    if ledger is not None and ledger.reason == "finished" and state["at"]["step"] != last_step(ledger):
        raise CramError(f"{run_dir / 'checkpoints'}: the checkpoint of the last step, {last_step(ledger)}, is damaged or gone; the "
                        f"newest good one is of step {state['at']['step']}, which is not the model the budget paid for. Restore "
                        "it, or train anew with --force")
    model = build(config.model, state["vocab_size"], config.objective.type != "masked")
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise CramError(f"{run_dir}: config.json describes another model than the checkpoint holds; restore it, or train anew "
                        f"with --force ({str(error).splitlines()[0]})") from error
    if state.get("ema"):
        with torch.no_grad():
            for name, parameter in model.named_parameters():  # a tied weight is named once, and buffers are not averaged
                parameter.copy_(state["ema"]["weights"][name])
    shape = state["shape"]
    model.depth, model.window, model.rope_base = shape["layers"], shape["window"], shape["rope_base"]
    return model.to(device).eval()
