"""Beam search over a step function and a state (see `search` for both): it knows no network."""

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

_BLOCK_LEN = 64  # ids that are represented by their maximum in the first stage of a ranking


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
    """The `num_best` best-scoring outputs of each sentence, best first.

    At each step the continuations of all hypotheses of a sentence are ranked together. Among the first `beam_size`,
    those that end are outputs; the first `beam_size` of the others go on. A sentence is done when it has `beam_size`
    outputs, or when no hypothesis can still reach the scores of its `num_best` best. `rules`, one for each sentence,
    constrain its outputs: see `_rank_in_banks`. Raises TransduceError if the model's scores are NaN.
    """
    beams = _Beams.begin(len(max_lens), special.bos, max_lens.device)
    norm_at_limit = length_norm_of(max_lens.float(), config)
    sentences = list(range(len(max_lens)))  # the sentence in each row of the batch: finished ones leave it
    outputs: list[list[Hypothesis]] = [[] for _ in sentences]
    limits: list[int] = max_lens.tolist()
    for length in range(1, max(limits) + 1):
        logits, state = step(beams.tokens, beams.parents, state)
        log_probs = log_probs_of(logits, special)
        rooms = [limits[sentence] - length + 1 for sentence in sentences]
        row_rules = [rules[sentence] for sentence in sentences] if rules else []
        if row_rules:
            if not all(rule.is_empty for rule in row_rules):
                # Rows of the beam that hold no hypothesis must not count as ones that could still go on.
                log_probs[beams.log_probs == -math.inf] = -math.inf
            enforce(row_rules, log_probs, beams.history, rooms, special)
        end_at_limit(log_probs, rooms, special)
        # Each hypothesis can end in one way only. So 2 * beam_size ranks always leave beam_size that go on.
        if any(rule.required for rule in row_rules):
            ranked = _rank_in_banks(log_probs, beams, row_rules, config.beam_size, special)
        else:
            ranked = rank_continuations(log_probs, beams.log_probs, 2 * config.beam_size)
        norm = length_norm_of(torch.tensor(float(length)), config).item()
        for row, output in _ended(ranked, beams, config.beam_size, special.eos, norm):
            if len(outputs[sentences[row]]) < config.beam_size:
                outputs[sentences[row]].append(output)
        beams = beams.extend(ranked, config.beam_size, special.eos)
        # Log-probabilities only fall as a hypothesis grows, so it can score at most what the best one has now, divided
        # by the norm of the longest output. Stopping at that bound never changes a result.
        bounds = (beams.log_probs[:, 0] / norm_at_limit).tolist()
        refuse_nan(bounds)
        is_done = [
            _is_done(outputs[sentence], bound, config.beam_size, num_best)
            for sentence, bound in zip(sentences, bounds, strict=True)
        ]
        if all(is_done):
            break
        if sum(is_done) >= COMPACT_WHEN_IDLE * len(is_done):
            kept = torch.tensor([row for row, done in enumerate(is_done) if not done], device=max_lens.device)
            state.keep(kept)
            beams, norm_at_limit = beams.keep(kept), norm_at_limit[kept]
            sentences = [sentences[row] for row in kept.tolist()]
    assert all(outputs), "every hypothesis ends"
    return [sorted(hypotheses, key=lambda h: -h.score)[:num_best] for hypotheses in outputs]


class _Ranked(NamedTuple):
    """The best continuations of all hypotheses of a sentence, best first."""

    log_probs: Float[Tensor, "batch ranks"]  # -inf where there are fewer
    ids: Int[Tensor, "batch ranks"]
    parents: Int[Tensor, "batch ranks"]


class _Beams(NamedTuple):
    """The hypotheses that go on, best first: last tokens, parents in the step before, log-probabilities, all tokens."""

    tokens: Int[Tensor, "batch beam"]
    parents: Int[Tensor, "batch beam"]
    log_probs: Float[Tensor, "batch beam"]  # -inf where there is no hypothesis
    history: Int[Tensor, "batch beam len"]

    @classmethod
    def begin(cls, num_sentences: int, bos_id: int, device: torch.device) -> "_Beams":
        # One hypothesis, not beam_size equal ones: their continuations would be the same and fill the beam with copies.
        tokens = torch.full((num_sentences, 1), bos_id, device=device)
        history = tokens.new_empty(num_sentences, 1, 0)
        return cls(tokens, torch.zeros_like(tokens), torch.zeros(num_sentences, 1, device=device), history)

    def extend(self, ranked: _Ranked, beam_size: int, eos_id: int) -> "_Beams":
        log_probs = ranked.log_probs.masked_fill(ranked.ids == eos_id, -math.inf)
        log_probs, best = log_probs.topk(min(beam_size, log_probs.size(1)))  # a small vocabulary has fewer ranks
        tokens, parents = ranked.ids.gather(1, best), ranked.parents.gather(1, best)
        history = self.history.gather(1, parents[..., None].expand(-1, -1, self.history.size(2)))
        return _Beams(tokens, parents, log_probs, torch.cat((history, tokens[..., None]), dim=2))

    def keep(self, rows: Int[Tensor, " kept"]) -> "_Beams":
        return _Beams(*(field[rows] for field in self))


def rank_continuations(
    log_probs: Float[Tensor, "batch beam vocab"], totals: Float[Tensor, "batch beam"], num_ranks: int
) -> _Ranked:
    """The `num_ranks` most likely continuations of hypotheses whose log-probabilities are `totals`.

    Exact, in two stages: `topk` over beam * vocab numbers is slow on a CPU, a maximum over each block of ids is not.
    """
    log_probs = F.pad(log_probs, (0, -log_probs.size(2) % _BLOCK_LEN), value=-math.inf)
    blocks = log_probs.unflatten(2, (-1, _BLOCK_LEN))  # (B, beam, blocks, members)
    num_blocks = blocks.size(2)
    # First stage: the num_ranks blocks with the largest maxima. A member of any other block is no larger than the
    # maximum of each of these, and those are num_ranks numbers already.
    maxima = (totals[..., None] + blocks.amax(dim=3)).flatten(1)
    chosen = maxima.topk(min(num_ranks, maxima.size(1))).indices  # (B, chosen), numbered over all hypotheses
    # Second stage: rank the members of those blocks alone.
    members = blocks.flatten(1, 2).gather(1, chosen[..., None].expand(-1, -1, _BLOCK_LEN))
    candidates = (totals.gather(1, chosen // num_blocks)[..., None] + members).flatten(1)
    best, places = candidates.topk(min(num_ranks, candidates.size(1)))
    block = chosen.gather(1, places // _BLOCK_LEN)
    ids, parents = block % num_blocks * _BLOCK_LEN + places % _BLOCK_LEN, block // num_blocks
    return _Ranked(best, ids.masked_fill(best == -math.inf, 0), parents)  # padding of the last block is no id


def _rank_in_banks(
    log_probs: Float[Tensor, "batch beam vocab"],
    beams: _Beams,
    rules: Sequence[Rules],
    beam_size: int,
    special: SpecialIds,
) -> _Ranked:
    """The ranks of a search with required phrases: dynamic beam allocation (Post and Vilar 2018).

    Hypotheses that miss equally many required tokens are a bank, and the banks choose in turn, the one that misses
    fewest first. So neither the most likely hypotheses nor those that fulfill constraints fill the beam alone.
    """
    most_likely = rank_continuations(log_probs, beams.log_probs, 2 * beam_size)
    refuse_nan(most_likely.log_probs[:, 0].tolist())
    # To Python at once: what follows asks for single numbers, each of which would wait for the device.
    columns = zip(
        *(field.tolist() for field in most_likely), beams.log_probs.tolist(), beams.history.tolist(), strict=True
    )
    rows = []
    for row, (rule, (values, ids, parents, totals, histories)) in enumerate(zip(rules, columns, strict=True)):
        if not rule.required:
            rows.append(list(zip(values, ids, parents, strict=True)))
            continue
        # Candidates, as (parent, id): the most likely ones, and the next token of each phrase that is not complete.
        # Differs from the paper: it has half as many likely ones, and adds the best continuation of each hypothesis.
        scores = {(parent, i): value for value, i, parent in zip(values, ids, parents, strict=True)}
        for parent, history in enumerate(histories):
            for i in rule.continuing(history):
                scores[parent, i] = totals[parent] + log_probs[row, parent, i].item()
        best = sorted((key for key in scores if scores[key] > -math.inf), key=lambda key: -scores[key])
        # Into banks by the number of missing tokens; within a bank the order of likelihood is kept.
        banks: dict[int, list[tuple[int, int]]] = {}
        for parent, i in best:
            # `enforce` allows an end only where nothing is missing, or where nothing else is left.
            missing = 0 if i == special.eos else rule.num_missing([*histories[parent], i])
            banks.setdefault(missing, []).append((parent, i))
        # An end is an output if it is among the beam_size most likely of those that miss nothing: ranked among all
        # hypotheses it would compete with those that owe improbable tokens still.
        ends = [key for key in banks.get(0, [])[:beam_size] if key[1] == special.eos]
        # The first of each bank, then the second of each, and so on. The paper gives each bank an equal share of the
        # beam, and what a bank cannot use to the others; taking turns does both.
        in_turn = sorted(
            (place, missing, key)
            for missing, keys in banks.items()
            for place, key in enumerate(key for key in keys if key[1] != special.eos)
        )
        chosen = [*ends, *(key for _, _, key in in_turn[:beam_size])]
        chosen += [(0, special.pad)] * (len(values) - len(chosen))  # rows of one tensor have the same length
        rows.append([(scores.get(key, -math.inf), key[1], key[0]) for key in chosen])
    # Float64 holds ids and float32 log-probabilities alike, exactly.
    values, ids, parents = torch.tensor(rows, dtype=torch.float64, device=log_probs.device).unbind(2)
    return _Ranked(values.to(log_probs), ids.long(), parents.long())


def _ended(ranked: _Ranked, beams: _Beams, beam_size: int, eos_id: int, norm: float) -> list[tuple[int, Hypothesis]]:
    """(row, output) for every hypothesis that ended among the first `beam_size` ranks."""
    is_end = ((ranked.ids == eos_id) & (ranked.log_probs > -math.inf))[:, :beam_size]
    ended = []
    for row, rank in is_end.nonzero().tolist():
        log_prob = ranked.log_probs[row, rank].item()
        ids = beams.history[row, ranked.parents[row, rank]].tolist()
        ended.append((row, Hypothesis(ids, log_prob, log_prob / norm)))
    return ended


def _is_done(outputs: list[Hypothesis], bound: float, beam_size: int, num_best: int) -> bool:
    """Whether nothing that scores at most `bound` can still change the `num_best` best outputs."""
    if len(outputs) >= beam_size or bound == -math.inf:
        return True
    return len(outputs) >= num_best and sorted(output.score for output in outputs)[-num_best] >= bound
