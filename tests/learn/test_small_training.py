"""The loop behind the experiments: its tasks, its losses, and that it learns."""

import pytest
import torch
import torch.nn.functional as F

from transduce.learn.tasks import BOS, EOS, PAD, batch_of, copying, reversal, sorting
from transduce.learn.training import exact_match, mean_loss, optimize, small_transformer, token_accuracy, train, written


@pytest.mark.parametrize(
    ("task", "answer"), [(reversal, lambda s: s[::-1]), (copying, list), (sorting, sorted)], ids=lambda x: x.__name__
)
def test_rows_are_what_their_task_says(task, answer):
    batch = task(5, 2, 6).draw(40, torch.Generator().manual_seed(3))
    for src, tgt_in, tgt_out in zip(batch.src.tolist(), batch.tgt_in.tolist(), batch.tgt_out.tolist(), strict=True):
        source = src[: src.index(EOS)]
        assert 2 <= len(source) <= 6
        assert all(3 <= symbol < 8 for symbol in source)
        assert src[len(source) + 1 :] == [PAD] * (len(src) - len(source) - 1)
        assert tgt_in[: len(source) + 1] == [BOS, *answer(source)]
        assert tgt_out[: len(source) + 1] == [*answer(source), EOS]


def test_the_mean_loss_is_that_of_torch():
    task = reversal(6, 2, 5)
    model, batch = small_transformer(task.vocabulary, d_model=16, d_ff=32), task.draw(9, torch.Generator())
    with torch.no_grad():
        logits = model.logits(model(batch.src, batch.tgt_in))
    expected = F.cross_entropy(logits.flatten(0, 1), batch.tgt_out.flatten(), ignore_index=PAD)
    assert mean_loss(model, batch) == pytest.approx(float(expected), abs=1e-5)
    right = (logits.argmax(-1) == batch.tgt_out)[batch.tgt_out != PAD]
    assert token_accuracy(model, batch) == pytest.approx(float(right.float().mean()))


def test_a_small_network_learns_to_copy_and_is_scored_by_what_it_writes():
    task = copying(4, 1, 3)
    model = small_transformer(task.vocabulary, d_model=32, num_encoder_layers=1, num_decoder_layers=1)
    test = task.draw(50, torch.Generator().manual_seed(99))
    before = exact_match(model, test)
    training = train(model, task.draw, steps=150, learning_rate=5e-3)
    assert training.losses[0] > 1 > 0.1 > training.smoothed()[-1]
    assert len(training.gradient_norms) == 150
    assert before < 0.5 < exact_match(model, test)


@pytest.mark.parametrize("warmup_steps", [0, 1, 3, 9, 10])
def test_the_rate_rises_to_its_peak_and_falls_to_zero_whatever_the_warm_up(warmup_steps):
    """Trainings with and without a warm-up are compared: the highest rate must be the same."""
    weight = torch.nn.Parameter(torch.ones(()))
    rates = optimize([weight], lambda: weight**2, steps=10, learning_rate=0.5, warmup_steps=warmup_steps).rates
    peak = max(warmup_steps, 1)
    assert rates[peak - 1] == max(rates) == 0.5
    assert rates[:peak] == pytest.approx([0.5 * k / peak for k in range(1, peak + 1)])
    assert rates[peak - 1 :] == pytest.approx([0.5 * (11 - k) / (11 - peak) for k in range(peak, 11)])


def test_a_training_that_diverged_has_no_good_end():
    losses = iter([3.0, 2.0, float("nan"), 1.0])
    weight = torch.nn.Parameter(torch.ones(()))
    found = optimize([weight], lambda: weight * next(losses), steps=4, learning_rate=0.0, warmup_steps=0)
    assert (found.losses, found.is_finished, found.end()) == ([3.0, 2.0], False, float("inf"))


def test_training_leaves_the_random_numbers_of_the_reader_alone():
    task = copying(4, 1, 3)
    model = small_transformer(task.vocabulary, d_model=16, d_ff=16, dropout=0.1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(model, task.draw, steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_answers_end_at_the_end_symbol():
    batch = batch_of([([3, 4], [4, 3])])
    model = small_transformer(copying(4).vocabulary, d_model=16, d_ff=16)
    (answer,) = written(model, batch.src, 5)
    assert len(answer) <= 5
    assert EOS not in answer
