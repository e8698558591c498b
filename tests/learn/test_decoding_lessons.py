"""Experiments of decoding: their tasks, searches and pictures against what can be counted by hand."""

import itertools

import pytest
import torch

from transduce.inference.search import Hypothesis
from transduce.learn.surgery import forget_shift
from transduce.learn.tasks import EOS, FIRST_SYMBOL, batch_of
from transduce.learn.training import Training, small_transformer
from transduce.learn.training_recipe.batches import Batching
from transduce.learn.transformer.decoding import experiments as decoding
from transduce.learn.transformer.decoding import pictures
from transduce.model.config import VocabularySizes

SMALL = {"d_model": 8, "d_ff": 12, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}


@pytest.fixture(scope="module")
def model():
    return small_transformer(VocabularySizes.joint(FIRST_SYMBOL + 2), **SMALL).eval()


def test_a_forgotten_shift_gives_the_answer_as_the_input():
    batch = forget_shift(batch_of([([5], [6, 7])]))
    assert batch.tgt_in.tolist() == batch.tgt_out.tolist() == [[6, 7, EOS]]


def test_a_walk_goes_one_place_at_a_time():
    right, left = FIRST_SYMBOL, FIRST_SYMBOL + 1
    places = [place - FIRST_SYMBOL - 2 for place in decoding.walks(4).answer([right, right, left, left])]
    assert places == [1, 2, 1, 0]
    assert [place - FIRST_SYMBOL - 2 for place in decoding.walks(1).answer([left])] == [decoding.RING - 1]


def test_all_answers_are_all_once():
    every = decoding.all_answers(3, 5)
    assert len({tuple(ids) for ids in every}) == len(every) == sum(3**length for length in range(6)) == 364
    assert every[0] == []


def test_exhaustive_search_scores_by_the_chain_rule(model):
    source = [3, 4, EOS]
    ranked = decoding.score_all(model, source, decoding.all_answers(2, 3))
    assert [found.log_prob for found in ranked] == sorted((found.log_prob for found in ranked), reverse=True)
    with torch.no_grad():
        for found in ranked[:3]:
            logits = model.logits(model(torch.tensor([source]), torch.tensor([[1, *found.ids]])))[0].log_softmax(-1)
            by_hand = sum(logits[t, i].item() for t, i in enumerate([*found.ids, EOS]))
            assert found.log_prob == pytest.approx(by_hand, abs=1e-4)


def test_a_search_finds_no_answer_likelier_than_the_likeliest(model):
    sources = [[*row, EOS] for row in itertools.product((3, 4), repeat=2)]
    every = decoding.all_answers(2, 3)
    for source, wide in zip(sources, decoding.search(model, sources, beam_size=20, most_tokens=12), strict=True):
        best = decoding.score_all(model, source, every)[0]
        assert wide.log_prob >= best.log_prob - 1e-4


def test_misses_are_counted_by_ids():
    best = [Hypothesis([3], -1.0, -1.0), Hypothesis([4], -1.0, -1.0)]
    found = {1: [Hypothesis([3], -1.0, -1.0), Hypothesis([3], -3.0, -3.0)], 4: best}
    searched = decoding.Searches(None, [[3], [4]], best, found, [])  # type: ignore[arg-type]
    assert (searched.greedy_misses, searched.beam_misses) == (0.5, 0.0)
    axes = pictures.search_errors(searched).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4"]


def test_slips_are_measured_against_whole_answers():
    found = decoding.OwnWriting([1.0, 0.8], [1.0, 0.6], 0.5)
    assert (found.told, found.own, found.gap) == (0.9, 0.8, pytest.approx(0.4))
    legend = pictures.own_writing(found).axes[0].get_legend()
    assert "whole outputs right, either way: 50%" in [text.get_text() for text in legend.get_texts()]


def test_lessons_in_pictures_name_what_they_show():
    axes = pictures.padding(Batching(0.7, 0.4, 0.02, 10, 29, [10])).axes[0]
    assert [text.get_text() for text in axes.texts] == ["70%", "40%", "2%"]
    with pytest.raises(ValueError, match="2 queries by 3 keys"):
        pictures.alignment(torch.zeros(2, 3).numpy(), source=["a"], target=["b"])
    training = Training([2.0, 1.0])
    for figure in (
        pictures.unshifted(decoding.Unshifted(training, training, 1.0, 0.0, 0.9)),
        pictures.lengths(decoding.Lengths((1, 2), {0.0: [0, 1], 1.0: [0, 0]}, {0.0: [1, 0], 1.0: [1, 1]})),
        pictures.smoothed_target(2, 0.1, 5),
        pictures.schedules(),
    ):
        assert figure._repr_png_()[0].startswith(b"\x89PNG")
