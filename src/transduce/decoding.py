"""Greedy search, sampling and beam search, over a step function and a state: none of them knows the network.

A step appends `tokens[b, i]` to hypothesis `parents[b, i]` of sentence b and scores what may follow:
`step(tokens (B, beam), parents (B, beam), state) -> (logits (B, beam, V), state)`. The state can drop sentences.
Every hypothesis ends: at the last position it may take, the end symbol is its only choice. Padding and the begin
symbol are never chosen. Letters: B sentences, V vocabulary, T tokens so far.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transduce.errors import TransduceError

_WIDEST_BEAM = 1_000  # a wider one is asked for by mistake


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How an answer is looked for."""

    beam_size: int = 5  # hypotheses kept at each step; 1 is greedy search
    length_penalty: float = 0.6  # alpha: 0 scores by probability alone, larger values favour longer answers
    length_norm: Literal["wu", "power"] = "wu"  # ((5 + length) / 6)^alpha (Wu et al. 2016), or length^alpha
    max_len_ratio: float = 2.0  # an answer has at most ratio * source tokens + extra tokens
    max_len_extra: int = 20
    temperature: float = 0.0  # above 0: draw each token instead of searching; 1 draws from the model's distribution
    top_k: int = 0  # draw from the k likeliest tokens alone; 0: from all
    top_p: float = 1.0  # draw from the smallest set of tokens with at least this probability
    seed: int = 1  # of the draws

    def __post_init__(self) -> None:
        if not 1 <= self.beam_size <= _WIDEST_BEAM:
            raise TransduceError(
                f"the beam size is {self.beam_size:,}: it must be from 1 (greedy search) to {_WIDEST_BEAM:,}; time and "
                "memory grow with it, and answers seldom get better beyond 10."
            )
        if not math.isfinite(self.length_penalty) or self.length_penalty < 0:
            raise TransduceError(f"the length penalty is {self.length_penalty}: it must be 0 (none) or more.")
        if self.max_len_ratio < 0 or self.max_len_extra < 1:
            raise TransduceError("max_len_ratio must be at least 0 and max_len_extra at least 1: answers need room.")
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise TransduceError(f"the temperature is {self.temperature}: it must be 0 (search) or more.")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise TransduceError("top_k must be 0 (all) or more, top_p above 0 and at most 1.")

    def max_len(self, src_len: int) -> int:
        """Tokens an answer to `src_len` source tokens may have, its end symbol included."""
        return int(self.max_len_ratio * src_len) + self.max_len_extra


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

    def keep(self, rows: Int[Tensor, "kept"]) -> None: ...


S = TypeVar("S", bound=State)
Step = Callable[[Tensor, Tensor, S], tuple[Tensor, S]]
# (log-probabilities of the rows left, which sentences those are, position of the token) -> its ids
Choose = Callable[[Float[Tensor, "rows vocab"], Int[Tensor, "rows"], int], Int[Tensor, "rows"]]

# A CPU may take smaller numbers for zero.
_COLDEST = 1e-30

# Dropping finished sentences copies the state of the others: worth it once this share of the rows is idle.
_COMPACT_WHEN_IDLE = 0.25


def greedy_search(
    step: Step[S], state: S, max_lens: Int[Tensor, "batch"], special: SpecialIds, *, config: DecodingConfig
) -> list[Hypothesis]:
    """The likeliest token at each position, until the end symbol: one hypothesis per sentence."""

    def choose(log_probs: Tensor, _rows: Tensor, _position: int) -> Tensor:
        return log_probs.argmax(dim=-1)

    return _token_by_token(step, state, max_lens, special, choose=choose, config=config)


def sample(
    step: Step[S],
    state: S,
    max_lens: Int[Tensor, "batch"],
    special: SpecialIds,
    *,
    config: DecodingConfig,
    uniforms: Float[Tensor, "batch max_len"],
) -> list[Hypothesis]:
    """Draws each token from the model's distribution, sharpened by `temperature`, cut to `top_k`, then to `top_p`.

    `uniforms[b, t]` in [0, 1) decides token t of sentence b: the caller owns the randomness, so a sentence's answer
    depends on its own numbers and on nothing beside it.
    """

    def choose(log_probs: Tensor, rows: Tensor, position: int) -> Tensor:
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

    return _token_by_token(step, state, max_lens, special, choose=choose, config=config)


def beam_search(
    step: Step[S],
    state: S,
    max_lens: Int[Tensor, "batch"],
    special: SpecialIds,
    *,
    config: DecodingConfig,
    num_best: int = 1,
) -> list[list[Hypothesis]]:
    """The `num_best` best-scoring answers found for each sentence, best first.

    At each step the likeliest continuations of all hypotheses of a sentence are ranked together; those among the
    first `beam_size` that end are answers, the first `beam_size` of the others go on. A sentence is done with
    `beam_size` answers, or when no hypothesis can still reach a score among its `num_best` best: log-probabilities
    only fall, so a hypothesis can score at most what it has now, divided by the norm of the longest answer.
    """
    beams = _Beams.begin(len(max_lens), config.beam_size, special.bos, max_lens.device)
    norm_at_limit = _length_norm(max_lens.float(), config)
    sentences = list(range(len(max_lens)))  # which sentence each row of the batch is
    answers: list[list[Hypothesis]] = [[] for _ in sentences]
    for length in range(1, int(max_lens.max()) + 1):
        logits, state = step(beams.tokens, beams.parents, state)
        ranked = _rank_continuations(_restrict(logits, max_lens == length, special), beams.log_probs)
        norm = _length_norm(torch.tensor(float(length)), config).item()
        for row, answer in _ended(ranked, beams, special.eos, norm):
            if len(answers[sentences[row]]) < config.beam_size:
                answers[sentences[row]].append(answer)
        beams = beams.extend(ranked, special.eos)
        bounds = (beams.log_probs[:, 0] / norm_at_limit).tolist()
        is_done = [
            _is_done(answers[sentence], bound, config.beam_size, num_best)
            for sentence, bound in zip(sentences, bounds, strict=True)
        ]
        if all(is_done):
            break
        if sum(is_done) >= _COMPACT_WHEN_IDLE * len(is_done):
            kept = torch.tensor([row for row, done in enumerate(is_done) if not done], device=max_lens.device)
            state.keep(kept)
            beams, max_lens, norm_at_limit = beams.keep(kept), max_lens[kept], norm_at_limit[kept]
            sentences = [sentences[row] for row in kept.tolist()]
    assert all(answers), "every hypothesis ends"
    return [sorted(found, key=lambda answer: -answer.score)[:num_best] for found in answers]


class _Ranked(NamedTuple):
    """The best continuations of a sentence's hypotheses together, best first."""

    log_probs: Float[Tensor, "batch ranks"]
    ids: Int[Tensor, "batch ranks"]
    parents: Int[Tensor, "batch ranks"]


class _Beams(NamedTuple):
    """The hypotheses that go on, best first: where they came from and what they are."""

    tokens: Int[Tensor, "batch beam"]
    parents: Int[Tensor, "batch beam"]
    log_probs: Float[Tensor, "batch beam"]  # -inf where there is no hypothesis
    history: Int[Tensor, "batch beam len"]

    @classmethod
    def begin(cls, num_sentences: int, beam_size: int, bos_id: int, device: torch.device) -> "_Beams":
        shape = (num_sentences, beam_size)
        log_probs = torch.full(shape, -math.inf, device=device)
        log_probs[:, 0] = 0.0  # one empty hypothesis: equal ones would fill the beam with copies
        tokens = torch.full(shape, bos_id, device=device)
        return cls(tokens, torch.zeros_like(tokens), log_probs, tokens.new_empty(*shape, 0))

    def extend(self, ranked: _Ranked, eos_id: int) -> "_Beams":
        # No parent has more than one end, so at least half of the 2 * beam_size ranks go on.
        log_probs = ranked.log_probs.masked_fill(ranked.ids == eos_id, -math.inf)
        log_probs, best = log_probs.topk(self.tokens.size(1))
        tokens, parents = ranked.ids.gather(1, best), ranked.parents.gather(1, best)
        history = self.history.gather(1, parents[..., None].expand_as(self.history))
        return _Beams(tokens, parents, log_probs, torch.cat((history, tokens[..., None]), dim=2))

    def keep(self, rows: Int[Tensor, "kept"]) -> "_Beams":
        return _Beams(*(field[rows] for field in self))


def _rank_continuations(logits: Float[Tensor, "batch beam vocab"], log_probs: Float[Tensor, "batch beam"]) -> _Ranked:
    """The 2 * beam_size likeliest of all continuations; `logits` are log-probabilities of one more token."""
    num_ranks = min(2 * logits.size(1), logits.size(2))
    top, ids = logits.topk(num_ranks)
    totals = (log_probs[..., None] + top).flatten(1)  # (B, beam, ranks) -> (B, beam * ranks)
    best, places = totals.topk(min(2 * logits.size(1), totals.size(1)))
    return _Ranked(best, ids.flatten(1).gather(1, places), places // num_ranks)


def _ended(ranked: _Ranked, beams: _Beams, eos_id: int, norm: float) -> list[tuple[int, Hypothesis]]:
    """(row, answer) for every hypothesis that ended among the first `beam_size` ranks."""
    is_end = ((ranked.ids == eos_id) & (ranked.log_probs > -math.inf))[:, : beams.tokens.size(1)]
    ended = []
    for row, rank in is_end.nonzero().tolist():
        log_prob = ranked.log_probs[row, rank].item()
        ids = beams.history[row, ranked.parents[row, rank]].tolist()
        ended.append((row, Hypothesis(ids, log_prob, log_prob / norm)))
    return ended


def _is_done(answers: list[Hypothesis], bound: float, beam_size: int, num_best: int) -> bool:
    """Whether nothing that scores at most `bound` can still change the `num_best` best answers."""
    if len(answers) >= beam_size or bound == -math.inf:
        return True
    return len(answers) >= num_best and sorted(answer.score for answer in answers)[-num_best] >= bound


def _token_by_token(
    step: Step[S],
    state: S,
    max_lens: Int[Tensor, "batch"],
    special: SpecialIds,
    *,
    choose: Choose,
    config: DecodingConfig,
) -> list[Hypothesis]:
    """One hypothesis per sentence, each token picked by `choose`."""
    num_sentences, device = len(max_lens), max_lens.device
    rows = torch.arange(num_sentences, device=device)  # which sentence each row of the batch is
    tokens = torch.full((num_sentences, 1), special.bos, device=device)
    chosen = torch.full((num_sentences, int(max_lens.max())), special.eos, device=device)
    log_probs = torch.zeros(num_sentences, device=device)
    is_finished = torch.zeros(num_sentences, dtype=torch.bool, device=device)
    for position in range(chosen.size(1)):
        logits, state = step(tokens, torch.zeros_like(tokens), state)
        allowed = _restrict(logits, max_lens[rows] == position + 1, special)[:, 0]
        ids = choose(allowed, rows, position).masked_fill(is_finished[rows], special.eos)
        chosen[rows, position] = ids
        gained = allowed.gather(1, ids[:, None])[:, 0]
        log_probs[rows] += gained.masked_fill(is_finished[rows], 0.0)
        is_finished[rows] |= ids == special.eos
        tokens = ids[:, None]
        num_left = int((~is_finished[rows]).sum())
        if num_left == 0:
            break
        if num_left <= (1 - _COMPACT_WHEN_IDLE) * len(rows):
            kept = (~is_finished[rows]).nonzero()[:, 0]
            state.keep(kept)
            rows, tokens = rows[kept], tokens[kept]
    answers = [ids[: ids.index(special.eos)] for ids in chosen.tolist()]
    norms = _length_norm(torch.tensor([len(ids) + 1.0 for ids in answers]), config).tolist()
    return [
        Hypothesis(ids, log_prob, log_prob / norm)
        for ids, log_prob, norm in zip(answers, log_probs.tolist(), norms, strict=True)
    ]


def _restrict(
    logits: Float[Tensor, "batch beam vocab"], is_at_limit: Bool[Tensor, "batch"], special: SpecialIds
) -> Float[Tensor, "batch beam vocab"]:
    """Log-probabilities; -inf for what may not be chosen (the rest is not renormalised)."""
    log_probs = logits.float().log_softmax(dim=-1)
    if log_probs[..., special.eos].isnan().any():  # one NaN or infinite logit makes NaN of all beside it
        raise TransduceError("the model's scores are not numbers (NaN): its weights are unusable. Train it again.")
    log_probs[..., [special.pad, special.bos]] = -math.inf
    if is_at_limit.any():
        ends = log_probs[..., special.eos].clone()
        log_probs[is_at_limit] = -math.inf
        log_probs[..., special.eos] = ends
    return log_probs


def _length_norm(length: Float[Tensor, "*batch"], config: DecodingConfig) -> Float[Tensor, "*batch"]:
    """What a log-probability is divided by; `length` counts the end symbol."""
    base = (5 + length) / 6 if config.length_norm == "wu" else length
    return base**config.length_penalty
