"""The network of Figure 1. Read transformer.py first, then encoder.py, decoder.py, attention.py."""

from transduce.model.attention import MultiHeadAttention, attention, causal_mask, padding_mask
from transduce.model.cache import DecoderState
from transduce.model.config import PRESETS, TransformerConfig, VocabularySizes
from transduce.model.packing import Packing, Segments
from transduce.model.transformer import Transformer

__all__ = [
    "PRESETS",
    "DecoderState",
    "MultiHeadAttention",
    "Packing",
    "Segments",
    "Transformer",
    "TransformerConfig",
    "VocabularySizes",
    "attention",
    "causal_mask",
    "padding_mask",
]
