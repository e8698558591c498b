"""Exercises about feed-forward networks: what position-wise means, convolutions of width one, what they cost."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from transduce.learn.exercising import Wrong, choices_of, exercise, is_close, number_of, returned, tensor_of
from transduce.model.feed_forward import FeedForward

_ONE_BY_ONE = {
    "ReLU": True,
    "a linear layer on the channels": True,
    "layer normalization": True,
    "softmax over the keys": False,
    "the mean of all positions": False,
    "adding the row of its position": False,
}


@exercise(
    "ffn-position-wise",
    hints=(
        "Position-wise: what comes out at a position depends on what goes in there, by the same function everywhere.",
        "Put the positions in another order. Does what comes out follow, and nothing else change?",
        "Layer normalization has means, but of the channels of one position. The rows that encode positions differ.",
    ),
    solution={"ReLU", "a linear layer on the channels", "layer normalization"},
    wrong=(
        {"ReLU", "a linear layer on the channels"},
        {"ReLU", "a linear layer on the channels", "layer normalization", "adding the row of its position"},
        set(_ONE_BY_ONE),
    ),
)
def _check_position_wise(answer: Any) -> None:
    chosen = choices_of(answer, _ONE_BY_ONE)
    reasons = {
        "softmax over the keys": "it divides by a sum over other positions",
        "the mean of all positions": "it looks at all of them",
        "adding the row of its position": "equal vectors at two positions come out different",
    }
    for name, is_right in _ONE_BY_ONE.items():
        if name in chosen and not is_right:
            raise Wrong(f"{name} is not position-wise: {reasons[name]}.")
    if missing := [name for name, is_right in _ONE_BY_ONE.items() if is_right and name not in chosen]:
        raise Wrong(f"something is missing: {missing[0]} needs nothing but the channels of one position.")


def _convolutions(feed_forward: FeedForward) -> nn.Module:
    up, down = feed_forward.up_proj, feed_forward.down_proj
    first, second = nn.Conv1d(up.in_features, up.out_features, 1), nn.Conv1d(down.in_features, down.out_features, 1)
    first.load_state_dict({"weight": up.weight[:, :, None], "bias": up.bias})
    second.load_state_dict({"weight": down.weight[:, :, None], "bias": down.bias})
    return nn.Sequential(first, nn.ReLU(), second)


def _without_relu(feed_forward: FeedForward) -> nn.Module:
    made = _convolutions(feed_forward)
    return nn.Sequential(made[0], made[2])  # type: ignore[index]


def _new_weights(feed_forward: FeedForward) -> nn.Module:
    up, down = feed_forward.up_proj, feed_forward.down_proj
    return nn.Sequential(
        nn.Conv1d(up.in_features, up.out_features, 1), nn.ReLU(), nn.Conv1d(up.out_features, down.out_features, 1)
    )


@exercise(
    "ffn-convolutions",
    hints=(
        "nn.Conv1d(channels_in, channels_out, 1) multiplies the channels at each place with one matrix.",
        "Its weight has shape (out, in, 1); that of a linear layer (out, in): add an axis with [:, :, None].",
        "nn.Sequential(convolution, nn.ReLU(), convolution), with weights and biases of up_proj and down_proj.",
    ),
    solution=_convolutions,
    wrong=(_without_relu, _new_weights, lambda _: None),
)
def _check_convolutions(answer: Callable[[FeedForward], Any]) -> None:
    torch.manual_seed(3)
    feed_forward, x = FeedForward(6, 14), torch.randn(2, 5, 6)
    made = returned(answer(feed_forward))
    if not isinstance(made, nn.Module):
        raise Wrong(f"a torch.nn.Sequential was expected, not {made!r}.")
    if not any(isinstance(part, nn.Conv1d) for part in made.modules()):
        raise Wrong("there is no nn.Conv1d in it: two convolutions of width 1 were asked for.")
    with torch.no_grad():
        expected = feed_forward(x)
        found = tensor_of(made(x.transpose(1, 2)), (2, 6, 5)).transpose(1, 2)
        hidden = feed_forward.down_proj(feed_forward.up_proj(x))
    if is_close(found, expected):
        return
    if is_close(found, hidden):
        raise Wrong("the ReLU between the two is missing: without it, two linear maps are one.")
    raise Wrong(
        f"it differs by up to {float((found - expected).abs().max()):.2g} from the network it was given. "
        "Were its weights and biases copied?"
    )


def _share(d_model: int, d_ff: int) -> float:
    attention, feed_forward = 4 * d_model * d_model, 2 * d_model * d_ff
    return feed_forward / (attention + feed_forward)


@exercise(
    "ffn-share",
    hints=(
        "Count the matrices alone; biases and norms are too small to matter.",
        "Attention has four of d_model × d_model: queries, keys, values, output.",
        "The feed-forward network has two of d_model × d_ff. With d_ff = 4 d_model: 8 of 12.",
    ),
    solution=_share,
    wrong=(
        lambda d_model, d_ff: d_ff / (d_ff + 4 * d_model),
        lambda d_model, d_ff: 2 * d_ff / (2 * d_ff + 3 * d_model),
        lambda *_: None,
    ),
)
def _check_share(answer: Callable[[int, int], Any]) -> None:
    for d_model, d_ff in ((512, 2048), (64, 96), (128, 1024)):
        found, expected = number_of(answer(d_model, d_ff)), _counted_share(d_model, d_ff)
        if not abs(found - expected) <= 0.01:
            raise Wrong(
                f"with d_model {d_model} and d_ff {d_ff} it says {found:.3f}; counted in torch's own layer it is "
                f"{expected:.3f}. Four matrices in attention, two in the feed-forward network."
            )


def _counted_share(d_model: int, d_ff: int) -> float:
    layer = nn.TransformerEncoderLayer(d_model, 4, d_ff)
    matrices: dict[str, Tensor] = {name: part for name, part in layer.named_parameters() if part.dim() == 2}
    feed_forward = sum(part.numel() for name, part in matrices.items() if name.startswith("linear"))
    return feed_forward / sum(part.numel() for part in matrices.values())
