import pytest
import torch
from torch import Tensor, nn

from transduce.inference.attention_maps import record_attention
from transduce.model import MultiHeadAttention, Transformer
from transduce.model.config import TransformerConfig, VocabularySizes

PAD = 0
SRC = torch.tensor([[4, 7, 3, 9, 5], [8, 2, PAD, PAD, PAD]])
TGT_IN = torch.tensor([[1, 6, 3], [1, 2, 5]])


def model(positions: str = "sinusoidal") -> Transformer:
    torch.manual_seed(1)
    config = TransformerConfig(
        d_model=18, d_ff=23, num_heads=3, num_encoder_layers=2, num_decoder_layers=1, dropout=0.0, positions=positions
    )
    return Transformer(config, VocabularySizes.joint(11)).double().eval()


def recorded(network: Transformer) -> dict[str, Tensor]:
    with record_attention(network) as maps:
        network(SRC, TGT_IN)
    return maps


def weights_by_torch(ours: MultiHeadAttention, x: Tensor, memory: Tensor, settings: dict) -> Tensor:
    """What nn.MultiheadAttention reports for the same weights and inputs."""
    theirs = nn.MultiheadAttention(18, 3, batch_first=True, dtype=torch.float64)
    names = {"qkv_proj.weight": "in_proj_weight", "qkv_proj.bias": "in_proj_bias"}
    theirs.load_state_dict({names.get(name, name): value for name, value in ours.state_dict().items()})
    is_padding = ~settings["mask"][:, 0, 0] if settings.get("mask") is not None else None
    is_future = torch.ones(3, 3, dtype=torch.bool).triu(1) if settings.get("is_causal") else None
    return theirs(
        x, memory, memory, key_padding_mask=is_padding, attn_mask=is_future, average_attn_weights=False
    )[1]  # fmt: skip


def test_maps_are_those_of_every_attention():
    assert set(recorded(model())) == {
        "encoder.layers.0.self_attention",
        "encoder.layers.1.self_attention",
        "decoder.layers.0.self_attention",
        "decoder.layers.0.cross_attention",
    }


def test_maps_equal_those_of_torch():
    network = model()
    encoded = network.encode(SRC)[0]
    expected = {}

    def compare(name):
        def hook(module, inputs, settings):
            memory = encoded if name.endswith("cross_attention") else inputs[0]
            expected[name] = weights_by_torch(module, inputs[0], memory, settings)

        return hook

    for name, module in network.named_modules():
        if isinstance(module, MultiHeadAttention):
            module.register_forward_pre_hook(compare(name), with_kwargs=True)
    for name, weights in recorded(network).items():
        torch.testing.assert_close(weights, expected[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_rows_sum_to_one(positions):
    for weights in recorded(model(positions)).values():
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_rotary_maps_are_those_the_values_were_mixed_with():
    network = model("rotary")
    attention = network.encoder.layers[0].self_attention
    seen = {}
    attention.register_forward_hook(lambda _module, inputs, output: seen.update(x=inputs[0], output=output))
    weights = recorded(network)["encoder.layers.0.self_attention"]
    v = attention.project(seen["x"])[2]
    torch.testing.assert_close(attention.combine(weights @ v), seen["output"], rtol=0, atol=1e-12)


def test_nothing_looks_at_padding_or_into_the_future():
    maps = recorded(model())
    for name in ("encoder.layers.1.self_attention", "decoder.layers.0.cross_attention"):
        assert (maps[name][1, ..., 2:] == 0).all()
        assert (maps[name][0] > 0).all()
    causal = maps["decoder.layers.0.self_attention"]
    assert (causal.triu(1) == 0).all()
    assert (causal.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_recording_changes_no_output_and_leaves_no_hook():
    network = model()
    expected = network(SRC, TGT_IN)
    with pytest.raises(RuntimeError), record_attention(network) as maps:
        assert torch.equal(network(SRC, TGT_IN), expected)
        raise RuntimeError
    maps.clear()
    network(SRC, TGT_IN)
    assert not maps
    assert not any(module._forward_hooks for module in network.modules())
