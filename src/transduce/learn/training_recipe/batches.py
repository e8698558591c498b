"""Batches: how much of them is padding, and what their gradients add up to when a batch comes in parts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from transduce.data.batches import EncodedPairs, bucket_batches, collate
from transduce.data.datasets import load_split
from transduce.learn.ledger import FAST
from transduce.learn.training_recipe.experiments import Recipe, build, words
from transduce.model import Transformer
from transduce.text.tokenizer import Tokenizer
from transduce.training.loss import cross_entropy_sum


@dataclass(frozen=True)
class Batching:
    """Shares of computed positions, of both sides, that are padding."""

    fixed: float  # every pair padded to the longest source and the longest target of the corpus
    shuffled: float  # batches of 64 pairs as they come, each padded to its own longest ones
    bucketed: float  # batches of pairs of like length, as shipped
    num_pairs: int
    longest: int  # ids of the longest side, its end included
    batch_sizes: list[int]  # pairs in each bucketed batch

    @property
    def as_rows(self) -> list[tuple[str, float]]:
        return [
            (f"all padded to the longest: {self.longest}", self.fixed),
            ("64 pairs at random", self.shuffled),
            ("pairs of similar length", self.bucketed),
        ]


def batching(*, fast: bool = FAST) -> Batching:
    """Words of CMUdict as characters and phonemes: how much of what is computed is padding? Nothing is trained."""
    pairs = load_split("cmudict", "valid" if fast else "train")
    src_lens = np.array([len(word) + 1 for word in pairs.src])
    tgt_lens = np.array([len(phonemes.split(" ")) + 1 for phonemes in pairs.tgt])
    order = np.random.default_rng(1).permutation(len(pairs))
    buckets = bucket_batches(src_lens, tgt_lens, batch_tokens=4096, order=order)
    at_random = [order[start : start + 64] for start in range(0, len(order), 64)]

    def padding(batches: Sequence[np.ndarray]) -> float:
        computed = sum(len(rows) * (src_lens[rows].max() + tgt_lens[rows].max()) for rows in batches)
        return 1 - float(src_lens.sum() + tgt_lens.sum()) / float(computed)

    return Batching(
        fixed=padding([order]),
        shuffled=padding(at_random),
        bucketed=padding(buckets),
        num_pairs=len(pairs),
        longest=int(max(src_lens.max(), tgt_lens.max())),
        batch_sizes=[len(rows) for rows in buckets],
    )


@dataclass(frozen=True)
class Accumulation:
    """Gradients of one batch of long and of short words, computed in three ways: lengths of differences, relative."""

    sum_error: float  # sums over two micro-batches, divided by the number of tokens once
    mean_of_means_error: float  # the mean of the two micro-batches' mean losses
    token_counts: tuple[int, int]

    @property
    def weight_of_a_token(self) -> float:
        """In the mean of means: of a token of the smaller micro-batch, beside one of the larger one."""
        return max(self.token_counts) / min(self.token_counts)


def accumulation(*, fast: bool = FAST) -> Accumulation:
    """The words of the validation part, cut into the longest quarter and the rest; the network is at its start."""
    data = words(1_500, 60 if fast else 400)
    model = build(Recipe(), data.tokenizer)
    by_len = np.argsort(data.valid.tgt_lens, kind="stable")
    cut = 3 * len(by_len) // 4
    parts = [by_len[:cut], by_len[cut:]]
    whole, (whole_count,) = _gradient(model, data.valid, [by_len], None)
    sums, counts = _gradient(model, data.valid, parts, whole_count)
    means, _ = _gradient(model, data.valid, parts, None)
    length = float(whole.norm())
    return Accumulation(
        float((sums - whole).norm()) / length,
        float((means - whole).norm()) / length,
        (counts[0], counts[1]),
    )


def _gradient(
    model: Transformer, pairs: EncodedPairs, micro_batches: list[np.ndarray], num_tokens: int | None
) -> tuple[torch.Tensor, list[int]]:
    """The gradient as one vector, and tokens by micro-batch: of sums over `num_tokens`, or of the mean of means."""
    model.zero_grad()
    counts = []
    for rows in micro_batches:
        batch = collate(pairs, rows)
        hidden = model(*batch.inputs)
        loss, count = cross_entropy_sum(hidden, model.output_weight, batch.tgt_out, pad_id=Tokenizer.pad_id)
        counts.append(int(count))
        (loss / (num_tokens or count * len(micro_batches))).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), counts
