"""Greedy search and sampling, and what they share with beam search (`beams`): none of them knows the network.

A step appends `tokens[b, i]` to hypothesis `parents[b, i]` of sentence b and scores what may follow:
`step(tokens (B, beam), parents (B, beam), state) -> (logits (B, beam, V), state)`. The state can drop sentences. A beam
search takes its first step with one hypothesis a sentence. An id that does not exist may have a score of -inf.
Every hypothesis ends: at the last position it may take, the end symbol is its only choice. Padding and the begin
symbol are never chosen. Letters: B sentences, V vocabulary, T tokens so far.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transduce.errors import TransduceError
from transduce.inference.config import DecodingConfig
from transduce.inference.constraints import Rules


class SpecialIds(NamedTuple):
    """The ids that mean something to a search."""

    pad: int
    bos: int
    eos: int


class Hypothesis(NamedTuple):
    """An answer: its ids without the end symbol, its log-probability with it, and that normalised by its length."""

    ids: list[int]
    log_prob: float
    score: float


@runtime_checkable
class State(Protocol):
    """What a step remembers. `keep` drops all sentences but `rows`."""

    def keep(self, rows: Int[Tensor, " kept"]) -> None: ...


S = TypeVar("S", bound=State)
Step = Callable[[Tensor, Tensor, S], tuple[Tensor, S]]
# (log-probabilities of the rows left, which sentences those are, position of the token) -> its ids
Choose = Callable[[Float[Tensor, "rows vocab"], Int[Tensor, " rows"], int], Int[Tensor, " rows"]]

# A CPU may take smaller numbers for zero.
_COLDEST = 1e-30

# Dropping finished sentences copies the state of the others: worth it once this share of the rows is idle.
COMPACT_WHEN_IDLE = 0.25


def greedy_search(
    step: Step[S],
    state: S,
    max_lens: Int[Tensor, " batch"],
    special: SpecialIds,
    *,
    config: DecodingConfig,
    rules: Sequence[Rules] = (),
) -> list[Hypothesis]:
    """The likeliest token at each position, until the end symbol: one hypothesis per sentence."""

    def choose(log_probs: Tensor, _rows: Tensor, _position: int) -> Tensor:
        return _likeliest(log_probs)

    return _token_by_token(step, state, max_lens, special, choose=choose, config=config, rules=rules)


def sample(
    step: Step[S],
    state: S,
    max_lens: Int[Tensor, " batch"],
    special: SpecialIds,
    *,
    config: DecodingConfig,
    uniforms: Float[Tensor, "batch max_len"],
    rules: Sequence[Rules] = (),
) -> list[Hypothesis]:
    """Draws each token from the model's distribution, sharpened by `temperature`, cut to `top_k`, then to `top_p`.

    `uniforms[b, t]` in [0, 1) decides token t of sentence b: the caller owns the randomness, so a sentence's answer
    depends on its own numbers and on nothing beside it.
    """

    def choose(log_probs: Tensor, rows: Tensor, position: int) -> Tensor:
        refuse_nan(log_probs.amax(dim=-1).tolist())
        # Float64, and 0 for the likeliest token: a tiny temperature makes all others -inf, never a NaN.
        below_best = log_probs.double() - log_probs.amax(dim=-1, keepdim=True)
        probabilities, ids = (
            (below_best / max(config.temperature, _COLDEST)).softmax(dim=-1).sort(descending=True, stable=True)
        )
        if config.top_k:
            probabilities[:, config.top_k :] = 0.0
        cumulative = probabilities.cumsum(dim=-1)
        is_beyond = cumulative - probabilities >= config.top_p * cumulative[:, -1:]
        cumulative = probabilities.masked_fill(is_beyond, 0.0).cumsum(dim=-1)
        drawn = uniforms[rows, position].to(cumulative)[:, None] * cumulative[:, -1:]
        return ids.gather(1, torch.searchsorted(cumulative, drawn, right=True))[:, 0]

    return _token_by_token(step, state, max_lens, special, choose=choose, config=config, rules=rules)


def _token_by_token(
    step: Step[S],
    state: S,
    max_lens: Int[Tensor, " batch"],
    special: SpecialIds,
    *,
    choose: Choose,
    config: DecodingConfig,
    rules: Sequence[Rules],
) -> list[Hypothesis]:
    """One hypothesis per sentence, each token picked by `choose`."""
    rows = list(range(len(max_lens)))  # which sentence each row of the batch is
    answers: list[list[int]] = [[] for _ in rows]
    log_probs, is_finished = [0.0] * len(rows), [False] * len(rows)
    tokens = torch.full((len(rows), 1), special.bos, device=max_lens.device)
    parents, own_rows = torch.zeros_like(tokens), torch.arange(len(rows), device=max_lens.device)
    longest: list[int] = max_lens.tolist()
    for position in range(max(longest)):
        logits, state = step(tokens, parents, state)
        allowed, rooms = log_probs_of(logits, special), [longest[row] - position for row in rows]
        if rules:
            enforce([rules[row] for row in rows], allowed, [[answers[row]] for row in rows], rooms, special)
        end_at_limit(allowed, rooms, special)
        ids = choose(allowed[:, 0], own_rows, position)
        gained = allowed[:, 0].gather(1, ids[:, None])[:, 0].tolist()
        refuse_nan(gained)
        for row, i, more in zip(rows, ids.tolist(), gained, strict=True):
            if not is_finished[row]:
                log_probs[row] += more
                is_finished[row] = i == special.eos
                if i != special.eos:
                    answers[row].append(i)
        left = [place for place, row in enumerate(rows) if not is_finished[row]]
        if not left:
            break
        tokens = ids[:, None]
        if len(left) <= (1 - COMPACT_WHEN_IDLE) * len(rows):
            kept = torch.tensor(left, device=max_lens.device)
            state.keep(kept)
            tokens, parents, own_rows = tokens[kept], parents[kept], own_rows[kept]
            rows = [rows[place] for place in left]
    norms = length_norm_of(torch.tensor([len(ids) + 1.0 for ids in answers]), config).tolist()
    return [
        Hypothesis(ids, log_prob, log_prob / norm)
        for ids, log_prob, norm in zip(answers, log_probs, norms, strict=True)
    ]


def log_probs_of(logits: Float[Tensor, "batch beam vocab"], special: SpecialIds) -> Float[Tensor, "batch beam vocab"]:
    """Log-probabilities; -inf for what is never chosen (the rest is not renormalised)."""
    log_probs = logits.float().log_softmax(dim=-1)
    log_probs[..., special.pad] = -math.inf
    log_probs[..., special.bos] = -math.inf
    return log_probs


def _likeliest(log_probs: Float[Tensor, "rows vocab"]) -> Int[Tensor, " rows"]:
    """`argmax`; on a CPU by numpy, which takes a fifth of the time."""
    if log_probs.device.type == "cpu":
        return torch.from_numpy(log_probs.numpy().argmax(axis=1))
    return log_probs.argmax(dim=-1)


def refuse_nan(log_probs: Sequence[float]) -> None:
    """Raises TransduceError if one is: a NaN or infinite logit makes NaN of all beside it, and NaN is ranked first."""
    if any(map(math.isnan, log_probs)):
        raise TransduceError("the model's scores are not numbers (NaN): its weights are unusable. Train it again.")


def end_at_limit(log_probs: Float[Tensor, "batch beam vocab"], rooms: Sequence[int], special: SpecialIds) -> None:
    """Leaves the end as the only choice of sentences with room for one more token."""
    if rows := [row for row, room in enumerate(rooms) if room == 1]:
        ends = log_probs[rows, :, special.eos]
        log_probs[rows] = -math.inf
        log_probs[rows, :, special.eos] = ends


def enforce(
    rules: Sequence[Rules],
    log_probs: Float[Tensor, "batch beam vocab"],
    histories: Sequence[Sequence[Sequence[int]]],
    rooms: Sequence[int],
    special: SpecialIds,
) -> None:
    """Sets to -inf what the rules of each sentence do not let follow; where that leaves nothing at all, it may end."""
    ends = log_probs[..., special.eos].clone()
    for row, (rule, of_sentence, room) in enumerate(zip(rules, histories, rooms, strict=True)):
        if rule.is_empty:
            continue
        for place, history in enumerate(of_sentence):
            only, banned = rule.choices(history, room)
            scores = log_probs[row, place]
            if only:
                kept = scores[only]
                scores.fill_(-math.inf)
                scores[only] = kept
            elif banned:
                scores[banned] = -math.inf
    is_stuck = (log_probs.amax(dim=-1) == -math.inf).all(dim=1, keepdim=True)  # in all its hypotheses
    log_probs[..., special.eos] = torch.where(is_stuck, ends, log_probs[..., special.eos])


def length_norm_of(length: Float[Tensor, "*batch"], config: DecodingConfig) -> Float[Tensor, "*batch"]:
    """What a log-probability is divided by; `length` counts the end symbol."""
    base = (5 + length) / 6 if config.length_norm == "wu" else length
    return base**config.length_penalty
