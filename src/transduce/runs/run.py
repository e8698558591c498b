"""The run: a trained model as a Python object, loaded from its folder, scored and compared."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from transduce.config.settings import ExperimentConfig
from transduce.config.toml import build, to_table
from transduce.data.texts import MOST_TEXTS, iterate_texts, list_texts
from transduce.devices.device import find_device
from transduce.errors import DataError, TransduceError
from transduce.evaluation.config import GROUPED_METRICS
from transduce.inference.alphabet import Alphabet
from transduce.inference.config import DecodingConfig
from transduce.inference.constraints import Constraints
from transduce.inference.explain import explain
from transduce.inference.explain_page import Page, explanation_page
from transduce.inference.forced_decoding import Calibration, token_log_probs
from transduce.inference.predictor import ConstraintsOf, Prediction, Predictor, ignore
from transduce.runs.folder import RunFolder
from transduce.training.state import TrainerState

if TYPE_CHECKING:
    from transduce.evaluation.metrics import Comparison, Score

Names = str | Iterable[str]
References = Iterable[str] | Iterable[Iterable[str]]  # one for each source, or several lists of these


class Run(Predictor):
    """A trained run: `run("a text")` is its output, `run(texts)` a list of them.

    Any field of `DecodingConfig` can be given with a call, for that call alone: `run(texts, beam_size=1)`. Constraints
    are one or None for each text, or one for all. What `fit` measured and `train` counted are attributes of the run
    that they return, such as `scores` and `step`.
    """

    folder: RunFolder
    settings: ExperimentConfig
    model_sha256: str  # of the file of its weights, as they were read
    result: Any = None  # a FitResult, if `fit` gave this run
    state: TrainerState | None = None  # if `fit` or `train` gave it

    def __getattr__(self, name: str) -> Any:
        for part in (self.result, self.state):
            if not name.startswith("_") and hasattr(part, name):
                return getattr(part, name)
        raise AttributeError(
            f"this run has no '{name}'. What `fit` and `train` measured is an attribute of the runs that they return; "
            "to score given outputs, use log_prob(sources, targets); for a test set, evaluate(sources, references)."
        )

    def __repr__(self) -> str:
        scores = ", ".join(map(str, self.result.scores)) if self.result else ""
        with suppress(TransduceError):  # the folder may be gone, and the model be here
            validation = {} if scores else self.folder.read_model_metadata().get("validation", {})
            scores = scores or ", ".join(f"{name} {value:.4g}" for name, value in validation.items())
        size = super().__repr__().partition(": ")[2].removesuffix(">")
        return f"<Run {self.folder.path}: {size}{scores and f'; {scores}'}>"

    @overload
    def __call__(self, texts: str, *, constraints: ConstraintsOf = None, **decoding: Any) -> str: ...
    @overload
    def __call__(self, texts: Iterable[str], *, constraints: ConstraintsOf = None, **decoding: Any) -> list[str]: ...
    def __call__(self, texts: Any, *, constraints: ConstraintsOf = None, **decoding: Any) -> Any:
        """The output for a text, or those for several in their order."""
        outputs = self.predict(_several(texts), constraints, decoding=self._decoding(decoding))
        return outputs[0] if isinstance(texts, str) else outputs

    def n_best(self, texts: str | Iterable[str], n: int, *, constraints: ConstraintsOf = None, **decoding: Any) -> Any:
        """The `n` best outputs for a text, or a list of these for several: best first, with all of an `Annotation`."""
        given = list_texts(_several(texts))
        outputs = self.predict_n_best(given, n, constraints, decoding=self._decoding(decoding))
        sources = [text for text, n_best in zip(given, outputs, strict=True) for _ in n_best]
        details = map(vars, self.annotate(sources, [each for n_best in outputs for each in n_best]))
        annotated = [[replace(each, **next(details)) for each in n_best] for n_best in outputs]
        return annotated[0] if isinstance(texts, str) else annotated

    def log_prob(self, sources: str | Iterable[str], targets: Any) -> Any:
        """The natural log-probability of a given output for a source, or for each of several, its end included.

        A target given as text is scored by the ids that the tokenizer gives it, a `Prediction` by its own. For a source
        of spaces only, the empty output is certain.
        """
        given, outputs = list_texts(_several(sources), "source"), self.target_ids(_several(targets))
        if len(given) != len(outputs):
            raise DataError(f"{len(given)} sources but {len(outputs)} targets: give one target for each source.")
        log_probs = [-math.inf if ids else 0.0 for ids in outputs]
        rows = [row for row, source in enumerate(given) if source.strip()]
        encoded, _ = self.encode([given[row] for row in rows])
        of_tokens = token_log_probs(self.model, encoded, [outputs[row] for row in rows])
        for row, tokens in zip(rows, of_tokens, strict=True):
            log_probs[row] = sum(tokens)
        return log_probs[0] if isinstance(sources, str) else log_probs

    def target_ids(self, targets: Iterable[str | Prediction], *, first: int = 1) -> list[list[int]]:
        """The ids of given outputs, without the end symbol.

        Raises TransduceError, which counts them from `first`, for one that is too long for the model.
        """
        given = list_texts(targets, "target", str | Prediction)
        encoded = iter(self.tokenizer.encode_target([target for target in given if isinstance(target, str)]))
        outputs = [next(encoded)[:-1] if isinstance(target, str) else list(target.ids) for target in given]
        for number, ids in enumerate(outputs, start=first):
            if len(ids) >= (most := self.model.config.max_len):
                raise TransduceError(f"target {number:,} has {len(ids):,} tokens: it must have fewer than {most:,}.")
        return outputs

    def stream(self, texts: Iterable[str], *, constraints: Constraints | None = None, **decoding: Any) -> Iterator[str]:
        """The outputs for any number of texts, in their order, each computed when needed, in constant memory."""
        given, chosen, num_done = iterate_texts(texts), self._decoding(decoding), 0
        while block := list(islice(given, MOST_TEXTS)):
            for [best] in self.predict_n_best(block, 1, constraints, decoding=chosen, first_row=num_done):
                yield best.text
            num_done += len(block)

    def evaluate(
        self,
        sources: Iterable[str],
        references: References,
        metrics: Names | None = None,
        *,
        group_sources: bool = False,
    ) -> "list[Score]":
        """Scores of the outputs with their intervals, as the command `evaluate` computes them.

        Without `metrics`: those of the run's validation. With `group_sources`, equal sources count as one, with their
        references as alternatives.
        """
        from transduce.evaluation.evaluate import as_lists, score  # here: who only predicts needs no sacreBLEU

        own = GROUPED_METRICS if group_sources else self.settings.validation.metrics or ("bleu",)
        return score(self, *as_lists(sources, references, metrics or own), group_sources=group_sources)

    def export(self, format: str, folder: str | Path, **options: Any) -> Any:
        """Export to the new folder `folder`; returns the certificate. See `transduce.export.export` for the options."""
        return import_module("transduce.export").export(self, format, folder, **options)  # it stands above `runs`

    def save(self, folder: str | Path) -> None:
        """Copy the run to the new folder `folder`, whole or not at all, without the checkpoints to resume from."""
        import_module("transduce.export").copy_run(self.folder, Path(folder))

    def explain(self, text: str) -> Page:
        """The page that shows how the run arrives at its output for `text`; a notebook displays it, `html` has it."""
        return explanation_page(explain(self, *list_texts([text])), self.folder.path.name)

    def _decoding(self, options: dict[str, Any]) -> DecodingConfig:
        return build(DecodingConfig, to_table(self.decoding) | options)


def _several(texts: Any) -> Any:
    return [texts] if isinstance(texts, str | Prediction) else texts


def load(
    run: str | Path,
    *,
    device: str = "auto",
    decoding: DecodingConfig | None = None,
    int8: bool = False,
    report: Callable[[str], None] = ignore,
) -> Run:
    """The run in a folder, with its best model: `transduce.load("runs/x")("a text")`.

    It decodes with the run's settings unless `decoding` is given. Raises MissingInputError if there is no run or no
    model yet, DamagedFileError if a byte of it has changed.
    """
    folder = RunFolder.open(Path(run))
    settings = folder.settings
    return load_from(folder, settings, device, report, decoding=decoding or settings.decoding, int8=int8, report=report)


def load_from(
    folder: RunFolder, settings: ExperimentConfig, device: str, note: Callable[[str], None], **options: Any
) -> Run:
    """The run in an opened folder with these settings; `options` are those of a `Predictor`. Raises as `load` does.

    `note` gets what is to be known of the run, `report` among the options what predictions have to say.
    """
    tokenizer = folder.tokenizer
    model, sha256 = folder.load_model(settings.model, tokenizer)
    calibration = Calibration(**(folder.facts.get("calibration") or {}))  # of older and imported runs there is none
    run = Run(model.to(find_device(device)), tokenizer, seen=folder.seen, calibration=calibration, **options)
    write_whole_characters(run, note)
    if run.int8 and not run.is_int8:
        note("int8 changes nothing here: no matrix of this model is large enough to benefit")
    run.folder, run.settings, run.model_sha256 = folder, settings, sha256
    return run


def write_whole_characters(predictor: Predictor, report: Callable[[str], None]) -> None:
    """Keep outputs of a run without a record of its characters valid UTF-8 at least, and report that it has none."""
    if not predictor.seen and (alphabet := Alphabet.of(predictor.tokenizer, None)):
        predictor.alphabet = alphabet
        report("this run has no record of its target characters: outputs may contain others")


def compare(
    a: Predictor | str | Path, b: Predictor | str | Path, sources: Iterable[str], references: References,
    metrics: Names = ("bleu",), **options: Any,
) -> "list[Comparison]":  # fmt: skip
    """Paired significance test of two runs for each metric, as the command `compare` computes it.

    A run may be given by its folder; `options` are `method` and `seed`, as `evaluation.metrics.compare` takes them.
    """
    from transduce.evaluation.evaluate import as_lists
    from transduce.evaluation.metrics import compare

    given, sets, names = as_lists(sources, references, metrics)
    of_a, of_b = ((each if isinstance(each, Predictor) else load(each)).predict(given) for each in (a, b))
    return [compare(name, of_a, of_b, sets, **options) for name in names]
