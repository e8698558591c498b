"""Settings of the training data."""

from dataclasses import dataclass

from transduce.errors import TransduceError

IN_MEMORY = "pairs in memory"  # the place of a path in the settings, for pairs that came from no file


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The source of the pairs: a named data set, or files (one with both sides, or one for each)."""

    dataset: str = ""
    """Named data set to train and validate on, instead of files; `transduce data` lists them."""
    train: tuple[str, ...] = ()
    """Files of training pairs: one with both sides (.tsv, .jsonl) or two parallel text files. They may be larger than
    memory."""
    valid: tuple[str, ...] = ()
    """Files of validation pairs, as for `train`. Without them the last weights are kept, and nothing is scored."""
    more: tuple[str, ...] = ()
    """Files of additional training pairs, such as the outputs of another model."""
    recombinations: int = 0
    """Synthetic pairs per training pair and epoch, each the start of one pair joined to the end of another.
    For small corpora whose two sides run in parallel, such as words and their phonemes. Their sources begin with a
    tag, by which the model tells them from the pairs of the corpus."""
    concatenations: int = 0
    """Synthetic pairs per training pair and epoch, each that pair joined to a random other one, and tagged. For small
    corpora."""
    max_len: int = 256
    """Longest side of a training pair, in tokens; longer pairs are left out."""

    def __post_init__(self) -> None:
        if bool(self.dataset) == bool(self.train):
            raise TransduceError("no training data: set either data.dataset (a name) or data.train (one or two files).")
        if self.dataset and self.valid:
            raise TransduceError("data.valid goes with data.train: a named data set brings its own.")
        if len(self.more) > 2:
            raise TransduceError(f"data.more has {len(self.more)} files: give one with both sides, or one for each.")
        for name in ("recombinations", "concatenations"):
            if getattr(self, name) < 0:
                raise TransduceError(f"data.{name} is {getattr(self, name)}: it must be at least 0.")
        if self.max_len < 2:
            raise TransduceError(f"data.max_len is {self.max_len}: it must be at least 2 (a token and the end).")
