"""Experiments of the training recipe: their laws, on next to no training."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from transduce.data.batches import collate
from transduce.learn.tasks import PAD, reversal
from transduce.learn.training import Training
from transduce.learn.training_recipe import batches, clinic, pictures
from transduce.learn.training_recipe import experiments as recipe

BRIEF = recipe.Recipe(num_train=80, steps=4, measurements=2)


def test_words_to_validate_on_are_none_of_the_training_ones():
    data = recipe.words(80, 40)
    train = {data.tokenizer.decode_source(data.train.src(row).tolist()) for row in range(len(data.train))}
    assert len(data.valid_words) == len(data.valid) == 40
    assert not train & set(data.valid_words)


def test_the_same_recipe_is_learnt_once_and_another_seed_is_another_outcome():
    first = recipe.learn(BRIEF)
    assert recipe.learn(recipe.Recipe(num_train=80, steps=4, measurements=2)) is first
    assert [step for step, _ in first.valid] == [2, 4]
    assert len(first.losses) == 4
    assert first.average == first.nll  # there is no average
    other = recipe.learn(recipe.Recipe(num_train=80, steps=4, measurements=2, seed=2))
    assert other.losses != first.losses


@pytest.mark.parametrize(("is_torchs", "variance"), [(False, 1 / 64), (True, 1.0)])
def test_embeddings_start_with_the_variance_that_is_said(is_torchs, variance):
    model = recipe.build(recipe.Recipe(torch_embeddings=is_torchs), recipe.words(80, 40).tokenizer)
    assert model.src_embedding.weight.var().item() == pytest.approx(variance, rel=0.1)


def test_smoothing_is_compared_seed_by_seed():
    def outcome(nll: float, right: float) -> recipe.Outcome:
        return recipe.Outcome([], [(1, nll)], 0.0, 0.0, right)

    found = recipe.Smoothing([outcome(1.0, 10), outcome(2.0, 20)], [outcome(1.5, 9), outcome(2.1, 25)])
    assert found.nll_excess == pytest.approx(0.3)
    assert found.score_gains == [-1, 5]
    assert found.score_gain == 2


def test_padding_is_counted_on_both_sides():
    found = batches.batching(fast=True)
    assert 0 <= found.bucketed < found.shuffled < found.fixed < 1
    assert sum(found.batch_sizes) == found.num_pairs
    assert len(found.as_rows) == 3


def test_the_gradient_of_sums_is_that_of_torchs_mean_over_all_tokens():
    data = recipe.words(80, 40)
    model = recipe.build(recipe.Recipe(), data.tokenizer)
    rows = np.arange(12)
    found, counts = batches._gradient(model, data.valid, [rows[:5], rows[5:]], None)
    assert counts[0] + counts[1] == int(data.valid.tgt_lens[rows].sum())
    whole, _ = batches._gradient(model, data.valid, [rows[:5], rows[5:]], sum(counts))
    batch = collate(data.valid, rows)
    model.zero_grad()
    F.cross_entropy(
        model.logits(model(*batch.inputs)).flatten(0, 1), batch.tgt_out.flatten(), ignore_index=0
    ).backward()
    right = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.allclose(whole, right, atol=1e-5)
    assert not torch.allclose(found, right, atol=1e-5)


def test_patients_are_given_what_their_diagnosis_says():
    task, random = reversal(10, 3, 8), torch.Generator().manual_seed(1)
    healthy = task.draw(4, torch.Generator().manual_seed(1))
    drawn = {name: clinic._draw(name, task.draw, 13)(4, random.manual_seed(1)) for name in clinic.DIAGNOSES.values()}
    assert torch.equal(drawn["healthy"].tgt_out, healthy.tgt_out)
    assert torch.equal(drawn["shuffled targets"].tgt_out[1:], healthy.tgt_out[:-1])
    assert torch.equal(drawn["shuffled targets"].src, healthy.src)
    counted = drawn["padding in the loss"].tgt_out
    assert torch.equal(counted == 13, healthy.tgt_out == PAD)
    again = clinic._draw("overfit", task.draw, 13)
    assert again(4, random) is again(4, random)


def test_pictures_have_a_row_for_each_choice_and_a_name_for_each_patient():
    outcome = recipe.learn(BRIEF)
    axes = pictures.choices(recipe.Choices({"baseline": [outcome], "a": [outcome], "b": [outcome]})).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    training = Training([3.0, 60.0], [1.0, 2.0])
    patient = clinic.Patient(training, [0, 1], [3.0, 2.0], 0.5)
    picture = pictures.clinic(clinic.Clinic(dict.fromkeys("ABCDEF", patient)))
    titles = [axes.get_title() for axes in picture.axes if axes.get_title()]
    assert titles == [f"{letter} · 50% of outputs right" for letter in "ABCDEF"]
    assert any("up to 60" in text.get_text() for text in picture.axes[0].texts)
    for figure in (
        pictures.smoothing(recipe.Smoothing([outcome], [outcome])),
        pictures.over_fitting(recipe.OverFitting({0.0: outcome, 0.2: outcome})),
        pictures.warm_up(recipe.WarmUp({0: training, 5: training})),
    ):
        assert figure._repr_png_()[0].startswith(b"\x89PNG")
