"""Text in, predictions out: the one object that every front end uses, from memory or from a run folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transduce.data.batches import bucket_batches, pad_sources
from transduce.devices.cpu import workers
from transduce.errors import TransduceError
from transduce.inference.beam_search import beam_search
from transduce.inference.config import DecodingConfig
from transduce.inference.constraints import Constraints, ForbiddenText, Rules
from transduce.inference.engine import InferenceModel
from transduce.inference.forced_decoding import Annotation, annotate
from transduce.inference.search import Hypothesis, SpecialIds, Step, greedy_search, sample
from transduce.model.transformer import Transformer
from transduce.text.tokenizer import Tokenizer

# Tokens held side by side, those of the sources and of all hypotheses: large products, but keys and values that the
# caches of a CPU hold, and enough batches for several workers.
_TOKENS_AT_ONCE = 8_192

# Of a text, so many times model.max_len characters are split into pieces: no piece is longer, and no line costs more.
_CHARACTERS_PER_ID = 64


@dataclass(frozen=True)
class Prediction:
    """One answer; `score` is its natural log-probability after length normalisation: beam search ranks by it."""

    text: str
    score: float
    log_prob: float
    ids: tuple[int, ...] = ()  # of the target side, without the end
    is_truncated: bool = False  # whether the source was too long, and only its beginning is answered

    def as_dict(self) -> dict[str, Any]:
        return {"text": self.text, "score": self.score, "log_prob": self.log_prob}


class Predictor:
    """A model and the tokenizer it was trained with.

    `predict` answers texts; `predict_n_best` gives several answers to each. An empty text is answered by an empty one.
    A source longer than the model is meant for is cut off, counted in `num_truncated` and reported. The model's weights
    are prepared for answering at the first answer: change them later, and make a new predictor. With `int8` its large
    matrices are multiplied in bytes, which is faster on CPUs with VNNI, and gives nearly the same answers.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        decoding: DecodingConfig = DecodingConfig(),  # noqa: B008 - frozen
        *,
        constraints: Constraints = Constraints(),  # noqa: B008 - frozen
        int8: bool = False,
        report: Callable[[str], None] = lambda _line: None,
    ) -> None:
        if int8 and model.output_weight.device.type != "cpu":
            raise TransduceError("int8 is for answers on a CPU: leave it out, or give --device cpu.")
        self.model = model.eval()
        self.int8 = int8
        self.tokenizer = tokenizer
        self.decoding = decoding  # to be read; `predict` can be given another for its answers
        self.constraints = constraints  # of every answer; `predict` can be given others for each text
        self.report = report
        self.num_truncated = 0
        self.special = SpecialIds(tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
        self._engine: InferenceModel | None = None
        self._engine_lock = Lock()

    def predict(
        self,
        texts: Sequence[str],
        constraints: Sequence[Constraints] | None = None,
        *,
        decoding: DecodingConfig | None = None,
    ) -> list[str]:
        """The best answer to each text, in their order; `constraints` are one for each text.

        `decoding` are settings for these answers alone, in place of the predictor's own.
        """
        return [answers[0].text for answers in self.predict_n_best(texts, 1, constraints, decoding=decoding)]

    def predict_n_best(
        self,
        texts: Sequence[str],
        num_best: int,
        constraints: Sequence[Constraints] | None = None,
        *,
        decoding: DecodingConfig | None = None,
        first_row: int = 0,
    ) -> list[list[Prediction]]:
        """The `num_best` best answers to each text, best first; at most `beam_size` can be had.

        With sampling they are draws, and `first_row` is the number of the first text among all: text k is always
        drawn for with the same numbers, whatever comes before it.
        """
        self._check(num_best, decoding or self.decoding)
        if constraints is not None and len(constraints) != len(texts):
            raise TransduceError(f"{len(constraints)} constraints for {len(texts)} texts: give one for each.")
        answers: list[list[Prediction]] = [[Prediction("", 0.0, 0.0)] * num_best for _ in texts]
        rows = [row for row, text in enumerate(texts) if text.strip()]
        sources, is_truncated = self.encode([texts[row] for row in rows])
        asked = None if constraints is None else [constraints[row] for row in rows]
        numbers = [first_row + row for row in rows]
        found = self.search(sources, num_best, asked, decoding=decoding, numbers=numbers)
        for row, cut, hypotheses in zip(rows, is_truncated, found, strict=True):
            answers[row] = [
                Prediction(self.tokenizer.decode_target(h.ids), h.score, h.log_prob, tuple(h.ids), cut)
                for h in hypotheses
            ]
        self._count(is_truncated)
        return answers

    def search(
        self,
        sources: Sequence[list[int]],
        num_best: int = 1,
        constraints: Sequence[Constraints] | None = None,
        *,
        decoding: DecodingConfig | None = None,
        numbers: Sequence[int] | None = None,
        watch: Callable[[Step[Any]], Step[Any]] = lambda step: step,
    ) -> list[list[Hypothesis]]:
        """The `num_best` best answers, as ids, to sources given as ids with their ends; best first.

        `numbers` are those of the sources among all that are drawn for (default: 0, 1, 2, ...). `watch` may wrap
        the step function of each batch in one that looks on.
        """
        decoding = decoding or self.decoding
        self._check(num_best, decoding)
        numbers = range(len(sources)) if numbers is None else numbers
        max_lens = [self.max_len(ids, decoding) for ids in sources]
        asked = [self.constraints] * len(sources) if constraints is None else constraints
        rules = self._rules(asked, max_lens, numbers, decoding)
        found: list[list[Hypothesis]] = [[] for _ in sources]
        lens = np.array([len(ids) for ids in sources], dtype=np.int32)
        budget = max(1, _TOKENS_AT_ONCE // (1 + (1 if _is_sampling(decoding) else decoding.beam_size)))
        batches = bucket_batches(lens, lens, batch_tokens=budget, order=range(len(lens)))
        self._prepared()  # here, and not by the first worker that needs it

        def answer(batch: np.ndarray) -> None:
            some_sources, some_lens, some_numbers = ([of[i] for i in batch] for of in (sources, max_lens, numbers))
            some_rules = [rules[i] for i in batch] if rules else []
            answers = self._search(some_sources, some_lens, some_numbers, some_rules, num_best, decoding, watch)
            for i, hypotheses in zip(batch, answers, strict=True):
                found[i] = hypotheses

        with workers(self.device, len(batches)) as map_over:
            list(map_over(answer, reversed(batches)))  # the long ones first, so that all workers end together
        return found

    def annotate(self, texts: Sequence[str], answers: Sequence[Prediction]) -> list[Annotation]:
        """What the model thinks of an answer to each text, token by token; see `annotation`."""
        rows = [row for row, text in enumerate(texts) if text.strip()]
        sources, _ = self.encode([texts[row] for row in rows])
        found = [Annotation([], [], [], [])] * len(texts)
        annotated = annotate(self.model, self.tokenizer, sources, [list(answers[row].ids) for row in rows])
        for row, annotation in zip(rows, annotated, strict=True):
            found[row] = annotation
        return found

    @property
    def device(self) -> torch.device:
        return self.model.output_weight.device

    def max_len(self, source: Sequence[int], decoding: DecodingConfig | None = None) -> int:
        """Tokens that an answer to `source` may have, its end included."""
        return min((decoding or self.decoding).max_len(len(source)), self.model.config.max_len)

    def _prepared(self) -> InferenceModel:
        """The model prepared for answering: by whoever asks first, while others who ask wait for it."""
        with self._engine_lock:
            if self._engine is None:
                self._engine = InferenceModel(self.model, int8=self.int8)
            return self._engine

    def _check(self, num_best: int, decoding: DecodingConfig) -> None:
        beam_size = decoding.beam_size
        if num_best < 1 or (num_best > beam_size and not _is_sampling(decoding)):
            raise TransduceError(
                f"{num_best} answers per line were asked for: from 1 to the beam size ({beam_size}) can be had."
            )
        self._rules_of(self.constraints, decoding)

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Ids with their ends, of as much of each text as the model is meant for; and whether that is not all."""
        longest = self.model.config.max_len
        most = _CHARACTERS_PER_ID * longest
        encoded = self.tokenizer.encode_source([text[:most] for text in texts])
        sources = [self.truncate(ids) for ids in encoded]
        lens = zip(texts, encoded, sources, strict=True)
        return sources, [len(text) > most or len(ids) > len(kept) for text, ids, kept in lens]

    def truncate(self, ids: list[int]) -> list[int]:
        """The ids of a source that the model is meant for, with their end."""
        longest = self.model.config.max_len
        return ids if len(ids) <= longest else [*ids[: longest - 1], self.tokenizer.eos_id]

    def _count(self, is_truncated: Sequence[bool]) -> None:
        if any(is_truncated) and not self.num_truncated:
            self.report(f"sources are cut off after model.max_len = {self.model.config.max_len} tokens.")
        self.num_truncated += sum(is_truncated)

    def _rules(
        self,
        constraints: Sequence[Constraints],
        max_lens: Sequence[int],
        numbers: Sequence[int],
        decoding: DecodingConfig,
    ) -> list[Rules]:
        """What each answer is asked for, in ids; nothing if nothing is asked for."""
        made: dict[Constraints, Rules] = {}
        for asked, max_len, number in zip(constraints, max_lens, numbers, strict=True):
            rules = made[asked] = made.get(asked) or self._rules_of(asked, decoding)
            if rules.shortest_len > max_len and (rules.prefix or rules.required):
                raise TransduceError(
                    f"a prefix and required texts of {rules.shortest_len - 1} tokens do not fit the answer to text "
                    f"{number + 1:,}, which has at most {max_len - 1}: ask for less, or allow longer answers."
                )
        if all(rules.is_empty for rules in made.values()):
            return []
        return [made[asked] for asked in constraints]

    def _rules_of(self, asked: Constraints, decoding: DecodingConfig) -> Rules:
        if asked.required and (_is_sampling(decoding) or decoding.beam_size == 1):
            raise TransduceError("what answers must hold needs a beam search: a beam size above 1, no temperature.")
        spelled = self.tokenizer.encode_target([asked.prefix, *asked.required])
        prefix, *required = (tuple(ids[:-1]) for ids in spelled)
        pieces = self.tokenizer.target_bytes() if asked.forbidden else []
        return Rules(
            eos_id=self.tokenizer.eos_id,
            prefix=prefix,
            required=tuple(required),
            forbidden=tuple(ForbiddenText(text.encode(), pieces) for text in asked.forbidden),
            min_len=decoding.min_len,
            no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        )

    @torch.inference_mode()
    def _search(
        self,
        sources: list[list[int]],
        max_lens: list[int],
        numbers: list[int],
        rules: list[Rules],
        num_best: int,
        config: DecodingConfig,
        watch: Callable[[Step[Any]], Step[Any]],
    ) -> list[list[Hypothesis]]:
        src = pad_sources(sources).to(self.device)
        longest = torch.tensor(max_lens, device=src.device)
        engine = self._prepared()
        step = watch(engine.step)
        if _is_sampling(config):
            draws = []
            for draw in range(num_best):
                uniforms = _uniforms(numbers, draw, config.seed, max(max_lens)).to(src.device)
                state = engine.start(src)
                draws.append(sample(step, state, longest, self.special, config=config, uniforms=uniforms, rules=rules))
            return [list(of_one_source) for of_one_source in zip(*draws, strict=True)]
        if config.beam_size == 1:
            found = greedy_search(step, engine.start(src), longest, self.special, config=config, rules=rules)
            return [[hypothesis] for hypothesis in found]
        return beam_search(
            step, engine.start(src), longest, self.special, config=config, num_best=num_best, rules=rules
        )


def _is_sampling(decoding: DecodingConfig) -> bool:
    return decoding.temperature > 0


def _uniforms(rows: list[int], draw: int, seed: int, length: int) -> Tensor:
    """Numbers in [0, 1) for each row, a function of (seed, row, draw): (B, length)."""
    table = torch.empty(len(rows), length)
    for place, row in enumerate(rows):
        table[place] = torch.from_numpy(np.random.default_rng([seed, row, draw]).random(length, np.float32))
    return table
