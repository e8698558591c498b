"""Small tasks of random symbols, as batches of ids: what an experiment of a minute is made on.

Ids are 0 padding, 1 begin, 2 end; symbols count from 3.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from transduce.data.batches import Batch
from transduce.model.config import VocabularySizes

PAD, BOS, EOS, FIRST_SYMBOL = 0, 1, 2, 3


@dataclass(frozen=True)
class SymbolTask:
    """Sources of random symbols, `shortest` to `longest` of them, and a target that is a function of the source."""

    name: str
    num_symbols: int
    shortest: int
    longest: int
    answer: Callable[[list[int]], list[int]]

    @property
    def vocabulary(self) -> VocabularySizes:
        """One vocabulary for both sides."""
        return VocabularySizes.joint(FIRST_SYMBOL + self.num_symbols)

    def draw(self, num_rows: int, random: torch.Generator) -> Batch:
        """A batch of fresh rows."""
        sources = [
            torch.randint(
                FIRST_SYMBOL,
                FIRST_SYMBOL + self.num_symbols,
                (int(torch.randint(self.shortest, self.longest + 1, (), generator=random)),),
                generator=random,
            ).tolist()
            for _ in range(num_rows)
        ]
        return batch_of([(source, self.answer(source)) for source in sources])


def batch_of(rows: list[tuple[list[int], list[int]]]) -> Batch:
    """Pairs of symbols, padded on the right: the source with its end, the target with begin and end, shifted by one."""
    src = _padded([[*source, EOS] for source, _ in rows])
    tgt_in = _padded([[BOS, *target] for _, target in rows])
    tgt_out = _padded([[*target, EOS] for _, target in rows])
    return Batch(src=src, tgt_in=tgt_in, tgt_out=tgt_out)


def reversal(num_symbols: int = 20, shortest: int = 3, longest: int = 12) -> SymbolTask:
    """The source, backwards: nothing can be said without knowing where things stand."""
    return SymbolTask("reversal", num_symbols, shortest, longest, lambda source: source[::-1])


def copying(num_symbols: int = 20, shortest: int = 3, longest: int = 12) -> SymbolTask:
    """The source as it is."""
    return SymbolTask("copying", num_symbols, shortest, longest, lambda source: source)


def sorting(num_symbols: int = 20, shortest: int = 3, longest: int = 12) -> SymbolTask:
    """The source in order: what stands where does not matter."""
    return SymbolTask("sorting", num_symbols, shortest, longest, sorted)


def _padded(rows: list[list[int]]) -> Int[Tensor, "batch len"]:
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
