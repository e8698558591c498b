"""What masks are for: networks without them, trained and asked (sections 3.1 and 3.2.3)."""

import copy
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transduce.data.batches import Batch
from transduce.learn.ledger import FAST
from transduce.learn.surgery import AttentionWithoutCausalMask, TransformerWithoutPaddingMask
from transduce.learn.tasks import BOS, EOS, FIRST_SYMBOL, PAD, SymbolTask, batch_of, reversal
from transduce.learn.training import Draw, Training, exact_match, small_transformer, token_accuracy, train, written
from transduce.model import Transformer
from transduce.model.config import VocabularySizes


def without_causal_mask(model: Transformer) -> Transformer:
    """The same network, whose decoder now sees the targets it is to predict."""
    for layer in model.decoder.layers:
        layer.self_attention.__class__ = AttentionWithoutCausalMask
    return model


def without_padding_mask(model: Transformer) -> Transformer:
    """A network with the same weights, which takes padding for words."""
    blind = TransformerWithoutPaddingMask(model.config, model.vocabulary).to(model.output_weight.dtype)
    blind.load_state_dict(model.state_dict())
    return blind.eval()


@dataclass(frozen=True)
class Gradients:
    """How much each output of a part depends on each of its inputs: lengths of derivatives, (outputs, inputs)."""

    decoder: Float[Tensor, "tgt_len tgt_len"]
    decoder_without_mask: Float[Tensor, "tgt_len tgt_len"]
    memory: Float[Tensor, "tgt_len src_len"]  # of the decoder's outputs by the encoder's, whose last two are padding
    num_padding: int

    @property
    def future_gradient(self) -> float:
        return float(self.decoder.triu(1).max())

    @property
    def padding_gradient(self) -> float:
        return float(self.memory[:, -self.num_padding :].max())


def gradients(*, fast: bool = FAST) -> Gradients:
    """d out_i / d in_j of an untrained decoder of two layers, in float64, by backward passes (section 3.2.3)."""
    del fast  # it is done at once
    model = small_transformer(reversal().vocabulary, d_model=16, d_ff=32).double().eval()
    random = torch.Generator().manual_seed(2)
    inputs = torch.randn(1, 7, 16, generator=random, dtype=torch.float64)
    memory = torch.randn(1, 6, 16, generator=random, dtype=torch.float64)
    mask = torch.tensor([True] * 4 + [False] * 2)[None, None, None]
    by_input, by_memory = _sensitivity(model, inputs, memory, mask)
    leaky, _ = _sensitivity(without_causal_mask(model), inputs, memory, mask)
    return Gradients(by_input, leaky, by_memory, num_padding=2)


@dataclass(frozen=True)
class SynonymTask:
    """Reversal in which every word of the answer is one of two synonyms, by the toss of a coin.

    Nobody who does not see the coins can, in the mean, have a loss below `floor` or name more next tokens than
    `best_told`.
    """

    num_words: int
    shortest: int
    longest: int

    @property
    def vocabulary(self) -> VocabularySizes:
        return VocabularySizes.joint(FIRST_SYMBOL + 2 * self.num_words)

    @property
    def _coins_per_token(self) -> float:
        mean_len = (self.shortest + self.longest) / 2
        return mean_len / (mean_len + 1)  # the end is certain

    @property
    def floor(self) -> float:
        """The mean cross-entropy in nats of one who knows all but the coins."""
        return math.log(2) * self._coins_per_token

    @property
    def best_told(self) -> float:
        """The share of next tokens that such a one names, when all before them are told."""
        return 1 - self._coins_per_token / 2

    def draw(self, num_rows: int, random: torch.Generator) -> Batch:
        """A batch of fresh rows; sources are of the first half of the symbols."""
        rows = []
        for length in torch.randint(self.shortest, self.longest + 1, (num_rows,), generator=random).tolist():
            words = torch.randint(FIRST_SYMBOL, FIRST_SYMBOL + self.num_words, (length,), generator=random)
            coins = torch.randint(2, (length,), generator=random)
            rows.append((words.tolist(), (words.flip(0) + self.num_words * coins).tolist()))
        return batch_of(rows)

    def meaning(self, ids: list[int]) -> list[int]:
        """The first of the two synonyms of each word; the end and padding fall away."""
        return [FIRST_SYMBOL + (i - FIRST_SYMBOL) % self.num_words for i in ids if i >= FIRST_SYMBOL]


@dataclass(frozen=True)
class NoCausalMask:
    """Two networks that differ in one mask: their losses in training, and what they can do."""

    task: SynonymTask
    honest: Training
    leaky: Training
    honest_told: float  # share of next tokens named when all before them are told (teacher forcing)
    leaky_told: float
    honest_writing: float  # share of whole answers right, written by the network itself
    leaky_writing: float
    leaky_writing_in_full_passes: float  # the same without a cache: every token looks at all that is written so far
    examples: list[tuple[list[int], list[int], list[int]]]  # source, what the honest one writes, what the leaky one

    @property
    def loss_ratio(self) -> float:
        return self.leaky.smoothed()[-1] / self.honest.smoothed()[-1]


def no_causal_mask(*, fast: bool = FAST) -> NoCausalMask:
    """Trains to reverse into synonyms with and without the causal mask, then lets both write (section 3.1)."""
    task = SynonymTask(4, 2, 5) if fast else SynonymTask(8, 3, 10)
    test = task.draw(60 if fast else 300, torch.Generator().manual_seed(99))
    (honest, honest_training), (leaky, leaky_training) = (_trained(which, fast, task) for which in ("honest", "leaky"))
    right = [task.meaning(row) for row in test.tgt_out.tolist()]
    most = task.longest + 2
    by_honest, by_leaky = (written(model, test.src, most) for model in (honest, leaky))
    in_full = _written_in_full_passes(leaky, test.src, most)

    def score(answers: list[list[int]]) -> float:
        return sum(task.meaning(answer) == row for answer, row in zip(answers, right, strict=True)) / len(right)

    return NoCausalMask(
        task=task,
        honest=honest_training,
        leaky=leaky_training,
        honest_told=token_accuracy(honest, test),
        leaky_told=token_accuracy(leaky, test),
        honest_writing=score(by_honest),
        leaky_writing=score(by_leaky),
        leaky_writing_in_full_passes=score(in_full),
        examples=[
            ([i for i in row if i >= FIRST_SYMBOL], a, b)
            for row, a, b in list(zip(test.src.tolist(), by_honest, by_leaky, strict=True))[:4]
        ],
    )


@dataclass(frozen=True)
class BatchMates:
    """What a longer mate in the batch does to a source: to scores (largest change) and to answers (share changed)."""

    padding: tuple[int, ...]  # tokens of padding that the mate brings
    masked_leak: float  # change of scores, in nats, at the most padding; the shipped network, float64
    unmasked_leak: float  # the same network with its mask taken out
    changed: dict[str, tuple[float, ...]]  # by network, for each amount of padding
    right: dict[str, tuple[float, ...]]  # share of right answers, alone and for each amount of padding
    right_in_batches: dict[str, float]  # the same in batches as in training

    @property
    def changed_when_taken_out(self) -> float:
        return self.changed["mask removed"][-1]

    @property
    def changed_when_never_there(self) -> float:
        return self.changed["trained without"][-1]


def batch_mates(*, fast: bool = FAST) -> BatchMates:
    """Answers sources alone and beside ever longer mates: with the padding mask, without, and trained without."""
    task = reversal(6, 2, 5) if fast else reversal(10, 3, 10)
    honest, never = (_trained(which, fast, task)[0] for which in ("honest", "unpadded"))
    models = {"with the mask": honest, "mask removed": without_padding_mask(honest), "trained without": never}
    amounts = (1, 2, 4, 8) if fast else (1, 2, 4, 8, 16)
    rows = _rows(task, 40 if fast else 150)
    wide = copy.deepcopy(honest).double()
    leaks = [max(_leak(m, row, amounts[-1]) for row in rows[:20]) for m in (wide, without_padding_mask(wide))]
    answers = {name: {n: _answers(model, rows, n) for n in (0, *amounts)} for name, model in models.items()}
    right = [row[0, :-1].flip(0).tolist() for row in sorted(rows, key=lambda row: row.size(1))]
    random = torch.Generator().manual_seed(98)
    return BatchMates(
        padding=amounts,
        masked_leak=leaks[0],
        unmasked_leak=leaks[1],
        changed={name: tuple(1 - _share_equal(by[n], by[0]) for n in amounts) for name, by in answers.items()},
        right={name: tuple(_share_equal(by[n], right) for n in (0, *amounts)) for name, by in answers.items()},
        right_in_batches={name: exact_match(model, task.draw(100, random)) for name, model in models.items()},
    )


def _trained(which: str, fast: bool, task: SynonymTask | SymbolTask) -> tuple[Transformer, Training]:
    size = {"d_model": 32, "d_ff": 64} if fast else {}
    model = small_transformer(task.vocabulary, num_encoder_layers=1, num_decoder_layers=1, **size)
    if which == "leaky":
        model = without_causal_mask(model)
    if which == "unpadded":
        model = without_padding_mask(model)
    steps, rate = (200, 8e-3) if fast else (600, 4e-3)
    draw: Draw = task.draw
    return model, train(model, draw, steps=steps, batch_size=32, learning_rate=rate, warmup_steps=20)


def _sensitivity(
    model: Transformer, inputs: Tensor, memory: Tensor, mask: Tensor
) -> tuple[Float[Tensor, "tgt_len tgt_len"], Float[Tensor, "tgt_len src_len"]]:
    by_input, by_memory = torch.autograd.functional.jacobian(
        lambda x, m: model.decoder(x, m, mask)[0], (inputs, memory)
    )  # (T, D, 1, T, D) and (T, D, 1, S, D)
    return by_input[:, :, 0].norm(dim=(1, 3)), by_memory[:, :, 0].norm(dim=(1, 3))


@torch.no_grad()
def _written_in_full_passes(model: Transformer, src: Tensor, most_tokens: int) -> list[list[int]]:
    """Greedy answers without a cache: at every step the decoder goes through all that is written so far."""
    tgt = torch.full((len(src), 1), BOS)
    for _ in range(most_tokens):
        tgt = torch.cat((tgt, model.logits(model(src, tgt))[:, -1:].argmax(dim=-1)), dim=1)
    rows = [[*row, EOS] for row in tgt[:, 1:].tolist()]
    return [row[: row.index(EOS)] for row in rows]


def _rows(task: SymbolTask, count: int) -> list[Tensor]:
    """Sources one by one, without padding: (1, S) each."""
    drawn = task.draw(count, torch.Generator().manual_seed(77)).src
    return [row[row != PAD][None] for row in drawn]


def padded(src: Int[Tensor, "batch src_len"], amount: int) -> Int[Tensor, "batch longer"]:
    """The source as it looks beside a mate that is `amount` tokens longer."""
    return torch.nn.functional.pad(src, (0, amount), value=PAD)


@torch.no_grad()
def _leak(model: Transformer, src: Tensor, amount: int) -> float:
    tgt_in = batch_of([([], src[0, :-1].flip(0).tolist())]).tgt_in
    alone, beside = (model.logits(model(s, tgt_in)).log_softmax(-1) for s in (src, padded(src, amount)))
    return float((alone - beside).abs().max())


def _answers(model: Transformer, rows: list[Tensor], amount: int) -> list[list[int]]:
    """What is written for each source beside a mate that is `amount` tokens longer, in the order of length."""
    found = []
    for length in sorted({row.size(1) for row in rows}):
        alike = torch.cat([row for row in rows if row.size(1) == length])  # no padding among them
        found += written(model, padded(alike, amount), length + 4)
    return found


def _share_equal(some: list[list[int]], others: list[list[int]]) -> float:
    return sum(one == other for one, other in zip(some, others, strict=True)) / len(some)
