"""Saved weights, put back into a network that stores the same."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from transduce.model.config import TransformerConfig, VocabularySizes
from transduce.model.transformer import Transformer

Shapes = dict[str, list[int]]  # of tensors, by name


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies saved weights into `model`. Raises ValueError unless names and shapes are just its own."""
    own = dict(model.named_parameters())
    refuse_other_shapes(shapes_of(own), shapes_of(tensors))
    for name, parameter in own.items():
        parameter.copy_(tensors[name])


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """The shape of each tensor."""
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def parameter_shapes(config: TransformerConfig, vocabulary: VocabularySizes) -> Shapes:
    """The shape of each parameter that such a model stores; takes no memory for them."""
    with _ShapesOnly():
        return shapes_of(dict(Transformer(config, vocabulary).named_parameters()))


def refuse_other_shapes(own: Shapes, stored: Shapes) -> None:
    """Raise ValueError unless the names and shapes that are stored are just those of the model."""
    if wrong := sorted(own.keys() ^ stored.keys()) or sorted(name for name in own if own[name] != stored[name]):
        raise ValueError(
            f"these weights belong to another model: '{wrong[0]}' differs ({len(wrong)} do). Is this their config.toml?"
        )


class _ShapesOnly(TorchFunctionMode):
    """A context in which parameters have shapes but no values, so that a model of any size fits into memory.

    `torch.device("meta")` does the same, but loads torch's compiler for `normal_` and powers: over a second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.init.normal_:
            return kwargs["tensor"]
        return func(*args, **(kwargs | {"device": "meta"} if func is torch.empty else kwargs))
