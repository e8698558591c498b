"""The model of both Hugging Face workers."""

import gate as peers
from transformers import MarianConfig, MarianMTModel


def build_model(vocabulary: int) -> MarianMTModel:
    sides = {}
    for side in ("encoder", "decoder"):
        sides |= {
            f"{side}_layers": peers.NUM_LAYERS,
            f"{side}_ffn_dim": peers.D_FF,
            f"{side}_attention_heads": peers.NUM_HEADS,
        }
    return MarianMTModel(
        MarianConfig(
            vocab_size=vocabulary,
            d_model=peers.D_MODEL,
            dropout=peers.DROPOUT,
            attention_dropout=0.0,
            activation_dropout=0.0,
            activation_function="relu",
            scale_embedding=True,
            max_position_embeddings=512,
            pad_token_id=peers.PAD_ID,
            bos_token_id=peers.BOS_ID,
            eos_token_id=peers.EOS_ID,
            decoder_start_token_id=peers.BOS_ID,
            forced_eos_token_id=None,
            share_encoder_decoder_embeddings=True,
            tie_word_embeddings=True,
            **sides,
        )
    )
