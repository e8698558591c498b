"""Hugging Face MarianMTModel in a plain loop over the planned batches; fused attention is its default."""

import gate as peers
import transformers
from marian import build_model

gate, work = peers.begin(f"Hugging Face transformers {transformers.__version__}, plain loop")
model = build_model(work.facts["vocabulary"]).train()
gate.facts = {"version": transformers.__version__, "parameters": peers.count_parameters(model)}


def logits_of(src, tgt_in):
    return model(
        input_ids=src, attention_mask=(src != peers.PAD_ID).long(), decoder_input_ids=tgt_in, use_cache=False
    ).logits


peers.train_planned(gate, work, model, logits_of)
