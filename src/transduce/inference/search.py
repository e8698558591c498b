"""Greedy search and sampling, and what they share with `beam_search`: none of them knows the network.

A step appends `tokens[b, i]` to hypothesis `parents[b, i]` of sentence b and scores what may follow:
`step(tokens (B, beam), parents (B, beam), state) -> (logits (B, beam, V), state)`. The state can drop sentences. A beam
search takes its first step with one hypothesis per sentence. The logit of an id that does not exist may be -inf.
Every hypothesis ends: at the last position it may take, the end symbol is its only choice. Padding and the begin
symbol are never chosen. Letters: B sentences, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transduce.errors import TransduceError
from transduce.inference.alphabet import restrict
from transduce.inference.config import DecodingConfig
from transduce.inference.constraints import Rules


class SpecialIds(NamedTuple):
    """The ids of padding, the begin symbol and the end symbol."""

    pad: int
    bos: int
    eos: int


class Hypothesis(NamedTuple):
    """A complete hypothesis: its ids without the end symbol; its log-probability (natural, with the end symbol); its
    score, which is that normalized by length."""

    ids: list[int]
    log_prob: float
    score: float


@runtime_checkable
class State(Protocol):
    """The state of decoding after the tokens so far. `keep` drops all sentences except `rows`."""

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop all sentences but `rows`."""


S = TypeVar("S", bound=State)
Step = Callable[[Tensor, Tensor, S], tuple[Tensor, S]]
# (log-probabilities of the rows left, their sentences, position of the token) -> an id for each row
Choose = Callable[[Float[Tensor, "rows vocab"], Int[Tensor, " rows"], int], Int[Tensor, " rows"]]

# Smallest temperature that is divided by: a CPU that flushes denormals takes smaller numbers for zero.
_COLDEST = 1e-30

# Dropping finished sentences copies the state of the others: worth it once this share of the rows is finished.
COMPACT_WHEN_IDLE = 0.25


def _most_likely(log_probs: Float[Tensor, "rows vocab"], _rows: Tensor, _position: int) -> Int[Tensor, " rows"]:
    """`argmax`; on a CPU by numpy, which takes a fifth of the time."""
    if log_probs.device.type == "cpu":
        return torch.from_numpy(log_probs.numpy().argmax(axis=1))
    return log_probs.argmax(dim=-1)


def greedy_search(
    step: Step[S],
    state: S,
    max_lens: Int[Tensor, " batch"],
    special: SpecialIds,
    *,
    config: DecodingConfig,
    rules: Sequence[Rules] = (),
    choose: Choose = _most_likely,
) -> list[Hypothesis]:
    """One hypothesis per sentence: the most likely token at each position, until the end symbol.

    `choose` may pick another token, as `sample` does.
    """
    sentences = list(range(len(max_lens)))  # the sentence in each row of the batch: finished ones leave it
    outputs: list[list[int]] = [[] for _ in sentences]
    log_probs, is_finished = [0.0] * len(sentences), [False] * len(sentences)
    tokens = torch.full((len(sentences), 1), special.bos, device=max_lens.device)
    parents, sentence_ids = torch.zeros_like(tokens), torch.arange(len(sentences), device=max_lens.device)
    history = tokens.new_empty(len(sentences), 1, 0)
    limits: list[int] = max_lens.tolist()
    for position in range(max(limits)):
        logits, state = step(tokens, parents, state)
        next_log_probs, rooms = log_probs_of(logits, special), [limits[sentence] - position for sentence in sentences]
        if rules:
            enforce([rules[sentence] for sentence in sentences], next_log_probs, history, rooms, special)
        end_at_limit(next_log_probs, rooms, special)
        ids = choose(next_log_probs[:, 0], sentence_ids, position)
        chosen = next_log_probs[:, 0].gather(1, ids[:, None])[:, 0].tolist()
        refuse_nan(chosen)
        for sentence, i, log_prob in zip(sentences, ids.tolist(), chosen, strict=True):
            # Rows that are finished but not dropped yet go on with any tokens, which nobody reads.
            if not is_finished[sentence]:
                log_probs[sentence] += log_prob
                is_finished[sentence] = i == special.eos
                if i != special.eos:
                    outputs[sentence].append(i)
        unfinished = [row for row, sentence in enumerate(sentences) if not is_finished[sentence]]
        if not unfinished:
            break
        tokens = ids[:, None]
        history = torch.cat((history, tokens[..., None]), dim=2)
        if len(unfinished) <= (1 - COMPACT_WHEN_IDLE) * len(sentences):
            kept = torch.tensor(unfinished, device=max_lens.device)
            state.keep(kept)
            tokens, parents, sentence_ids, history = tokens[kept], parents[kept], sentence_ids[kept], history[kept]
            sentences = [sentences[row] for row in unfinished]
    norms = length_norm_of(torch.tensor([len(ids) + 1.0 for ids in outputs]), config).tolist()
    return [
        Hypothesis(ids, log_prob, log_prob / norm)
        for ids, log_prob, norm in zip(outputs, log_probs, norms, strict=True)
    ]


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
    """Sample each token from the model's distribution, at a temperature, restricted to `top_k`, then to `top_p`.

    `uniforms[b, t]` in [0, 1) decides token t of sentence b: the caller owns the randomness, so the output of a
    sentence depends on its own numbers and not on its batch.
    """

    def choose(log_probs: Tensor, rows: Tensor, position: int) -> Tensor:
        refuse_nan(log_probs.amax(dim=-1).tolist())
        # Float64, and 0 for the most likely token: a tiny temperature makes all others -inf, never a NaN.
        below_best = log_probs.double() - log_probs.amax(dim=-1, keepdim=True)
        probabilities, ids = (
            (below_best / max(config.temperature, _COLDEST)).softmax(dim=-1).sort(descending=True, stable=True)
        )
        if config.top_k:
            probabilities[:, config.top_k :] = 0.0
        # A token is in the nucleus if those before it do not reach top_p yet: it is never empty.
        cumulative = probabilities.cumsum(dim=-1)
        is_beyond = cumulative - probabilities >= config.top_p * cumulative[:, -1:]
        # Inverse transform sampling. Scaling the uniform number by the remaining mass renormalizes; `right` skips
        # tokens of no mass, to which a uniform number of exactly 0 would fall.
        cumulative = probabilities.masked_fill(is_beyond, 0.0).cumsum(dim=-1)
        thresholds = uniforms[rows, position].to(cumulative)[:, None] * cumulative[:, -1:]
        return ids.gather(1, torch.searchsorted(cumulative, thresholds, right=True))[:, 0]

    return greedy_search(step, state, max_lens, special, config=config, rules=rules, choose=choose)


def log_probs_of(logits: Float[Tensor, "batch beam vocab"], special: SpecialIds) -> Float[Tensor, "batch beam vocab"]:
    """Log-probabilities; -inf for padding and the begin symbol (the rest is not renormalized)."""
    log_probs = logits.float().log_softmax(dim=-1)
    log_probs[..., special.pad] = -math.inf
    log_probs[..., special.bos] = -math.inf
    return log_probs


def refuse_nan(log_probs: Sequence[float]) -> None:
    """Raise TransduceError if any is NaN.

    The best of each row suffice: one NaN or infinite logit makes its whole row NaN, and NaN ranks first.
    """
    if any(map(math.isnan, log_probs)):
        raise TransduceError("the model's scores are not numbers (NaN): its weights are unusable. Train it again.")


def end_at_limit(log_probs: Float[Tensor, "batch beam vocab"], rooms: Sequence[int], special: SpecialIds) -> None:
    """Leave the end symbol as the only choice of sentences with room for one more token."""
    if rows := [row for row, room in enumerate(rooms) if room == 1]:
        ends = log_probs[rows, :, special.eos]
        log_probs[rows] = -math.inf
        log_probs[rows, :, special.eos] = ends


def enforce(
    rules: Sequence[Rules],
    log_probs: Float[Tensor, "batch beam vocab"],
    history: Int[Tensor, "batch beam len"],
    rooms: Sequence[int],
    special: SpecialIds,
) -> None:
    """Set to -inf, in place, what the rules of each sentence do not allow to follow `history`.

    A sentence has room for `rooms` more tokens. Where nothing is left to any of its hypotheses, they may end.
    """
    ends = log_probs[..., special.eos].clone()
    if alphabets := [rule.alphabet for rule in rules if rule.alphabet]:
        restrict(log_probs, alphabets, history, rooms)
    if all(rule.is_empty for rule in rules):
        return
    for row, (rule, beam, room) in enumerate(zip(rules, history.tolist(), rooms, strict=True)):
        if rule.is_empty:
            continue
        for rank, ids in enumerate(beam):
            only, banned = rule.choices(ids, room)
            scores = log_probs[row, rank]
            if only and (kept := scores[only]).amax() > -math.inf:  # else it must finish a character first
                scores.fill_(-math.inf)
                scores[only] = kept
            elif banned:
                scores[banned] = -math.inf
    is_stuck = (log_probs.amax(dim=-1) == -math.inf).all(dim=1, keepdim=True)  # (B, 1)
    log_probs[..., special.eos] = torch.where(is_stuck, ends, log_probs[..., special.eos])


def length_norm_of(length: Float[Tensor, "*batch"], config: DecodingConfig) -> Float[Tensor, "*batch"]:
    """Length normalization: what a log-probability is divided by; `length` counts the end symbol."""
    base = (5 + length) / 6 if config.length_norm == "wu" else length
    return base**config.length_penalty
