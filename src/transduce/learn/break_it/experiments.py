"""The ward of `break_it`: instruments and laws, and what they say of ten patients beside a healthy network."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.data.batches import Batch
from transduce.learn.break_it import bugs
from transduce.learn.break_it.bugs import LETTERS, TASK, Patient, admit, name_of
from transduce.learn.ledger import FAST
from transduce.learn.tasks import BOS, EOS, FIRST_SYMBOL, PAD, batch_of
from transduce.learn.training import exact_match, mean_loss, token_accuracy, train
from transduce.model import MultiHeadAttention, Transformer
from transduce.model.dropout import Dropout
from transduce.model.encoder import EncoderLayer
from transduce.model.residual import AddAndNorm

HEALTHY = "healthy"
_NOTHING = 1e-4  # float32 is this exact here
_ROWS = [([3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3]), ([9, 5, 3], [3, 5, 9]), ([4, 10], [10, 4])]  # pairs of the task


@dataclass(frozen=True)
class Law:
    """What is true of every right network, as a number: how far a patient is from it."""

    bug: str  # which this law is made for
    says: str  # in a sentence
    column: str  # the same in two or three words
    measure: Callable[[Patient], float]

    def holds(self, value: float) -> bool:
        return value <= _NOTHING  # written so that NaN never holds


def same_twice(patient: Patient) -> float:
    """The same question twice, after `train(False)`: largest change of a log-probability, in nats."""
    patient.model.train(False)
    batch = batch_of(_ROWS)
    return _most(_log_probs(patient.model, batch) - _log_probs(patient.model, batch))


def batch_mates(patient: Patient) -> float:
    """A source beside four tokens of padding, and alone: largest change of a log-probability, in nats."""
    batch = batch_of(_ROWS[:1])
    wider = Batch(F.pad(batch.src, (0, 4), value=PAD), batch.tgt_in, batch.tgt_out)
    return _most(_log_probs(patient.model, batch) - _log_probs(patient.model, wider))


def future_seen(patient: Patient) -> float:
    """Changes each token of the decoder's input; the largest change of a log-probability *before* it, in nats."""
    batch, most = batch_of(_ROWS[:1]), 0.0
    before = _log_probs(patient.model, batch)
    for k in range(1, batch.tgt_in.size(1)):
        changed = batch.tgt_in.clone()
        changed[0, k] = 10
        after = _log_probs(patient.model, Batch(batch.src, changed, batch.tgt_out))
        most = max(most, _most((after - before)[:, :k]))
    return most


def shift_of_targets(patient: Patient) -> float:
    """Share of places where the decoder's input is not begin, or not the label of the place before."""
    batch = patient.batch(batch_of(_ROWS[:1]))
    expected = torch.cat((torch.full((1, 1), BOS), batch.tgt_out[:, :-1]), dim=1)
    return float((batch.tgt_in != expected).float().mean())


def rows_belong_together(patient: Patient) -> float:
    """Share of rows whose labels are not the answer to their source."""
    batch = patient.batch(batch_of(_ROWS))
    symbols = [[[i for i in row if i in range(FIRST_SYMBOL, bugs.PADDING_AS_A_WORD)] for row in side.tolist()]
               for side in (batch.src, batch.tgt_out)]  # fmt: skip
    return sum(TASK.answer(src) != tgt for src, tgt in zip(*symbols, strict=True)) / len(_ROWS)


def loss_by_padding(patient: Patient) -> float:
    """The loss of a batch, and of the same with three columns of padding more in the target: change in nats."""
    batch = batch_of(_ROWS)
    wider = Batch(batch.src, *(F.pad(side, (0, 3), value=PAD) for side in (batch.tgt_in, batch.tgt_out)))
    return abs(mean_loss(patient.model, patient.batch(batch)) - mean_loss(patient.model, patient.batch(wider)))


def deaf_to_order(patient: Patient) -> float:
    """1 if the encoder gives reordered symbols their reordered vectors, as if no word stood anywhere; else 0."""
    src, order = batch_of(_ROWS[:1]).src, torch.tensor([3, 0, 5, 1, 4, 2, 6])
    before, after = (patient.model.encode(ids)[0] for ids in (src, src[:, order]))
    return float(_most(before[:, order] - after) < _NOTHING)


def deaf_to_the_source(patient: Patient) -> float:
    """1 if another symbol in the source changes no score; else 0."""
    batch = batch_of(_ROWS[:1])
    other = Batch(torch.where(batch.src == 3, 9, batch.src), batch.tgt_in, batch.tgt_out)
    return float(_most(_log_probs(patient.model, batch) - _log_probs(patient.model, other)) < _NOTHING)


def weights_sum_to_one(patient: Patient) -> float:
    """Sets all values to 1, so each query gets the sum of its weights; the largest distance from 1."""
    return max(_sum_of_weights(attention, values) for attention, values in _attentions(patient.model))


def permutes_along(patient: Patient) -> float:
    """Self-attention of the encoder, no mask: reordered vectors in, the same reordered out? Largest difference."""
    x, order = _vectors(patient.model), torch.tensor([3, 0, 4, 1, 2])
    attention = _encoder_layer(patient.model).self_attention
    return _most(attention(x)[:, order] - attention(x[:, order]))


def equation_one(patient: Patient) -> float:
    """Self-attention of the encoder beside equation 1 by hand, of its own queries, keys and values."""
    x, attention = _vectors(patient.model), _encoder_layer(patient.model).self_attention
    q, k, v = attention.project(x)
    by_hand = (q @ k.transpose(-2, -1) / q.size(-1) ** 0.5).softmax(-1) @ v
    return _most(attention(x) - attention.combine(by_hand))


def embedding_scale(patient: Patient) -> float:
    """Two symbols at one place: the encoder's input differs by sqrt(d_model) times their rows' difference; how far
    from it the factor is."""
    model, seen = patient.model, []
    handle = model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.encode(torch.tensor([[3, EOS], [4, EOS]]))
    handle.remove()
    rows = model.src_embedding.weight
    factor = float((seen[0][0, 0] - seen[0][1, 0]).norm() / (rows[3] - rows[4]).norm())
    return abs(factor - model.config.d_model**0.5)


def silent_sublayers(patient: Patient) -> float:
    """How many of the five sub-layers, when they say nothing (zeros), lose what came in."""
    x = _vectors(patient.model)
    found = [part for part in patient.model.modules() if isinstance(part, AddAndNorm)]
    return float(sum(_most(part(x, torch.zeros_like) - part.norm(x)) > _NOTHING for part in found))


def norms_by_hand(patient: Patient) -> float:
    """Every norm beside the mean and the variance (divided by n) taken by hand: largest difference."""
    x = _vectors(patient.model)
    plain = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    found = [part for part in patient.model.modules() if isinstance(part, nn.LayerNorm)]
    return max(_most(part(x) - (plain * part.weight + part.bias)) for part in found)


LAWS = (
    Law("dropout stays on", "Run twice on the same input, a model gives the same output.", "twice", same_twice),
    Law(
        "source padding is not masked",
        "The scores for a source do not depend on how much padding follows it.",
        "more padding",
        batch_mates,
    ),
    Law(
        "causal mask leaks by one",
        "Changing a token of the decoder's input changes no score before it.",
        "future",
        future_seen,
    ),
    Law(
        "heads are split by view",
        "Reordering the inputs of self-attention reorders its outputs in the same way (no mask, no positions).",
        "permutation",
        permutes_along,
    ),
    Law("softmax over the wrong axis", "The weights of every query sum to 1.", "weight sum", weights_sum_to_one),
    Law(
        "positions are not added",
        "If the symbols of the source are reordered, their encoder vectors change.",
        "sees order",
        deaf_to_order,
    ),
    Law(
        "embeddings are not scaled",
        "The encoder receives the rows of the embedding table multiplied by √d_model.",
        "scale",
        embedding_scale,
    ),
    Law(
        "residual is forgotten",
        "If a sub-layer outputs only zeros, its input still passes through.",
        "passes input",
        silent_sublayers,
    ),
    Law(
        "target is not shifted",
        "The decoder's input is the begin symbol, then the labels without the last one.",
        "shift",
        shift_of_targets,
    ),
    Law(
        "padding counts in the loss",
        "More padding in the target does not change the loss.",
        "padded loss",
        loss_by_padding,
    ),
    Law(
        "scores are not divided by the root of d_k",
        "Attention equals equation 1, computed by hand from its own queries, keys and values.",
        "equation 1",
        equation_one,
    ),
    Law(
        "LayerNorm divides by n - 1",
        "A norm equals the one computed by hand, with a variance that is divided by n.",
        "norm",
        norms_by_hand,
    ),
    Law(
        "cross-attention looks at the target",
        "A different source gives different scores.",
        "sees source",
        deaf_to_the_source,
    ),
    Law(
        "labels belong to other rows",
        "The labels of each row are the correct target for the source of that row.",
        "rows",
        rows_belong_together,
    ),
)
CANDIDATES = tuple(sorted(law.bug for law in LAWS))


@torch.no_grad()
def examine(patient: Patient) -> dict[str, float]:
    """What each law measures, by the bug it is made for. All but the first hold dropout still, to compare by it."""
    found = {LAWS[0].bug: LAWS[0].measure(patient)}
    still = Patient(copy.deepcopy(patient.model), patient.batch)
    for part in still.model.modules():
        if isinstance(part, Dropout):
            part.p = 0.0
    return found | {law.bug: law.measure(still) for law in LAWS[1:]}


def broken(found: dict[str, float]) -> set[str]:
    """The laws that do not hold, by the bug each is made for."""
    return {law.bug for law in LAWS if not law.holds(found[law.bug])}


@dataclass(frozen=True)
class Scores:
    """What one usually looks at."""

    losses: list[float]  # as this patient's training computes them, smoothed; nats per token
    told: float  # share of next tokens named on batches of its own, told all before them
    writes: float  # share of whole answers right, written by itself

    @property
    def loss(self) -> float:
        return self.losses[-1]


@dataclass(frozen=True)
class Ward:
    """Everything about the healthy network and the ten, by letter; "healthy" comes first."""

    scores: dict[str, Scores]
    laws: dict[str, dict[str, float]]  # by patient, then by the bug a law is made for; untrained networks

    @property
    def caught(self) -> int:
        """Patients that break the very law made for their bug."""
        return sum(name_of(letter) in broken(self.laws[letter]) for letter in LETTERS)

    @property
    def false_alarms(self) -> int:
        return len(broken(self.laws[HEALTHY]))

    def ratio(self, letter: str) -> float:
        """Its last loss in training beside the healthy one's."""
        return self.scores[letter].loss / self.scores[HEALTHY].loss

    @property
    def no_worse(self) -> int:
        return sum(self.ratio(letter) <= 1.1 for letter in LETTERS)

    @property
    def leak_ratio(self) -> float:
        (leaking,) = (letter for letter in LETTERS if name_of(letter) == "causal mask leaks by one")
        return self.ratio(leaking)


def wards(*, fast: bool = FAST) -> Ward:
    """Trains the healthy network and the ten on the same rows, and examines all of them."""
    everyone: dict[str, str | None] = {HEALTHY: None} | {letter: letter for letter in LETTERS}
    laws = {name: examine(admit(letter)) for name, letter in everyone.items()}
    return Ward({name: _score(admit(letter), fast) for name, letter in everyone.items()}, laws)


def _score(patient: Patient, fast: bool) -> Scores:
    training = train(
        patient.model,
        patient.draw,
        steps=60 if fast else 500,
        batch_size=32,
        learning_rate=1e-2,
        warmup_steps=20,
    )
    random = torch.Generator().manual_seed(99)
    rows = TASK.draw(60 if fast else 200, random)
    told = token_accuracy(patient.model, patient.batch(rows))
    return Scores(training.smoothed(), told, exact_match(patient.model, rows))


def _log_probs(model: Transformer, batch: Batch) -> Tensor:
    return model.logits(model(batch.src, batch.tgt_in)).log_softmax(-1)


def _most(difference: Tensor) -> float:
    return float(difference.abs().max())


def _vectors(model: Transformer) -> Tensor:
    return torch.randn(1, 5, model.config.d_model, generator=torch.Generator().manual_seed(5))


def _encoder_layer(model: Transformer) -> EncoderLayer:
    return next(iter(model.encoder.layers))


def _attentions(model: Transformer) -> list[tuple[MultiHeadAttention, Tensor]]:
    x = _vectors(model)
    return [(part, x) for part in model.modules() if isinstance(part, MultiHeadAttention)]


def _sum_of_weights(attention: MultiHeadAttention, x: Tensor) -> float:
    copied = copy.deepcopy(attention)
    width = x.size(-1)
    copied.qkv_proj.weight[2 * width :] = 0
    copied.qkv_proj.bias[2 * width :] = 1  # all values are 1
    copied.out_proj.weight.copy_(torch.eye(width))
    copied.out_proj.bias.zero_()
    return _most(copied(x) - 1)
