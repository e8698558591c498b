"""English words and their phonemes, small enough for an experiment: letters in, phonemes out, as batches of ids."""

from collections import Counter
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch

from transduce.data.batches import Batch
from transduce.data.datasets import load_split
from transduce.evaluation.metrics import Score, evaluate
from transduce.learn.tasks import FIRST_SYMBOL, batch_of
from transduce.learn.training import written
from transduce.model.config import VocabularySizes

_SHORTEST, _LONGEST = 3, 10  # letters
_MOST_PHONEMES = 25  # in an answer; no word of these has as many


@dataclass(frozen=True)
class Words:
    """Words of CMUdict that have one pronunciation; those to learn from and those to test on share none."""

    train: list[tuple[str, str]]  # word, phonemes with blanks between them
    test: list[tuple[str, str]]
    phonemes: tuple[str, ...]

    @classmethod
    def load(cls, num_train: int, num_test: int) -> "Words":
        """The same words on every machine. Raises TransduceError where the package `cmudict` is missing."""
        train, test = (_drawn(split, count) for split, count in (("train", num_train), ("test", num_test)))
        return cls(train, test, tuple(sorted({phoneme for _, said in train for phoneme in said.split(" ")})))

    @property
    def vocabulary(self) -> VocabularySizes:
        """Letters on the source side, phonemes on the target side."""
        target = FIRST_SYMBOL + len(self.phonemes)
        source = FIRST_SYMBOL + len(ascii_lowercase)
        return VocabularySizes(source=source, target=target, num_target_ids=target, is_joint=False)

    def draw(self, num_rows: int, random: torch.Generator) -> Batch:
        """A batch to learn from."""
        return self.batch([self.train[i] for i in torch.randint(len(self.train), (num_rows,), generator=random)])

    def batch(self, rows: list[tuple[str, str]]) -> Batch:
        """These words as ids."""
        phoneme_id = {phoneme: FIRST_SYMBOL + i for i, phoneme in enumerate(self.phonemes)}
        letters = [[FIRST_SYMBOL + ascii_lowercase.index(letter) for letter in word] for word, _ in rows]
        return batch_of(
            [
                (source, [phoneme_id[phoneme] for phoneme in said.split(" ")])
                for source, (_, said) in zip(letters, rows, strict=True)
            ]
        )

    def say(self, model: Any) -> list[str]:
        """What the model says of the test words, greedily."""
        answers = written(model, self.batch(self.test).src, _MOST_PHONEMES)
        return [" ".join(self.phonemes[i - FIRST_SYMBOL] for i in answer) for answer in answers]

    def error_rate(self, answers: list[str]) -> Score:
        """Edits that turn the answers into the dictionary's, in per cent of its phonemes."""
        return evaluate(("per",), answers, [[said for _, said in self.test]])[0]


def _drawn(split: str, count: int) -> list[tuple[str, str]]:
    pairs = load_split("cmudict", split)
    times = Counter(pairs.src)
    rows = [
        (word, said)
        for word, said in zip(pairs.src, pairs.tgt, strict=True)
        if times[word] == 1 and _SHORTEST <= len(word) <= _LONGEST and set(word) <= set(ascii_lowercase)
    ]
    return [rows[i] for i in np.random.default_rng(1).permutation(len(rows))[:count]]
