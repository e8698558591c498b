"""x-transformers' XTransformer in a plain loop over the planned batches, with its fused attention.

Its own wrapper has no label smoothing, so the loss is computed from the decoder's logits; the rest is its own.
"""

from importlib.metadata import version

import gate as peers
from torch import nn
from x_transformers import XTransformer

gate, work = peers.begin(f"x-transformers {version('x-transformers')}")
sides = {}
for side in ("enc", "dec"):
    sides |= {
        f"{side}_num_tokens": work.facts["vocabulary"],
        f"{side}_depth": peers.NUM_LAYERS,
        f"{side}_heads": peers.NUM_HEADS,
        f"{side}_attn_dim_head": peers.D_MODEL // peers.NUM_HEADS,
        f"{side}_max_seq_len": 512,
        f"{side}_ff_mult": peers.D_FF // peers.D_MODEL,
        f"{side}_ff_custom_activation": nn.ReLU(),
        f"{side}_pre_norm": False,
        f"{side}_attn_flash": True,
        f"{side}_attn_sublayer_dropout": peers.DROPOUT,
        f"{side}_ff_sublayer_dropout": peers.DROPOUT,
        f"{side}_emb_dropout": peers.DROPOUT,
        f"{side}_scaled_sinu_pos_emb": True,
    }
model = XTransformer(
    dim=peers.D_MODEL, tie_token_emb=True, ignore_index=peers.PAD_ID, pad_value=peers.PAD_ID, **sides
).train()
decoder = model.decoder.net
decoder.to_logits.weight = model.encoder.token_emb.emb.weight  # XTransformer has no option for it
gate.facts = {"version": version("x-transformers"), "parameters": peers.count_parameters(model)}


def logits_of(src, tgt_in):
    mask = src != peers.PAD_ID
    memory = model.encoder(src, mask=mask, return_embeddings=True)
    return decoder(tgt_in, context=memory, context_mask=mask)


peers.train_planned(gate, work, model, logits_of)
