"""Small networks, none of whose parameters is at its initial value, and what they are given."""

import dataclasses

import torch
from torch import Tensor

from transduce.inference.config import DecodingConfig
from transduce.inference.predictor import Predictor
from transduce.model import Transformer
from transduce.model.config import TransformerConfig, VocabularySizes
from transduce.text.tokenizer import Tokenizer

PAD = 0
SMALL = TransformerConfig(
    d_model=18, d_ff=23, num_heads=3, num_encoder_layers=2, num_decoder_layers=3, dropout=0.0, max_len=37
)
SEPARATE = VocabularySizes(source=13, target=11, num_target_ids=7, is_joint=False, pad_id=PAD)
JOINT = VocabularySizes(source=13, target=13, num_target_ids=7, is_joint=True, pad_id=PAD)
VOCABULARIES = {"joint": JOINT, "separate": SEPARATE}


def small_model(vocabulary: VocabularySizes = SEPARATE, seed: int = 1, **settings) -> Transformer:
    """Float64, and no parameter at its initial value: a bias of zero or a gain of one would hide a mistake."""
    torch.manual_seed(seed)
    return perturbed(Transformer(dataclasses.replace(SMALL, **settings), vocabulary).double().eval())


def random_predictor(
    config: TransformerConfig, tokenizer: Tokenizer, decoding: DecodingConfig, *, seed: int, scale: float = 0.2
) -> Predictor:
    """A model that has learnt nothing, in float32."""
    torch.manual_seed(seed)
    return Predictor(perturbed(Transformer(config, tokenizer.vocabulary_sizes), scale), tokenizer, decoding)


@torch.no_grad()
def perturbed(model: Transformer, scale: float = 0.2) -> Transformer:
    """The model, after random numbers were added to all its parameters, those that begin as 0 or 1 too."""
    for parameter in model.parameters():
        parameter += scale * torch.randn_like(parameter)
    return model


def random_ids(*shape: int, num_ids: int = 7, seed: int = 2) -> Tensor:
    """Ids of real tokens."""
    return torch.randint(1, num_ids, shape, generator=torch.Generator().manual_seed(seed))


def random_tensor(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SOURCES = random_ids(3, 5)
SOURCES[1, 3:] = PAD
SOURCES[2, 4:] = PAD
