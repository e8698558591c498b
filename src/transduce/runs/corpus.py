"""The text of a run: read as the settings say, reported, and turned into ids."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from transduce.config.settings import ExperimentConfig
from transduce.data.batches import EncodedPairs, ShardedPairs, TrainingPairs, encode_pairs
from transduce.data.config import DataConfig
from transduce.data.datasets import DEFAULT_CACHE, load_split
from transduce.data.download import open_url
from transduce.data.large.folder import PreparedFolder
from transduce.data.large.prepare import LARGE_BYTES, LargePairs, Listener
from transduce.data.large.scan import text_bytes
from transduce.data.pairs import Pairs, count_overlap, read_pairs, with_more
from transduce.errors import ConfigMismatchError, MissingInputError, TransduceError
from transduce.runs.folder import RunFolder
from transduce.runs.monitoring import preparation_display
from transduce.text.tokenizer import Tokenizer
from transduce.training.distributed import Process
from transduce.training.trainer import Observe


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a run finds around it: machine, folders, and who listens."""

    device: str = "auto"
    data_root: str | Path | None = None  # holds multi30k/train.en and the like; None: fetched into `data_cache`
    data_cache: str | Path = DEFAULT_CACHE
    report: Callable[[str], None] = lambda _line: None
    observers: tuple[Observe, ...] = ()  # of training rows, beside the terminal
    show_progress: bool = False  # rows on standard error: a live bar on a terminal
    large_bytes: int = LARGE_BYTES  # training files with more text than this are prepared on disk
    clock: Callable[[], float] = time.perf_counter  # seconds, by which limits of time are kept


def folders_by_environment() -> tuple[Path | None, Path]:
    """The caller's folder of data sets and the cache, as TRANSDUCE_DATA and TRANSDUCE_CACHE say."""
    root, cache = os.environ.get("TRANSDUCE_DATA"), os.environ.get("TRANSDUCE_CACHE")
    return Path(root) if root else None, Path(cache) if cache else DEFAULT_CACHE


@dataclass(frozen=True)
class Corpus:
    """The text of a run."""

    train: Pairs | LargePairs
    valid: Pairs | None

    @property
    def sha256(self) -> dict[str, list[str]]:
        """What the files say, wherever they lie. Reads all of a large training file, once."""
        sides: dict[str, Pairs | LargePairs | None] = {"train": self.train, "valid": self.valid}
        return {name: list(pairs.sha256.values()) for name, pairs in sides.items() if pairs is not None}


@dataclass(frozen=True)
class LearntFrom:
    """What a model is trained on: ids, the tokenizer that made them, and how many pairs of text there were."""

    tokenizer: str  # as JSON
    pairs: TrainingPairs
    num_text_pairs: int


def read_corpus(config: DataConfig, surroundings: Surroundings) -> Corpus:
    """Reads validation and training pairs, and reports what was skipped and how much they overlap.

    Training files that are too large for memory are left where they are, and reported on when they are prepared.
    """
    is_train_large = not config.dataset and is_large(config.train, surroundings)
    if config.more and (is_train_large or is_large(config.more, surroundings)):
        raise TransduceError(
            f"data.more ({', '.join(config.more)}) is for pairs that fit into memory: with these, write all "
            "training pairs into one file, or one for each side, and give data.train and data.valid."
        )
    if is_train_large:
        valid = read_pairs(config.valid) if config.valid else None
        if valid is not None:
            _report_read("validation", len(valid), valid.skipped, valid.notes, surroundings.report)
        return Corpus(LargePairs(config.train, Path(surroundings.data_cache) / "prepared", valid=valid), valid)
    train = _read_side("train", config, surroundings)
    has_valid = config.dataset or config.valid
    corpus = Corpus(train, _read_side("valid", config, surroundings) if has_valid else None)
    for name, pairs in (("training", train), ("validation", corpus.valid)):
        if pairs is not None:
            _report_read(name, len(pairs), pairs.skipped, pairs.notes, surroundings.report)
    if corpus.valid is not None:
        _report_overlap(count_overlap(train, corpus.valid), surroundings.report)
    return corpus


def learn_and_encode(
    config: ExperimentConfig, corpus: Corpus, tokenizer: str | None, process: Process, surroundings: Surroundings
) -> LearntFrom:
    """The training pairs as ids; the tokenizer is learnt from them unless one is given."""
    if isinstance(corpus.train, Pairs):
        train = corpus.train
        if process.from_main(corpus.sha256) != corpus.sha256:
            raise _other_data("the training or validation pairs")
        learnt = tokenizer or process.decide(lambda: Tokenizer.learn(config.tokenizer, train.src, train.tgt).to_json())
        pairs = encode_reporting(Tokenizer.from_json(learnt), train, config.data, surroundings.report)
        return LearntFrom(learnt, pairs, len(train))
    large, max_len = corpus.train, config.data.max_len
    with preparation_display(surroundings.report, is_shown=surroundings.show_progress) as progress:
        listener = Listener(surroundings.report, progress)

        def prepare() -> tuple[str, str]:
            learnt, folder = large.prepared(config.tokenizer, tokenizer, max_len=max_len, listener=listener)
            return learnt, folder.path.name

        learnt, key = process.decide(prepare)
        # Another machine, whose cache is not that of the first process, prepares the same from its own files.
        folder = large.find(key) or large.prepared(config.tokenizer, learnt, max_len=max_len, listener=listener)[1]
    if folder.path.name != key:
        raise _other_data(" and ".join(large.names))
    _report_prepared(folder, corpus.valid, surroundings.report)
    return LearntFrom(learnt, ShardedPairs(folder), folder.manifest.num_pairs)


def _other_data(what: str) -> ConfigMismatchError:
    return ConfigMismatchError(f"{what} are not the same on all machines: copy them from the one with rank 0.")


def prepare(config: ExperimentConfig, tokenizer: str | None, surroundings: Surroundings) -> PreparedFolder | None:
    """Does ahead what training pairs that are too large for memory need; None if they are not."""
    train = read_corpus(config.data, surroundings).train
    if isinstance(train, Pairs):
        return None
    with preparation_display(surroundings.report, is_shown=surroundings.show_progress) as progress:
        listener = Listener(surroundings.report, progress)
        folder = train.prepared(config.tokenizer, tokenizer, max_len=config.data.max_len, listener=listener)[1]
    _report_prepared(folder, train.valid, surroundings.report)
    return folder


def is_large(paths: Sequence[str | Path], surroundings: Surroundings) -> bool:
    """Whether files have more text than is held in memory: a function of their sizes."""
    try:
        return text_bytes([Path(path) for path in paths]) > surroundings.large_bytes
    except MissingInputError:
        return False  # told by whoever reads them


def _report_prepared(folder: PreparedFolder, valid: Pairs | None, report: Callable[[str], None]) -> None:
    found = folder.manifest
    _report_read("training", found.num_pairs, found.skipped, found.notes, report)
    if valid is not None and found.valid == list(valid.sha256.values()):
        _report_overlap(found.overlap, report)
    elif valid is not None:
        report("the training pairs were prepared with another validation: nobody looked how much of this is in them")
    _report_long(found.num_long, found.max_len, report)
    report(f"in {len(found.shards):,} shards in {folder.path}")


def _report_read(
    name: str, num_pairs: int, skipped: Mapping[str, int], notes: Sequence[str], report: Callable[[str], None]
) -> None:
    told = "".join(f", {count:,} skipped ({reason})" for reason, count in skipped.items())
    report(f"{name}: {num_pairs:,} pairs{told}")
    for note in notes:
        report(note)


def _report_overlap(overlap: Mapping[str, int], report: Callable[[str], None]) -> None:
    report(
        f"in training too, of the validation: {overlap['pairs']:,} pairs, {overlap['source']:,} sources, "
        f"{overlap['target']:,} targets"
    )


def _report_long(num_long: int, max_len: int, report: Callable[[str], None]) -> None:
    if num_long:
        report(f"{num_long:,} pairs left out: a side is longer than data.max_len = {max_len} tokens")


def _read_side(
    side: Literal["train", "valid"],
    config: DataConfig,
    surroundings: Surroundings,
    *,
    open_url: Callable[[str], BinaryIO] = open_url,
) -> Pairs:
    if config.dataset:
        root, cache = surroundings.data_root, surroundings.data_cache
        pairs = load_split(config.dataset, side, root=root, cache=cache, open_url=open_url)
    else:
        pairs = read_pairs(config.train if side == "train" else config.valid)
    return with_more(pairs, read_pairs(config.more)) if side == "train" and config.more else pairs


def encode_reporting(
    tokenizer: Tokenizer, pairs: Pairs, config: DataConfig, report: Callable[[str], None]
) -> EncodedPairs:
    """The ids of `pairs`, without those of which a side is too long; reports how many."""
    encoded, num_long = encode_pairs(tokenizer, pairs, max_len=config.max_len)
    _report_long(num_long, config.max_len, report)
    return encoded


def count_training_overlap(
    config: ExperimentConfig,
    folder: RunFolder,
    sources: Sequence[str],
    targets: Sequence[str],
    surroundings: Surroundings,
) -> dict[str, int] | None:
    """How many of these lines the run was trained on; None if its training data are not where they were.

    Nothing is fetched just to be counted, and nothing too large for memory is read: None for that as well.
    """
    if not config.data.dataset and is_large(config.data.train, surroundings):
        return None

    def refuse(url: str) -> BinaryIO:
        raise MissingInputError(f"{url} is not here.")

    try:
        train = _read_side("train", config.data, surroundings, open_url=refuse)
    except TransduceError:
        return None
    trained_on = folder.facts
    if [*train.sha256.values(), len(train)] != [*trained_on["data"]["train"], trained_on["num_train_pairs"]]:
        return None  # other files, or (`fit`) these without the parts held out
    return count_overlap(train, Pairs(list(sources), list(targets), {}, [], {}))
