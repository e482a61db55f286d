"""Best-fit decreasing: documents fitted into rows of equal length, so that few are cut and little is padding.

Packing for language models: Ding et al. 2024, "Fewer Truncations Improve Language Modeling", arXiv 2404.10830. Documents
longer than a row are cut into pieces of a whole row and a last one. Then, from the longest to the shortest, each piece
goes into the row with the least room that still holds it, or opens a new row (best-fit decreasing, Johnson et al. 1974).
The rooms that some row has are the bits of one Python integer, so "the least room that holds it" is a shift and the
lowest bit that is set: about two million pieces a second, whatever the number of rows.

Where most short documents are a little longer than half a row, too few are short enough to stand beside them, and a
percent stays empty. So the largest rooms are then filled with whole rows of long documents, cut up. A document that fits
into a row is never cut.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

LEAST_ROOM = 16             # tokens: smaller rooms are not worth a cut
PADDING_LEFT = 0.004        # share of all tokens: so much padding is left alone


class Pieces(NamedTuple):
    """Where documents go: int64 [pieces] each. A piece opens with its [CLS], which its length counts; it fills ``row`` from
    ``offset`` on. What a piece holds of its document follows from its place: the pieces of a document stand in order."""

    document: np.ndarray
    length: np.ndarray
    row: np.ndarray
    offset: np.ndarray


def fit_documents(length_D: np.ndarray, capacity: int) -> Pieces:
    """Pieces that hold ``length_D`` tokens (int64 [documents], without [CLS], 1 or more) in rows of ``capacity`` >= 2."""
    document_P, content_P = cut_into_pieces(length_D, capacity - 1)
    pieces = Pieces(document_P, content_P + 1, *best_fit(content_P + 1, capacity))
    return fill_rooms(pieces, capacity)


def fill_rooms(pieces: Pieces, capacity: int) -> Pieces:
    """Cut up pieces of a whole row, from all over the text, to fill the largest rooms until little padding is left."""
    room_R = capacity - np.bincount(pieces.row, weights=pieces.length).astype(np.int64)
    largest_R = np.argsort(-room_R, kind="stable")
    excess = room_R.sum() - PADDING_LEFT * capacity * len(room_R)
    wanted_R = largest_R[:np.searchsorted(np.cumsum(room_R[largest_R]), excess) + 1] if excess > 0 else largest_R[:0]
    rooms = deque((row, room) for row, room in zip(wanted_R.tolist(), room_R[wanted_R].tolist()) if room >= LEAST_ROOM)
    free = sum(room - 1 for _, room in rooms)                          # tokens they hold beside a [CLS] each
    whole = np.flatnonzero(pieces.length == capacity)
    count = min(free // (capacity - 1), len(whole))
    donors = whole[np.linspace(0, len(whole) - 1, count).astype(np.int64)] if count else whole[:0]
    added, used = [], []
    for donor in donors.tolist():
        left = capacity - 1
        if free < left:
            break
        while left:
            row, room = rooms.popleft()
            free, taken = free - (room - 1), min(left, room - 1)
            added.append((pieces.document[donor], taken + 1, row, capacity - room))
            left, room = left - taken, room - taken - 1
            if room >= LEAST_ROOM:
                rooms.appendleft((row, room))
                free += room - 1
        used.append(donor)
    columns = np.array(added, np.int64).reshape(-1, 4).T
    document, length, row, offset = (np.concatenate([np.delete(old, used), new]) for old, new in zip(pieces, columns))
    return Pieces(document, length, np.unique(row, return_inverse=True)[1].reshape(-1), offset)


def best_fit(length_P: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, offset) of each piece, int64 [pieces] both: piece p fills row[p] from offset[p] on.

    length_P: int64 [pieces], 1 to ``capacity`` tokens. Rows are numbered as they are opened, so those of the longest
    pieces come first; of equal lengths, the earlier piece. Raises ValueError for a length outside these bounds.
    """
    if len(length_P) and not 1 <= length_P.min() <= length_P.max() <= capacity:
        raise ValueError(f"pieces of {length_P.min()} to {length_P.max()} tokens do not fit into rows of {capacity}")
    order_P = np.argsort(-length_P, kind="stable")
    rows_of: list[list[int]] = [[] for _ in range(capacity + 1)]        # rows by their room
    rooms = opened = 0                                                  # bit r: some row has room r
    row, offset = [], []
    for length in length_P[order_P].tolist():
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = rows_of[room].pop()
            if not rows_of[room]:
                rooms ^= 1 << room
        else:
            room, number, opened = capacity, opened, opened + 1
        row.append(number)
        offset.append(capacity - room)
        if room > length:
            rows_of[room - length].append(number)
            rooms |= 1 << (room - length)
    row_P, offset_P = np.empty(len(order_P), np.int64), np.empty(len(order_P), np.int64)
    row_P[order_P], offset_P[order_P] = row, offset
    return row_P, offset_P


def cut_into_pieces(length_D: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(document, length) of the pieces, int64 [pieces] both: every document cut after each ``size`` tokens.

    length_D: int64 [documents], 1 or more. The last piece of a document holds what is left, 1 to ``size`` tokens.
    """
    pieces_D = -(-length_D // size)
    document_P = np.repeat(np.arange(len(length_D)), pieces_D)
    length_P = np.full(len(document_P), size, np.int64)
    length_P[np.cumsum(pieces_D) - 1] = length_D - (pieces_D - 1) * size
    return document_P, length_P
