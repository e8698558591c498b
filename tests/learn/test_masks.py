"""Masks: the laws their notebook states, by other means, and what its pictures say."""

import math

import pytest
import torch

from transduce.learn.masks import experiments, pictures
from transduce.learn.masks.exercises import PAD, SOURCE, six_masks
from transduce.learn.masks.experiments import BatchMates, NoCausalMask, SynonymTask
from transduce.learn.tasks import BOS, EOS, reversal
from transduce.learn.training import Training, small_transformer
from transduce.model import causal_mask

TASK = SynonymTask(num_words=5, shortest=2, longest=6)


def tiny():
    return small_transformer(reversal(8, 2, 6).vocabulary, d_model=16, d_ff=24).double().eval()


def test_gradients_are_the_differences_that_small_changes_make():
    found = experiments.gradients()
    assert found.future_gradient == found.padding_gradient == 0
    assert bool((found.decoder.tril() > 0).sum() == 7 * 8 // 2)
    assert bool((found.decoder_without_mask > 0).all())
    assert bool((found.memory[:, :4] > 0).all())


def test_without_its_causal_mask_a_decoder_sees_what_comes_later():
    src, tgt = torch.tensor([[3, 4, EOS]]), torch.tensor([[BOS, 5, 6, 7]])
    changed = torch.tensor([[BOS, 5, 6, 8]])
    model = tiny()
    with torch.no_grad():
        assert torch.equal(model(src, tgt)[:, :3], model(src, changed)[:, :3])
        leaky = experiments.without_causal_mask(model)
        assert not torch.allclose(leaky(src, tgt)[:, :3], leaky(src, changed)[:, :3])


def test_without_its_padding_mask_the_encoder_takes_padding_for_words():
    model, src = tiny(), torch.tensor([[3, 4, 5, EOS]])
    blind = experiments.without_padding_mask(model)
    with torch.no_grad():
        assert torch.equal(blind.encode(src)[0], model.encode(src)[0])  # where there is no padding, nothing differs
        padded = experiments.padded(src, 3)
        torch.testing.assert_close(model.encode(padded)[0][:, :4], model.encode(src)[0])
        assert not torch.allclose(blind.encode(padded)[0][:, :4], blind.encode(src)[0])


def test_answers_are_reversals_into_synonyms_by_fair_coins():
    batch = TASK.draw(400, torch.Generator().manual_seed(1))
    coins = []
    for src, tgt in zip(batch.src.tolist(), batch.tgt_out.tolist(), strict=True):
        words = src[: src.index(EOS)]
        assert 2 <= len(words) <= 6
        assert TASK.meaning(tgt) == words[::-1]
        coins += [(i - 3) // 5 for i in tgt[: tgt.index(EOS)]]
    assert set(coins) == {0, 1}
    assert sum(coins) / len(coins) == pytest.approx(0.5, abs=0.05)


def test_the_floor_is_the_entropy_of_the_coins():
    tokens = sum(length + 1 for length in range(2, 7))
    coins = sum(range(2, 7))
    assert pytest.approx(coins * math.log(2) / tokens) == TASK.floor
    assert pytest.approx((coins / 2 + 5) / tokens) == TASK.best_told


def test_one_of_the_six_masks_is_made_of_the_wrong_side():
    masks = six_masks()
    is_padding = SOURCE == PAD
    for letter in "ACD":
        assert bool((masks[letter][1][:, is_padding]).any()) == (letter == "D")
    assert torch.equal(masks["B"][1], causal_mask(6))
    assert bool(masks["F"][1].any(dim=1).all())


def test_maps_name_queries_and_keys_and_refuse_labels_that_do_not_fit():
    mask = torch.ones(2, 3, dtype=torch.bool)
    (axis,) = pictures.mask_maps([("cross", mask, ["a", "b"], ["x", "y", "z"])], columns=1).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["x", "y", "z"]
    with pytest.raises(ValueError, match="2 queries by 3 keys"):
        pictures.mask_maps([("cross", mask, ["x", "y", "z"], ["a", "b"])])


def test_pictures_of_accidents_show_what_they_are_given():
    honest, leaky = (Training(losses=[2.0, last]) for last in (1.0, 0.2))
    found = NoCausalMask(TASK, honest, leaky, 0.5, 1.0, 0.9, 0.0, 0.0, [])
    assert found.loss_ratio == pytest.approx(1.1 / 1.5)
    _, bars = pictures.leak_curves(found).axes
    assert [bar.get_height() for bar in bars.patches] == [0.5, 1.0, 0.9, 0.0]
    changed = {"with the mask": (0.0, 0.0), "mask removed": (0.2, 0.6), "trained without": (0.1, 0.3)}
    right = {name: (1.0, *(1 - share for share in shares)) for name, shares in changed.items()}
    mates = BatchMates((1, 4), 0.0, 3.0, changed, right, right_in_batches={})
    assert (mates.changed_when_taken_out, mates.changed_when_never_there) == (0.6, 0.3)
    left, _ = pictures.batch_mates_curves(mates).axes
    assert [line.get_label() for line in left.lines] == list(changed)
    assert len(pictures.gradient_maps(experiments.gradients()).axes) == 4
