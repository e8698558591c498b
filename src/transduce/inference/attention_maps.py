"""Attention weights of an unchanged model, recorded by hooks: the fused kernel never returns them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transduce.model.attention import MultiHeadAttention, attention, causal_mask

AttentionMaps = dict[str, Float[Tensor, "batch heads queries keys"]]


@contextmanager
def record_attention(model: nn.Module, part: str = "") -> Iterator[AttentionMaps]:
    """Record the weights of every attention whose module name contains `part`, in the latest forward pass.

    Yields a dictionary, filled anew by each pass while the context is entered. Its keys are module names such as
    "encoder.layers.0.self_attention" and "decoder.layers.3.cross_attention". The weights are computed again from the
    inputs, by equation 1 written out.
    """
    maps: AttentionMaps = {}

    @torch.no_grad()
    def record(
        name: str, module: MultiHeadAttention, inputs: tuple[Any, ...], settings: dict[str, Any], _output: Tensor
    ) -> None:
        q, k, v = module.project(*inputs)
        mask = settings.get("mask")
        if settings.get("is_causal"):
            mask = causal_mask(q.size(-2)).to(q.device)
        maps[name] = attention(q, k, v, mask)[1]

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, MultiHeadAttention) and part in name:
                hooks.enter_context(module.register_forward_hook(partial(record, name), with_kwargs=True))
        yield maps
