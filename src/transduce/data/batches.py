"""Ids of a corpus, and the batches made of them: padding and the shift of the targets happen here and nowhere else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from transduce.data.large.prepared_file import PreparedFile
from transduce.data.pairs import Pairs
from transduce.data.parsing import refuse_all_too_long
from transduce.errors import TransduceError
from transduce.text.ragged import Ragged
from transduce.text.tokenizer import Tokenizer

PAIRS_PER_WINDOW = 250_000  # about: so many of a corpus too large for memory are in memory and planned together
_MAPPED_BYTES = 1 << 26  # of a file, at a time

# (src_lens, tgt_lens, *, batch_tokens, order) -> the rows of `order` in batches: `bucket_batches` or one like it.
CutBatches = Callable[..., list[NDArray[np.intp]]]


@dataclass(frozen=True)
class Batch:
    """Pairs of one forward pass, padded on the right."""

    src: Int[Tensor, "batch src_len"]  # every row ends with eos, then padding
    tgt_in: Int[Tensor, "batch tgt_len"]  # bos, then the target without its eos
    tgt_out: Int[Tensor, "batch tgt_len"]  # the target with its eos: what `tgt_in` is to predict, position by position

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """The arguments of `forward`."""
        return self.src, self.tgt_in

    def to(self, device: torch.device | str) -> "Batch":
        """Copied in the background if the device is a GPU."""
        return Batch(*(to_device(ids, torch.device(device)) for ids in (self.src, self.tgt_in, self.tgt_out)))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; a GPU copies from pinned memory while the program goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@runtime_checkable
class TrainingPairs(Protocol):
    """A corpus as ids. An epoch goes through it in windows: even samples, of which one is in memory at a time."""

    num_windows: int
    made_by: tuple[str, ...]  # the augmentations of which what is in a window depends

    def __len__(self) -> int:
        """Number of pairs in all windows."""

    def window(self, number: int, random: np.random.Generator, /) -> "EncodedPairs":
        """Window `number` of an epoch, to which `random`, in its first state, belongs."""


class EncodedPairs:
    """Pairs as ids, each side and row ending with eos; at most 4 bytes an id. As a corpus, it is its only window."""

    num_windows = 1
    made_by: tuple[str, ...] = ()

    def __init__(self, src: Sequence[Sequence[int]] | Ragged, tgt: Sequence[Sequence[int]] | Ragged) -> None:
        if len(src) != len(tgt):
            raise ValueError(f"src ({len(src)} rows) and tgt ({len(tgt)} rows) must have as many rows.")
        self._src, self._tgt = _ragged(src), _ragged(tgt)

    def __len__(self) -> int:
        return len(self._src)

    def window(self, _number: int, _random: np.random.Generator, /) -> "EncodedPairs":
        """See `TrainingPairs`."""
        return self

    @property
    def sides(self) -> tuple[Ragged, Ragged]:
        """Sources and targets."""
        return self._src, self._tgt

    @property
    def src_lens(self) -> NDArray[np.integer]:
        """Number of ids of every source, eos included."""
        return self._src.lens

    @property
    def tgt_lens(self) -> NDArray[np.integer]:
        """Number of ids of every target, eos included."""
        return self._tgt.lens

    @property
    def tgt_ids(self) -> NDArray[np.integer]:
        """The ids of all targets, end to end."""
        return self._tgt.ids

    def src(self, row: int) -> NDArray[np.int32]:
        """Ids of the source of this row."""
        return self._src.row(row).astype(np.int32)

    def tgt(self, row: int) -> NDArray[np.int32]:
        """Ids of the target of this row."""
        return self._tgt.row(row).astype(np.int32)

    def select(self, rows: Sequence[int] | NDArray[np.integer]) -> "EncodedPairs":
        """The pairs of these rows, in this order."""
        index = np.asarray(rows, dtype=np.intp)
        return EncodedPairs(self._src.select(index), self._tgt.select(index))

    def padded(self, rows: Sequence[int] | NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sources and targets of these rows as two rectangles, filled up with the padding id."""
        src, tgt = self.select(rows).sides
        return _padded(src), _padded(tgt)


class PreparedPairs:
    """A prepared corpus on disk, of which only windows are read."""

    made_by: tuple[str, ...] = ()

    def __init__(self, file: PreparedFile) -> None:
        self.file = file
        self.num_windows = max(1, round(len(self) / PAIRS_PER_WINDOW))

    def __len__(self) -> int:
        return self.file.manifest.num_pairs - self.file.manifest.num_long

    def window(self, number: int, random: np.random.Generator, /) -> EncodedPairs:
        """See `TrainingPairs`. Of each `num_windows` rows in a row, one is in every window, drawn anew each epoch."""
        first = np.arange(0, len(self), self.num_windows)
        rows = first + (random.integers(self.num_windows, size=len(first)) + number) % self.num_windows
        # Pages that were touched count as memory as long as the file is mapped: so it is, part by part.
        parts = np.array_split(rows[rows < len(self)], 1 + self.file.num_bytes // _MAPPED_BYTES)
        return EncodedPairs(
            *(Ragged.chained([self._side(side).select(part) for part in parts]) for side in ("src", "tgt"))
        )

    def _side(self, side: str) -> Ragged:
        return Ragged(self.file.array(f"{side}.ids"), self.file.array(f"{side}.starts"))


def encode_pairs(tokenizer: Tokenizer, pairs: Pairs, *, max_len: int) -> tuple[EncodedPairs, int]:
    """The pairs as ids, and how many were left out because a side has more than `max_len` of them, eos included.

    Raises DataError if that is all of them.
    """
    encoded = EncodedPairs(tokenizer.encode_source(pairs.src), tokenizer.encode_target(pairs.tgt))
    longer_lens = np.maximum(encoded.src_lens, encoded.tgt_lens)
    kept = np.flatnonzero(longer_lens <= max_len)
    shortest = int(longer_lens.min()) if len(encoded) else 0
    refuse_all_too_long(len(encoded), max_len=max_len, shortest=shortest)
    num_dropped = len(encoded) - len(kept)
    return (encoded.select(kept) if num_dropped else encoded), num_dropped


def collate(pairs: EncodedPairs, rows: Sequence[int] | NDArray[np.integer]) -> Batch:
    """The batch of these rows; the target is shifted here: position t of `tgt_in` is position t - 1 of `tgt_out`."""
    src, tgt_out = pairs.padded(rows)
    tgt_in = np.empty_like(tgt_out)
    tgt_in[:, 0] = Tokenizer.bos_id
    is_token = tgt_out[:, 1:] != Tokenizer.pad_id
    tgt_in[:, 1:] = np.where(is_token, tgt_out[:, :-1], Tokenizer.pad_id)  # so that no eos goes in
    return Batch(torch.from_numpy(src), torch.from_numpy(tgt_in), torch.from_numpy(tgt_out))


def pad_sources(sources: Sequence[Sequence[int]]) -> Int[Tensor, "batch src_len"]:
    """Sources to predict from as one rectangle, padded on the right."""
    return torch.from_numpy(_padded(_ragged(sources)))


def bucket_batches(
    src_lens: NDArray[np.integer],
    tgt_lens: NDArray[np.integer],
    *,
    batch_tokens: int,
    order: Sequence[int] | NDArray[np.integer],
) -> list[NDArray[np.intp]]:
    """The rows of `order` cut into batches of pairs of about the same length.

    They are sorted by target, then source length; rows of equal lengths stay in the order given. A batch of n pairs has
    n * max(longest source, longest target) <= `batch_tokens`, but a pair longer than that is a batch of its own.
    """
    if batch_tokens < 1:
        raise TransduceError(f"batch_tokens ({batch_tokens}) must be at least 1.")
    rows = np.asarray(order, dtype=np.intp)
    rows = rows[np.lexsort((src_lens[rows], tgt_lens[rows]))]  # stable; the last key is the first to sort by
    starts = []
    size, longest = 0, batch_tokens + 1  # as if a full batch came before
    for position, length in enumerate(np.maximum(src_lens, tgt_lens)[rows].tolist()):
        longest = max(longest, length)
        size += 1
        if size * longest > batch_tokens:
            starts.append(position)
            size, longest = 1, length
    return np.split(rows, starts[1:]) if starts else []


def plan_epoch(
    pairs: EncodedPairs,
    *,
    batch_tokens: int,
    micro_batches: int,
    seed: int,
    epoch: int,
    window: int = 0,
    cut: CutBatches = bucket_batches,
) -> list[list[NDArray[np.intp]]]:
    """The optimizer steps of an epoch on one window: each a list of `micro_batches` batches of rows; the last may have
    fewer.

    Every pair occurs once. `cut` makes the batches. The plan is a pure function of the lengths and of (`seed`,
    `epoch`, `window`); it is made without knowing how many processes share the work.
    """
    if micro_batches < 1:
        raise TransduceError(f"micro_batches ({micro_batches}) must be at least 1.")
    random = np.random.default_rng([seed, epoch, window] if window else [seed, epoch])
    # Shuffled before they are sorted, so that pairs of equal lengths meet other neighbors in every epoch.
    order = random.permutation(len(pairs))
    batches = cut(pairs.src_lens, pairs.tgt_lens, batch_tokens=batch_tokens, order=order)
    shuffled = [batches[number] for number in random.permutation(len(batches))]
    return [shuffled[start : start + micro_batches] for start in range(0, len(shuffled), micro_batches)]


class StepOrder:
    """The optimizer steps of a run, window after window; one is open and planned at a time.

    What is in a window is a pure function of (`seed`, epoch), so that any step is found without planning those before.
    """

    def __init__(
        self,
        corpus: TrainingPairs,
        *,
        batch_tokens: int,
        micro_batches: int,
        seed: int,
        cut: CutBatches = bucket_batches,
    ) -> None:
        self.corpus = corpus
        self.depends_on: list[int | str] = [seed, batch_tokens, micro_batches, len(corpus)]
        if corpus.num_windows > 1:
            self.depends_on.append(f"{corpus.num_windows} windows")
        self.depends_on += corpus.made_by
        if cut is not bucket_batches:
            self.depends_on.append(cut.__name__)
        self._seed = seed
        self._settings: dict[str, Any] = {"batch_tokens": batch_tokens, "micro_batches": micro_batches, "cut": cut}
        self._opened: tuple[int, int] | None = None
        self.pairs: EncodedPairs
        self.steps: list[list[NDArray[np.intp]]] = []

    def open(self, epoch: int, window: int) -> None:
        """Opens and plans a window of an epoch: see `pairs` and `steps`."""
        if self._opened == (epoch, window):
            return
        self._opened, self.steps = None, []  # one plan in memory at a time
        # A number that no window has, so that the windows and their plans are drawn apart.
        random = np.random.default_rng([self._seed, epoch, self.corpus.num_windows])
        self.pairs = self.corpus.window(window, random)
        self.steps = plan_epoch(self.pairs, seed=self._seed, epoch=epoch, window=window, **self._settings)
        self._opened = (epoch, window)

    def steps_of_epoch(self) -> int:
        """How many steps the first epoch has; windows are planned one after the other."""
        num_steps = 0
        for window in range(self.corpus.num_windows):
            self.open(0, window)
            num_steps += len(self.steps)
        return num_steps


def _ragged(rows: Sequence[Sequence[int]] | Ragged) -> Ragged:
    if isinstance(rows, Ragged):
        return rows
    ragged = Ragged.of(rows)
    if len(rows) and not ragged.lens.min():
        raise ValueError(f"Row {int(ragged.lens.argmin())} has no ids: every row must end with eos.")
    return ragged


def _padded(rows: Ragged) -> NDArray[np.int64]:
    rectangle = np.full((len(rows), rows.lens.max(initial=0)), Tokenizer.pad_id, dtype=np.int64)
    rectangle[np.arange(rectangle.shape[1]) < rows.lens[:, None]] = rows.ids
    return rectangle
