"""The predictor: text in, predictions out. Every front end uses it."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from threading import Lock
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transduce.data.batches import bucket_batches, pad_sources
from transduce.data.seen import Seen, num_spelled_together, shown
from transduce.data.texts import list_texts
from transduce.devices.cpu import keep_freed_memory, survive_forks, workers
from transduce.devices.device import find_device
from transduce.devices.graphs import is_gpu
from transduce.errors import TransduceError
from transduce.inference.alphabet import MOST_UNFINISHED, Alphabet, unfinished
from transduce.inference.beam_search import beam_search
from transduce.inference.config import DecodingConfig
from transduce.inference.constraints import Constraints, Rules
from transduce.inference.engine import InferenceModel
from transduce.inference.forced_decoding import Annotation, Calibration, annotate
from transduce.inference.rules import rules_of, with_characters
from transduce.inference.search import Hypothesis, SpecialIds, Step, greedy_search, sample
from transduce.inference.static_search import StaticSearches
from transduce.model.transformer import Transformer
from transduce.text.tokenizer import Tokenizer

# Tokens of a batch, those of the sources and of all hypotheses: enough for large products, few enough for the caches of
# a CPU to hold their keys and values, and for several workers to have batches.
_TOKENS_AT_ONCE = 8_192

# Only so many times model.max_len characters of a text are tokenized: no token is longer, and no line costs more.
_CHARACTERS_PER_ID = 64

ConstraintsOf = Iterable[Constraints | None] | Constraints | None  # one for each text, or one for all

_ENGINE_LOCK = Lock()  # held while a model is prepared for decoding


def ignore(_line: str) -> None:
    """Report of nothing."""


@dataclass(frozen=True)
class Prediction(Annotation):
    """An output. `score` is its natural log-probability after length normalization: beam search ranks by it.

    One from `Run.n_best` has its annotation as well.
    """

    text: str
    score: float
    log_prob: float
    ids: tuple[int, ...] = ()  # on the target side, without the end symbol
    is_source_truncated: bool = False  # whether the source was too long, so that only its beginning was read
    is_truncated: bool = False  # whether the output is as long as allowed: it had to end
    unseen: tuple[str, ...] = ()  # the characters of the source that no source in training had
    is_long: bool = False  # whether the source is longer than nearly all in training

    def as_dict(self) -> dict[str, Any]:
        """The output as a JSON object, without its annotation."""
        row = {"text": self.text, "score": self.score, "log_prob": self.log_prob}
        return row | ({"truncated": True} if self.is_truncated else {})


@dataclass(eq=False, repr=False)
class Predictor:
    """A model and the tokenizer it was trained with.

    `predict` gives one output for each text, `predict_n_best` several. The output for an empty text is empty. A source
    too long for the model is truncated, and so is an output that reaches its limit: texts with these are counted in
    `num_truncated_sources` and `num_truncated_outputs`. If it is known what was `seen` in training, characters and
    lengths beyond that are reported, and outputs contain only characters of training targets, of their constraints,
    and those of their source that no training source had. The model's weights are prepared for decoding at
    the first prediction: to change them later, make a new predictor. With `int8` its large matrices are multiplied in
    int8, which is faster on CPUs with VNNI and gives nearly the same outputs, of which few depend on their batch.
    """

    model: Transformer
    tokenizer: Tokenizer
    decoding: DecodingConfig = DecodingConfig()  # read-only; a call can be given another
    _: KW_ONLY
    seen: Seen | None = None  # in training, where that was recorded
    calibration: Calibration = Calibration()  # of confidences
    constraints: Constraints = Constraints()  # on every output; a call can be given others for each text
    int8: bool = False
    report: Callable[[str], None] = ignore

    def __post_init__(self) -> None:
        self.model.eval()
        self._refuse_int8_on(self.device)
        self.num_truncated_sources = self.num_truncated_outputs = 0
        self.alphabet = Alphabet.of(self.tokenizer, self.seen) if self.seen else None  # None: any id may follow
        self._reported: set[str] = set()  # characters, and "" for lengths
        self.special = SpecialIds(self.tokenizer.pad_id, self.tokenizer.bos_id, self.tokenizer.eos_id)
        self._engines: dict[str, InferenceModel] = {}  # by precision
        self._searches: dict[Any, StaticSearches] = {}  # those of the last settings
        survive_forks(_ENGINE_LOCK)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_engines": {}, "_searches": {}}  # prepared anew where it is unpickled

    def __repr__(self) -> str:
        config, count = self.model.config, sum(parameter.numel() for parameter in self.model.parameters())
        layers = f"{config.num_encoder_layers} + {config.num_decoder_layers} layers of width {config.d_model}"
        return f"<{type(self).__name__}: {layers}, {count:,} parameters on {self.device}>"

    def predict(
        self,
        texts: Iterable[str],
        constraints: ConstraintsOf = None,
        *,
        decoding: DecodingConfig | None = None,
    ) -> list[str]:
        """The best output for each text, in their order; `constraints` are one for each text, or one for all.

        `decoding` replaces the predictor's own for this call only.
        """
        return [predictions[0].text for predictions in self.predict_n_best(texts, 1, constraints, decoding=decoding)]

    def predict_n_best(
        self,
        texts: Iterable[str],
        num_best: int,
        constraints: ConstraintsOf = None,
        *,
        decoding: DecodingConfig | None = None,
        first_row: int = 0,
    ) -> list[list[Prediction]]:
        """The `num_best` best outputs for each text, best first; a search has at most `beam_size`.

        With sampling they are samples, and `first_row` is the number of the first text among all: the random numbers
        of text k depend on k and the seed, not on the texts before it.
        """
        texts = list_texts(texts)
        constraints = self._constraints_of(texts, constraints)
        predictions: list[list[Prediction]] = [[Prediction("", 0.0, 0.0)] * num_best for _ in texts]
        rows = [row for row, text in enumerate(texts) if text.strip()]
        sources, is_truncated = self.encode([texts[row] for row in rows])
        unfamiliar = self.unfamiliar([texts[row] for row in rows], sources)
        outputs = self.search(
            sources,
            num_best,
            [constraints[row] for row in rows],
            decoding=decoding,
            row_numbers=[first_row + row for row in rows],
        )
        for row, source, truncated, unknown, hypotheses in zip(
            rows, sources, is_truncated, unfamiliar, outputs, strict=True
        ):
            limit = self.max_len(source, decoding)
            predictions[row] = [self.prediction(hypothesis, limit, truncated, *unknown) for hypothesis in hypotheses]
        self._report_unfamiliar(unfamiliar)
        if any(is_truncated) and not self.num_truncated_sources:
            self.report(f"sources are truncated after model.max_len = {self.model.config.max_len} tokens.")
        self.num_truncated_sources += sum(is_truncated)
        self.num_truncated_outputs += sum(any(each.is_truncated for each in n_best) for n_best in predictions)
        return predictions

    def search(
        self,
        sources: Sequence[list[int]],
        num_best: int = 1,
        constraints: Sequence[Constraints] | None = None,
        *,
        decoding: DecodingConfig | None = None,
        row_numbers: Sequence[int] | None = None,
        watch: Callable[[Step[Any]], Step[Any]] | None = None,
    ) -> list[list[Hypothesis]]:
        """The `num_best` best outputs, as ids, for sources given as ids with the end symbol; best first.

        `row_numbers` say which random numbers each source samples with (default: 0, 1, 2, ...). `watch` may wrap the
        step function of each batch, to observe the search.
        """
        decoding = decoding or self.decoding
        beam_size = decoding.beam_size
        if num_best < 1 or (num_best > beam_size and not decoding.is_sampling):
            raise TransduceError(
                f"--n-best {num_best} must be from 1 to the beam size, {beam_size}: raise --beam-size for more."
            )
        row_numbers = range(len(sources)) if row_numbers is None else row_numbers
        max_lens = [self.max_len(ids, decoding) for ids in sources]
        constraints = [self.constraints] * len(sources) if constraints is None else constraints
        rules = self._rules(sources, constraints, max_lens, row_numbers, decoding)
        outputs: list[list[Hypothesis]] = [[] for _ in sources]
        src_lens = np.array([len(ids) for ids in sources], dtype=np.int32)
        engine = self._prepared_engine(decoding.precision)  # before the workers start, not by the first of them
        static = None if watch else self._searches_in_graphs(engine, decoding, num_best)
        batch_tokens = max(1, _TOKENS_AT_ONCE // (1 + (1 if decoding.is_sampling else beam_size)))
        graphed = list(range(len(sources))) if static else []
        if static and rules:  # of sentences that nothing but the common alphabet constrains
            graphed = [row for row in graphed if rules[row].is_empty and rules[row].alphabet is self.alphabet]
        others = sorted({*range(len(sources))}.difference(graphed))
        batches = bucket_batches(src_lens, src_lens, batch_tokens=batch_tokens, order=others)

        @torch.inference_mode()
        def decode(rows: np.ndarray) -> None:
            src = pad_sources([sources[row] for row in rows]).to(self.device)
            limits = torch.tensor([max_lens[row] for row in rows], device=src.device)
            options: dict[str, Any] = {"config": decoding, "rules": [rules[row] for row in rows] if rules else []}
            step, special = watch(engine.step) if watch else engine.step, self.special
            if decoding.is_sampling:
                numbers, samples = [row_numbers[row] for row in rows], []
                for index in range(num_best):
                    uniforms = _uniforms(numbers, index, decoding.seed, int(limits.max())).to(src.device)
                    state = engine.start(src)
                    samples.append(sample(step, state, limits, special, uniforms=uniforms, **options))
                hypotheses = [list(of_source) for of_source in zip(*samples, strict=True)]
            elif beam_size == 1:
                hypotheses = [[each] for each in greedy_search(step, engine.start(src), limits, special, **options)]
            else:
                hypotheses = beam_search(step, engine.start(src), limits, special, num_best=num_best, **options)
            for row, of_source in zip(rows, hypotheses, strict=True):
                outputs[row] = of_source

        if static and graphed:
            found = static.search([sources[row] for row in graphed], [max_lens[row] for row in graphed])
            for row, of_source in zip(graphed, found, strict=True):
                outputs[row] = of_source
        with workers(self.device, len(batches)) as map_over:
            list(map_over(decode, reversed(batches)))  # the long ones first, so that all workers end together
        return outputs

    def prediction(self, hypothesis: Hypothesis, max_len: int, *about_source: Any) -> Prediction:
        """The prediction for a text whose outputs may have `max_len` tokens, including the end symbol.

        `about_source`: whether it was truncated, its unseen characters, whether it is long.
        """
        ids, log_prob, score = hypothesis
        # Constraints may have stopped it within a character.
        num_whole = len(ids) - (len(unfinished(*ids[-MOST_UNFINISHED:])) if self.alphabet else 0)
        text, is_truncated = self.tokenizer.decode_target(ids[:num_whole]), len(ids) + 1 >= max_len
        is_source_truncated, *unfamiliar = about_source
        return Prediction(text, score, log_prob, tuple(ids), is_source_truncated, is_truncated, *unfamiliar)

    def annotate(self, texts: Iterable[str], predictions: Sequence[Prediction]) -> list[Annotation]:
        """Log-probability, confidence and alignment of the tokens of one prediction per text; see `forced_decoding`."""
        texts = list_texts(texts)
        rows = [row for row, text in enumerate(texts) if text.strip()]
        sources, _ = self.encode([texts[row] for row in rows])
        outputs = [list(predictions[row].ids) for row in rows]
        annotated = iter(annotate(self.model, self.tokenizer, sources, outputs, self.calibration))
        return [next(annotated) if text.strip() else Annotation() for text in texts]

    def to(self, device: str | torch.device) -> Self:
        """Move the model to a device: cpu, cuda, cuda:N or auto. Returns the predictor."""
        chosen = find_device(str(device))
        self._refuse_int8_on(chosen)
        self.model.to(chosen)
        self._engines, self._searches = {}, {}
        return self

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return self.model.output_weight.device

    def max_len(self, source: Sequence[int], decoding: DecodingConfig | None = None) -> int:
        """Most tokens of an output for `source`, including the end symbol."""
        return min((decoding or self.decoding).max_len(len(source)), self.model.config.max_len)

    @property
    def is_int8(self) -> bool:
        """Whether any matrix is multiplied in int8: `int8` asks for it, and a small model has none that gains by it."""
        return self.int8 and self._prepared_engine("float32").is_int8

    def _refuse_int8_on(self, device: torch.device) -> None:
        if self.int8 and device.type != "cpu":
            raise TransduceError("int8 is for prediction on a CPU: leave it out, or give --device cpu.")

    def _prepared_engine(self, precision: str) -> InferenceModel:
        """The model prepared for decoding: by the first thread that needs it, while others wait."""
        precision = precision if self.device.type == "cuda" else "float32"
        with _ENGINE_LOCK:
            if precision not in self._engines:
                keep_freed_memory()
                model = self.model if precision == "float32" else copy.deepcopy(self.model).to(torch.bfloat16)
                self._engines[precision] = InferenceModel(model, int8=self.int8)
            return self._engines[precision]

    def _searches_in_graphs(
        self, engine: InferenceModel, decoding: DecodingConfig, num_best: int
    ) -> StaticSearches | None:
        """The searches in graphs, if these settings and the device have any."""
        if not decoding.cuda_graph or decoding.is_sampling or not is_gpu(self.device):
            return None
        if (searches := self._searches.get((decoding, num_best))) is None:
            searches = StaticSearches(engine, self.special, decoding, num_best=num_best, alphabet=self.alphabet)
            self._searches = {(decoding, num_best): searches}
        return searches

    def _constraints_of(self, texts: Sequence[str], constraints: ConstraintsOf) -> list[Constraints]:
        """The constraints on the outputs of each text."""
        if constraints is None or isinstance(constraints, Constraints):
            return [constraints or self.constraints] * len(texts)
        given = [self.constraints if each is None else each for each in constraints]
        if len(given) != len(texts):
            raise TransduceError(f"{len(given)} constraints for {len(texts)} texts: give one for each.")
        return list_texts(given, "constraint", Constraints)

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Truncated ids of each text, with the end symbol, and whether the text was too long for the model."""
        max_len = self.model.config.max_len
        max_characters = _CHARACTERS_PER_ID * max_len
        encoded = self.tokenizer.encode_source([text[:max_characters] for text in texts])
        is_truncated = [
            len(text) > max_characters or len(ids) > max_len for text, ids in zip(texts, encoded, strict=True)
        ]
        eos_id = self.tokenizer.eos_id
        return [ids if len(ids) <= max_len else [*ids[: max_len - 1], eos_id] for ids in encoded], is_truncated

    def unfamiliar(self, texts: Sequence[str], sources: Sequence[list[int]]) -> list[tuple[tuple[str, ...], bool]]:
        """New characters of each text, and whether it is longer than nearly all sources in training."""
        if self.seen is None:
            return [((), False)] * len(texts)
        known, longest = self.seen.source_characters, self.seen.source_len
        lines = self.tokenizer.normal_source(texts)
        unseen = [tuple(sorted(set(line) - known, key=line.index)) for line in lines]
        return [
            (characters, len(ids) > longest and num_spelled_together(ids) > longest)
            for characters, ids in zip(unseen, sources, strict=True)
        ]

    def _report_unfamiliar(self, unfamiliar: Sequence[tuple[tuple[str, ...], bool]]) -> None:
        """Report each new character, and unusual length, the first time only."""
        characters, longest = {c for unseen, _ in unfamiliar for c in unseen}, self.seen and self.seen.source_len
        if new := characters - self._reported:
            self.report(f"characters never seen in training: {shown(sorted(new))}.")
        if any(is_long for _, is_long in unfamiliar) and "" not in self._reported:
            self.report(f"some sources are longer than nearly all in training (at most {longest} tokens).")
            new.add("")
        self._reported |= new

    def _rules(
        self,
        sources: Sequence[list[int]],
        constraints: Sequence[Constraints],
        max_lens: Sequence[int],
        row_numbers: Sequence[int],
        decoding: DecodingConfig,
    ) -> list[Rules]:
        """Constraints and alphabet per source; empty if there are none."""
        # The predictor's own are among them, to be refused even where there is no source.
        distinct = dict.fromkeys([self.constraints, *constraints])
        rules_by = {each: rules_of(each, decoding, self.tokenizer, self.alphabet) for each in distinct}
        rules = [rules_by[each] for each in constraints]
        for rule, max_len, number in zip(rules, max_lens, row_numbers, strict=True):
            if rule.shortest_len > max_len and (rule.prefix or rule.last_word or rule.required):
                raise TransduceError(
                    f"the prefix and required texts have {rule.shortest_len - 1} tokens, but the output for text "
                    f"{number + 1:,} may have at most {max_len - 1}: require less, or allow longer outputs."
                )
        if self.alphabet and self.seen:
            # Characters of a source that no training source had may be copied, a name for one.
            new = [set(self.tokenizer.decode_source(ids)) - self.seen.source_characters for ids in sources]
            rules = [with_characters(rule, each) if each else rule for rule, each in zip(rules, new, strict=True)]
        return [] if not self.alphabet and all(rule.is_empty for rule in rules) else rules


def _uniforms(row_numbers: list[int], sample_index: int, seed: int, length: int) -> Float[Tensor, "rows length"]:
    """Uniform random numbers in [0, 1) for each row, a function of (seed, row number, sample index)."""
    uniforms = torch.empty(len(row_numbers), length)
    for row, number in enumerate(row_numbers):
        rng = np.random.default_rng([seed, number, sample_index])
        uniforms[row] = torch.from_numpy(rng.random(length, np.float32))
    return uniforms
