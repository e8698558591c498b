"""torch.nn.Transformer in a plain loop over the planned batches, with its own masks and the tutorial's embeddings.

Its layers drop out inside attention and the feed-forward network, too; both are set to 0 here, as in the work.
"""

import math

import gate as peers
import torch
from torch import nn

gate, work = peers.begin(f"torch.nn.Transformer {torch.__version__}")


class Model(nn.Module):
    def __init__(self, vocabulary: int, max_len: int = 512):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, peers.D_MODEL)
        self.transformer = nn.Transformer(
            peers.D_MODEL,
            peers.NUM_HEADS,
            peers.NUM_LAYERS,
            peers.NUM_LAYERS,
            peers.D_FF,
            dropout=peers.DROPOUT,
            batch_first=True,
        )
        # It closes both stacks with a norm, which post-norm layers do not need.
        self.transformer.encoder.norm = self.transformer.decoder.norm = None
        for module in self.transformer.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
            if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                module.dropout.p = 0.0
        self.output = nn.Linear(peers.D_MODEL, vocabulary, bias=False)
        self.output.weight = self.embedding.weight
        self.dropout = nn.Dropout(peers.DROPOUT)
        self.register_buffer("positions", sinusoids(max_len))

    def forward(self, src, tgt_in):
        src_is_pad, tgt_is_pad = src == peers.PAD_ID, tgt_in == peers.PAD_ID
        tgt_len = tgt_in.size(1)
        hidden = self.transformer(
            self.embed(src),
            self.embed(tgt_in),
            tgt_mask=torch.ones(tgt_len, tgt_len, dtype=torch.bool).triu(1),
            src_key_padding_mask=src_is_pad,
            tgt_key_padding_mask=tgt_is_pad,
            memory_key_padding_mask=src_is_pad,
        )
        return self.output(hidden)

    def embed(self, ids):
        x = self.embedding(ids) * math.sqrt(peers.D_MODEL)
        return self.dropout(x + self.positions[: ids.size(1)])


def sinusoids(max_len):
    rates = torch.exp(-torch.arange(0, peers.D_MODEL, 2) * math.log(10000) / peers.D_MODEL)
    angles = torch.arange(max_len)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


model = Model(work.facts["vocabulary"]).train()
for parameter in model.parameters():
    if parameter.dim() > 1:
        nn.init.xavier_uniform_(parameter)
gate.facts = {"version": torch.__version__, "parameters": peers.count_parameters(model)}


peers.train_planned(gate, work, model, model)
