"""The model and the batches of the Hugging Face workers."""

import gate as peers
import torch
from torch import Tensor
from transformers import MarianConfig, MarianMTModel


class Pairs(torch.utils.data.Dataset):
    """The sources, by which Seq2SeqTrainer groups, and the numbers of the rows."""

    def __init__(self, work: peers.Work) -> None:
        self.src = work.src

    def __len__(self):
        return len(self.src)

    def __getitem__(self, row):
        return {"input_ids": self.src[row], "row": row}


def collate(work: peers.Work, examples: list[dict]) -> tuple[dict[str, Tensor], int]:
    """What the model is called with, and the number of target tokens in it."""
    src, tgt_in, tgt_out, num_tokens = work.batch([example["row"] for example in examples])
    arguments = {
        "input_ids": src,
        "attention_mask": (src != peers.PAD_ID).long(),
        "decoder_input_ids": tgt_in,
        "labels": tgt_out.masked_fill(tgt_out == peers.PAD_ID, -100),
    }
    return arguments, num_tokens


def build_model(vocabulary: int, dropout: float = peers.DROPOUT) -> MarianMTModel:
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
            dropout=dropout,
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
