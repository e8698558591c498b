"""The shipped model with the weights of a Transformer that the reader of `build_it` wrote."""

from typing import Any

import torch
from torch import Tensor

from transduce.model import Transformer
from transduce.model.config import TransformerConfig, VocabularySizes


def shipped(model: Any) -> Transformer:
    """The model of this package with the weights of `model`, whose parts are named as in `pieces`."""
    num_target_ids, d_model = model.tgt_embedding.weight.shape
    layer = model.encoder[0]
    config = TransformerConfig(
        d_model=d_model,
        d_ff=layer.feed_forward.up.out_features,
        num_heads=layer.attention.num_heads,
        num_encoder_layers=len(model.encoder),
        num_decoder_layers=len(model.decoder),
        dropout=0.0,
    )
    source = model.src_embedding.num_embeddings
    vocabulary = VocabularySizes(source=source, target=num_target_ids, num_target_ids=num_target_ids, is_joint=False)
    ours = Transformer(config, vocabulary).to(model.tgt_embedding.weight.dtype)
    ours.load_state_dict(_renamed(model))
    return ours.train(model.training)


def _renamed(model: Any) -> dict[str, Tensor]:
    """The reader's weights under our names: queries, keys and values lie in one matrix, one above the other."""
    weights = {f"{side}_embedding.weight": getattr(model, f"{side}_embedding").weight for side in ("src", "tgt")}
    for side, names in (("encoder", ["self_attention"]), ("decoder", ["self_attention", "cross_attention"])):
        for number, layer in enumerate(getattr(model, side)):
            place = f"{side}.layers.{number}"
            for name in names:
                attention = layer.attention if side == "encoder" else getattr(layer, name)
                for kind in ("weight", "bias"):
                    qkv = [getattr(part, kind) for part in (attention.query, attention.key, attention.value)]
                    weights[f"{place}.{name}.qkv_proj.{kind}"] = torch.cat(qkv)
                    weights[f"{place}.{name}.out_proj.{kind}"] = getattr(attention.output, kind)
            for kind in ("weight", "bias"):
                weights[f"{place}.feed_forward.up_proj.{kind}"] = getattr(layer.feed_forward.up, kind)
                weights[f"{place}.feed_forward.down_proj.{kind}"] = getattr(layer.feed_forward.down, kind)
            for norm in range(1, len(names) + 2):
                ours, theirs = f"{place}.residual_{norm}.norm", getattr(layer, f"norm_{norm}")
                weights |= {f"{ours}.weight": theirs.gain, f"{ours}.bias": theirs.bias}
    return {name: weight.detach().clone() for name, weight in weights.items()}
