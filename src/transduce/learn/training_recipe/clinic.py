"""Six trainings of the same small network, five of them ill: what their curves look like."""

from dataclasses import dataclass, replace

import torch

from transduce.data.batches import Batch
from transduce.learn.ledger import FAST
from transduce.learn.tasks import PAD, reversal
from transduce.learn.training import Draw, Training, exact_match, mean_loss, small_transformer, train
from transduce.model import Transformer
from transduce.model.config import VocabularySizes

# Letter -> what was done. The reader is to find it out from the curves.
DIAGNOSES = {
    "A": "overfit",
    "B": "no warm-up",
    "C": "padding in the loss",
    "D": "healthy",
    "E": "shuffled targets",
    "F": "rate too high",
}


@dataclass(frozen=True)
class Patient:
    """One training, as its log shows it."""

    training: Training  # losses as this training computed them, and lengths of gradients
    steps: list[int]  # at which `valid` was measured
    valid: list[float]  # nats per token on fresh rows, computed as it should be
    right: float  # share of whole answers, written by the model itself, that are right at the end


@dataclass(frozen=True)
class Clinic:
    patients: dict[str, Patient]  # by letter


def clinic(*, fast: bool = FAST) -> Clinic:
    """Reversal of 3 to 8 symbols out of 10; losses in nats per token."""
    return Clinic({letter: _treat(diagnosis, fast) for letter, diagnosis in DIAGNOSES.items()})


def _treat(diagnosis: str, fast: bool) -> Patient:
    task = reversal(10, 3, 8)
    # One id more than needed: it stands for padding where padding is to count.
    vocabulary = VocabularySizes.joint(task.vocabulary.source + 1)
    layers = 4 if diagnosis == "no warm-up" else 1
    model = small_transformer(vocabulary, d_model=32, d_ff=64, num_encoder_layers=layers, num_decoder_layers=layers)
    steps = 36 if fast else 240
    test = task.draw(100, torch.Generator().manual_seed(99))
    found: list[float] = []
    every = steps // 12
    draw = _measured(_draw(diagnosis, task.draw, vocabulary.source - 1), model, test, found, every)
    training = train(
        model,
        draw,
        steps=steps,
        batch_size=32,
        learning_rate={"rate too high": 1.0, "no warm-up": 7e-3}.get(diagnosis, 1e-2),
        warmup_steps=0 if diagnosis == "no warm-up" else steps // 8,
    )
    at = [every * k for k in range(len(found))]
    return Patient(training, [*at, steps], [*found, mean_loss(model, test)], exact_match(model, test))


def _draw(diagnosis: str, draw: Draw, padding_id: int) -> Draw:
    kept: list[Batch] = []

    def drawn(num_rows: int, random: torch.Generator) -> Batch:
        batch = draw(num_rows, random)
        if diagnosis == "overfit":
            kept[:] = kept or [batch]
            return kept[0]
        if diagnosis == "shuffled targets":
            return replace(batch, tgt_in=batch.tgt_in.roll(1, dims=0), tgt_out=batch.tgt_out.roll(1, dims=0))
        if diagnosis == "padding in the loss":
            return replace(batch, tgt_out=torch.where(batch.tgt_out == PAD, padding_id, batch.tgt_out))
        return batch

    return drawn


def _measured(draw: Draw, model: Transformer, test: Batch, found: list[float], every: int) -> Draw:
    """`draw`, before every `every`-th call of which the loss on `test` is measured."""
    calls = 0

    def drawn(num_rows: int, random: torch.Generator) -> Batch:
        nonlocal calls
        if calls % every == 0:
            found.append(mean_loss(model, test))
            model.train()
        calls += 1
        return draw(num_rows, random)

    return drawn
