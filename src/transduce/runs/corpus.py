"""The corpus of a run: read as the settings say, reported, and turned into ids."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from transduce.config.settings import ExperimentConfig
from transduce.data.batches import EncodedPairs, PreparedPairs, TrainingPairs, encode_pairs
from transduce.data.config import IN_MEMORY, DataConfig
from transduce.data.datasets import load_split
from transduce.data.download import DEFAULT_CACHE, Places
from transduce.data.large.prepare import LargePairs, Listener
from transduce.data.large.prepared_file import Manifest
from transduce.data.large.scan import text_bytes
from transduce.data.pairs import LARGE_BYTES, Pairs, count_overlap, extend_pairs, read_pairs, split_pairs
from transduce.data.seen import Seen
from transduce.errors import ConfigMismatchError, DataError, TransduceError
from transduce.inference.predictor import ignore
from transduce.runs.folder import RunFolder
from transduce.runs.monitoring import preparation_display
from transduce.text.tokenizer import Tokenizer
from transduce.training.distributed import Process

_PAIRS_PER_LABEL = 5  # with so many pairs for each target and more, targets are labels, which all parts share
_HELD_OUT_SHARE, _MOST_HELD_OUT = 0.05, 1000  # of the pairs given to `fit`, twice: to validate and to test
_FEWEST_TO_DECIDE, _MOST_TO_DECIDE_SHARE = 100, 0.125  # to validate by, where there are few pairs
_NEARLY_ALL, _ROOM = 99.9, 1.1  # outputs have room for this per cent of the training targets, and a tenth more


def places_of_environment() -> Places:
    """The caller's folder of data sets and the cache, as TRANSDUCE_DATA and TRANSDUCE_CACHE say."""
    root, cache = os.environ.get("TRANSDUCE_DATA"), os.environ.get("TRANSDUCE_CACHE")
    return Places(Path(root) if root else None, Path(cache) if cache else DEFAULT_CACHE)


@dataclass(frozen=True)
class Corpus:
    """The text of a run."""

    train: Pairs | LargePairs
    valid: Pairs | None

    @property
    def sha256(self) -> dict[str, list[str]]:
        """Hashes of the data by split. Reads all of a large training file, once."""
        sides: dict[str, Pairs | LargePairs | None] = {"train": self.train, "valid": self.valid}
        return {name: list(pairs.sha256.values()) for name, pairs in sides.items() if pairs is not None}


@dataclass(frozen=True)
class EncodedCorpus:
    """Encoded training data: ids, the tokenizer that made them, and the number of pairs of text."""

    tokenizer: Tokenizer
    pairs: TrainingPairs
    num_text_pairs: int
    seen: Seen


def absolute_paths(config: DataConfig) -> dict[str, list[str]]:
    """The files of a run, to be found from another folder."""
    return {name: [str(Path(path).absolute()) for path in getattr(config, name)] for name in ("train", "valid", "more")}


def read_corpus(
    config: DataConfig, places: Places, report: Callable[[str], None], *, in_memory: Mapping[str, Pairs] = {}
) -> Corpus:
    """Reads validation and training pairs, and reports what was skipped and how much they overlap.

    `in_memory` has the sides that the settings say are there. Training files that are too large for memory are left
    where they are, and reported on when they are prepared.
    """
    is_train_large = is_large(config.train)
    if config.more and (is_train_large or is_large(config.more)):
        raise TransduceError(
            f"data.more ({', '.join(config.more)}) needs pairs that fit in memory: write all training pairs into one "
            "file, or one for each side, and set data.train and data.valid."
        )
    small = None if is_train_large else _read_side("train", config, places, in_memory)
    valid = _read_side("valid", config, places, in_memory) if config.dataset or config.valid else None
    for name, pairs in (("training", small), ("validation", valid)):
        if pairs is not None:
            report_read(name, len(pairs), pairs, report)
    if small is not None and valid is not None:
        report_overlap(count_overlap(small, valid), report)
    train = LargePairs(config.train, Path(places.cache) / "prepared", valid=valid) if small is None else small
    return Corpus(train, valid)


def learn_and_encode(
    config: ExperimentConfig,
    corpus: Corpus,
    tokenizer: Tokenizer | None,
    process: Process,
    *,
    report: Callable[[str], None],
    show_progress: bool,
) -> EncodedCorpus:
    """The training pairs as ids; the tokenizer is learned from them unless one is given."""
    if isinstance(corpus.train, Pairs):
        train = corpus.train
        if process.from_main(corpus.sha256) != corpus.sha256:
            raise _other_data("the training or validation pairs")
        learned = tokenizer or process.decide(lambda: Tokenizer.learn(config.tokenizer, train.src, train.tgt))
        encoded = encode_reporting(learned, train, config.data, report)
        sides = learned.normal_source(train.src), learned.normal_target(train.tgt)
        return EncodedCorpus(learned, encoded, len(train), Seen.of(*sides, encoded.src_lens, encoded.tgt_ids))
    large, given = corpus.train, tokenizer.to_json() if tokenizer else None
    with preparation_display(report, is_shown=show_progress) as progress:
        listener = Listener(report, progress)
        prepared = partial(large.prepared, config.tokenizer, max_len=config.data.max_len, listener=listener)
        text, file = process.decide(lambda: prepared(given))
        name = file.path.name
        if not process.is_main:
            # Another machine, whose cache is not that of the first process, prepares the same from its own files.
            file = large.find(name) or prepared(text)[1]
    if file.path.name != name:
        raise _other_data(" and ".join(large.names))
    manifest = file.manifest
    report_read("training", manifest.num_pairs, manifest, report)
    if corpus.valid is not None and manifest.valid == list(corpus.valid.sha256.values()):
        report_overlap(manifest.overlap, report)
    elif corpus.valid is not None:
        report(
            "the corpus was prepared with other validation pairs: their overlap with the training data was not counted"
        )
    _report_long(manifest.num_long, manifest.max_len, report)
    report(f"prepared corpus: {file.path}")
    seen = Seen.from_dict(manifest.seen)
    return EncodedCorpus(Tokenizer.from_json(text), PreparedPairs(file), manifest.num_pairs, seen)


def _other_data(what: str) -> ConfigMismatchError:
    return ConfigMismatchError(f"{what} differ between machines: copy them from the machine of rank 0.")


def with_room(config: ExperimentConfig, pairs: TrainingPairs, report: Callable[[str], None]) -> ExperimentConfig:
    """`config` with a `max_len_extra` for outputs as long as these targets, unless it has one.

    Of a corpus on disk, one window is looked at.
    """
    decoding = config.decoding
    if decoding.max_len_extra:
        return config
    window = pairs.window(0, np.random.default_rng(0))
    beyond = window.tgt_lens.astype(int) - (decoding.max_len_ratio * window.src_lens).astype(int)
    nearly_longest = np.percentile(beyond, _NEARLY_ALL, method="higher")
    extra = max(decoding.max_len(0), math.ceil(_ROOM * nearly_longest))
    if extra > decoding.max_len(0):  # else as ever
        report(
            f"maximum output length: {decoding.max_len_ratio:g} * source tokens + {extra}, as the training targets need"
        )
    return replace(config, decoding=replace(decoding, max_len_extra=extra))


def is_large(paths: Sequence[str | Path]) -> bool:
    """Whether files have more text than is held in memory: a function of their bytes."""
    try:
        return text_bytes([Path(path) for path in paths], LARGE_BYTES) > LARGE_BYTES
    except TransduceError:
        return False  # told by whoever reads them


def report_read(name: str, num_pairs: int, pairs: Pairs | Manifest, report: Callable[[str], None]) -> None:
    """Reports how many pairs were read, how many were skipped and why, and what was repaired."""
    skipped = "".join(f", {count:,} skipped ({reason})" for reason, count in pairs.skipped.items())
    report(f"{name}: {num_pairs:,} pairs{skipped}")
    for note in pairs.notes:
        report(note)


def report_overlap(overlap: Mapping[str, int], report: Callable[[str], None], part: str = "validation") -> None:
    """Report how much of a part is also in the training data."""
    report(
        f"{part} pairs also in the training data: {overlap['pairs']:,} (sources: {overlap['source']:,}, targets: "
        f"{overlap['target']:,})"
    )


def _report_long(num_long: int, max_len: int, report: Callable[[str], None]) -> None:
    if num_long:
        report(f"{num_long:,} pairs left out: longer than data.max_len = {max_len} tokens")


def _read_side(side: str, config: DataConfig, places: Places, in_memory: Mapping[str, Pairs] = {}) -> Pairs:
    paths = getattr(config, side)
    if paths == (IN_MEMORY,) and side not in in_memory:
        raise TransduceError(
            f"the pairs of data.{side} were in memory, in a Python program: give them to transduce.train again (with "
            "resume=True to continue), or set it to files."
        )
    pairs = load_split(config.dataset, side, places) if config.dataset else in_memory.get(side) or read_pairs(paths)
    return extend_pairs(pairs, read_pairs(config.more)) if side == "train" and config.more else pairs


def encode_reporting(
    tokenizer: Tokenizer, pairs: Pairs, config: DataConfig, report: Callable[[str], None]
) -> EncodedPairs:
    """The ids of `pairs`, without those of which a side is too long; reports how many."""
    encoded, num_long = encode_pairs(tokenizer, pairs, max_len=config.max_len)
    _report_long(num_long, config.max_len, report)
    return encoded


def hold_out(
    pairs: Pairs,
    name: str,
    report: Callable[[str], None] = ignore,
    *,
    has_valid: bool = False,
    has_test: bool = False,
    num_train: int | None = None,
) -> tuple[Pairs, Pairs, Pairs]:
    """Training, validation and test pairs of `fit`, without a source or, unless they are labels, a target in common.

    `num_train` is how many pairs a run that exists is trained on.
    """
    test, num_targets = min(_MOST_HELD_OUT, int(_HELD_OUT_SHARE * len(pairs))), len(set(pairs.tgt))
    valid = max(test, min(_FEWEST_TO_DECIDE, int(_MOST_TO_DECIDE_SHARE * len(pairs))))

    def split(valid: int, *, may_share_targets: bool) -> tuple[Pairs, Pairs, Pairs]:
        sizes = {"valid": 0 if has_valid else valid, "test": 0 if has_test else test}
        return split_pairs(pairs, **sizes, may_share_targets=may_share_targets)

    are_labels = num_targets * _PAIRS_PER_LABEL <= len(pairs)
    try:
        parts = split(valid, may_share_targets=are_labels)
    except DataError:
        raise DataError(
            f"{name}: none of the {len(pairs):,} pairs can be held out for a score: they are linked too closely by "
            f"their {len(set(pairs.src)):,} different sources and {num_targets:,} targets. Remove repeated ones, or "
            "use `transduce train` with a validation file of your own."
        ) from None
    if num_train is None and are_labels:
        report(f"only {num_targets:,} different targets: training and test parts share targets, but no sources")
    for may_share in (are_labels, False):  # as runs of before were
        if num_train not in (None, len(parts[0])):
            with suppress(DataError):
                parts = split(test, may_share_targets=may_share)
    return parts


def pairs_at_hand(side: str, config: DataConfig, folder: RunFolder, places: Places) -> Pairs | None:
    """The pairs that the run in `folder` had on this side; None if they are not where they were, or others now.

    They are looked for by their paths as given, then by the absolute ones of the time. Nothing is fetched for them, and
    nothing too large for memory is read: None for that as well.
    """
    facts = folder.facts
    absolute: dict[str, Any] = {name: tuple(paths) for name, paths in facts.get("paths", {}).items()}
    for data in (config, replace(config, **absolute)):
        if side == "train" and is_large(data.train):
            return None
        with suppress(TransduceError):
            pairs = _read_side(side, data, places.offline())
            if list(pairs.sha256.values()) == facts.get("data", {}).get(side):
                return pairs
    return None
