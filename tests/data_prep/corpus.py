"""Made-up text for the tests, and how to point a data section to it."""

import json
import random
from pathlib import Path

from cram.schema import Data, Filters, NearDedup

ODD_TEXTS = [
    "Emoji with joiners \U0001f469\u200d\U0001f469\u200d\U0001f467 "
    "and flags \U0001f1f3\U0001f1f4, twice \U0001f600\U0001f600. " * 5,
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd, "
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 "
    "\u200fright to left\u200e and back 123456 \u0661\u0662\u0663. " * 5,
    "A text about [MASK] and [CLS] tokens, [SEP]arated by [PAD] or [UNK]; they are plain words here. " * 5,
    "Code keeps its indent:\n\n    def f(x):\n\t\treturn x  # two tabs,   three spaces\n\n"
    "and its blank lines. Then it goes on:\n\n\n"
    "    class A:\n        value = 1\n\n        def g(self):\n            return self.value + 1\n\n"
    "and ends with a sentence of prose.",
    "\u4e16\u754c\u4f60\u597d\uff0c\u8fd9\u662f\u4e00\u4e2a\u6ca1\u6709\u7a7a\u683c\u7684\u53e5\u5b50\u3002" * 12,
    "Caf\u00e9, na\u00efve, \u00fcber, \ufb01ligature, \u2126 ohm; don't, WE'LL, it's 10,000.00 at 50%! " * 5,
]


def prose(count: int, seed: int = 0) -> list[str]:
    """Documents of random sentences over 400 made-up words; all differ."""
    rng = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(400)]
    texts = []
    for number in range(count):
        sentences = [" ".join(rng.choices(words, k=rng.randint(5, 14))).capitalize() + "." for _ in range(rng.randint(6, 25))]
        texts.append(f"Story {number}\n\n" + " ".join(sentences))
    return texts


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    rows = [json.dumps({"id": index, field: text}) + "\n" for index, text in enumerate(texts)]
    path.write_text("".join(rows), encoding="utf-8")
    return path


def files_data(*paths: Path, **changes) -> Data:
    """A data section that reads local files, with a validation share fit for small corpora."""
    filters, near = Filters(**changes.pop("filters", {})), NearDedup(**changes.pop("near_dedup", {}))
    return Data(source="files", files=[str(path) for path in paths], filters=filters, near_dedup=near,
                **{"validation_fraction": 0.1, "part_bytes": 60_000, "workers": 1, **changes})


def prepare(data: Data, out: Path, say=lambda message: None) -> Path:
    """The stages measure (into <out>-measured) and text (into ``out``), one after the other; returns ``out``."""
    from data_prep.measure import measure_corpus
    from data_prep.text import prepare_text

    measured = Path(f"{out}-measured")
    measure_corpus(data, measured, "key", say)
    prepare_text(data, measured, out, say)
    return out


def silent(message: str) -> None:
    pass
