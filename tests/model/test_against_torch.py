"""The whole network beside stacks of torch's own layers with the same weights."""

import math

import pytest
import torch
from torch import Tensor, nn

from transduce.model import Transformer
from transduce.model.config import TransformerConfig, VocabularySizes

PAD = 0
NAMES = {
    "self_attention": "self_attn",
    "cross_attention": "multihead_attn",
    "qkv_proj.": "in_proj_",
    "feed_forward.up_proj": "linear1",
    "feed_forward.down_proj": "linear2",
    "residual_1.norm": "norm1",
    "residual_2.norm": "norm2",
    "residual_3.norm": "norm3",
    "final_norm": "norm",
}


def torch_name(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


class TorchStacks:
    """nn.TransformerEncoder and nn.TransformerDecoder with the weights of `model`, under its embeddings."""

    def __init__(self, model: Transformer, activation: str) -> None:
        config = model.config
        shape = (config.d_model, config.num_heads, config.d_ff)
        settings = {"batch_first": True, "norm_first": config.norm_first, "activation": activation, "dropout": 0.0}
        final_norms = [nn.LayerNorm(config.d_model) if config.norm_first else None for _ in range(2)]
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(*shape, **settings), config.num_encoder_layers, final_norms[0],
            enable_nested_tensor=False,
        )  # fmt: skip
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(*shape, **settings), config.num_decoder_layers, final_norms[1]
        )
        self.model = model
        for stack, ours in ((self.encoder, model.encoder), (self.decoder, model.decoder)):
            stack.double().load_state_dict({torch_name(name): value for name, value in ours.state_dict().items()})

    def __call__(self, src: Tensor, tgt_in: Tensor) -> Tensor:
        is_padding = src == PAD
        src_vectors = self.embed(src, self.model.src_embedding.weight)
        tgt_vectors = self.embed(tgt_in, self.model.tgt_embedding.weight)
        memory = self.encoder(src_vectors, src_key_padding_mask=is_padding)
        is_future = torch.ones(tgt_in.size(1), tgt_in.size(1), dtype=torch.bool).triu(1)
        return self.decoder(tgt_vectors, memory, tgt_mask=is_future, memory_key_padding_mask=is_padding)

    def embed(self, ids: Tensor, weight: Tensor) -> Tensor:
        return weight[ids] * math.sqrt(weight.size(1)) + self.model.src_positions.table[: ids.size(1)]


def both(norm_first: bool, activation: str) -> tuple[Transformer, TorchStacks]:
    torch.manual_seed(1)
    config = TransformerConfig(
        d_model=22, d_ff=29, num_heads=2, num_encoder_layers=3, num_decoder_layers=2, dropout=0.0,
        norm_first=norm_first, feed_forward=activation,
    )  # fmt: skip
    vocabulary = VocabularySizes(source=17, target=13, num_target_ids=11, is_joint=False, pad_id=PAD)
    model = Transformer(config, vocabulary).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model, TorchStacks(model, activation)


def padded_ids() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(2)
    src = torch.randint(1, 17, (3, 7), generator=random)
    src[1, 4:], src[2, 1:] = PAD, PAD
    return src, torch.randint(1, 13, (3, 5), generator=random)


COMBINATIONS = [(norm_first, activation) for norm_first in (False, True) for activation in ("relu", "gelu")]


@pytest.mark.parametrize(("norm_first", "activation"), COMBINATIONS)
def test_hidden_vectors_equal_those_of_torch_layers(norm_first, activation):
    ours, theirs = both(norm_first, activation)
    torch.testing.assert_close(ours(*padded_ids()), theirs(*padded_ids()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("norm_first", "activation"), COMBINATIONS)
def test_gradients_equal_those_of_torch_layers(norm_first, activation):
    ours, theirs = both(norm_first, activation)
    upstream = torch.randn(3, 5, 22, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    embeddings = [ours.src_embedding.weight, ours.tgt_embedding.weight]
    expected_of_embeddings = torch.autograd.grad((theirs(*padded_ids()) * upstream).sum(), embeddings)
    (theirs(*padded_ids()) * upstream).sum().backward()
    ours.zero_grad()
    (ours(*padded_ids()) * upstream).sum().backward()

    for embedding, expected in zip(embeddings, expected_of_embeddings, strict=True):
        torch.testing.assert_close(embedding.grad, expected, rtol=1e-9, atol=1e-11)
    for stack, our_stack in ((theirs.encoder, ours.encoder), (theirs.decoder, ours.decoder)):
        expected_of = {name: parameter.grad for name, parameter in stack.named_parameters()}
        assert len(expected_of) == len(list(our_stack.parameters()))
        for name, parameter in our_stack.named_parameters():
            torch.testing.assert_close(parameter.grad, expected_of[torch_name(name)], rtol=1e-9, atol=1e-11)
