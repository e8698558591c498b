"""The network of Figure 1. Read transformer.py first, then encoder.py, decoder.py, attention.py."""

from typing import TYPE_CHECKING

from transduce import import_when_used

if TYPE_CHECKING:
    from transduce.model.attention import MultiHeadAttention, attention, causal_mask, padding_mask
    from transduce.model.cache import DecoderState
    from transduce.model.config import PRESETS, TransformerConfig, VocabularySizes
    from transduce.model.packing import Packing, Segments
    from transduce.model.transformer import Transformer

_HOMES = {
    "DecoderState": "cache",
    "MultiHeadAttention": "attention",
    "PRESETS": "config",
    "Packing": "packing",
    "Segments": "packing",
    "Transformer": "transformer",
    "TransformerConfig": "config",
    "VocabularySizes": "config",
    "attention": "attention",
    "causal_mask": "attention",
    "padding_mask": "attention",
}
__all__ = [*_HOMES]
import_when_used(__name__, _HOMES)
