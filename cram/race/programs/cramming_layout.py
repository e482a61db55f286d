"""Write text and tokenizer where cramming looks for a corpus that is ready: cramming_layout.py CHECKOUT FOLDER overrides.

FOLDER holds rows.npy, int64 [rows, T], and tokenizer.json.
"""

import os
import sys

import cramming_standins

checkout, folder, overrides = sys.argv[1], sys.argv[2], sys.argv[3:]
cramming_standins.prepare(checkout)

import datasets  # noqa: E402
import numpy as np  # noqa: E402
from cramming.data.utils import checksum_config  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

config = cramming_standins.configuration(checkout, overrides).data
rows = np.load(os.path.join(folder, "rows.npy"), mmap_mode="r")
out = os.path.join(folder, f"{config.name}_{checksum_config(config)}")
corpus = datasets.Dataset.from_generator(lambda: ({"input_ids": row.tolist()} for row in rows),
                                         features=datasets.Features({"input_ids": datasets.Sequence(datasets.Value("int32"))}),
                                         cache_dir=os.path.join(folder, "cache"))
corpus.save_to_disk(out)
PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"), model_max_length=rows.shape[1],
                        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
                        ).save_pretrained(os.path.join(out, "tokenizer"))
print(f"{len(corpus):,} rows in {out}")
