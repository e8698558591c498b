import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small_model import JOINT, PAD, SEPARATE, SOURCES, random_ids, random_tensor, small_model
from transduce.model import MultiHeadAttention, Transformer, attention, causal_mask, padding_mask
from transduce.model.config import PRESETS, TransformerConfig, VocabularySizes
from transduce.model.feed_forward import FeedForward, GatedFeedForward
from transduce.model.positional import RotaryPositions, sinusoidal_table
from transduce.model.residual import AddAndNorm

# --- attention -------------------------------------------------------------------------------------------------------


def test_equation_1_written_out_equals_the_fused_kernel():
    q, k, v = random_tensor(2, 3, 5, 7), random_tensor(2, 3, 11, 7, seed=4), random_tensor(2, 3, 11, 13, seed=5)
    mask = torch.rand(2, 1, 5, 11, generator=torch.Generator().manual_seed(6)) < 0.6
    mask[..., 0] = True
    for allowed in (None, mask):
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        torch.testing.assert_close(attention(q, k, v, allowed)[0], expected, rtol=0, atol=1e-13)


def test_equation_1_by_hand():
    q, k, v = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 5.0], [0.0, 5.0]]), torch.tensor([[1.0], [0.0]])
    output, weights = attention(q, k, v)
    expected = 1 / (1 + math.exp(-2 / math.sqrt(2)))
    assert output.item() == pytest.approx(expected)
    assert weights.tolist() == [[pytest.approx(expected), pytest.approx(1 - expected)]]


def torch_attention(ours: MultiHeadAttention) -> nn.MultiheadAttention:
    d_model = ours.out_proj.in_features
    theirs = nn.MultiheadAttention(d_model, ours.num_heads, batch_first=True, dtype=torch.float64)
    names = {"qkv_proj.weight": "in_proj_weight", "qkv_proj.bias": "in_proj_bias"}
    theirs.load_state_dict({names.get(name, name): value for name, value in ours.state_dict().items()})
    return theirs


def test_multi_head_attention_over_a_padded_memory_equals_torch():
    torch.manual_seed(7)
    ours = MultiHeadAttention(18, 3).double()
    x, memory = random_tensor(3, 4, 18), random_tensor(3, 5, 18, seed=4)
    expected, _ = torch_attention(ours)(x, memory, memory, key_padding_mask=SOURCES == PAD)
    actual = ours(x, memory, mask=padding_mask(SOURCES, PAD))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


def test_causal_self_attention_equals_torch():
    torch.manual_seed(7)
    ours = MultiHeadAttention(18, 3).double()
    x = random_tensor(3, 5, 18)
    expected, _ = torch_attention(ours)(x, x, x, attn_mask=~causal_mask(5))
    torch.testing.assert_close(ours(x, is_causal=True), expected, rtol=0, atol=1e-13)


def test_a_mask_is_true_where_attention_may_look():
    assert padding_mask(torch.tensor([[5, 9, PAD], [5, 9, 7]]), PAD).tolist() == [
        [[[True, True, False]]],
        [[[True, True, True]]],
    ]
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


# --- positions, feed-forward, residual -------------------------------------------------------------------------------


@pytest.mark.parametrize("d_model", [6, 7])
def test_the_sinusoids_are_the_formula_of_section_3_5(d_model):
    table = sinusoidal_table(5003, d_model)
    for position, channel in product([0, 1, 2, 1009, 5002], range(d_model)):
        angle = position / 10000 ** ((channel - channel % 2) / d_model)
        expected = math.cos(angle) if channel % 2 else math.sin(angle)
        assert table[position, channel].item() == pytest.approx(expected, abs=1e-7), (position, channel)


def test_the_sinusoidal_table_grows_to_any_length():
    model = small_model()
    hidden = model(random_ids(1, 601), random_ids(1, 3))
    assert hidden.isfinite().all()
    torch.testing.assert_close(model.src_positions.table[:601].float(), sinusoidal_table(601, 18))


def test_rotary_scores_depend_on_the_distance_alone():
    rotary = RotaryPositions(6)
    q, k = random_tensor(1, 1, 1, 6), random_tensor(1, 1, 1, 6, seed=4)

    def score(q_position: int, k_position: int) -> float:
        turned_q, turned_k = rotary(q, torch.tensor([q_position])), rotary(k, torch.tensor([k_position]))
        return (turned_q * turned_k).sum().item()

    assert score(5, 2) == pytest.approx(score(1003, 1000), abs=1e-12)
    assert abs(score(5, 2) - score(5, 3)) > 1e-3


def test_rotary_positions_keep_the_length_of_a_vector():
    x = random_tensor(2, 3, 5, 6)
    turned = RotaryPositions(6)(x, torch.arange(5) + 997)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=0, atol=1e-13)


def test_learned_positions_beyond_the_last_one_are_refused():
    model = small_model(positions="learned")
    model(random_ids(1, 37), random_ids(1, 37))
    with pytest.raises(ValueError, match="38 tokens does not fit the 37 learned"):
        model(random_ids(1, 38), random_ids(1, 3))


def test_without_positions_the_encoder_cannot_tell_orders_apart():
    model = small_model(positions="none")
    order = torch.tensor([3, 0, 4, 1, 2])
    src = random_ids(1, 5)
    torch.testing.assert_close(model.encode(src[:, order])[0], model.encode(src)[0][:, order], rtol=0, atol=1e-12)


def test_feed_forward_is_equation_2():
    torch.manual_seed(8)
    layer = FeedForward(5, 7)
    x = torch.randn(3, 5)
    inner = torch.clamp(x @ layer.up_proj.weight.T + layer.up_proj.bias, min=0)
    torch.testing.assert_close(layer(x), inner @ layer.down_proj.weight.T + layer.down_proj.bias)


def test_swiglu_is_the_product_of_a_gate_and_a_line():
    torch.manual_seed(8)
    layer = GatedFeedForward(5, 7)
    x = torch.randn(3, 5)
    gate = x @ layer.gate_up_proj.weight[:7].T + layer.gate_up_proj.bias[:7]
    up = x @ layer.gate_up_proj.weight[7:].T + layer.gate_up_proj.bias[7:]
    torch.testing.assert_close(layer(x), layer.down_proj(gate / (1 + torch.exp(-gate)) * up))


@pytest.mark.parametrize("norm_first", [False, True])
def test_add_and_norm_in_either_order(norm_first):
    x = random_tensor(2, 3, 5)
    block = AddAndNorm(5, 0.0, "layer", norm_first).double()

    def normalized(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()

    expected = x + normalized(x).sin() if norm_first else normalized(x + x.sin())
    torch.testing.assert_close(block(x, torch.sin), expected)


# --- who sees whom ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_first", [False, True])
def test_no_gradient_comes_from_the_future(norm_first):
    model = small_model(norm_first=norm_first)
    memory, mask = model.encode(SOURCES)
    x = random_tensor(3, 6, 18).requires_grad_()
    hidden = model.decoder(x, memory, mask)
    for t in range(6):
        (gradient,) = torch.autograd.grad(hidden[:, t].sin().sum(), x, retain_graph=True)
        assert (gradient[:, t + 1 :] == 0).all()
        assert (gradient[:, : t + 1].abs().amax(dim=-1) > 0).all()


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary", "none"])
def test_padding_changes_no_real_position(positions):
    model = small_model(positions=positions)
    src, tgt = random_ids(2, 5), random_ids(2, 4)
    longer_src, longer_tgt = F.pad(src, (0, 3), value=PAD), F.pad(tgt, (0, 2), value=PAD)
    torch.testing.assert_close(model(longer_src, longer_tgt)[:, :4], model(src, tgt), rtol=0, atol=1e-12)


def test_batch_mates_change_nothing():
    model = small_model()
    tgt = random_ids(3, 4)
    together = model(SOURCES, tgt)
    for row, length in enumerate([5, 3, 4]):
        alone = model(SOURCES[row : row + 1, :length], tgt[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-12)


def test_the_order_of_a_batch_changes_nothing():
    model = small_model()
    tgt, order = random_ids(3, 4), torch.tensor([2, 0, 1])
    torch.testing.assert_close(model(SOURCES[order], tgt[order]), model(SOURCES, tgt)[order], rtol=0, atol=1e-12)


# --- sizes, initialization, settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "expected"), [("base", 63_082_496), ("big", 214_245_376)])
def test_number_of_parameters_with_37000_shared_subwords(preset, expected):
    config, vocab_size = PRESETS[preset], 37_000
    d_model, d_ff = config.d_model, config.d_ff
    of_attention = 4 * (d_model * d_model + d_model)
    of_feed_forward = 2 * d_model * d_ff + d_ff + d_model
    of_norm = 2 * d_model
    of_encoder_layer = of_attention + of_feed_forward + 2 * of_norm
    of_decoder_layer = 2 * of_attention + of_feed_forward + 3 * of_norm
    assert vocab_size * d_model + 6 * (of_encoder_layer + of_decoder_layer) == expected
    with torch.device("meta"):
        model = Transformer(config, VocabularySizes.joint(vocab_size))
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def initial_model(**settings) -> Transformer:
    torch.manual_seed(11)
    config = TransformerConfig(d_model=64, d_ff=96, num_heads=4, num_encoder_layers=1, num_decoder_layers=2, **settings)
    return Transformer(config, VocabularySizes.joint(997))


@pytest.mark.parametrize("feed_forward", ["relu", "swiglu"])
def test_each_matrix_fills_its_own_xavier_range(feed_forward):
    num_parts = {"qkv_proj": 3, "gate_up_proj": 2}
    checked = 0
    for name, parameter in initial_model(feed_forward=feed_forward).named_parameters():
        if "_proj.weight" not in name:
            continue
        for matrix in parameter.chunk(num_parts.get(name.split(".")[-2], 1)):
            bound = math.sqrt(6 / sum(matrix.shape))
            assert 0.99 * bound < matrix.abs().max() <= bound, name
            assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
            checked += 1
    num_attentions, num_layers = 5, 3
    assert checked == 4 * num_attentions + (3 if feed_forward == "swiglu" else 2) * num_layers


def test_embeddings_start_with_variance_one_over_d_model():
    embedding = initial_model().src_embedding.weight
    assert embedding.std().item() == pytest.approx(64**-0.5, rel=0.01)
    assert embedding.mean().item() == pytest.approx(0, abs=1e-3)


def test_biases_start_at_zero_and_gains_at_one():
    for name, parameter in initial_model(norm_first=True).named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name


@pytest.mark.parametrize(
    ("tie", "vocabulary", "num_matrices"),
    [(True, JOINT, 1), (True, SEPARATE, 2), (False, JOINT, 3), (False, SEPARATE, 3)],
)
def test_tying_shares_the_matrices_it_can(tie, vocabulary, num_matrices):
    model = small_model(vocabulary, tie_embeddings=tie)
    matrices = [model.src_embedding.weight, model.tgt_embedding.weight, model.output_weight]
    assert len({matrix.data_ptr() for matrix in matrices}) == num_matrices


def test_only_target_ids_have_logits():
    assert small_model().logits(random_tensor(2, 3, 18)).shape == (2, 3, 7)


def test_embeddings_are_scaled_by_the_root_of_d_model():
    model = small_model(positions="none", num_encoder_layers=1)
    seen = []
    model.encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model.encode(SOURCES)
    torch.testing.assert_close(seen[0], math.sqrt(18) * model.src_embedding.weight[SOURCES])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_model": 10, "num_heads": 3}, r"d_model \(10\) must be a multiple of model.num_heads \(3\)"),
        ({"num_encoder_layers": 0}, "num_encoder_layers is 0: it must be at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"d_model": 15, "num_heads": 3, "positions": "rotary"}, r"\(5\) must be even"),
    ],
)
def test_an_impossible_shape_is_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**settings)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"source": 5, "target": 7, "num_target_ids": 7, "is_joint": True}, "one size, not 5 and 7"),
        ({"source": 5, "target": 7, "num_target_ids": 8, "is_joint": False}, r"\(8\) must lie between 1 and 7"),
    ],
)
def test_impossible_vocabulary_sizes_are_explained(sizes, message):
    with pytest.raises(ValueError, match=message):
        VocabularySizes(**sizes)
