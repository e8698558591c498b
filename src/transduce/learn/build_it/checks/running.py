"""Pieces 12 and 13: the training loop and greedy decoding."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from transduce.learn.build_it import pieces
from transduce.learn.build_it.pieces import BEGIN, END, PAD
from transduce.learn.exercising import Wrong, exercise, is_close, returned, tensor_of

# 12 · the training loop


class _Watched(torch.optim.Adam):
    """Adam that writes down, at each step, its rate and how long the gradient is; `latest` is the one in use."""

    latest: "list[_Watched]" = []  # noqa: RUF012 - one list for all, as the reader makes the optimizer

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.rates: list[float] = []
        self.gradients: list[float] = []
        _Watched.latest.append(self)

    def step(self, closure: Any = None) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.rates.append(self.param_groups[0]["lr"])
        self.gradients.append(math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients)))
        return super().step(closure)


class _Constant(nn.Module):
    """A model of one bias: its gradient depends on nothing but the batch and the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, _src: Tensor, tgt_in: Tensor) -> Tensor:
        if not bool((tgt_in[:, 0] == BEGIN).all()):
            raise Wrong(
                "the model is given something that does not begin with BEGIN: it gets tgt_in, and names tgt_out."
            )
        return self.bias.expand(*tgt_in.shape, -1)


def _train(
    model: Any,
    next_pairs: Any,
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    zero: str = "before",
    rate: Callable[[int], float] | None = None,
    same: bool = False,
    fewer: int = 0,
) -> list[float]:
    """The solution with mistakes put in."""
    optimizer, losses = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), eps=1e-9), []
    pairs = next_pairs()
    for step in range(1, steps + 1 - fewer):
        usual = learning_rate * min(step / warmup_steps, (steps - step + 1) / (steps - warmup_steps))
        optimizer.param_groups[0]["lr"] = usual if rate is None else learning_rate * rate(step)
        src, tgt_in, tgt_out = pieces.batch_of(pairs)
        loss = pieces.loss_of(model(src, tgt_in), tgt_out)
        if zero == "before":
            optimizer.zero_grad()
        loss.backward()
        if zero == "after":
            for parameter in model.parameters():
                parameter.grad.zero_()
        optimizer.step()
        losses.append(loss.item())
        if not same and step < steps:
            pairs = next_pairs()
    return losses


@exercise(
    "build-train",
    hints=(
        "At every step: set the rate, take a fresh batch, compute the loss, `zero_grad`, `backward`, `step`.",
        "The rate, `optimizer.param_groups[0]['lr']`, rises to learning_rate in warmup_steps, then falls to 0.",
        "`learning_rate * min(step / warmup_steps, (steps - step + 1) / (steps - warmup_steps))`, from step 1 on.",
    ),
    solution=pieces.train,
    wrong=(
        lambda *given: _train(*given, zero="never"),
        lambda *given: _train(*given, zero="after"),
        lambda *given: _train(*given, rate=lambda _: 1.0),
        lambda *given: _train(*given, rate=lambda step: min(step / 4, 1.0)),
        lambda *given: _train(*given, rate=lambda step: min((step - 1) / 4, (13 - step) / 8)),
        lambda *given: _train(*given, same=True),
        lambda *given: _train(*given, fewer=1),
        lambda *given: _train(*given) and None,
        lambda *_: None,
    ),
)
def _check_train(answer: Callable[..., Any]) -> None:
    steps, warmup_steps, learning_rate = 12, 4, 0.1
    random, model, num_asked = torch.Generator().manual_seed(5), _Constant(), 0

    def next_pairs() -> list[tuple[list[int], list[int]]]:
        nonlocal num_asked
        num_asked += 1
        return [([3], torch.randint(3, 6, (2,), generator=random).tolist()) for _ in range(4)]

    usual, _Watched.latest = torch.optim.Adam, []
    torch.optim.Adam = _Watched
    try:
        losses = answer(model, next_pairs, steps, learning_rate, warmup_steps)
    finally:
        torch.optim.Adam = usual
    if not _Watched.latest:
        returned(losses)
        raise Wrong("it makes no `torch.optim.Adam`.")
    watched = _Watched.latest[-1]
    if len(watched.rates) != steps:
        raise Wrong(f"it takes {len(watched.rates)} steps of the optimizer where {steps} were asked for.")
    if num_asked < steps:
        raise Wrong("it learns from the same pairs again and again: call `next_pairs()` at every step.")
    if max(watched.gradients) == 0:
        raise Wrong("the gradients are 0 when the optimizer steps: `zero_grad` belongs before `backward`.")
    # Each gradient is p - q, two distributions: its length cannot exceed the root of two, unless gradients add up.
    if max(watched.gradients) > math.sqrt(2):
        raise Wrong("gradients of earlier steps are added up: `optimizer.zero_grad()` is missing.")
    expected = [
        learning_rate * min(step / warmup_steps, (steps - step + 1) / (steps - warmup_steps))
        for step in range(1, steps + 1)
    ]
    _check_rates(watched.rates, expected, warmup_steps)
    if returned(losses) is not losses or not isinstance(losses, list | tuple) or len(losses) != steps:
        raise Wrong(f"it should return the loss of each step, {steps} numbers.")
    found = tensor_of([float(loss) for loss in losses], (steps,))
    random.manual_seed(5)
    right = pieces.train(_Constant(), next_pairs, steps, learning_rate, warmup_steps)
    if not is_close(found, torch.tensor(right), 1e-4):
        raise Wrong(
            "the losses are not those of these pairs: is it tgt_out that has to be named, and is Adam as asked for?"
        )


def _check_rates(rates: list[float], expected: list[float], warmup_steps: int) -> None:
    if torch.allclose(torch.tensor(rates), torch.tensor(expected), atol=1e-9):
        return
    if min(rates) == max(rates):
        raise Wrong(f"the rate is {rates[0]:g} at every step: it rises over {warmup_steps} steps, then falls.")
    if rates[0] == 0:
        raise Wrong("the first step has the rate 0: count steps from 1.")
    if rates[-1] == max(rates):
        raise Wrong("the rate rises and then stays: it falls to (nearly) 0 at the last step.")
    raise Wrong(
        f"the rates are {[round(rate, 4) for rate in rates]}; {[round(rate, 4) for rate in expected]} were expected."
    )


# 13 · greedy decoding


def _rows_of(found: Any) -> list[list[int]]:
    try:
        return [[int(i) for i in row] for row in returned(found)]
    except (TypeError, ValueError):
        raise Wrong("a list of ids was expected for each row of src.") from None


class _Automaton:
    """A model whose next token is known: it writes the source backward, and then END. It sees all that is written."""

    def __init__(self) -> None:
        self.training = False
        self.begins_right = True

    def encode(self, src: Tensor) -> Tensor:
        return src

    def decode(self, tgt_in: Tensor, _memory: Tensor, src: Tensor) -> Tensor:
        self.begins_right &= bool((tgt_in[:, 0] == BEGIN).all())
        logits = torch.zeros(*tgt_in.shape, 20)
        for row, ids in enumerate(src.tolist()):
            words = [i for i in ids if i not in (PAD, END)][::-1]
            for place in range(tgt_in.size(1)):
                is_on_track = tgt_in[row, 1 : place + 1].tolist() == words[:place]
                logits[row, place, words[place] if is_on_track and place < len(words) else END] = 5.0
        return logits


def _greedy(
    model: Any, src: Tensor, max_len: int, begin: int = BEGIN, place: int = -1, cut: bool = True, end: bool = False
) -> Any:
    memory, tgt = model.encode(src), torch.full((len(src), 1), begin)
    for _ in range(max_len):
        next_ids = model.decode(tgt, memory, src)[:, place].argmax(dim=-1, keepdim=True)
        tgt = torch.cat((tgt, next_ids), dim=1)
    rows = tgt[:, 1:].tolist()
    if not cut:
        return rows
    return [row[: row.index(END) + end] if END in row else row for row in rows]


@exercise(
    "build-greedy-decode",
    hints=(
        "Begin with BEGIN for every sentence; ask for the next token, append it, and ask again.",
        "`model.decode(tgt, memory, src)[:, -1].argmax(dim=-1, keepdim=True)`; `torch.cat` along dim=1.",
        "Sentences end at different steps: go on to max_len, then cut each row at its first END.",
    ),
    solution=pieces.greedy_decode,
    wrong=(
        lambda model, src, n: _greedy(model, src, n, begin=END),
        lambda model, src, n: _greedy(model, src, n, place=0),
        lambda model, src, n: _greedy(model, src, n, cut=False),
        lambda model, src, n: _greedy(model, src, n, end=True),
        lambda model, src, n: [[BEGIN, *row] for row in _greedy(model, src, n)],
        lambda model, src, n: _greedy(model, src, n - 1),
        lambda model, src, _: _greedy(model, src, 9),
        lambda *_: None,
    ),
)
def _check_greedy(answer: Callable[..., Any]) -> None:
    model = _Automaton()
    src = torch.tensor([[3, 4, 5, 6, END], [7, 8, END, PAD, PAD]])
    found = returned(answer(model, src, 6))
    if not model.begins_right:
        raise Wrong("what the decoder is given does not begin with BEGIN.")
    rows = _rows_of(found)
    expected = [[6, 5, 4, 3], [8, 7]]
    if rows == [[BEGIN, *row] for row in expected]:
        raise Wrong("BEGIN is returned with the tokens; it is no token of the output.")
    if rows == [[*row, END] for row in expected]:
        raise Wrong("END is returned with the tokens; it is no token of the output.")
    if any(END in row for row in rows):
        raise Wrong("a row goes on after its END: cut it there.")
    if any(len(set(row)) < len(row) for row in rows):
        raise Wrong("it repeats itself: take the scores of the *last* position, [:, -1].")
    if rows == expected and _rows_of(answer(_Automaton(), src, 2)) != [[6, 5], [8, 7]]:
        raise Wrong("with max_len = 2 it writes more or less than two tokens.")
    cut_short = _rows_of(answer(_Automaton(), src, 4))
    if rows == expected and [len(row) for row in cut_short] != [4, 2]:
        raise Wrong(f"with max_len = 4 a sentence of four tokens is cut to {len(cut_short[0])}.")
    if rows != expected:
        raise Wrong(f"a model that writes backward is made to write {rows}; {expected} was expected.")
