"""Scoring in a competitor's own Python: what is asked comes in a file, what the model says goes into another.

Shared by the scoring programs beside it; needs torch and numpy alone. ``serve`` is given a function that loads the model and
returns (logits, parameters): logits(ids int64 [R, T], row int64 [P], position int64 [P]) -> [P, V], what the model predicts at
these places, and how many parameters it has.
Rows of one length go through the model together, so that nothing is ever padded.
"""

import json
import sys

import numpy as np
import torch
import torch.nn.functional as F

ELEMENTS = {"cpu": 2**24, "cuda": 2**28}    # logits held at once


def serve(load):
    """Answer the request named on the command line."""
    with open(sys.argv[1], encoding="utf-8") as file:
        ask = json.load(file)
    torch.set_num_threads(ask["threads"])
    with np.load(ask["request"]) as arrays:
        request = dict(arrays)
    logits, parameters = load(ask)
    nats_K, hits_K = score(logits, request, ask["vocab_size"], ask["device"])
    np.savez(ask["answer"], nats=nats_K, hits=hits_K, parameters=parameters)


def score(logits, request, vocab_size, device):
    """Nats float64 [K] and hits bool [K] of all predictions.

    request: ids int64 [N], starts int64 [R + 1] of the rows in them, firsts int64 [R + 1] of each row's predictions,
    positions int64 [K] within the row, labels int64 [K].
    """
    starts, firsts = request["starts"], request["firsts"]
    lengths = np.diff(starts)
    nats, hits = np.zeros(len(request["labels"])), np.zeros(len(request["labels"]), bool)
    with torch.inference_mode():
        for length in np.unique(lengths)[::-1]:
            rows = np.flatnonzero((lengths == length) & (np.diff(firsts) > 0))
            step = max(1, ELEMENTS[torch.device(device).type] // int(length * vocab_size))
            for low in range(0, len(rows), step):
                batch = rows[low:low + step]
                ids = np.stack([request["ids"][starts[row]:starts[row + 1]] for row in batch])
                chosen = np.concatenate([np.arange(firsts[row], firsts[row + 1]) for row in batch])
                row_P = np.repeat(np.arange(len(batch)), [firsts[row + 1] - firsts[row] for row in batch])
                logits_PV = logits(*(torch.from_numpy(each).to(device)
                                     for each in (ids, row_P, request["positions"][chosen]))).float()
                labels = torch.from_numpy(request["labels"][chosen]).to(device)
                nats[chosen] = F.cross_entropy(logits_PV, labels, reduction="none").double().cpu().numpy()
                hits[chosen] = (logits_PV.argmax(1) == labels).cpu().numpy()
    return nats, hits
