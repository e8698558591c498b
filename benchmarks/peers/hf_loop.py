"""Hugging Face MarianMTModel in a plain loop over the planned batches; fused attention is its default."""

import gate as peers
import torch
import torch.nn.functional as F
import transformers
from marian import build_model

gate, work = peers.begin(f"Hugging Face transformers {transformers.__version__}, plain loop")
model = build_model(work.facts["vocabulary"]).train()
optimizer = torch.optim.Adam(
    model.parameters(), lr=peers.LEARNING_RATE, betas=peers.BETAS, eps=peers.EPSILON, fused=True
)
gate.facts = {"version": transformers.__version__, "parameters": peers.count_parameters(model)}


def step(rows):
    src, tgt_in, tgt_out, num_tokens = work.batch(rows)
    logits = model(
        input_ids=src, attention_mask=(src != peers.PAD_ID).long(), decoder_input_ids=tgt_in, use_cache=False
    ).logits
    loss = F.cross_entropy(
        logits.flatten(0, 1), tgt_out.flatten(), ignore_index=peers.PAD_ID, label_smoothing=peers.LABEL_SMOOTHING
    )
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return num_tokens


gate.train(step, work.plan)
