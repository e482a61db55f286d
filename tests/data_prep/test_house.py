"""What the package may know: never the day itself, never torch."""

import ast
import os
import sys

import pytest

from cram.schema import Data, Tokenizer
from data_prep.pack import pack
from data_prep.shards import Shards
from data_prep.tokenizer import load_tokenizer, train_tokenizer
from tests.data_prep.corpus import prepare, silent


def test_imports(root):
    files = sorted((root / "data_prep").rglob("*.py"))
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"cram", "torch", "kernels"}, path


def test_docstring_parser_needs_the_standard_library_alone(root):
    tree = ast.parse((root / "data_prep/sources/docstring_parser.py").read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)


@pytest.mark.skipif("CRAM_MIRROR" not in os.environ,
                    reason="set CRAM_MIRROR to a folder with corpora/wikipedia.jsonl.xz to run on real text")
def test_real_text(tmp_path):
    data = Data(source="hub", dataset="corpora/wikipedia", mirror=os.environ["CRAM_MIRROR"], max_bytes=5_000_000)
    prepare(data, tmp_path / "text", silent)
    train_tokenizer(Tokenizer(vocab_size=4096), tmp_path / "text", tmp_path / "tokenizer", silent)
    pack(data, None, tmp_path / "text", tmp_path / "tokenizer", tmp_path / "data", silent)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    shards = Shards(tmp_path / "data", "train", verify=True)
    assert 3 < shards.document_bytes.sum() / shards.n_tokens < 4.5
    starts = shards.document_starts
    for index in range(0, shards.n_documents, 50):
        text = tokenizer.decode(shards.read(starts[index] + 1, starts[index + 1] - 1).tolist(), skip_special_tokens=False)
        assert len(text.encode()) == shards.document_bytes[index]
