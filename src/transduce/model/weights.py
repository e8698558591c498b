"""Saved weights, put back into a network."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies saved weights into `model`. Raises ValueError unless names and shapes are just its own."""
    own = dict(model.named_parameters())
    wrong = sorted(own.keys() ^ tensors.keys()) or sorted(
        name for name in own if own[name].shape != tensors[name].shape
    )
    if wrong:
        raise ValueError(
            f"these weights are of another model: '{wrong[0]}' differs ({len(wrong)} do). Is config.toml their own?"
        )
    for name, parameter in own.items():
        parameter.copy_(tensors[name])
