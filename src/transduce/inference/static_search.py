"""Beam search of constant shape, for a GPU: `beam_search` as one captured graph for each step, without waiting for it.

All that a step decides stays on the device: which hypotheses ended, which go on, which sentences are done. Python asks
only now and then whether all are, and reads the outputs at the end. A batch is filled up to one of a few shapes, as a
graph is fixed to its own. The outputs are those of `beam_search`, and with a beam of 1 those of `greedy_search`.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from transduce.devices.graphs import recorded
from transduce.inference.alphabet import Alphabet
from transduce.inference.beam_search import rank_continuations
from transduce.inference.config import DecodingConfig
from transduce.inference.engine import InferenceModel, StaticState
from transduce.inference.search import Hypothesis, SpecialIds, length_norm_of, log_probs_of, refuse_nan

_STEPS_BETWEEN_LOOKS = 4  # until Python asks whether all sentences are done
_LEN_ROUNDING = 32  # of sources and of outputs
_SENTENCES_ROUNDING = 256
_MOST_SEARCHES = 6  # shapes with a graph at a time: each keeps the keys and values of its largest batch


class StaticSearches:
    """The searches of a model by shape, made when they are needed; the one that was not used for longest is dropped."""

    def __init__(
        self,
        engine: InferenceModel,
        special: SpecialIds,
        config: DecodingConfig,
        num_best: int = 1,
        alphabet: Alphabet | None = None,
    ) -> None:
        self._make: Callable[..., _StaticSearch] = lambda *shape: _StaticSearch(
            engine, special, config, num_best, alphabet, *shape
        )
        self._searches: dict[tuple[int, ...], _StaticSearch] = {}

    def __call__(self, src: Int[Tensor, "batch src_len"], max_lens: Int[Tensor, " batch"]) -> list[list[Hypothesis]]:
        """The best outputs of each sentence, best first."""
        num_steps = int(max_lens.max())
        shape = (
            _rounded(len(src)),
            *(-(-length // _LEN_ROUNDING) * _LEN_ROUNDING for length in (src.size(1), num_steps)),
        )
        search = self._searches.pop(shape, None) or self._make(*shape, src.device)
        self._searches[shape] = search  # the newest last
        if len(self._searches) > _MOST_SEARCHES:
            del self._searches[next(iter(self._searches))]
        return search(src, max_lens)


def _rounded(num_sentences: int) -> int:
    """A power of two, and from some hundreds on a multiple: few shapes, and few sentences that are not there."""
    return min(1 << (num_sentences - 1).bit_length(), -(-num_sentences // _SENTENCES_ROUNDING) * _SENTENCES_ROUNDING)


class _StaticSearch:
    """Search in batches of so many sentences of at most `src_len` tokens, with outputs of at most `num_steps`."""

    def __init__(
        self,
        engine: InferenceModel,
        special: SpecialIds,
        config: DecodingConfig,
        num_best: int,
        alphabet: Alphabet | None,
        num_sentences: int,
        src_len: int,
        num_steps: int,
        device: torch.device,
    ) -> None:
        self._engine, self._special, self._config, self._num_best = engine, special, config, num_best
        beam = config.beam_size
        self._state = StaticState(engine.empty_cross(num_sentences, src_len), beam, num_steps)
        shape = num_sentences, beam
        self._rules = None if alphabet is None else _AlphabetTables(alphabet, engine.num_logits, shape, device)

        def filled(value: float, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.full((num_sentences, *shape), value, dtype=dtype, device=device)

        # The hypotheses that go on, best first, and the history of all: token and parent of each rank at each step.
        self._tokens, self._parents = filled(special.bos, beam), filled(0, beam)
        self._log_probs = filled(0.0, beam, dtype=torch.float32)
        self._tokens_at, self._parents_at = (x.new_zeros(num_steps, *x.shape) for x in (self._tokens, self._parents))
        # The outputs so far, and one place more for what is none.
        self._ended_log_probs = filled(0.0, beam + 1, dtype=torch.float32)
        self._ended_scores = filled(-math.inf, beam + 1, dtype=torch.float64)
        self._ended_lens, self._ended_parents = filled(0, beam + 1), filled(0, beam + 1)
        self._num_ended, self._is_done = filled(0), filled(False, dtype=torch.bool)
        self._max_lens, self._norms_at_limit = filled(1), filled(1.0, dtype=torch.float32)
        self._is_nan = torch.zeros((), dtype=torch.bool, device=device)
        self._is_eos = torch.arange(engine.num_logits, device=device) == special.eos
        self._advance = recorded(self._step, device)

    def __call__(self, src: Int[Tensor, "batch src_len"], max_lens: Int[Tensor, " batch"]) -> list[list[Hypothesis]]:
        num = len(src)
        self._state.fill(self._engine.start(src))
        self._tokens.fill_(self._special.bos)
        self._parents.zero_()
        # One hypothesis, not as many equal ones as the beam is wide: their continuations would be copies.
        self._log_probs.fill_(-math.inf)
        self._log_probs[:, 0] = 0.0
        self._ended_scores.fill_(-math.inf)
        self._num_ended.zero_()
        self._max_lens.fill_(1)
        self._max_lens[:num] = max_lens
        self._norms_at_limit.copy_(length_norm_of(self._max_lens.float(), self._config))
        self._is_done.fill_(True)
        self._is_done[:num] = False
        self._is_nan.fill_(False)
        for step in range(int(max_lens.max())):
            self._advance()
            if step % _STEPS_BETWEEN_LOOKS == _STEPS_BETWEEN_LOOKS - 1 and self._is_done.all():
                break
        refuse_nan([math.nan] if self._is_nan.item() else [])
        return self._outputs(num)

    def _step(self) -> None:
        """A token of every hypothesis."""
        config, beam, eos = self._config, self._config.beam_size, self._special.eos
        logits, _ = self._engine.step(self._tokens, self._parents, self._state)
        log_probs = log_probs_of(logits, self._special)
        position = self._state.position
        length = position + 1
        if self._rules:
            self._rules.restrict(log_probs, self._parents, self._tokens, position, self._max_lens - position)
        is_last = (self._max_lens == length)[:, None, None]
        log_probs.masked_fill_(is_last & ~self._is_eos, -math.inf)
        ranked = rank_continuations(log_probs, self._log_probs, 2 * beam)
        # Of the first ranks those that end are outputs, as long as there is a place for them.
        is_end = (ranked.ids == eos) & (ranked.log_probs > -math.inf) & ~self._is_done[:, None]
        is_end[:, beam:] = False
        places = self._num_ended[:, None] + is_end.cumsum(1) - 1
        places = torch.where(is_end, places, beam).clamp_(max=beam)
        self._ended_log_probs.scatter_(1, places, ranked.log_probs)
        scores = ranked.log_probs.double() / length_norm_of(length.float(), config).double()
        self._ended_scores.scatter_(1, places, scores)
        self._ended_lens.scatter_(1, places, position.expand_as(places))
        self._ended_parents.scatter_(1, places, ranked.parents)
        self._num_ended.copy_((self._num_ended + is_end.sum(1)).clamp_(max=beam))
        # The first of the others go on.
        going_on, best = ranked.log_probs.masked_fill(ranked.ids == eos, -math.inf).topk(beam)
        self._log_probs.copy_(going_on)
        self._tokens.copy_(ranked.ids.gather(1, best))
        self._parents.copy_(ranked.parents.gather(1, best))
        self._tokens_at.index_copy_(0, position, self._tokens[None])
        self._parents_at.index_copy_(0, position, self._parents[None])
        # See `beam_search`: what a hypothesis can score at most.
        bounds = going_on[:, 0] / self._norms_at_limit
        self._is_nan |= (bounds.isnan() & ~self._is_done).any()
        least = self._ended_scores[:, :beam].topk(self._num_best).values[:, -1]
        self._is_done |= (self._num_ended >= beam) | (bounds == -math.inf) | (least >= bounds)

    def _outputs(self, num: int) -> list[list[Hypothesis]]:
        """The outputs, read from the last token of each to its first."""
        num_ended, log_probs, scores, lens, parents, tokens_at, parents_at = (
            x.tolist()
            for x in (
                self._num_ended[:num], self._ended_log_probs, self._ended_scores, self._ended_lens, self._ended_parents,
                self._tokens_at, self._parents_at,
            )
        )  # fmt: skip
        outputs = []
        for row in range(num):
            hypotheses = []
            for place in range(num_ended[row]):
                ids, rank = list[int](), parents[row][place]
                for step in range(lens[row][place] - 1, -1, -1):
                    ids.append(tokens_at[step][row][rank])
                    rank = parents_at[step][row][rank]
                hypotheses.append(Hypothesis(ids[::-1], log_probs[row][place], scores[row][place]))
            outputs.append(sorted(hypotheses, key=lambda h: -h.score)[: self._num_best])
        return outputs


class _AlphabetTables:
    """`alphabet.restrict` as tables: what may follow a whole character, or the bytes that one has begun with."""

    def __init__(self, alphabet: Alphabet, num_ids: int, shape: Sequence[int], device: torch.device) -> None:
        biases, self._next_states, room_biases = (x.to(device) for x in alphabet.tables(num_ids))
        self._biases, self._room_biases = biases, room_biases
        self._states = torch.zeros(shape, dtype=torch.int64, device=device)  # of each hypothesis

    def restrict(self, log_probs: Tensor, parents: Tensor, tokens: Tensor, position: Tensor, rooms: Tensor) -> None:
        """Set to -inf, in place, what may not follow `tokens`, which continue what were hypotheses `parents`."""
        states = self._next_states[self._states.gather(1, parents), tokens]
        self._states.copy_(torch.where(position == 0, 0, states))
        log_probs += self._biases[self._states] if len(self._biases) > 1 else self._biases[0]
        log_probs += self._room_biases[rooms.clamp(0, len(self._room_biases) - 1)][:, None]
