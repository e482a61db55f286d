"""Text in, packed token shards out. Knows nothing of models.

    sources -> normalise -> edits -> statistics of every document     (measure.py)
            -> rules -> exact and near duplicates -> split            (text.py)
            -> vocabulary                                             (tokenizer.py, vocabulary.py)
            -> token shards with document offsets                     (pack.py, read by shards.py)

Text flows as Arrow record batches, cut into parts (parts.py) that processes or machines work on (engine.py), and within
a part into blocks (blocks.py), on which everything is measured with numpy.

The functions take a ``data`` or ``tokenizer`` section of the configuration: any
object with those attributes will do.
"""
