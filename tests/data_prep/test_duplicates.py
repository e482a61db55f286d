"""Which documents are copies, and what deciding costs in memory."""

import tracemalloc
from types import SimpleNamespace

import numpy as np

from cram.schema import Data
from data_prep import clusters
from data_prep.blocks import mix
from data_prep.duplicates import find_duplicates


class Pretended:
    """Stands for ``Measured``: every fifth document is an exact copy of its neighbour, every seventh a near one; its columns
    are computed when they are asked for."""

    def __init__(self, documents, parts=20):
        self.documents, self.parts = documents, parts
        self.held = np.zeros(documents, bool)

    def __len__(self):
        return self.documents

    def columns(self, *names):
        for low in range(0, self.documents, -(-self.documents // self.parts)):
            yield {name: self._values(name, np.arange(low, min(low + -(-self.documents // self.parts), self.documents)))
                   for name in names}

    def column(self, name):
        whole = np.empty(self.documents, np.uint64)
        low = 0
        for columns in self.columns(name):
            whole[low:low + len(columns[name])] = columns[name]
            low += len(columns[name])
        return whole

    @staticmethod
    def _values(name, index):
        if name.startswith("key"):
            index = np.where(index % 5 == 4, index - 1, index)
        elif name == "band_03":
            index = np.where(index % 7 == 6, index - 3, index)
        return mix(index.astype(np.uint64) * np.uint64(64) + np.uint64(sum(name.encode()) % 64))


def test_exact_and_near():
    found = find_duplicates(Pretended(70), Data(), np.ones(70, bool))
    assert np.flatnonzero(found.exact).tolist() == list(range(4, 70, 5))
    near = [index for index in range(6, 70, 7) if index % 5 != 4 and (index - 3) % 5 != 4]       # not of or with a copy
    assert np.flatnonzero(found.near).tolist() == near
    assert found.cluster[6] == 3 and found.cluster[4] == 3, "a copy belongs to its original's cluster"
    for cluster in np.unique(found.cluster):
        members = np.flatnonzero(found.cluster == cluster)
        assert len(np.unique(found.keys[members])) == 1 and members[0] == cluster


def test_memory_is_some_bytes_a_document(monkeypatch):
    """Some thirty bytes a document and the limit of a sort: two gigabytes hold the forty million documents of 100 GB."""
    monkeypatch.setattr(clusters, "MAX_BYTES", 16_000_000)
    monkeypatch.setattr(clusters.exact_first, "__defaults__", (16_000_000,))
    monkeypatch.setattr(clusters.near_clusters, "__defaults__", (16_000_000, None))
    documents = 2_000_000
    pretended, alive = Pretended(documents), np.ones(documents, bool)
    tracemalloc.start()
    find_duplicates(pretended, SimpleNamespace(exact_dedup=True, near_dedup=Data().near_dedup), alive)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 36 * documents + 2 * 16_000_000, f"{peak / documents:.0f} bytes a document"
