"""Validation loss."""

import torch

from transduce.data.batches import EncodedPairs, bucket_batches, collate
from transduce.model.transformer import Transformer
from transduce.training.loss import cross_entropy_sum


@torch.inference_mode()
def corpus_loss(model: Transformer, pairs: EncodedPairs, *, batch_tokens: int = 16_384) -> float:
    """Cross-entropy of the targets in nats per token, without label smoothing or dropout."""
    model.eval()
    total, num_tokens = 0.0, 0
    rows = range(len(pairs))
    for batch_rows in bucket_batches(pairs.src_lens, pairs.tgt_lens, batch_tokens=batch_tokens, order=rows):
        batch = collate(pairs, batch_rows).to(model.output_weight.device)
        hidden = model(batch.src, batch.tgt_in)
        loss, count = cross_entropy_sum(
            hidden, model.output_weight, batch.tgt_out, pad_id=model.vocabulary.pad_id, bias=model.output_bias
        )
        total, num_tokens = total + loss.item(), num_tokens + int(count)
    return total / num_tokens
