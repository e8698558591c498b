"""Encoding of a corpus in processes, block by block of its lines; they need neither torch nor much memory."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transduce.data.large.prepared_file import DTYPES
from transduce.data.pairs import next_lines, overlap_keys, read_rows
from transduce.data.parsing import without_empty
from transduce.data.seen import bytes_among, characters_of
from transduce.text.tokenizer import Tokenizer

Message = tuple[dict[str, Any], Sequence[bytes]]  # what JSON can hold, and what it cannot

NO_LEN = 2**31 - 1  # longer than any


def block_encoder(
    *, names: list[str], tokenizer: str, dtype: str, max_len: int, num_rows: int, valid: dict[str, list[str]]
) -> Callable[[dict[str, Any], Sequence[bytes]], Message]:
    """An encoder of blocks: from the text of one, which follows `num_before` lines, to its counts and its ids.

    The ids are those of either side, end to end, each followed by how many every row has. The files, of these `names`,
    have `num_rows` rows; `valid` are the `overlap_keys` of the validation.
    """
    learned = Tokenizer.from_json(tokenizer)
    encoders = learned.source_encoder(), learned.target_encoder()
    wanted = {name: set(keys) for name, keys in valid.items()}

    def encode_block(question: dict[str, Any], texts: Sequence[bytes]) -> Message:
        start, end = question["num_before"], max(0, num_rows - question["num_before"])
        sides = [next_lines(text, name, start)[:end] for text, name in zip(texts, names, strict=True)]
        src, tgt, skipped = without_empty(read_rows(names[0], sides, start))
        normal = learned.normal_source(src), learned.normal_target(tgt)
        encoded = [encode(lines) for encode, lines in zip(encoders, normal, strict=True)]
        longer_lens = np.maximum(*(lens for _, lens in encoded))
        is_kept = longer_lens <= max_len
        arrays: list[NDArray[np.integer]] = []
        for ids, lens in encoded:
            arrays += [ids[np.repeat(is_kept, lens)].astype(DTYPES[dtype]), lens[is_kept].astype("<i8")]
        keys = overlap_keys(src, tgt) if wanted else {}
        found = {
            "shortest": int(longer_lens.min(initial=NO_LEN)),
            "num": {"pairs": len(src), "kept": int(is_kept.sum())},
            "skipped": skipped,
            "num_of_len": dict(enumerate(np.bincount(encoded[0][1][is_kept]).tolist())),
            "seen": {
                "source_characters": list(characters_of(normal[0])),
                "target_characters": list(characters_of(normal[1])),
                "target_bytes": list(bytes_among(arrays[2])),
            },
            "overlap": {name: list(wanted[name].intersection(texts)) for name, texts in keys.items()},
        }
        return found, [array.tobytes() for array in arrays]

    return encode_block
