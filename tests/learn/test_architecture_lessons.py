"""The whole network: what its experiments promise, by other means, and what its pictures say."""

import pytest
import torch
from torch import nn

from transduce.learn.masks.pictures import batch_masks
from transduce.learn.tasks import BOS, EOS, PAD, reversal
from transduce.learn.training import small_transformer
from transduce.learn.transformer.architecture import experiments as architecture
from transduce.learn.transformer.architecture import pictures
from transduce.model.config import PRESETS

PAIRS = [("b c", "x"), ("c a b d", "y z y x")]


@pytest.mark.parametrize("norm_first", [False, True])
def test_every_weight_has_its_place_in_torchs_network(norm_first):
    model = small_transformer(reversal().vocabulary, norm_first=norm_first, d_model=16, d_ff=24)
    theirs = architecture.torch_transformer(model)
    ours = [*model.encoder.parameters(), *model.decoder.parameters()]
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours)
    assert (theirs.encoder.norm is not None) == norm_first


def test_the_comparison_with_torch_sees_a_changed_weight():
    found = architecture.beside_torch()
    assert found.largest_difference < 1e-12
    assert found.with_torchs_closing_norm > 0.01
    model = small_transformer(reversal().vocabulary, d_model=16, d_ff=24).double().eval()
    theirs, batch = architecture.torch_transformer(model), reversal().draw(3, torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs.decoder.layers[1].multihead_attn.in_proj_weight[0, 0] += 0.5
        difference = architecture.hidden_by_torch(theirs, model, batch) - model(batch.src, batch.tgt_in)
    assert float(difference.abs().max()) > 1e-4


def test_a_step_scores_what_a_pass_scores():
    found = architecture.steps()
    assert found.by_steps.shape == found.in_one_pass.shape == (4, 5, 13)
    assert found.largest_difference < 1e-12


def test_the_size_of_base_is_that_of_torchs_layers_and_one_table():
    found, base = architecture.size(), PRESETS["base"]
    with torch.device("meta"):
        shape = (base.d_model, base.num_heads, base.d_ff)
        layers = [nn.TransformerEncoderLayer(*shape), nn.TransformerDecoderLayer(*shape)]
    expected = 37_000 * base.d_model + 6 * sum(p.numel() for layer in layers for p in layer.parameters())
    assert found.base == expected == sum(found.parts.values())
    assert found.parts["self_attention"] == 2 * found.parts["cross_attention"]
    assert (found.tokens_for_65_million - 37_000) * base.d_model + found.base == pytest.approx(65e6)


def test_the_laws_hold_and_the_past_matters():
    found = architecture.laws()
    assert max(found.by_padding, found.by_order, found.by_mates) < 1e-12
    assert found.future_gradient == 0
    assert bool((found.by_future.tril() > 0).sum() == 21)


def test_a_batch_by_heart_can_be_looked_into_without_its_padding():
    found = architecture.by_heart(fast=True)
    assert found.last_loss < found.training.losses[0] / 2
    length = int((found.batch.src[1] != PAD).sum())
    weights = found.attention(1)["decoder.layers.1.cross_attention"]
    assert weights.shape == (1, 4, int((found.batch.tgt_in[1] != PAD).sum()), length)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))


def test_words_become_a_batch_and_are_found_again():
    batch, named = architecture.words_batch(PAIRS)
    assert named(batch.src[0]) == ["b", "c", "⟨end⟩", "⟨pad⟩", "⟨pad⟩"]
    assert named(batch.tgt_in[1]) == ["⟨begin⟩", "y", "z", "y", "x"]
    assert batch.tgt_out[0].tolist()[1:] == [EOS, PAD, PAD, PAD]
    assert bool((batch.tgt_in[:, 0] == BOS).all())


def test_masks_of_a_batch_hide_padding_by_column_and_the_future_by_row():
    batch, named = architecture.words_batch([("b c", "x"), ("c a b d", "y z")])
    sources, targets = ([named(row) for row in ids] for ids in (batch.src, batch.tgt_in))
    encoder, decoder, cross, *_ = batch_masks(batch, sources, targets).axes
    maps = [axis.images[0].get_array() for axis in (encoder, decoder, cross)]
    assert [m.shape for m in maps] == [(5, 5), (3, 3), (3, 5)]
    assert maps[0][4].tolist() == maps[2][0].tolist() == [2, 2, 2, 1, 1]
    assert maps[1].tolist() == [[2, 0, 0], [2, 2, 0], [2, 2, 2]]
    assert [label.get_text() for label in cross.get_yticklabels()] == targets[0]
    assert [label.get_text() for label in cross.get_xticklabels()] == sources[0]
    with pytest.raises(ValueError, match="3 queries by 3 keys"):
        batch_masks(batch, sources, [[*target[:-1], "a", "b"] for target in targets])


def test_pictures_of_the_network_show_what_they_are_given():
    found = architecture.by_heart(fast=True)
    (axes,) = pictures.by_heart_curve(found).axes
    assert len(axes.lines[0].get_xdata()) == len(found.training.losses)
    (axes,) = pictures.parameter_bars(architecture.size()).axes
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(63.082496)
