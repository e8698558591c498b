"""Loading of a trained run, to predict with."""

from collections.abc import Callable
from pathlib import Path

from transduce.devices.device import find_device
from transduce.inference.alphabet import Alphabet
from transduce.inference.config import DecodingConfig
from transduce.inference.predictor import Predictor
from transduce.runs.folder import RunFolder


def load(
    run: str | Path,
    *,
    device: str = "auto",
    decoding: DecodingConfig | None = None,
    int8: bool = False,
    report: Callable[[str], None] = lambda _line: None,
) -> Predictor:
    """Predictor with the best model of a run folder: `transduce.load("runs/x").predict(["a text"])`.

    It decodes by the settings of the run unless `decoding` is given. Raises MissingInputError if there is no run or no
    model yet, DamagedFileError if a byte of it has changed.
    """
    folder = RunFolder.open(Path(run))
    settings, tokenizer = folder.settings, folder.tokenizer
    model = folder.load_model(settings.model, tokenizer).to(find_device(device))
    decoding = decoding or settings.decoding
    return with_alphabet(Predictor(model, tokenizer, decoding, seen=folder.seen, int8=int8, report=report))


def with_alphabet(predictor: Predictor) -> Predictor:
    """The predictor of a run; one with no record of its characters writes whole ones at least, and reports it."""
    if not predictor.seen and (alphabet := Alphabet.of(predictor.tokenizer, None)):
        predictor.alphabet = alphabet
        predictor.report("the run has no record of the characters of its training targets: outputs may have others")
    return predictor
