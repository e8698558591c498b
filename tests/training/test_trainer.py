import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.data.batches import EncodedPairs, plan_epoch
from transduce.errors import DivergedError, LostProcessError, TransduceError
from transduce.model import Transformer
from transduce.model.config import TransformerConfig, VocabularySizes
from transduce.runs.folder import RunFolder
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.distributed import Process
from transduce.training.state import TrainerState
from transduce.training.trainer import Trainer, Validation

VOCAB, PAD, BOS, EOS = 29, 0, 1, 2
MODEL = TransformerConfig(d_model=16, d_ff=23, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, dropout=0.1)
TRAINING = TrainingConfig(steps=7, batch_tokens=40, micro_batches=2, log_every=3, validate_every=2, seed=5)
OPTIM = OptimConfig(schedule="constant", learning_rate=0.003, warmup_steps=3)

Weights = dict[str, Tensor]
NewTrainer = Callable[..., Trainer]


def pairs_of(num_pairs: int = 31) -> EncodedPairs:
    random = np.random.default_rng(11)

    def row() -> list[int]:
        return [*random.integers(4, VOCAB, random.integers(2, 8)).tolist(), EOS]

    return EncodedPairs([row() for _ in range(num_pairs)], [row() for _ in range(num_pairs)])


def new_model(config: TransformerConfig = MODEL) -> Transformer:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Transformer(config, VocabularySizes.joint(VOCAB))


@pytest.fixture
def new_trainer(tmp_path: Path) -> NewTrainer:
    """Makes trainers, each with a run folder of its own."""
    numbers: Iterator[int] = iter(range(100))

    def make(training: TrainingConfig = TRAINING, optim: OptimConfig = OPTIM, **more) -> Trainer:
        path = tmp_path / f"run{next(numbers)}"
        folder = RunFolder.create(path, config="", tokenizer="{}", facts={})
        model = new_model(more.pop("model", MODEL))
        return Trainer(model, more.pop("pairs", pairs_of()), config=training, optim=optim, store=folder, **more)

    return make


def weights_of(model: nn.Module) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(first: Weights, second: Weights) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def assert_close(first: Weights, second: Weights, tolerance: float) -> None:
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


def rectangle(rows: list[list[int]]) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)


def mean_loss(model: Transformer, pairs: EncodedPairs, rows: list[int], label_smoothing: float) -> Tensor:
    """Textbook: pad, shift, and torch's own cross-entropy over all logits."""
    src, tgt = [pairs.src(row).tolist() for row in rows], [pairs.tgt(row).tolist() for row in rows]
    logits = model.logits(model(rectangle(src), rectangle([[BOS, *row[:-1]] for row in tgt])))
    flat, right = logits.flatten(0, 1), rectangle(tgt).flatten()
    return F.cross_entropy(flat, right, ignore_index=PAD, label_smoothing=label_smoothing)


def planned_steps(trainer: Trainer, num_steps: int) -> list[list[np.ndarray]]:
    """The micro-batches of the first steps, epoch after epoch."""
    config = trainer.config
    steps: list[list[np.ndarray]] = []
    for epoch in count():
        steps += plan_epoch(
            trainer.pairs,
            batch_tokens=config.batch_tokens,
            micro_batches=config.micro_batches,
            seed=config.seed,
            epoch=epoch,
        )
        if len(steps) >= num_steps:
            return steps[:num_steps]
    raise AssertionError


def scripted(score_by_step: list[float], record: list[Weights]) -> Callable[[nn.Module], Validation]:
    """A validation that says what it is told to, and remembers the weights that it was shown."""
    script = iter(score_by_step)

    def validate(model: nn.Module) -> Validation:
        record.append(weights_of(model))
        score = next(script)
        return Validation({"loss": -score}, score)

    return validate


# The update


def test_micro_batches_of_different_sizes_give_the_gradient_of_one_batch_of_them_all(new_trainer: NewTrainer) -> None:
    def gradient_of(micro_batches: list[np.ndarray]) -> tuple[Weights, float]:
        trainer = new_trainer(model=replace(MODEL, dropout=0.0))
        found: Weights = {}
        trainer.update.optimizers[0].register_step_pre_hook(
            lambda *_: found.update({name: p.grad.clone() for name, p in trainer.model.named_parameters()})
        )
        return found, trainer.train_step(micro_batches, step=1).read().loss

    rows = np.arange(17)
    whole, whole_loss = gradient_of([rows])
    parts, parts_loss = gradient_of([rows[:2], rows[2:5], rows[5:]])
    assert len(whole) > 10
    assert_close(parts, whole, 1e-6)
    assert parts_loss == pytest.approx(whole_loss, rel=1e-6)


def test_training_equals_a_loop_written_by_hand_with_adamw_and_cross_entropy(new_trainer: NewTrainer) -> None:
    # A large epsilon: the bias of the keys has no gradient but rounding, which Adam would blow up to full steps.
    optim = replace(OPTIM, weight_decay=0.1, max_grad_norm=0.5, schedule="linear", epsilon=1e-4)
    trainer = new_trainer(replace(TRAINING, steps=12), optim=optim, model=replace(MODEL, dropout=0.0))
    model = new_model(replace(MODEL, dropout=0.0))
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        eps=1e-4,
        fused=False,
        foreach=False,
    )
    # By hand: up to the peak at step 3, then down a straight line that would reach zero at step 13.
    rates = [0.003 * share for share in (1 / 3, 2 / 3, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)]
    steps = planned_steps(trainer, 12)
    losses = []
    for rate, micro_batches in zip(rates, steps, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = mean_loss(model, trainer.pairs, np.concatenate(micro_batches).tolist(), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    rows = []
    trainer.config = replace(trainer.config, log_every=1)
    trainer.observers = [rows.append]
    trainer.run()
    assert [row["loss"] for row in rows if row["kind"] == "training"] == pytest.approx(losses, rel=1e-5)
    assert [row["learning_rate"] for row in rows if row["kind"] == "training"] == pytest.approx(rates)
    assert_close(weights_of(trainer.model), weights_of(model), 1e-5)


def test_the_schedule_counts_optimizer_steps_whatever_the_number_of_micro_batches(new_trainer: NewTrainer) -> None:
    optim = OptimConfig(schedule="inverse_sqrt", warmup_steps=4)
    for micro_batches in (1, 3):
        rows: list[dict] = []
        training = replace(TRAINING, micro_batches=micro_batches, log_every=1)
        new_trainer(training, optim, observers=[rows.append]).run()
        expected = [16**-0.5 * min(step**-0.5, step * 4**-1.5) for step in range(1, 8)]
        assert [row["learning_rate"] for row in rows] == pytest.approx(expected)


def test_the_average_in_a_run_is_the_one_computed_by_hand(new_trainer: NewTrainer) -> None:
    optim = replace(OPTIM, ema_decay=0.35)
    shown: list[Weights] = []
    trainer = new_trainer(replace(TRAINING, validate_every=1), optim, validate=scripted([0.0] * 7, shown))
    average, history = weights_of(trainer.model), []
    trainer.update.optimizers[0].register_step_post_hook(lambda *_: history.append(weights_of(trainer.model)))
    trainer.run()
    for step, current in enumerate(history, start=1):
        decay = min(0.35, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * current[name] for name in average}
        assert_close(shown[step - 1], average, 1e-6)
    kept, facts, _ = trainer.store.read_model()
    assert_same(kept, shown[0])  # the first of equally good ones
    assert facts["averaged"] is True


# What can go wrong


class _Poison(torch.autograd.Function):
    """Passes a tensor on unchanged; its gradient becomes `value`."""

    @staticmethod
    def forward(ctx, tensor, value):
        ctx.value = value
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, ctx.value), None


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("step", [1, 4])
def test_a_number_that_is_not_finite_stops_the_run_before_any_weight_changes(
    new_trainer: NewTrainer, value: float, where: str, step: int
) -> None:
    trainer = new_trainer(replace(TRAINING, save_every=1, keep_checkpoints=20), replace(OPTIM, ema_decay=0.9))
    before: dict[str, Weights] = {}

    def poison(_module: nn.Module, _arguments: object, hidden: Tensor) -> Tensor | None:
        if trainer.state.step + 1 < step:
            return None
        before["model"], before["average"] = weights_of(trainer.model), weights_of(trainer.update.average)
        return hidden * value if where == "loss" else _Poison.apply(hidden, value)

    trainer.model.register_forward_hook(poison)
    with pytest.raises(DivergedError, match=rf"step {step}:.*max_grad_norm"):
        trainer.run()
    assert_same(weights_of(trainer.model), before["model"])
    assert_same(weights_of(trainer.update.average), before["average"])
    assert trainer.store.checkpoints() == list(range(step))
    for saved in trainer.store.checkpoints():
        assert all(tensor.isfinite().all() for tensor in trainer.store.read_checkpoint(saved)[0].values())


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"steps": -1, "epochs": 1.0},
        {"steps": 1, "batch_tokens": 0},
        {"steps": 1, "micro_batches": 0},
        {"steps": 1, "log_every": 0},
        {"steps": 1, "label_smoothing": 1.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict) -> None:
    with pytest.raises(TransduceError, match="training"):
        TrainingConfig(**settings)


# What is kept


def test_the_weights_kept_are_those_of_the_best_validation(new_trainer: NewTrainer) -> None:
    shown: list[Weights] = []
    trainer = new_trainer(replace(TRAINING, steps=9), validate=scripted([1.0, 3.0, 2.0, 3.0, -1.0], shown))
    state = trainer.run()
    kept, facts, _ = trainer.store.read_model()
    assert_same(kept, shown[1])
    assert (facts["step"], facts["validation"]) == (4, {"loss": -3.0})
    assert (state.best_step, state.best_score) == (4, 3.0)


def test_without_a_validation_the_last_weights_are_kept(new_trainer: NewTrainer) -> None:
    trainer = new_trainer()
    trainer.run()
    kept, facts, _ = trainer.store.read_model()
    assert_same(kept, weights_of(trainer.model))
    assert facts["step"] == 7


def test_a_run_ends_after_as_many_bad_validations_in_a_row_as_it_has_patience(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(
        replace(TRAINING, steps=50, patience=3), validate=scripted([0.0, 1.0, 0.5, 2.0, 0.0, 2.0, 1.0, 9.0], [])
    )
    state = trainer.run()
    assert (state.step, state.best_step, trainer.is_finished) == (14, 8, True)


def test_the_best_score_of_an_older_checkpoint_is_kept() -> None:
    state = TrainerState.from_dict({"best_goodness": 2.0, "best_step": 4})
    assert not state.judge(Validation({"loss": 3.0}, 1.0))
    assert (state.best_step, state.best_score) == (4, 2.0)


def test_score_of_another_measure_is_not_compared(new_trainer: NewTrainer) -> None:
    found = iter([Validation({}, 30.0, "bleu"), Validation({}, -2.0, "loss"), Validation({}, -3.0, "loss")])
    trainer = new_trainer(replace(TRAINING, steps=6), validate=lambda _model: next(found))
    state = trainer.run()
    assert (state.best_step, state.best_score) == (4, -2.0)


def test_of_equally_good_weights_the_first_are_kept_unless_a_tie_is_decided(new_trainer: NewTrainer) -> None:
    for ties, kept in (([0.0, 0.0, 0.0], 2), ([-0.5, -0.3, -0.4], 4)):
        found = iter([Validation({}, 7.0, "bleu", tie) for tie in ties])
        state = new_trainer(replace(TRAINING, steps=6), validate=lambda _model, found=found: next(found)).run()
        assert state.best_step == kept


@pytest.mark.parametrize("validate", [None, lambda _model: Validation({}, 7.0)])
def test_a_checkpoint_names_no_best_weights_that_were_not_written(new_trainer: NewTrainer, validate) -> None:
    trainer = new_trainer(replace(TRAINING, steps=3), validate=validate)

    def lose(*_: object) -> None:
        raise LostProcessError("another training process has ended.")

    trainer.store.write_model = lose  # the one that writes is lost in it
    with pytest.raises(LostProcessError):
        trainer.run()
    trainer.save_alone()
    step, _, saved = trainer.store.newest_checkpoint()
    assert (step > 0, saved["best_step"], saved["validated_step"]) == (True, 0, 0)


def test_every_process_counts_the_seconds_of_a_validation_as_any_may_be_the_one_that_saves(
    new_trainer: NewTrainer,
) -> None:
    ticks = iter([3.0, 8.0])

    class Other(Process):
        """A process that hears what rank 0 found."""

        def decide(self, work: Callable[[], Any]) -> Any:  # noqa: ARG002
            return Validation({}, 7.0)

    trainer = new_trainer(process=Other(rank=1, world_size=2), clock=lambda: next(ticks))
    trainer.state.step = TRAINING.validate_every
    assert trainer._validate_if_due()
    assert trainer.state.validation_seconds == 5.0


def test_a_deadline_ends_a_run_that_is_then_validated_and_saved(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(
        replace(TRAINING, steps=10_000, validate_every=0, minutes=1.0), validate=scripted([1.0], []), deadline=0.05
    )
    started = time.perf_counter()
    state = trainer.run()
    assert time.perf_counter() - started < 10
    assert 0.05 < state.seconds < 5
    assert 0 < state.step < 10_000
    assert trainer.store.checkpoints() == [0, state.step]
    assert [row["step"] for row in trainer.store.metrics() if row["kind"] == "validation"] == [state.step]


def test_a_run_slower_than_planned_takes_fewer_steps_and_ends_its_schedule_in_time(new_trainer: NewTrainer) -> None:
    ticks = count()
    trainer = new_trainer(
        replace(TRAINING, steps=100, validate_every=10, log_every=1, minutes=1.0),
        replace(OPTIM, schedule="linear"),
        validate=scripted([0.0] * 20, []),
        deadline=60.0,
        clock=lambda: float(next(ticks)),  # a second at each look, two looks at a step and one after it
    )
    state = trainer.run()
    assert state.minutes_over is None and 40 < state.seconds + state.validation_seconds <= 60
    assert state.step == trainer.num_steps < 60
    last = [row for row in trainer.store.metrics() if row["kind"] == "training"][-1]
    # Zero one step after the last, from a peak after three steps.
    assert last["learning_rate"] == pytest.approx(OPTIM.learning_rate / (state.step + 1 - 3))

    state.time_of_steps = 0.5  # of a run resumed with another time
    assert trainer.num_steps == 100


def test_a_slow_beginning_is_made_up_for() -> None:
    slow, fast = TrainerState(step=25, seconds=24.0), TrainerState(step=100, seconds=24.0 + 75 * 0.1)
    plan = {"deadline": 60.0, "steps": 250, "validation": 0.5, "every": 25}
    # 35.5 seconds are left, at 0.96 + 0.02 a step; then 28 seconds at 0.315 + 0.02.
    assert slow.steps_within(**plan) == 25 + int(0.98 * 35.5 / 0.98)
    assert fast.steps_within(**plan) == 100 + int(0.98 * 28.0 / 0.335)
    assert TrainerState(step=100, seconds=10.0).steps_within(**plan) == 250


def test_every_row_is_logged_once_and_the_last_step_too(new_trainer: NewTrainer) -> None:
    observed: list[dict] = []
    trainer = new_trainer(validate=scripted([0.0] * 4, []), observers=[observed.append])
    trainer.run()
    rows = trainer.store.metrics()
    assert rows == observed
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("validation", 2),
        ("training", 3),
        ("validation", 4),
        ("training", 6),
        ("validation", 6),
        ("training", 7),
        ("validation", 7),
    ]


def test_a_logged_loss_is_the_mean_over_the_target_tokens_since_the_row_before(new_trainer: NewTrainer) -> None:
    by_step: list[dict] = []
    new_trainer(replace(TRAINING, log_every=1), observers=[by_step.append]).run()
    trainer = new_trainer(replace(TRAINING, log_every=3))
    trainer.run()
    steps = planned_steps(trainer, 7)
    tokens = [sum(trainer.pairs.tgt_lens[rows].sum() for rows in micro_batches) for micro_batches in steps]
    sums = [row["loss"] * num for row, num in zip(by_step, tokens, strict=True)]
    expected = [sum(sums[a:b]) / sum(tokens[a:b]) for a, b in ((0, 3), (3, 6), (6, 7))]
    assert [row["loss"] for row in trainer.store.metrics()] == pytest.approx(expected, rel=1e-6)


# Randomness


def final_weights(new_trainer: NewTrainer, training: TrainingConfig, **more) -> Weights:
    trainer = new_trainer(training, **more)
    trainer.run()
    return weights_of(trainer.model)


def test_validating_logging_and_saving_more_often_changes_no_bit_of_the_weights(new_trainer: NewTrainer) -> None:
    def drawing(_model: nn.Module) -> Validation:
        torch.rand(7)
        np.random.rand(7)
        return Validation({}, 0.0)

    training = replace(TRAINING, batch_tokens=60)
    plain = final_weights(new_trainer, replace(training, validate_every=0))
    busy = replace(training, validate_every=1, log_every=1, save_every=1)
    assert_same(final_weights(new_trainer, busy, validate=drawing), plain)


def test_dropout_is_a_function_of_seed_step_and_micro_batch(new_trainer: NewTrainer) -> None:
    rows = np.arange(5)

    def losses(seed: int, step: int, noise: int) -> float:
        trainer = new_trainer(replace(TRAINING, seed=seed))
        torch.manual_seed(noise)
        return trainer.train_step([rows], step).read().loss

    with torch.random.fork_rng():
        assert losses(5, 1, noise=0) == losses(5, 1, noise=1)
        assert len({losses(5, 1, 0), losses(5, 2, 0), losses(6, 1, 0)}) == 3
        trainer = new_trainer()
        masks: list[Tensor] = []
        trainer.model.dropout.register_forward_hook(lambda _m, _i, out: masks.append(out == 0))
        trainer.train_step([rows, rows], 1)
    first, second = masks[0], masks[2]  # of the source embedding, in the first and the second micro-batch
    assert first.shape == second.shape
    assert not first.equal(second)


def test_another_seed_gives_other_weights(new_trainer: NewTrainer) -> None:
    first, second = (final_weights(new_trainer, replace(TRAINING, seed=seed)) for seed in (5, 6))
    assert any(not first[name].equal(second[name]) for name in first)


def test_training_leaves_the_random_state_of_the_caller_alone(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(validate=scripted([0.0] * 4, []))
    before = torch.get_rng_state()
    trainer.run()
    assert torch.get_rng_state().equal(before)


def test_a_trainer_keeps_no_reference_to_the_weights_that_it_saved(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(replace(TRAINING, steps=2), validate=scripted([0.0] * 2, []))
    trainer.run()
    tensors, state = trainer.store.read_checkpoint(2)
    other = new_trainer()
    other.restore(tensors, state)
    kept = copy.deepcopy(tensors)
    other.run()
    torch.testing.assert_close(tensors, kept, rtol=0, atol=0)
