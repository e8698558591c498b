"""Norms and depth: what is taken out is gone, what is measured is what it says, and pictures show it."""

import math

import pytest
import torch
from torch import nn

from transduce.learn import surgery
from transduce.learn.norm_and_depth import experiments as norms
from transduce.learn.norm_and_depth import pictures
from transduce.learn.norm_and_depth.experiments import Deep, Kinds, Patience, Residuals, WarmUp
from transduce.learn.tasks import EOS, copying
from transduce.learn.training import Training
from transduce.model.residual import AddAndNorm


def a_run(loss):
    return Deep(Training(losses=[3.0, loss], gradient_norms=[2.0, 1.0]), loss, 0.5)


@pytest.mark.parametrize("norm_first", [False, True])
def test_without_the_addition_the_sublayer_alone_is_left(norm_first):
    torch.manual_seed(1)
    shipped, x, sublayer = AddAndNorm(6, 0.0, "layer", norm_first), torch.randn(2, 3, 6), nn.Linear(6, 6)
    added = shipped(x, sublayer)
    shipped.__class__ = surgery.NormWithoutAdd
    normalized = nn.functional.layer_norm
    expected = sublayer(normalized(x, (6,))) if norm_first else normalized(sublayer(x), (6,))
    torch.testing.assert_close(shipped(x, sublayer), expected)
    assert not torch.allclose(added, expected)


def test_only_the_encoder_loses_its_additions():
    model = norms.without_residuals(norms.deep(norm_first=False, num_layers=2))
    of_encoder = [m for m in model.encoder.modules() if isinstance(m, AddAndNorm)]
    of_decoder = [m for m in model.decoder.modules() if isinstance(m, AddAndNorm)]
    assert {type(m) for m in of_encoder} == {surgery.NormWithoutAdd}
    assert {type(m) for m in of_decoder} == {AddAndNorm}
    assert (len(of_encoder), len(of_decoder)) == (4, 3)


def test_the_blind_loss_is_that_of_the_best_guess_counted_out():
    task = copying(num_symbols=3, shortest=1, longest=2)
    # Answers of 1 and of 2 symbols are equally likely, so 5 tokens in two answers: 3 symbols, one end that is open
    # (after the first symbol, one in two), and one that is certain.
    assert norms.blind_loss(task) == pytest.approx((3 * math.log(3) + 2 * math.log(2)) / 5)
    batch = task.draw(300, torch.Generator().manual_seed(1))
    assert all(row.index(EOS) in (1, 2) for row in batch.tgt_out.tolist())


def test_the_stream_is_the_sum_of_what_is_written_to_it():
    found = norms.stream()
    assert len(found.added) == 12
    assert found.largest_difference < 1e-12
    assert not torch.allclose(found.start, found.end)


def test_post_norm_keeps_the_stream_at_size_one_and_pre_norm_lets_it_grow():
    found = norms.at_initialisation(fast=True)
    torch.testing.assert_close(found.stream["post"][1:], torch.ones(12), rtol=1e-3, atol=0)
    assert bool((found.stream["pre"].diff() > 0).all())
    assert found.pre_growth == pytest.approx(float(found.stream["pre"][-1] / found.stream["pre"][0]))


def test_without_additions_all_positions_become_one_and_pre_norm_keeps_them_apart():
    cosines = norms.alikeness(fast=True).cosines
    assert len({float(values[0]) for values in cosines.values()}) == 1  # the same embeddings
    assert cosines["post", "without"][-1] > 0.999
    assert cosines["pre", "with"][-1] < 0.95
    assert all(float(values.abs().max()) <= 1 + 1e-5 for values in cosines.values())


def test_losses_are_compared_as_means_of_seeds():
    runs = {("post", "without"): [a_run(2.0), a_run(1.0)], ("post", "with"): [a_run(1.2)],
            ("pre", "without"): [a_run(0.2)], ("pre", "with"): [a_run(0.3)]}  # fmt: skip
    found = WarmUp(runs, blind=2.2)
    assert found.post_behind_without == pytest.approx(1.3)
    assert found.post_behind_with == pytest.approx(0.9)
    assert found.pre_gain_without == pytest.approx(0.1)
    assert Kinds(a_run(0.4), a_run(0.5)).rms_behind == pytest.approx(0.1)
    assert Patience(a_run(0.9), a_run(0.5), 2.0).cold_behind_warm == pytest.approx(0.4)


def test_curves_carry_the_names_of_what_was_trained():
    two = {"post": a_run(1.0), "pre": a_run(0.5)}
    residuals = Residuals(two, {"post": a_run(2.0), "pre": a_run(1.8)}, blind=2.0)
    assert (residuals.with_by_blind, residuals.without_by_blind) == (0.25, 0.9)
    (axes,) = pictures.residual_curves(residuals).axes
    assert [line.get_label() for line in axes.lines] == [
        "post-norm, with residual connections", "pre-norm, with residual connections",
        "post-norm, without residual connections", "pre-norm, without residual connections",
        "without seeing the source",
    ]  # fmt: skip
    left, right = pictures.warm_up_curves(
        WarmUp({(n, w): [a_run(1.0), a_run(1.1)] for n in ("post", "pre") for w in ("without", "with")}, 2.0)
    ).axes
    assert len(left.lines) == 9  # a line for each seed, and the blind loss
    assert right.get_yscale() == "log"
    (axes,) = pictures.patience_curves(Patience(a_run(1.0), a_run(0.4), 2.0)).axes
    assert [line.get_label() for line in axes.lines][:2] == ["without warm-up", "with warm-up"]
    (axes,) = pictures.alikeness_lines(norms.alikeness(fast=True)).axes
    assert axes.lines[0].get_xdata()[-1] == norms.DEPTH
    (axes,) = pictures.stream_bars(norms.stream()).axes
    assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["input", "attention 1", "feed-fwd 1"]
    left, right = pictures.initialisation_lines(norms.at_initialisation(fast=True)).axes
    assert left.lines[0].get_xdata()[0] == 1
    assert right.lines[0].get_xdata()[0] == 0
