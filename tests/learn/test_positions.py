"""Positions: the laws their notebook states, by other means, and what its pictures say."""

import itertools
import math

import pytest
import torch

from transduce.learn.positions import experiments, pictures
from transduce.learn.positions.experiments import Ablation, LengthCurves
from transduce.learn.tasks import reversal
from transduce.learn.training import Training, small_transformer
from transduce.model.positional import sinusoidal_table

CURVES = LengthCurves(
    task="reversal",
    longest_trained=4,
    lengths=(2, 4, 6),
    scores={"sinusoidal": (1.0, 0.8, 0.1), "learned": (0.9, 0.7, 0.0), "none": (0.5, 0.3, 0.4)},
    begins_at_last_trained={},
    examples=(),
)


def test_only_networks_with_positions_tell_orders_apart():
    found = experiments.order_blindness()
    assert max(found.equivariance_gap, found.answer_gap, found.one_layer_gap) < 1e-12
    assert min(found.equivariance_gap_with, found.answer_gap_with, found.two_layers_gap) > 0.01


@pytest.mark.parametrize("symbols", [[1, 2, 3], [1, 1, 2, 2], [4, 4, 4], [1, 2, 3, 1, 4]])
def test_the_chance_of_an_order_is_one_over_the_number_of_different_orders(symbols):
    assert experiments.chance_of_an_order(symbols) == pytest.approx(1 / len(set(itertools.permutations(symbols))))


@pytest.mark.parametrize("offset", [0, 1, 9, -4])
def test_the_shift_moves_every_row_of_the_table(offset):
    table = sinusoidal_table(40, 14).double()
    moved = table[10:30] @ experiments.shift_matrix(offset, 14).T
    torch.testing.assert_close(moved, table[10 + offset : 30 + offset], atol=1e-6, rtol=0)


def test_shifts_follow_one_another_and_keep_lengths():
    one, two, three = (experiments.shift_matrix(offset, 10) for offset in (1, 2, 3))
    torch.testing.assert_close(one @ two, three)
    torch.testing.assert_close(two @ two.T, torch.eye(10, dtype=torch.float64))


@pytest.mark.parametrize("settings", [{}, {"tie_embeddings": False}, {"norm_first": True}])
def test_channels_in_another_order_are_the_same_network(settings):
    model = small_transformer(reversal(5, 2, 6).vocabulary, d_model=12, d_ff=20, **settings).double().eval()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1)).tolist()
    moved = experiments.with_channels_in_order(model, order)
    batch = reversal(5, 2, 6).draw(3, torch.Generator().manual_seed(2))
    with torch.no_grad():
        hidden, other = (m(batch.src, batch.tgt_in) for m in (model, moved))
        torch.testing.assert_close(hidden[..., order], other)
        torch.testing.assert_close(model.logits(hidden), moved.logits(other))


def test_lengths_beyond_are_one_and_a_half_times_the_longest_trained():
    assert CURVES.beyond == 6
    assert CURVES.sinusoidal_beyond == 0.1
    assert CURVES.none_is_ahead_by == pytest.approx(0.3)
    assert CURVES.learned_gap == pytest.approx(0.1)


def test_pictures_show_what_they_are_given():
    table = sinusoidal_table(20, 16)
    left, right = pictures.table_and_lines(table, (2, 3)).axes[:2]
    assert left.images[0].get_array().shape == (20, 16)
    assert (left.get_xlabel(), left.get_ylabel()) == ("channel", "position")
    assert [line.get_label() for line in right.lines] == ["channel 2", "channel 3"]
    heats = pictures.similarity(table, (4, 9)).axes[0], pictures.table_and_similarity(table).axes[1]
    for heat in heats:
        assert heat.images[0].get_array()[7, 7] == pytest.approx(1.0)
    assert len(pictures.rotations(table, (0, 2), 3).axes) == 2
    assert len(pictures.scores_by_position(torch.zeros(4, 4), torch.ones(4, 4)).axes) == 3


def test_the_picture_of_lengths_has_a_curve_for_each_kind():
    (axis,) = pictures.length_curves(CURVES).axes
    assert {line.get_label(): list(line.get_ydata()) for line in axis.lines} == {
        kind: list(scores) for kind, scores in CURVES.scores.items()
    }
    assert axis.get_title() == "reversal"


def test_the_picture_of_the_ablation_names_who_has_positions():
    trainings = {name: Training(losses=[2.0, 1.0]) for name in ("both halves", "neither")}
    found = Ablation({"both halves": 0.9, "neither": 0.1}, trainings, blind_best=0.2)
    _, bars = pictures.ablation_bars(found).axes
    assert [label.get_text() for label in bars.get_yticklabels()] == list(trainings)
    assert math.isclose(bars.patches[0].get_width(), 0.9)
