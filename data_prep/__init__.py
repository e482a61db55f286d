"""Text in, packed token shards out. Knows nothing of models.

    sources -> normalise -> filter -> exact dedup -> split   (text.py)
            -> vocabulary                                    (tokenizer.py)
            -> uint16 shards with document offsets           (pack.py, read by shards.py)

The functions take a ``data`` or ``tokenizer`` section of the configuration: any
object with those attributes will do.
"""
