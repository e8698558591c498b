"""How a checker of `build_it` compares what the reader wrote, and finds the mistake that gives exactly that."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from transduce.learn.exercising import Wrong, is_close, tensor_of

Slips = dict[str, Callable[[], Tensor]]  # what a mistake would give -> the mistake, in words


def same(found: Any, expected: Tensor, slips: Slips, otherwise: str) -> None:
    """Raises Wrong with the name of the mistake that gives exactly what was found, or else with how far off it is."""
    tensor = tensor_of(found, expected.shape)
    if is_close(tensor, expected):
        return
    for message, slip in slips.items():
        try:
            wrong = slip()
        except (AttributeError, TypeError, RuntimeError):
            continue  # it needs a part that the reader's module does not have, or calls otherwise
        if wrong.shape == tensor.shape and is_close(tensor.nan_to_num(9e9), wrong.nan_to_num(9e9)):
            raise Wrong(message)
    if bool(tensor.isnan().any()):
        raise Wrong(f"there is NaN in it: 0/0, or minus infinity minus itself. {otherwise}")
    raise Wrong(f"it differs by up to {float((tensor.double() - expected).abs().max()):.2g} from {otherwise}")


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def built(make: Any, *sizes: Any) -> Any:
    """The reader's module in float64 and in evaluation, all of its parameters at random: a gain of 1 hides mistakes."""
    if not (inspect.isclass(make) and issubclass(make, nn.Module)):
        raise Wrong("a class that is an nn.Module was expected.")
    name = make.__name__
    if make.__init__ is nn.Module.__init__ or make.forward is nn.Module.forward:
        raise Wrong(f"{name} is not written yet: it needs `__init__` and `forward`.")
    module = make(*sizes).double()
    if not list(module.parameters()):
        raise Wrong(f"{name} is not written yet: it has no parameters.")
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.4)
    return module.eval()


def parts_of(module: nn.Module, *names: str) -> list[Any]:
    """Parts of the reader's module, by the names that the text gives them."""
    for name in names:
        if not hasattr(module, name):
            raise Wrong(f"{type(module).__name__} has no `self.{name}`: its parts are {', '.join(names)}.")
        if isinstance(part := getattr(module, name), nn.Linear) and part.bias is None:
            raise Wrong(f"`{name}` has no bias: leave nn.Linear as it is, so that the shipped model can run it.")
    return [getattr(module, name) for name in names]


def pair_of(answer: Any, what: str) -> tuple[Any, Any]:
    if not isinstance(answer, tuple | list) or len(answer) != 2 or not all(map(callable, answer)):
        raise Wrong(f"two functions were expected: {what}.")
    return answer[0], answer[1]


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))


def hidden(scores: Tensor, may_look: Tensor) -> Tensor:
    return scores.masked_fill(~may_look, -math.inf)


class Unwritten(nn.Module):
    def __init__(self, *_: Any) -> None:
        super().__init__()

    def forward(self, *_: Any) -> Any: ...
