import functools
import json
import math
import os
import runpy
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from covering import covered
from transduce.data.batches import EncodedPairs
from transduce.errors import DivergedError, TransduceError
from transduce.model import Transformer
from transduce.model.config import TransformerConfig, VocabularySizes
from transduce.runs.folder import RunFolder
from transduce.training import step as train_step
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.distributed import Process
from transduce.training.signals import Stopped
from transduce.training.state import StepResult, Validation
from transduce.training.step import StepOutcome, TrainStep, split_for_cpu
from transduce.training.trainer import Trainer

VOCAB, PAD, BOS, EOS = 29, 0, 1, 2
MODEL = TransformerConfig(d_model=16, d_ff=23, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, dropout=0.0)
TRAINING = TrainingConfig(steps=7, batch_tokens=40, label_smoothing=0.1, seed=5)
# A large epsilon: the bias of the keys has no gradient but rounding, which Adam would blow up to full steps.
OPTIM = OptimConfig(schedule="constant", learning_rate=0.003, warmup_steps=1, epsilon=1e-3, max_grad_norm=0.5)

Weights = dict[str, Tensor]


def pairs_of(num_pairs: int = 31, longest: int = 9) -> EncodedPairs:
    random = np.random.default_rng(11)

    def row() -> list[int]:
        return [*random.integers(3, VOCAB, random.integers(1, longest)).tolist(), EOS]

    return EncodedPairs([row() for _ in range(num_pairs)], [row() for _ in range(num_pairs)])


SMALL_PARTS = replace(TRAINING, part_tokens=30)


def new_step(
    training: TrainingConfig = TRAINING,
    optim: OptimConfig = OPTIM,
    model: TransformerConfig = MODEL,
    process: Process = Process(),
) -> TrainStep:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Transformer(model, VocabularySizes.joint(VOCAB))
    return TrainStep(network, config=training, optim=optim, process=process)


def weights_of(model: nn.Module) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moments_of(update: TrainStep) -> Weights:
    return {
        f"{slot}.{name}": value.clone()
        for name, parameter in update.model.named_parameters()
        for slot, value in update.optimizers[0].state[parameter].items()
    }


def assert_close(first: Any, second: Any, tolerance: float) -> None:
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


def rectangle(rows: list[list[int]]) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)


# --- parts of a batch ------------------------------------------------------------------------------------------------


@given(
    lens=st.lists(st.tuples(st.integers(1, 600), st.integers(1, 600)), min_size=1, max_size=60), seed=st.integers(0, 9)
)
def test_parts_hold_each_row_once_and_in_order_and_are_as_equal_as_can_be(
    lens: list[tuple[int, int]], seed: int
) -> None:
    pairs = EncodedPairs([[EOS] * src_len for src_len, _ in lens], [[EOS] * tgt_len for _, tgt_len in lens])
    rows = np.random.default_rng(seed).permutation(len(lens))
    parts = split_for_cpu(pairs, rows, 1024)
    assert np.concatenate(parts).tolist() == rows.tolist()
    assert len(parts) in (1, 2, 4, 8, 16, 32)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1 <= min(sizes)
    num_padded, most = len(rows) * max(map(max, lens)), 1024
    assert num_padded <= most * len(parts) or 2 * len(parts) > len(rows)  # small enough, or as small as can be
    assert len(parts) == 1 or num_padded > most * len(parts) / 2  # and no smaller than they need be


@pytest.mark.parametrize(("num_rows", "length", "num_parts"), [(8, 128, 1), (8, 129, 2), (16, 129, 4), (3, 5000, 2)])
def test_the_number_of_parts_by_hand(num_rows: int, length: int, num_parts: int) -> None:
    pairs = EncodedPairs([[EOS]] * num_rows, [[EOS] * length] * num_rows)
    assert len(split_for_cpu(pairs, np.arange(num_rows), 1024)) == num_parts


# --- the numbers of a step -------------------------------------------------------------------------------------------


def textbook_steps(pairs: EncodedPairs, steps: list[list[int]]) -> tuple[list[StepResult], Weights]:
    """All logits at once, torch's own cross-entropy, clipping and unfused AdamW."""
    model = new_step().model
    groups = [{"params": [p for p in model.parameters() if (p.dim() > 1) == is_matrix]} for is_matrix in (True, False)]
    groups[0]["weight_decay"], groups[1]["weight_decay"] = 0.1, 0.0
    optimizer = torch.optim.AdamW(groups, lr=0.003, betas=(0.9, 0.98), eps=1e-3, fused=False, foreach=False)
    results = []
    for rows in steps:
        src, tgt = [pairs.src(row).tolist() for row in rows], [pairs.tgt(row).tolist() for row in rows]
        logits = model.logits(model(rectangle(src), rectangle([[BOS, *row[:-1]] for row in tgt])))
        loss = F.cross_entropy(logits.flatten(0, 1), rectangle(tgt).flatten(), ignore_index=PAD, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        results.append(StepResult(loss.item(), sum(map(len, tgt)), norm.item(), 0.003))
    return results, weights_of(model)


STEPS = [[4, 9, 1, 17, 12], [0, 3, 2], list(range(30))]


@functools.cache
def textbook() -> tuple[list[StepResult], Weights]:
    return textbook_steps(pairs_of(), STEPS)


@pytest.mark.parametrize(
    ("batching", "part_tokens", "num_micro_batches"),
    covered(["bucketed", "packed"], [4, 30, 10_000], [1, 2], strength=2),
)
def test_a_step_in_any_parts_bucketed_or_packed_is_the_textbook_one(
    batching: Any, part_tokens: int, num_micro_batches: int
) -> None:
    pairs = pairs_of()
    update = new_step(replace(TRAINING, batching=batching, part_tokens=part_tokens), replace(OPTIM, weight_decay=0.1))
    calls: list[Any] = []
    update._work = spying(update._work, calls)
    found = [
        update(pairs, np.array_split(np.array(rows), num_micro_batches), number).read()
        for number, rows in enumerate(STEPS, start=1)
    ]
    assert (len(calls) > 3 * num_micro_batches) == (part_tokens < 10_000)
    expected, weights = textbook()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert_close(weights_of(update.model), weights, 1e-6)


def spying(work: Callable[[Any], Any], calls: list[Any]) -> Callable[[Any], Any]:
    def spy(batch: Any) -> Any:
        calls.append(batch)
        return work(batch)

    return spy


def test_a_step_in_bfloat16_is_near_that_in_float32() -> None:
    pairs = pairs_of()
    found = []
    for precision in ("float32", "bfloat16"):
        update = new_step(replace(TRAINING, precision=precision))
        found.append(update(pairs, [np.arange(31)], 1).read())
        assert all(value.dtype == torch.float32 for value in (weights_of(update.model) | moments_of(update)).values())
    assert found[0].loss != found[1].loss
    assert found[0].loss == pytest.approx(found[1].loss, rel=2**-8)
    assert found[0].grad_norm == pytest.approx(found[1].grad_norm, rel=2**-5)


# --- several processes -----------------------------------------------------------------------------------------------


class Deaf(Process):
    """One of several processes that hears nothing of the others; what it would tell them is kept."""

    def sum_(self, tensors: Any) -> None:
        told.append([tensor.clone() for tensor in tensors])


told: list[list[Tensor]] = []


@pytest.mark.parametrize("num_processes", [2, 3])
def test_several_processes_compute_every_part_once_and_their_sums_are_those_of_one(
    num_processes: int,
) -> None:
    pairs, micro_batches = pairs_of(), [np.arange(12), np.array([20]), np.arange(21, 27)]
    model, parts = replace(MODEL, dropout=0.2), []

    def sums_of(rank: int, world_size: int) -> list[Tensor]:
        told.clear()
        update = new_step(SMALL_PARTS, model=model, process=Deaf(rank, world_size))
        batches: list[Any] = []
        update._work = spying(update._work, batches)
        update(pairs, micro_batches, 3)
        parts.append([batch.src.tolist() for batch in batches])
        return told[0]

    alone = sums_of(0, 1)
    together = [sums_of(rank, num_processes) for rank in range(num_processes)]
    assert len(parts[0]) == 4 + 1 + 2
    assert [parts[0][number::num_processes] for number in range(num_processes)] == parts[1:]
    assert_close([sum(tensors) for tensors in zip(*together, strict=True)], alone, 1e-5)


def test_a_process_without_a_part_tells_zeros() -> None:
    told.clear()
    update = new_step(process=Deaf(1, 2))
    with pytest.raises(DivergedError):  # as nobody told it anything: 0 / 0
        update(pairs_of(), [np.arange(2)], 1)
    assert len(told[0]) == len(list(update.model.parameters())) + 2
    assert all((tensor == 0).all() for tensor in told[0])


# --- what can go wrong -----------------------------------------------------------------------------------------------


class ReadLate(StepOutcome):
    """As on a GPU: not read before the weights are updated, but by whoever wants to know later."""

    def read(self) -> StepResult:
        if "is_early" not in vars(self):
            vars(self)["is_early"] = True
            return StepResult(0.0, 0, 0.0, 0.0)
        return super().read()


def poison(update: TrainStep, value: float) -> None:
    """The next gradients have one number that is not finite; the loss is as ever."""
    parameter = update.model.encoder.layers[0].residual_1.norm.weight
    handle = parameter.register_hook(lambda gradient: torch.full_like(gradient, value))
    update.optimizers[0].register_step_post_hook(lambda *_: handle.remove())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
@pytest.mark.parametrize("num_steps_before", [0, 2])
def test_a_gradient_that_is_not_finite_changes_nothing_even_if_nobody_looks(
    value: float, max_grad_norm: float, num_steps_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_step, "StepOutcome", ReadLate)
    pairs, other = pairs_of(), [np.arange(4)]
    optim = replace(OPTIM, max_grad_norm=max_grad_norm, weight_decay=0.1)
    update, undisturbed = new_step(optim=optim), new_step(optim=optim)
    for step in range(1, num_steps_before + 1):
        update(pairs, [np.arange(9)], step)
        undisturbed(pairs, [np.arange(9)], step)
    weights = weights_of(update.model)
    poison(update, value)
    outcome = update(pairs, other, num_steps_before + 1)
    torch.testing.assert_close(weights_of(update.model), weights, rtol=0, atol=0)
    moments = {name: value for name, value in moments_of(update).items() if num_steps_before or value.any()}
    torch.testing.assert_close(moments, moments_of(undisturbed), rtol=0, atol=0)  # the count of steps among them
    with pytest.raises(DivergedError, match=rf"step {num_steps_before + 1}: the loss is \d.*max_grad_norm = 1"):
        outcome.read()
    # The step after it is none the worse.
    update(pairs, [np.arange(9, 20)], 7)
    undisturbed(pairs, [np.arange(9, 20)], 7)
    torch.testing.assert_close(weights_of(update.model), weights_of(undisturbed.model), rtol=0, atol=0)
    assert not torch.equal(weights_of(update.model)["src_embedding.weight"], weights["src_embedding.weight"])


def test_what_a_check_raises_leaves_no_gradient_and_no_change_behind() -> None:
    pairs, rows = pairs_of(), [np.arange(12), np.arange(12, 20)]
    update, undisturbed = new_step(SMALL_PARTS), new_step(SMALL_PARTS)
    weights = weights_of(update.model)
    calls: list[int] = []

    def check() -> None:
        calls.append(sum(parameter.grad is not None for parameter in update.model.parameters()))
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update(pairs, rows, 1, check)
    assert calls[0] == 0 < calls[1] == calls[2]
    assert all(parameter.grad is None for parameter in update.model.parameters())
    torch.testing.assert_close(weights_of(update.model), weights, rtol=0, atol=0)
    assert moments_of(update) == {}
    assert update(pairs, rows, 1).read() == undisturbed(pairs, rows, 1).read()
    torch.testing.assert_close(weights_of(update.model), weights_of(undisturbed.model), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("loss", "norm", "told_of_it"),
    [
        (math.nan, 1.0, "loss is nan"),
        (math.inf, 1.0, "loss is inf"),
        (2.0, math.nan, "norm nan"),
        (2.0, math.inf, "inf"),
    ],
)
def test_an_outcome_that_is_not_finite_is_refused_in_a_sentence(loss: float, norm: float, told_of_it: str) -> None:
    with pytest.raises(DivergedError, match=rf"step 17: .*{told_of_it}.* 0\.0025.*this step changed no weight"):
        StepOutcome(17, 0.0025, torch.tensor([loss, 5.0, norm])).read()


def test_an_outcome_is_read_as_it_is() -> None:
    assert StepOutcome(17, 0.0025, torch.tensor([2.5, 40_321.0, 0.75])).read() == (2.5, 40_321, 0.75, 0.0025)


def test_a_graph_without_packed_batches_is_refused() -> None:
    with pytest.raises(TransduceError, match="packed"):
        TrainingConfig(steps=1, cuda_graph=True)


# --- a trainer that does not wait ------------------------------------------------------------------------------------


def run_trainer(path: Path, *, batching: Any = "bucketed", validate_every: int = 4, **more: Any) -> Trainer:
    training = replace(
        TRAINING, steps=11, micro_batches=2, log_every=3, validate_every=validate_every, save_every=5, batching=batching
    )
    update = new_step(training, model=replace(MODEL, dropout=0.1))
    folder = RunFolder.create(path, config="", tokenizer="{}", facts={})
    optim = replace(OPTIM, ema_decay=0.8)
    return Trainer(update.model, pairs_of(), config=training, optim=optim, store=folder, **more)


def run_ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Trainers do on this CPU as they do on a GPU; returns the steps after which they do not stop to look."""
    ahead: list[int] = []

    def runs_ahead(self: Trainer) -> bool:
        config = self.config
        needed = (config.log_every, config.validate_every, config.save_every)
        is_ahead = not any(every and self.state.step % every == 0 for every in needed) and not self.is_finished
        ahead.extend([self.state.step] if is_ahead else [])
        return is_ahead

    monkeypatch.setattr(Trainer, "_runs_ahead", runs_ahead)
    return ahead


def test_a_trainer_on_a_gpu_runs_ahead_of_steps_that_nobody_asks_about(tmp_path: Path) -> None:
    trainer = run_trainer(tmp_path / "run")
    asked = {3, 4, 5, 6, 8, 9, 10, 11}  # logged, validated, saved, the last
    for step in range(1, 12):
        trainer.state.step = step
        trainer.device = torch.device("cpu")
        assert not trainer._runs_ahead()
        trainer.device = torch.device("cuda")
        assert trainer._runs_ahead() == (step not in asked), step


@pytest.mark.parametrize("batching", ["bucketed", "packed"])
def test_a_trainer_that_runs_ahead_leaves_the_same_behind(
    batching: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, ahead = [], []
    for name in ("waiting", "ahead"):
        if name == "ahead":
            ahead = run_ahead(monkeypatch)
        trainer = run_trainer(tmp_path / name, batching=batching, validate=lambda _model: Validation({}, 0.0))
        trainer.run()
        timing = ("seconds", "logged_seconds", "validation_seconds", "tokens_per_second", "state_seconds")
        rows = [{key: row[key] for key in row if key not in timing} for row in trainer.store.metrics()]
        step, tensors, state = trainer.store.newest_checkpoint() or pytest.fail("no checkpoint")
        state = {key: value for key, value in state.items() if key not in timing}
        found.append((rows, step, state, trainer.store.checkpoints(), tensors, weights_of(trainer.model)))
    assert ahead == [1, 2, 7]
    assert found[0][:4] == found[1][:4]
    assert found[0][2]["target_tokens"] > 0
    torch.testing.assert_close(found[0][4:], found[1][4:], rtol=0, atol=0)


def before_step(trainer: Trainer, number: int, strike: Callable[[], object]) -> list[int]:
    """Has `strike` called before step `number`; returns the steps begun."""
    begun: list[int] = []
    make = trainer.train_step

    def train_step_(micro_batches: list[NDArray[np.intp]], step: int) -> StepOutcome:
        begun.append(step)
        if step == number:
            strike()
        return make(micro_batches, step)

    trainer.train_step = train_step_  # type: ignore[method-assign]
    return begun


def test_a_trainer_that_runs_ahead_tells_at_the_next_row_that_it_diverged_and_saves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_step, "StepOutcome", ReadLate)
    run_ahead(monkeypatch)
    trainer = run_trainer(tmp_path / "run", validate_every=0)
    begun = before_step(trainer, 7, lambda: poison(trainer.update, math.nan))
    with pytest.raises(DivergedError, match="step 7:"):
        trainer.run()
    assert begun == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert trainer.store.checkpoints() == [0, 5]
    assert [row["step"] for row in trainer.store.metrics()] == [3, 6]
    assert all(tensor.isfinite().all() for tensor in trainer.store.read_checkpoint(5)[0].values())


def test_a_trainer_that_is_stopped_while_it_runs_ahead_saves_what_one_that_waits_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("waiting", "ahead"):
        if name == "ahead":
            ahead = run_ahead(monkeypatch)
        trainer = run_trainer(tmp_path / name, validate_every=0)
        before_step(trainer, 9, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match="Stopped at step 8"):
            trainer.run()
        tensors, state = trainer.store.read_checkpoint(8)
        state = {key: value for key, value in state.items() if key not in ("seconds", "logged_seconds")}
        found.append((state, trainer.store.checkpoints(), tensors))
    assert ahead == [1, 2, 4, 7, 8]
    assert found[0][:2] == found[1][:2]
    torch.testing.assert_close(found[0][2], found[1][2], rtol=0, atol=0)


def test_a_trainer_that_is_stopped_after_it_diverged_unseen_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_step, "StepOutcome", ReadLate)
    run_ahead(monkeypatch)
    trainer = run_trainer(tmp_path / "run", validate_every=0)
    before_step(trainer, 7, lambda: poison(trainer.update, math.nan))
    before_step(trainer, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(DivergedError, match="step 7:"):
        trainer.run()
    assert trainer.store.checkpoints() == [0, 5]


# --- the benchmark of a GPU ------------------------------------------------------------------------------------------


def run_benchmark(*words: str | Path) -> int:
    main = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/gpu.py"))["main"]
    with torch.random.fork_rng(devices=[]):
        return main([str(word) for word in words])


def test_without_a_gpu_its_benchmark_says_so_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_benchmark("-o", tmp_path / "gpu.json") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "no GPU" in told
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.proof
def test_the_benchmark_of_a_gpu_can_be_rehearsed_without_one(tmp_path: Path) -> None:
    assert run_benchmark("--rehearse", "-o", tmp_path / "gpu.json") == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    of_the_kernel, *others = found["checks"]
    assert "flash_attention" in of_the_kernel["error"]  # which no CPU has
    assert [check["error"] or check["numbers"] for check in others if not check["holds"]] == []
    assert [row["error"] for row in found["measurements"]] == [None] * 3
    assert [row["mode"] for row in found["measurements"]] == ["bucketed", "packed", "packed graphed"]
