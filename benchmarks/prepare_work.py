"""Writes the work that all toolkits are measured on into FOLDER/work: benchmarks/prepare_work.py FOLDER

Multi30k en-de as ids of one tokenizer, the batches planned of them, and the same ids as words for the toolkits that
read text. TRANSDUCE_DATA names a folder that has the pairs; without it they are fetched.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from transduce.data.batches import EncodedPairs, encode_pairs, plan_epoch
from transduce.data.datasets import load_split
from transduce.data.pairs import Pairs
from transduce.runs.corpus import places_of_environment
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

BATCH_TOKENS, SEED, NUM_VALID = 4096, 1, 100
FIRST_PIECE = Tokenizer.eos_id + 1


def main(folder: Path) -> None:
    text = read_split("multi30k-en-de", "train")
    tokenizer = Tokenizer.learn(TokenizerConfig(), text.src, text.tgt)
    pairs, _ = encode_pairs(tokenizer, text, max_len=256)
    print(write_work(folder, "multi30k-en-de", tokenizer, pairs))


def read_split(dataset: str, split: str) -> Pairs:
    """A split of a named set, from where TRANSDUCE_DATA and TRANSDUCE_CACHE say."""
    return load_split(dataset, split, places_of_environment())


def write_work(folder: Path, data: str, tokenizer: Tokenizer, pairs: EncodedPairs) -> dict[str, Any]:
    """The pairs as ids and as words, and the planned batches; what is said of them."""
    plan = [step[0] for step in plan_epoch(pairs, batch_tokens=BATCH_TOKENS, micro_batches=1, seed=SEED, epoch=0)]
    folder.mkdir(parents=True, exist_ok=True)
    rows = range(len(pairs))
    np.savez(
        folder / "work.npz",
        src=np.concatenate([pairs.src(row) for row in rows]),
        tgt=np.concatenate([pairs.tgt(row) for row in rows]),
        src_lens=pairs.src_lens,
        tgt_lens=pairs.tgt_lens,
        plan=np.concatenate(plan),
        plan_lens=np.array([len(batch) for batch in plan]),
    )
    facts = {
        "data": data,
        "pairs": len(pairs),
        "vocabulary": tokenizer.target_vocab_size,
        "target_ids": tokenizer.num_target_ids,
        "batch_tokens": BATCH_TOKENS,
        "planned_batches": len(plan),
        "mean_pairs_per_batch": round(len(pairs) / len(plan)),
        "target_tokens_per_batch": round(float(pairs.tgt_lens.sum()) / len(plan), 1),
    }
    (folder / "work.json").write_text(json.dumps(facts, indent=1) + "\n")
    write_words(folder, pairs, tokenizer.target_vocab_size)
    return facts


def write_words(folder: Path, pairs: EncodedPairs, vocabulary: int) -> None:
    """The ids without their ends, which each toolkit adds itself, as words such as t17."""
    for name, rows in (("train", range(len(pairs))), ("valid", range(NUM_VALID))):
        for side, ids in (("src", pairs.src), ("tgt", pairs.tgt)):
            lines = [f"{as_words(ids(row)[:-1])}\n" for row in rows]
            (folder / f"{name}.{side}").write_text("".join(lines))
    words = [f"t{piece}" for piece in range(FIRST_PIECE, vocabulary)]
    (folder / "words").write_text("".join(f"{word}\n" for word in words))
    (folder / "words_counted").write_text("".join(f"{word}\t1\n" for word in words))


def as_words(ids: Iterable[int]) -> str:
    return " ".join(f"t{piece}" for piece in ids)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: benchmarks/prepare_work.py FOLDER")
    main(Path(sys.argv[1]) / "work")
