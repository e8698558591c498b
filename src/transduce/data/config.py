"""Settings of the training data."""

from dataclasses import dataclass

from transduce.errors import TransduceError

IN_MEMORY = "pairs in memory"  # the place of a path in the settings, for pairs that came from no file


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The source of the pairs: a named data set, or files (one with both sides, or one for each)."""

    dataset: str = ""  # see `transduce data`; gives train and valid
    train: tuple[str, ...] = ()  # too large for memory: prepared on disk, the tokenizer learned from a sample
    valid: tuple[str, ...] = ()
    more: tuple[str, ...] = ()  # one or two files of further training pairs, such as the outputs of a model
    # Where pairs are few, so many made-up ones for each in an epoch: the beginning of one and the end of another, for
    # sides that run in parallel, such as words and their sounds; then, of all these, one and a random other end to end.
    recombinations: int = 0
    concatenations: int = 0
    max_len: int = 256  # training pairs with a longer side, in ids, are left out

    def __post_init__(self) -> None:
        if bool(self.dataset) == bool(self.train):
            raise TransduceError("which data? Set either data.dataset (a name) or data.train (one or two files).")
        if self.dataset and self.valid:
            raise TransduceError("data.valid goes with data.train: a named data set brings its own.")
        if len(self.more) > 2:
            raise TransduceError(f"data.more has {len(self.more)} files: give one with both sides, or one for each.")
        for name in ("recombinations", "concatenations"):
            if getattr(self, name) < 0:
                raise TransduceError(f"data.{name} is {getattr(self, name)}: it must be at least 0.")
        if self.max_len < 2:
            raise TransduceError(f"data.max_len is {self.max_len}: it must be at least 2, a token and its end.")
