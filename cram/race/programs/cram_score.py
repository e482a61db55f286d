"""Score a run of ours, in the same way as everybody else's."""

from pathlib import Path

import torch

from cram.batches import document_bounds
from cram.evaluate.subject import open_run
from cram.ops import Documents
from scoring_loop import serve


def load(ask):
    subject = open_run("run", Path(ask["checkpoint"]), Path(ask["tokenizer"]), device=ask["device"])
    model = subject.model.eval()

    def logits(ids_RT, row_P, position_P):
        length = ids_RT.shape[1]
        bounds = document_bounds(ids_RT.cpu().numpy(), subject.special["cls"])
        documents = Documents(*(torch.from_numpy(bound).to(ids_RT.device) for bound in bounds), length)
        return model.logits(model(ids_RT.reshape(-1), documents, None)[row_P * length + position_P])

    return logits, sum(each.numel() for each in model.parameters())


serve(load)
