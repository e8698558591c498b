"""Beam search over a step function and a state (see `decoding` for what these are): it knows no network."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from transduce.inference.config import DecodingConfig
from transduce.inference.constraints import Rules
from transduce.inference.search import (
    COMPACT_WHEN_IDLE,
    Hypothesis,
    S,
    SpecialIds,
    Step,
    end_at_limit,
    enforce,
    length_norm_of,
    log_probs_of,
    refuse_nan,
)

_BLOCK_LEN = 64  # ids whose likeliest stands for them in the first stage of a ranking


def beam_search(
    step: Step[S],
    state: S,
    max_lens: Int[Tensor, " batch"],
    special: SpecialIds,
    *,
    config: DecodingConfig,
    num_best: int = 1,
    rules: Sequence[Rules] = (),
) -> list[list[Hypothesis]]:
    """The `num_best` best-scoring answers found for each sentence, best first.

    At each step the likeliest continuations of all hypotheses of a sentence are ranked together; those among the
    first `beam_size` that end are answers, the first `beam_size` of the others go on. A sentence is done with
    `beam_size` answers, or when no hypothesis can still reach a score among its `num_best` best: log-probabilities
    only fall, so a hypothesis can score at most what it has now, divided by the norm of the longest answer.
    `rules`, one for each sentence, say what its answers must hold; see `_rank_in_banks`.
    """
    beams = _Beams.begin(len(max_lens), special.bos, max_lens.device)
    norm_at_limit = length_norm_of(max_lens.float(), config)
    sentences = list(range(len(max_lens)))  # which sentence each row of the batch is
    answers: list[list[Hypothesis]] = [[] for _ in sentences]
    longest: list[int] = max_lens.tolist()
    for length in range(1, max(longest) + 1):
        logits, state = step(beams.tokens, beams.parents, state)
        log_probs = log_probs_of(logits, special)
        own_rules = [rules[sentence] for sentence in sentences] if rules else []
        rooms = [longest[sentence] - length + 1 for sentence in sentences]
        if own_rules:
            log_probs[beams.log_probs == -math.inf] = -math.inf  # there is no such hypothesis, so it cannot go on
            enforce(own_rules, log_probs, beams.history.tolist(), rooms, special)
        end_at_limit(log_probs, rooms, special)
        if any(rule.required for rule in own_rules):
            ranked = _rank_in_banks(log_probs, beams, own_rules, config.beam_size, special)
        else:
            ranked = _rank_continuations(log_probs, beams.log_probs, 2 * config.beam_size)
        norm = length_norm_of(torch.tensor(float(length)), config).item()
        for row, answer in _ended(ranked, beams, config.beam_size, special.eos, norm):
            if len(answers[sentences[row]]) < config.beam_size:
                answers[sentences[row]].append(answer)
        beams = beams.extend(ranked, config.beam_size, special.eos)
        bounds = (beams.log_probs[:, 0] / norm_at_limit).tolist()
        refuse_nan(bounds)
        is_done = [
            _is_done(answers[sentence], bound, config.beam_size, num_best)
            for sentence, bound in zip(sentences, bounds, strict=True)
        ]
        if all(is_done):
            break
        if sum(is_done) >= COMPACT_WHEN_IDLE * len(is_done):
            kept = torch.tensor([row for row, done in enumerate(is_done) if not done], device=max_lens.device)
            state.keep(kept)
            beams, norm_at_limit = beams.keep(kept), norm_at_limit[kept]
            sentences = [sentences[row] for row in kept.tolist()]
    assert all(answers), "every hypothesis ends"
    return [sorted(found, key=lambda answer: -answer.score)[:num_best] for found in answers]


class _Ranked(NamedTuple):
    """The best continuations of a sentence's hypotheses together, best first."""

    log_probs: Float[Tensor, "batch ranks"]  # -inf where there is none
    ids: Int[Tensor, "batch ranks"]
    parents: Int[Tensor, "batch ranks"]


class _Beams(NamedTuple):
    """The hypotheses that go on, best first: where they came from and what they are."""

    tokens: Int[Tensor, "batch beam"]
    parents: Int[Tensor, "batch beam"]
    log_probs: Float[Tensor, "batch beam"]  # -inf where there is no hypothesis
    history: Int[Tensor, "batch beam len"]

    @classmethod
    def begin(cls, num_sentences: int, bos_id: int, device: torch.device) -> "_Beams":
        tokens = torch.full((num_sentences, 1), bos_id, device=device)
        nothing = tokens.new_empty(num_sentences, 1, 0)
        return cls(tokens, torch.zeros_like(tokens), torch.zeros(num_sentences, 1, device=device), nothing)

    def extend(self, ranked: _Ranked, beam_size: int, eos_id: int) -> "_Beams":
        # No parent has more than one end, so of 2 * beam_size ranks at least half go on; the first step has fewer.
        log_probs = ranked.log_probs.masked_fill(ranked.ids == eos_id, -math.inf)
        log_probs, best = log_probs.topk(min(beam_size, log_probs.size(1)))
        tokens, parents = ranked.ids.gather(1, best), ranked.parents.gather(1, best)
        history = self.history.gather(1, parents[..., None].expand(-1, -1, self.history.size(2)))
        return _Beams(tokens, parents, log_probs, torch.cat((history, tokens[..., None]), dim=2))

    def keep(self, rows: Int[Tensor, " kept"]) -> "_Beams":
        return _Beams(*(field[rows] for field in self))


def _rank_continuations(
    log_probs: Float[Tensor, "batch beam vocab"], so_far: Float[Tensor, "batch beam"], num_ranks: int
) -> _Ranked:
    """The `num_ranks` likeliest of all continuations, exactly, in two stages.

    None of them can be outside the `num_ranks` blocks of ids with the likeliest members, and those are found in one
    pass that a CPU does many numbers at a time.
    """
    log_probs = F.pad(log_probs, (0, -log_probs.size(2) % _BLOCK_LEN), value=-math.inf)
    blocks = log_probs.unflatten(2, (-1, _BLOCK_LEN))  # (B, beam, blocks, members)
    num_blocks = blocks.size(2)
    peaks = (so_far[..., None] + blocks.amax(dim=3)).flatten(1)
    chosen = peaks.topk(min(num_ranks, peaks.size(1))).indices  # (B, chosen), of the blocks of all hypotheses
    members = blocks.flatten(1, 2).gather(1, chosen[..., None].expand(-1, -1, _BLOCK_LEN))
    totals = (so_far.gather(1, chosen // num_blocks)[..., None] + members).flatten(1)
    best, places = totals.topk(min(num_ranks, totals.size(1)))
    block = chosen.gather(1, places // _BLOCK_LEN)
    ids, parents = block % num_blocks * _BLOCK_LEN + places % _BLOCK_LEN, block // num_blocks
    return _Ranked(best, ids.masked_fill(best == -math.inf, 0), parents)  # what is -inf may be no id at all


def _rank_in_banks(
    log_probs: Float[Tensor, "batch beam vocab"],
    beams: _Beams,
    rules: Sequence[Rules],
    beam_size: int,
    special: SpecialIds,
) -> _Ranked:
    """The ranks of a search whose answers must hold given stretches: dynamic beam allocation (Post and Vilar 2018).

    Besides the likeliest continuations, those that bring a required stretch nearer to its end take part. Of those
    that go on, hypotheses that miss equally many tokens are a bank, and the banks choose in turn, the one that misses
    fewest first; so neither what is likely nor what is required fills the beam alone. An end is an answer if it is
    among the `beam_size` likeliest of those that miss nothing.
    """
    likeliest = _rank_continuations(log_probs, beams.log_probs, 2 * beam_size)
    refuse_nan(likeliest.log_probs[:, 0].tolist())
    tables = zip(
        *(field.tolist() for field in likeliest), beams.log_probs.tolist(), beams.history.tolist(), strict=True
    )
    ranked = []
    for row, (rule, (values, ids, parents, so_far, histories)) in enumerate(zip(rules, tables, strict=True)):
        if not rule.required:
            ranked.append(list(zip(values, ids, parents, strict=True)))
            continue
        found = {(parent, i): value for value, i, parent in zip(values, ids, parents, strict=True)}
        for parent, history in enumerate(histories):
            for i in rule.continuing(history):
                found[parent, i] = so_far[parent] + log_probs[row, parent, i].item()
        best = sorted((key for key in found if found[key] > -math.inf), key=lambda key: -found[key])
        banks: dict[int, list[tuple[int, int]]] = {}
        for parent, i in best:
            missing = 0 if i == special.eos else rule.num_missing([*histories[parent], i])
            banks.setdefault(missing, []).append((parent, i))
        ends = [key for key in banks.get(0, [])[:beam_size] if key[1] == special.eos]
        in_turn = sorted(
            (place, missing, key)
            for missing, keys in banks.items()
            for place, key in enumerate(key for key in keys if key[1] != special.eos)
        )
        chosen = [*ends, *(key for _, _, key in in_turn[:beam_size])]
        chosen += [(0, special.pad)] * (len(values) - len(chosen))
        ranked.append([(found.get(key, -math.inf), key[1], key[0]) for key in chosen])
    columns = torch.tensor(ranked, dtype=torch.float64, device=log_probs.device).unbind(2)
    return _Ranked(columns[0].to(log_probs), columns[1].long(), columns[2].long())


def _ended(ranked: _Ranked, beams: _Beams, beam_size: int, eos_id: int, norm: float) -> list[tuple[int, Hypothesis]]:
    """(row, answer) for every hypothesis that ended among the first `beam_size` ranks."""
    is_end = ((ranked.ids == eos_id) & (ranked.log_probs > -math.inf))[:, :beam_size]
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
