"""What the processes that prepare a corpus do, each for a part of it; they need neither torch nor much memory."""

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from transduce.data.large.scan import ScannedFile, rows_of_block, sampled_rows, scan
from transduce.data.large.shards import Rows, dtype_for, read_group, write_block, write_shard
from transduce.data.large.workers import serve
from transduce.data.parsing import normalised, without_empty
from transduce.files.atomic import read_bytes
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import LineEncoder, Tokenizer

_MOST_LINES_AT_ONCE = 10_000  # encoded: what fits the processor's caches is faster


def scan_file(name: str, lines_per_block: int, unpacked: str) -> dict[str, Any]:
    """What a pass over the whole file finds."""
    return vars(scan(name, lines_per_block=lines_per_block, unpacked=Path(unpacked)))


def learn_tokenizer(
    scanned: Sequence[dict[str, Any]], lines_per_block: int, most_rows: int, config: dict[str, Any]
) -> str:
    """The tokenizer, as JSON, that an even sample of the rows suggests."""
    rows = sampled_rows([ScannedFile(**file) for file in scanned], lines_per_block, most_rows)
    src, tgt, _ = without_empty(rows)
    return Tokenizer.learn(TokenizerConfig(**config), src, tgt).to_json()


def encode_block(
    layout: str,
    lines_per_block: int,
    block: int,
    num_groups: int,
    max_len: int,
    tokenizer: str,
    valid: str,
    output: str,
) -> dict[str, Any]:
    """Writes the ids of a block of rows, and returns what was counted. `layout`, `tokenizer` and `valid` are files."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a process of ours
    rows = rows_of_block([ScannedFile(**file) for file in _read_json(layout)], block, lines_per_block)
    src, tgt, skipped = without_empty(rows)
    sides = [_encoded(encode, lines) for encode, lines in zip(_encoders(tokenizer), (src, tgt), strict=True)]
    longer_lens = np.maximum(*(side.lens for side in sides))
    kept = np.flatnonzero(longer_lens <= max_len)
    if len(kept) < len(src):
        sides = [side.select(kept) for side in sides]
    write_block(Path(output), sides, num_groups=num_groups, dtype=_dtype(tokenizer))
    return {
        "num_pairs": len(src),
        "num_kept": len(kept),
        "skipped": skipped,
        "shortest": int(longer_lens.min()) if len(src) else None,
        "seen": _seen(src, tgt, valid) if valid else [[], [], []],
    }


def write_one_shard(
    shard: int,
    written: str,
    num_groups: int,
    tokenizer: str,
    output: str,
    metadata: dict[str, str],
) -> dict[str, Any]:
    """Gathers the rows of one shard from all blocks, listed in the file `written` as (file, number of rows).

    Of all the pairs that were kept, number i goes to shard i mod `num_groups`; a block counts from its own first pair.
    """
    dtype, num_before, parts = _dtype(tokenizer), 0, []
    for path, num_rows in _read_json(written):
        group = (shard - num_before) % num_groups
        parts.append(read_group(Path(path), group, num_rows=num_rows, num_groups=num_groups, dtype=dtype))
        num_before += num_rows
    sha256 = write_shard(Path(output), parts, dtype=dtype, metadata=metadata)
    return {"name": Path(output).name, "num_pairs": sum(len(src.lens) for src, _ in parts), "sha256": sha256}


@lru_cache
def _read_json(path: str) -> Any:
    return json.loads(read_bytes(Path(path)))


def _encoded(encode: LineEncoder, lines: Sequence[str]) -> Rows:
    portions = [
        encode(lines[start : start + _MOST_LINES_AT_ONCE]) for start in range(0, len(lines), _MOST_LINES_AT_ONCE)
    ]
    portions = portions or [encode([])]
    return Rows(np.concatenate([ids for ids, _ in portions]), np.concatenate([lens for _, lens in portions]))


@lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    return Tokenizer.from_json(read_bytes(Path(path)).decode())


@lru_cache(maxsize=1)
def _encoders(tokenizer: str) -> tuple[LineEncoder, LineEncoder]:
    return _tokenizer(tokenizer).source_encoder(), _tokenizer(tokenizer).target_encoder()


def _dtype(tokenizer: str) -> str:
    return dtype_for(max(_tokenizer(tokenizer).source_vocab_size, _tokenizer(tokenizer).target_vocab_size))


@lru_cache(maxsize=1)
def _validation(path: str) -> list[dict[str, list[int]]]:
    """The rows of the validation by their text: as pairs, by source, by target. Lines alternate in the file."""
    lines = read_bytes(Path(path)).decode().split("\n")[:-1]
    src, tgt = lines[0::2], lines[1::2]
    found: list[dict[str, list[int]]] = [{}, {}, {}]
    for row, texts in enumerate(zip(map("\n".join, zip(src, tgt, strict=True)), src, tgt, strict=True)):
        for rows_of, text in zip(found, texts, strict=True):
            rows_of.setdefault(text, []).append(row)
    return found


def _seen(src: Sequence[str], tgt: Sequence[str], valid: str) -> list[list[int]]:
    """Which rows of the validation occur here: as pairs, by source, by target."""
    pairs, sources, targets = _validation(valid)
    here_src, here_tgt = [normalised(line) for line in src], [normalised(line) for line in tgt]
    both = [
        f"{source}\n{target}"
        for source, target in zip(here_src, here_tgt, strict=True)
        if source in sources and target in targets
    ]
    return [
        sorted(chain.from_iterable(rows_of[text] for text in rows_of.keys() & texts))
        for rows_of, texts in ((pairs, set(both)), (sources, set(here_src)), (targets, set(here_tgt)))
    ]


if __name__ == "__main__":
    serve(
        {
            "scan_file": scan_file,
            "learn_tokenizer": learn_tokenizer,
            "encode_block": encode_block,
            "write_one_shard": write_one_shard,
        }
    )
