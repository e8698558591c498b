"""The text of a run: read as the settings say, reported, and turned into ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from transduce.checkpoint import RunFolder
from transduce.data import EncodedPairs, encode_pairs
from transduce.datasets import DEFAULT_CACHE, load_split
from transduce.errors import MissingInputError, TransduceError
from transduce.fetching import open_url
from transduce.reading import Pairs, count_overlap, read_pairs
from transduce.settings import DataConfig, ExperimentConfig
from transduce.tokenizer import Tokenizer
from transduce.trainer import Observe


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a run finds around it: machine, folders, and who listens."""

    device: str = "auto"
    data_root: Path | None = None  # holds multi30k/train.en and the like; None: fetched into `data_cache`
    data_cache: Path = DEFAULT_CACHE
    report: Callable[[str], None] = lambda _line: None
    observers: tuple[Observe, ...] = ()  # of training rows, beside the terminal
    show_progress: bool = False  # rows on standard error: a live bar on a terminal


@dataclass(frozen=True)
class Corpus:
    """The text of a run."""

    train: Pairs
    valid: Pairs | None

    @property
    def sha256(self) -> dict[str, list[str]]:
        """What the files say, wherever they lie."""
        sides = {"train": self.train, "valid": self.valid}
        return {name: list(pairs.sha256.values()) for name, pairs in sides.items() if pairs is not None}


def read_corpus(config: DataConfig, surroundings: Surroundings) -> Corpus:
    """Reads training and validation pairs, and reports what was skipped and how much they overlap."""
    train = _read_side("train", config, surroundings)
    has_valid = config.dataset or config.valid
    corpus = Corpus(train, _read_side("valid", config, surroundings) if has_valid else None)
    for name, pairs in (("training", corpus.train), ("validation", corpus.valid)):
        if pairs is None:
            continue
        skipped = "".join(f", {count:,} skipped ({reason})" for reason, count in pairs.skipped.items())
        surroundings.report(f"{name}: {len(pairs):,} pairs{skipped}")
        for note in pairs.notes:
            surroundings.report(note)
    if corpus.valid is not None:
        overlap = count_overlap(corpus.train, corpus.valid)
        surroundings.report(
            f"in training too, of the validation: {overlap['pairs']:,} pairs, {overlap['source']:,} sources, "
            f"{overlap['target']:,} targets"
        )
    return corpus


def _read_side(
    side: Literal["train", "valid"],
    config: DataConfig,
    surroundings: Surroundings,
    *,
    open_url: Callable[[str], BinaryIO] = open_url,
) -> Pairs:
    if not config.dataset:
        return read_pairs(config.train if side == "train" else config.valid)
    root, cache = surroundings.data_root, surroundings.data_cache
    return load_split(config.dataset, side, root=root, cache=cache, open_url=open_url)


def encode_reporting(
    tokenizer: Tokenizer, pairs: Pairs, config: DataConfig, report: Callable[[str], None]
) -> EncodedPairs:
    """The ids of `pairs`, without those of which a side is too long; reports how many."""
    encoded, num_long = encode_pairs(tokenizer, pairs, max_len=config.max_len)
    if num_long:
        report(f"{num_long:,} pairs left out: a side is longer than data.max_len = {config.max_len} tokens")
    return encoded


def count_training_overlap(
    config: ExperimentConfig,
    folder: RunFolder,
    sources: Sequence[str],
    targets: Sequence[str],
    surroundings: Surroundings,
) -> dict[str, int] | None:
    """How many of these lines the run was trained on; None if its training data are not where they were.

    Nothing is fetched just to be counted.
    """

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
