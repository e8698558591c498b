"""Beam search of constant shape, for a GPU: `beam_search` as one captured graph for each step, without waiting for it.

All that a step decides stays on the device: which hypotheses ended, which go on, which sentences are done. Python asks
only now and then whether all are, and reads the outputs at the end. A graph is fixed to its shapes, so batches are
padded to a few of them. The outputs are those of `beam_search`, and with a beam of 1 those of `greedy_search`.
"""

import math
from collections.abc import Iterator, Sequence
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from transduce.data.batches import pad_sources
from transduce.devices.graphs import recorded
from transduce.inference.alphabet import Alphabet
from transduce.inference.beam_search import rank_continuations
from transduce.inference.config import DecodingConfig
from transduce.inference.engine import InferenceModel
from transduce.inference.search import Hypothesis, SpecialIds, length_norm_of, log_probs_of, refuse_nan
from transduce.inference.state import StaticState

_STEPS_BETWEEN_LOOKS = 4  # until Python asks whether all sentences are done
_SHORTEST = 32  # room for so many tokens, of sources and of outputs; then powers of two
_MOST_SENTENCES = 2048
_MOST_BYTES = 2**30  # of the keys and values of a batch
_MOST_SEARCHES = 6  # shapes whose graphs and memory are kept; the least recently used goes first


class StaticSearches:
    """The searches of a model, by shape: each is made when it is needed."""

    def __init__(
        self,
        engine: InferenceModel,
        special: SpecialIds,
        config: DecodingConfig,
        *,
        num_best: int = 1,
        alphabet: Alphabet | None = None,
    ) -> None:
        self._engine, self._special, self._config, self._num_best = engine, special, config, num_best
        self._tables = None if alphabet is None else alphabet.tables(engine.num_logits)
        self._searches: dict[tuple[int, ...], _StaticSearch] = {}
        self._lock = Lock()

    @torch.inference_mode()
    def search(self, sources: Sequence[list[int]], max_lens: Sequence[int]) -> list[list[Hypothesis]]:
        """The best outputs of each source, best first. One thread at a time, as graphs have their memory."""
        outputs: list[list[Hypothesis]] = [[] for _ in sources]
        with self._lock:
            for rows in self._batches([len(ids) for ids in sources], max_lens):
                src = pad_sources([sources[row] for row in rows]).to(self._engine.device)
                found = self._search([max_lens[row] for row in rows], src)
                for row, of_source in zip(rows, found, strict=True):
                    outputs[row] = of_source
        return outputs

    def _batches(self, src_lens: Sequence[int], max_lens: Sequence[int]) -> Iterator[NDArray[np.intp]]:
        """Rows of sentences of like length, as many at once as memory allows; the longest first."""
        order = np.argsort(src_lens, kind="stable")[::-1]
        while len(order):
            num_tokens = _room(src_lens[order[0]]) + self._config.beam_size * _room(max_lens[order[0]])
            num = max(1, min(_MOST_SENTENCES, _MOST_BYTES // (self._engine.bytes_per_token * num_tokens)))
            rows, order = np.split(order, [1 << num.bit_length() - 1])
            yield rows

    def _search(self, max_lens: list[int], src: Int[Tensor, "batch src_len"]) -> list[list[Hypothesis]]:
        shape = 1 << (len(src) - 1).bit_length(), _room(src.size(1)), _room(max(max_lens))
        search = self._searches.pop(shape, None)
        if search is None:
            if len(self._searches) == _MOST_SEARCHES:
                del self._searches[next(iter(self._searches))]
            search = _StaticSearch(self._engine, self._special, self._config, self._num_best, shape, self._tables)
        self._searches[shape] = search  # the newest last
        return search(src, max_lens)


def _room(length: int) -> int:
    return max(_SHORTEST, 1 << (length - 1).bit_length())


class _StaticSearch:
    """Search in batches of a shape: so many sentences, of at most so many tokens, and as many in their outputs."""

    def __init__(
        self,
        engine: InferenceModel,
        special: SpecialIds,
        config: DecodingConfig,
        num_best: int,
        shape: tuple[int, int, int],
        tables: tuple[Tensor, Tensor, Tensor] | None,
    ) -> None:
        self._engine, self._special, self._config, self._num_best = engine, special, config, num_best
        (num_sentences, src_len, num_steps), beam = shape, config.beam_size
        self._state = StaticState(engine.empty_cross(num_sentences, src_len), beam, num_steps)
        device = self._state.position.device

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
        self._rules = None if tables is None else _AlphabetRules(tables, self._tokens)
        self._advance = recorded(self._step, device)

    def __call__(self, src: Int[Tensor, "batch src_len"], max_lens: list[int]) -> list[list[Hypothesis]]:
        num, num_steps = len(src), max(max_lens)
        self._state.fill(self._engine.start(src))
        self._tokens.fill_(self._special.bos)
        self._parents.zero_()
        # One hypothesis, not as many equal ones as the beam is wide: their continuations would be copies.
        self._log_probs.fill_(-math.inf)
        self._log_probs[:, 0] = 0.0
        self._ended_scores.fill_(-math.inf)
        self._num_ended.zero_()
        self._max_lens.fill_(1)
        self._max_lens[:num] = torch.tensor(max_lens, device=src.device)
        self._norms_at_limit.copy_(length_norm_of(self._max_lens.float(), self._config))
        self._is_done.fill_(True)
        self._is_done[:num] = False
        self._is_nan.fill_(False)
        for step in range(num_steps):
            self._advance()
            if step % _STEPS_BETWEEN_LOOKS == _STEPS_BETWEEN_LOOKS - 1 and self._is_done.all():
                break
        refuse_nan([math.nan] if self._is_nan.item() else [])
        return self._outputs(num, step + 1)

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
        self._is_nan |= (ranked.log_probs[:, 0].isnan() & ~self._is_done).any()
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
        least = self._ended_scores[:, :beam].topk(self._num_best).values[:, -1]
        self._is_done |= (self._num_ended >= beam) | (bounds == -math.inf) | (least >= bounds)

    def _outputs(self, num: int, num_steps: int) -> list[list[Hypothesis]]:
        """The outputs after so many steps, each followed from its last token to its first, all at once."""
        lens, ranks = self._ended_lens[:num], self._ended_parents[:num]
        ids = ranks.new_zeros(num_steps, *ranks.shape)
        for step in range(num_steps - 1, -1, -1):
            is_within = step < lens
            ids[step] = self._tokens_at[step, :num].gather(1, ranks)
            ranks = torch.where(is_within, self._parents_at[step, :num].gather(1, ranks), ranks)
        scores, best = self._ended_scores[:num, :-1].sort(dim=1, descending=True, stable=True)
        of_best = ids.permute(1, 2, 0).gather(1, best[..., None].expand(-1, -1, num_steps))[:, : self._num_best]
        all_ids, all_lens, all_log_probs, all_scores, counts = (
            x.cpu().numpy()
            for x in (
                of_best,
                lens.gather(1, best),
                self._ended_log_probs[:num].gather(1, best),
                scores,
                self._num_ended,
            )
        )
        return [
            [
                Hypothesis(
                    all_ids[row, k, : all_lens[row, k]].tolist(),
                    *map(float, (all_log_probs[row, k], all_scores[row, k])),
                )
                for k in range(min(self._num_best, counts[row]))
            ]
            for row in range(num)
        ]


class _AlphabetRules:
    """`alphabet.restrict` by tables: what may follow a whole character, or the bytes that one has begun with."""

    def __init__(self, tables: tuple[Tensor, Tensor, Tensor], tokens: Int[Tensor, "batch beam"]) -> None:
        self._biases, self._next_states, self._by_room = (table.to(tokens.device) for table in tables)
        self._states = torch.zeros_like(tokens)  # of each hypothesis

    def restrict(
        self,
        log_probs: Float[Tensor, "batch beam vocab"],
        parents: Tensor,
        tokens: Tensor,
        position: Tensor,
        rooms: Tensor,
    ) -> None:
        """Set to -inf, in place, what may not follow `tokens`, which continue what were hypotheses `parents`."""
        if len(self._biases) == 1:
            log_probs += self._biases[0]
            return
        bytes_after, first = self._next_states, self._by_room.size(1) - self._next_states.size(1)
        states = bytes_after[self._states.gather(1, parents), (tokens - first).clamp(0, bytes_after.size(1) - 1)]
        is_byte = (position > 0) & (tokens >= first) & (tokens < first + bytes_after.size(1))
        self._states.copy_(torch.where(is_byte, states, 0))
        log_probs += self._biases[self._states]
        log_probs[..., : self._by_room.size(1)] += self._by_room[rooms.clamp(0, len(self._by_room) - 1)][:, None]
