"""The example that goes through all steps of `build_it`: three tokens, four channels, numbers that fit in a head."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from transduce.learn.build_it import pieces
from transduce.learn.exercising import check, missing
from transduce.learn.showing import Shown, text

TOKENS = ("the", "cat", "sleeps")
X = torch.tensor([[1.0, 0, 1, 0], [0, 2, 0, 1], [1, 1, 0, 2]])[None]  # (1 sentence, 3 tokens, 4 channels)
SEES_ALL = torch.ones(3, 3, dtype=torch.bool)
PAIRS = [([4, 5], [7, 8, 9]), ([6], [7])]  # two pairs, of lengths that differ


def run(name: str, *written: Any) -> Shown:
    """What the reader's piece makes of the example; a word about what is missing while its checker is not content."""
    answer = written[0] if len(written) == 1 else written
    told = check(f"build-{name}", answer).plain
    if not told.endswith(": right."):
        return text(f"not written yet, or not right yet: the checker says so above ({name})")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return text(_RUNS[name](*written))


def rows(matrix: Tensor, names: tuple[str, ...] = TOKENS) -> str:
    """A matrix as lines, a token before each."""
    width = max(map(len, names))
    lines = [
        f"{name:{width}}  " + "  ".join(f"{x:6.2f}" for x in row)
        for name, row in zip(names, matrix.tolist(), strict=True)
    ]
    return "\n".join(lines)


def feed_forward_example(make: Any = pieces.FeedForward) -> Any:
    """A feed-forward network of 4 and 2 channels: one finds 'a large second channel', one 'a large fourth one'."""
    network = make(4, 2)
    with torch.no_grad():
        network.up.weight.copy_(torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 1]]))
        network.up.bias.copy_(torch.tensor([-1.0, -1]))
        network.down.weight.copy_(torch.tensor([[1.0, 0], [0, 0], [0, 1], [0, 0]]))
        network.down.bias.zero_()
    return network


def plain_heads(make: Any = pieces.MultiHead) -> Any:
    """Multi-head attention whose four linear maps change nothing, so that the heads can be followed by hand."""
    module = make(4, 2)
    with torch.no_grad():
        for part in (module.query, module.key, module.value, module.output):
            part.weight.copy_(torch.eye(4))
            part.bias.zero_()
    return module


def _layer(layer: Any, *given: Any) -> str:
    after = layer.eval()(X, *given)[0]
    what = "what went in, plus what it fetched and computed, normalized"
    return f"out of the layer, shape {tuple(after.shape)}: {what}\n{rows(after)}"


def _network(make: Any) -> str:
    model = make(10, 10, 4, 2, 8, 1, 0.0).eval()
    src, tgt_in, _ = pieces.batch_of(PAIRS)
    logits = model(src, tgt_in)
    return (
        f"{sum(p.numel() for p in model.parameters()):,} parameters; source {tuple(src.shape)} and target "
        f"{tuple(tgt_in.shape)} in, logits {tuple(logits.shape)} out: at each position one for each of 10 ids"
    )


def _batch(make: Any, loss: Any) -> str:
    src, tgt_in, tgt_out = make(PAIRS)
    uniform = float(loss(torch.zeros(*tgt_out.shape, 10), tgt_out))
    return (
        f"pairs    {PAIRS}\nsrc      {src.tolist()}\ntgt_in   {tgt_in.tolist()}\ntgt_out  {tgt_out.tolist()}\n"
        f"loss of a model that guesses evenly among 10 ids: {uniform:.3f} nats, which is ln 10"
    )


def _real(padding_mask: Any) -> str:
    ids = [[4, 5, 2], [6, 2, 0]]
    return f"real tokens of {ids}: {padding_mask(torch.tensor(ids))[:, 0, 0].int().tolist()}"


class _Counts(nn.Module):
    """The smallest model there is: how often each id comes."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(10))

    def forward(self, _src: Tensor, tgt_in: Tensor) -> Tensor:
        return self.scores.expand(*tgt_in.shape, -1)


@torch.enable_grad()
def _train(train: Any) -> str:
    losses = train(_Counts(), lambda: PAIRS, 60, 0.1, 6)
    return (
        f"a model that only counts ids, on two pairs: loss {losses[0]:.2f} -> {losses[-1]:.2f} nats.\n"
        "The best it can do is 1.33: ids 2 and 7 are a third of all tokens each, 8 and 9 a sixth each."
    )


class _Backward:
    """A model that is told to write its source backward, to see what greedy decoding asks of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, src: Tensor) -> Tensor:
        return src

    def decode(self, tgt: Tensor, _memory: Tensor, src: Tensor) -> Tensor:
        words = [i for i in src[0].tolist() if i > pieces.END][::-1] + [pieces.END] * 9
        logits = torch.zeros(1, tgt.size(1), 10)
        for place in range(tgt.size(1)):
            logits[0, place, words[place]] = 1.0
        self.asked.append(f"given {tgt[0].tolist()}, the last position says {words[tgt.size(1) - 1]}")
        return logits


def _decode(greedy_decode: Any) -> str:
    model = _Backward()
    found = greedy_decode(model, torch.tensor([[4, 5, 6, pieces.END]]), 5)
    return "\n".join([*model.asked[:4], f"cut at END: {found[0]}"])


_RUNS: dict[str, Callable[..., str]] = {
    "attention": lambda attention: rows(attention(X[0], X[0], X[0], SEES_ALL)),
    "heads": lambda split, join: (
        f"head 1\n{rows(split(X, 2)[0, 0])}\nhead 2\n{rows(split(X, 2)[0, 1])}\njoined again: "
        f"{torch.equal(join(split(X, 2)), X)}"
    ),
    "multi-head": lambda make: rows(plain_heads(make)(X, X, SEES_ALL)[0]),
    "sinusoids": lambda sinusoids: rows(sinusoids(3, 4), ("position 0", "position 1", "position 2")),
    "layer-norm": lambda make: rows(make(4)(X)[0]),
    "feed-forward": lambda make: rows(feed_forward_example(make)(X)[0]),
    "encoder-layer": lambda make: _layer(make(4, 2, 8, 0.0), SEES_ALL),
    "decoder-layer": lambda make: _layer(make(4, 2, 8, 0.0), X, SEES_ALL.tril(), SEES_ALL),
    "masks": lambda padding, causal: f"{_real(padding)}\n{rows(causal(3).float())}",
    "transformer": _network,
    "loss": _batch,
    "train": _train,
    "greedy-decode": _decode,
}


def ready() -> bool:
    """Whether all thirteen pieces are right, so that they can be put together; says which are not."""
    left = [name for name in _RUNS if missing([f"build-{name}"])]
    if left:
        print(f"not yet: {', '.join(left)} {'is' if len(left) == 1 else 'are'} still to be written")
    return not left
