"""The loop behind the experiments: its tasks, its losses, and that it learns."""

import pytest
import torch
import torch.nn.functional as F

from transduce.learn.tasks import BOS, EOS, PAD, batch_of, copying, reversal, sorting
from transduce.learn.training import exact_match, mean_loss, small_transformer, token_accuracy, train, written


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


def test_smoothing_changes_what_is_minimised_and_not_what_is_told():
    task = copying(4, 1, 3)
    plain, smoothed = (
        train(small_transformer(task.vocabulary, d_model=16, d_ff=16), task.draw, steps=1, label_smoothing=e).losses
        for e in (0.0, 0.3)
    )
    assert plain == smoothed


def test_answers_end_at_the_end_symbol():
    batch = batch_of([([3, 4], [4, 3])])
    model = small_transformer(copying(4).vocabulary, d_model=16, d_ff=16)
    (answer,) = written(model, batch.src, 5)
    assert len(answer) <= 5
    assert EOS not in answer
