"""Explanations: the attention of every head, the candidates at each step, and the course of the search.

The output is the predictor's own, and the search is observed from outside, through its step function. Attention and
probabilities are those of one full pass over the text and its output.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from transduce.errors import TransduceError
from transduce.inference.attention_maps import AttentionMaps, record_attention
from transduce.inference.constraints import Constraints
from transduce.inference.predictor import Prediction, Predictor
from transduce.inference.search import Hypothesis, Step
from transduce.text.config import CONTROL_NAMES, NUM_FIXED_IDS, AnyKind

MAX_TOKENS = 256  # of a text: the attention weights of one head grow with their square


@dataclass(frozen=True)
class Token:
    """One id in visible form: a space as ▁, what no font draws as its code point."""

    name: str
    kind: Literal["text", "control", "byte"]


@dataclass(frozen=True)
class Candidate:
    """A possible token at a step; `rank` is 1 for the most likely of all ids."""

    token: Token
    probability: float
    rank: int
    is_chosen: bool


@dataclass(frozen=True)
class Branch:
    """A hypothesis that the search kept at a step: number `parent` of the step before, extended by `token`."""

    parent: int  # 0 at the first step
    token: Token
    log_prob: float  # natural, of all its tokens
    score: float | None  # after length normalization, if it ended here
    is_winner: bool  # whether the output is it or extends it


@dataclass(frozen=True)
class Explanation:
    """One output explained. Letters: H heads, S source tokens, T output tokens, both including the end symbol."""

    text: str
    source: list[Token]  # S
    prediction: Prediction
    written: list[Token]  # T; the decoder reads the begin symbol and all but the last
    candidates: list[list[Candidate]]  # T, most likely first, always including the chosen one
    branches: list[list[Branch]]  # T or more steps, most likely first, those that ended last
    attention: dict[str, Float[Tensor, "heads queries keys"]]  # by module name; on the CPU
    begin: Token
    facts: dict[str, Any]  # on the model and the search


def explain(predictor: Predictor, text: str, *, num_candidates: int = 8) -> Explanation:
    """Explain the output of `predictor` for `text`. Raises TransduceError for an empty text or one too long."""
    if not text.strip():
        raise TransduceError("the text is empty: there is nothing to explain.")
    [source], [is_source_truncated] = predictor.encode([text])
    if len(source) > MAX_TOKENS:
        raise TransduceError(
            f"the text has {len(source):,} tokens, but a page shows at most {MAX_TOKENS}: give a shorter one."
        )
    trace = _Trace()
    [[best]] = predictor.search([source], watch=trace.watch)
    num_best = 1 if predictor.decoding.is_sampling else predictor.decoding.beam_size
    # A search for all outputs goes on for longer: only those that ended before the best was certain were in this one.
    outputs = [best] if num_best == 1 else predictor.search([source], num_best)[0]
    ended = [output for output in outputs if len(output.ids) < len(trace.steps)]
    tokenizer = predictor.tokenizer
    attention, log_probs = _full_pass(predictor, source, best.ids)
    names = partial(_tokens, tokenizer.target_tokens, tokenizer.config.target)
    written = [*best.ids, tokenizer.eos_id]
    prediction = predictor.prediction(best, predictor.max_len(source), is_source_truncated)
    [annotation] = predictor.annotate([text], [prediction])
    return Explanation(
        text=text,
        source=_tokens(tokenizer.source_tokens, tokenizer.config.source, source),
        prediction=replace(prediction, **vars(annotation)),
        written=names(written),
        candidates=[_candidates(*pair, num_candidates, names) for pair in zip(log_probs, written, strict=True)],
        branches=_branches(trace, ended, best, tokenizer.eos_id, names),
        attention={name: weights[0].float().cpu() for name, weights in attention.items()},
        begin=names([tokenizer.bos_id])[0],
        facts=_facts(predictor, source),
    )


def _tokens(names_of: Callable[[Sequence[int]], list[str]], kind: AnyKind, ids: Sequence[int]) -> list[Token]:
    """The visible tokens of one side, whose vocabulary is of this kind and gives their names."""
    first_text = len(CONTROL_NAMES) if kind == "sentencepiece" else NUM_FIXED_IDS
    return [
        Token(visible(name), "control" if i < len(CONTROL_NAMES) else "byte" if i < first_text else "text")
        for i, name in zip(ids, names_of(ids), strict=True)
    ]


def visible(name: str) -> str:
    """`name` with a sign in place of every invisible character."""
    shown = "".join(map(_visible_character, name)) or "∅"
    return f"◌{shown}" if unicodedata.category(shown[0]).startswith("M") else shown  # a mark needs something under it


def _visible_character(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures: ␉
    if character == " ":
        return "▁"
    is_variation_selector = 0xFE00 <= code <= 0xFE0F
    is_visible = unicodedata.category(character)[0] not in "CZ" and not is_variation_selector
    return character if is_visible else f"⟨U+{code:04X}⟩"


Names = Callable[[Sequence[int]], list[Token]]


class _Trace:
    """The hypotheses of a single sentence at each step of a search, including rows that only fill its beam."""

    def __init__(self) -> None:
        # By step, of each hypothesis: its last token, its parent in the step before, the log-probability of all of it.
        self.steps: list[list[tuple[int, int, float]]] = []
        self._next_totals: Float[Tensor, "beam vocab"] | None = None

    def watch(self, step: Step[Any]) -> Step[Any]:
        """`step`, recorded."""

        def watched(tokens: Tensor, parents: Tensor, state: Any) -> tuple[Tensor, Any]:
            logits, state = step(tokens, parents, state)
            totals = torch.zeros(1) if self._next_totals is None else self._next_totals[parents[0], tokens[0]]
            self.steps.append(list(zip(tokens[0].tolist(), parents[0].tolist(), totals.tolist(), strict=True)))
            self._next_totals = totals.to(logits.device)[:, None] + logits[0].float().log_softmax(dim=-1)
            return logits, state

        return watched


@torch.inference_mode()
def _full_pass(
    predictor: Predictor, source: list[int], output: list[int]
) -> tuple[AttentionMaps, Float[Tensor, "tgt_len vocab"]]:
    """The weights of all attentions, and the log-probabilities of every id at every step of the output."""
    src, tgt_in = (
        torch.tensor([ids], device=predictor.device) for ids in (source, [predictor.tokenizer.bos_id, *output])
    )
    with record_attention(predictor.model) as maps:
        hidden = predictor.model(src, tgt_in)
    return maps, predictor.model.logits(hidden)[0].float().log_softmax(dim=-1).cpu()


def _candidates(log_probs: Float[Tensor, " vocab"], chosen: int, count: int, names: Names) -> list[Candidate]:
    ids = log_probs.topk(min(count, len(log_probs))).indices.tolist()
    ranks = list(range(1, len(ids) + 1))
    if chosen not in ids:
        ids.append(chosen)
        ranks.append(1 + int((log_probs > log_probs[chosen]).sum()))
    probabilities = log_probs[ids].exp().tolist()
    rows = zip(ids, names(ids), probabilities, ranks, strict=True)
    return [Candidate(token, probability, rank, i == chosen) for i, token, probability, rank in rows]


def _branches(
    trace: _Trace, ended: Sequence[Hypothesis], best: Hypothesis, eos_id: int, names: Names
) -> list[list[Branch]]:
    """By step, the hypotheses that went on from it, then those that ended there, best first."""
    histories: list[tuple[int, ...]] = [()]
    numbers = {0: 0}  # from the search's numbers of hypotheses to ours, which skip rows that hold none
    best_ids = tuple(best.ids)
    branches = []
    for step, rows in enumerate([*trace.steps[1:], []], start=1):  # after the last one nothing goes on
        kept: list[Branch] = []
        next_histories, next_numbers = [], {}
        for place, (token, parent, log_prob) in enumerate(rows):
            # Where there are fewer hypotheses than beam_size, the search fills its beam with control ids, and then with
            # what follows them.
            if token <= eos_id or parent not in numbers:
                continue
            history = (*histories[numbers[parent]], token)
            next_numbers[place] = len(kept)
            next_histories.append(history)
            is_winner = history == best_ids[:step]
            kept.append(Branch(numbers[parent], names([token])[0], log_prob, None, is_winner))
        for output in ended:
            if len(output.ids) == step - 1:
                parent, is_winner = histories.index(tuple(output.ids)), tuple(output.ids) == best_ids
                kept.append(Branch(parent, names([eos_id])[0], output.log_prob, output.score, is_winner))
        branches.append(kept)
        histories, numbers = next_histories, next_numbers
    return branches


def _facts(predictor: Predictor, source: Sequence[int]) -> dict[str, Any]:
    model, decoding = predictor.model.config, predictor.decoding
    return {
        **vars(model),
        **vars(decoding),
        "num_parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
        "longest": predictor.max_len(source),  # most tokens of the output, including its end
        "is_constrained": predictor.constraints != Constraints()
        or decoding.min_len + decoding.no_repeat_ngram_size > 0,
        "int8": predictor.is_int8,
    }
