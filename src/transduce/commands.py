"""What each verb of the command does. Answers go to standard output, everything else to standard error."""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from rich.console import Console
from rich.table import Table

from transduce import datasets
from transduce.checkpoint import RunFolder
from transduce.config import nearest
from transduce.errors import DamagedFileError, DataError, MissingInputError, TransduceError
from transduce.experiment import Surroundings, count_training_overlap, score, train
from transduce.files import read_bytes, replacing
from transduce.fitting import fit
from transduce.metrics import Score, compare
from transduce.model import PRESETS, Transformer, VocabularySizes
from transduce.monitoring import TensorBoardWriter
from transduce.predictor import Predictor, vocabulary_sizes
from transduce.reading import iterate_lines, read_lines
from transduce.settings import load_config
from transduce.stopping import Stopped
from transduce.tensor_files import average_tensors
from transduce.tokenizer import Tokenizer

Arguments = argparse.Namespace

_READ_AHEAD = 2_000  # lines of a file answered together


def run(arguments: Arguments) -> int:
    """Carries out the verb; returns the exit status."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # numbers near zero slow a CPU down a hundredfold and change nothing
    return _VERBS[arguments.verb](arguments)


def _train(arguments: Arguments) -> int:
    path = Path(arguments.config)
    overrides = [*arguments.overrides]
    if arguments.seed is not None:
        overrides += ["--training.seed", str(arguments.seed)]
    config = load_config(_utf8(path), str(path), overrides)
    run_dir = Path(arguments.run_dir or Path("runs") / path.stem)
    surroundings = _surroundings(arguments)
    if arguments.tensorboard:
        surroundings = _with_tensorboard(surroundings, run_dir)
    state = _resumable(
        lambda: train(
            config,
            run_dir,
            surroundings=surroundings,
            resume=arguments.resume,
            accept_changes=arguments.accept_changes,
            init_from=Path(arguments.init_from) if arguments.init_from else None,
        ),
        f"transduce train {path} --run-dir {run_dir} --resume",
    )
    surroundings.report(
        f"finished at step {state.step:,} after {state.seconds / 60:.1f} minutes of training; the best weights are of "
        f"step {state.best_step:,}. Try: transduce predict {run_dir}"
    )
    return 0


def _fit(arguments: Arguments) -> int:
    paths = arguments.pairs
    run_dir = Path(arguments.run_dir or Path("runs") / Path(paths[0]).name.split(".")[0])
    surroundings = _surroundings(arguments)
    result = _resumable(
        lambda: fit(
            paths,
            run_dir,
            minutes=arguments.minutes,
            seed=arguments.seed,
            resume=arguments.resume,
            surroundings=surroundings,
        ),
        f"transduce fit {' '.join(paths)} --run-dir {run_dir} --minutes {arguments.minutes:g} --resume",
    )
    found = result.as_dict()
    RunFolder.open(run_dir).write_text("score.json", json.dumps(found, indent=2) + "\n")
    if arguments.json:
        _print_json(found)
    else:
        _print_scores(result.scores, f"on {result.num_test:,} pairs that were never seen")
    surroundings.report(f"the model is in {run_dir}; try: echo '{result.example}' | transduce predict {run_dir}")
    return 0


def _predict(arguments: Arguments) -> int:
    predictor = _load(arguments, arguments.run)
    if (
        arguments.output
        and arguments.file != "-"
        and Path(arguments.output).absolute() == Path(arguments.file).absolute()
    ):
        raise TransduceError(f"-o {arguments.output} is the file that is read: give the answers another name.")
    lines, read_ahead = _lines_of(arguments.file)
    lines, sources = itertools.tee(lines)
    with _output(arguments.output) as output:
        answered = predictor.stream(lines, arguments.n_best, read_ahead=read_ahead)
        for source, answers in zip(sources, answered, strict=True):
            if arguments.json:
                row = {"source": source, "predictions": [answer.as_dict() for answer in answers]}
                text = json.dumps(row, ensure_ascii=False)
            else:
                text = "\t".join(answer.text for answer in answers)
            output.write(text.encode() + b"\n")
            if read_ahead == 1:
                output.flush()
    if predictor.num_truncated > 1:
        predictor.report(f"{predictor.num_truncated:,} sources were cut off")
    return 0


def _evaluate(arguments: Arguments) -> int:
    started = time.perf_counter()
    predictor = _load(arguments, arguments.run)
    sources, references = _references(arguments)
    folder = RunFolder.open(Path(arguments.run))
    config = load_config(folder.config, "config.toml")
    metrics = tuple(arguments.metric.split(",")) if arguments.metric else config.validation.metrics or ("bleu",)
    if arguments.group_sources and not arguments.metric:
        metrics = ("wer", "per")
    scores = score(predictor, sources, references, metrics, group_sources=arguments.group_sources)
    overlap = count_training_overlap(config, folder, sources, references[0], _surroundings(arguments))
    if arguments.json:
        _print_json(
            {
                "run": arguments.run,
                "source": arguments.source,
                "target": arguments.target,
                "scores": {found.name: found.as_dict() for found in scores},
                "num_lines": len(sources),
                "in_training_too": overlap,
                "beam_size": predictor.decoding.beam_size,
                "length_penalty": predictor.decoding.length_penalty,
                "seconds": round(time.perf_counter() - started, 2),
            }
        )
        return 0
    _print_scores(scores, f"on {len(sources):,} lines of {arguments.source}, beam {predictor.decoding.beam_size}")
    if overlap is None:
        predictor.report("the training pairs are not where they were, so nobody looked whether these are among them")
    else:
        told = ", ".join(f"{count:,} {side}" for side, count in overlap.items())
        predictor.report(f"in training too: {told}")
    return 0


def _compare(arguments: Arguments) -> int:
    sources, references = _references(arguments)
    a, b = (_load(arguments, name).predict(sources) for name in (arguments.run_a, arguments.run_b))
    found = compare(arguments.metric, a, b, references, seed=arguments.seed, method=arguments.method)
    if arguments.json:
        _print_json({"run_a": arguments.run_a, "run_b": arguments.run_b} | found.as_dict())
    else:
        print(f"A: {arguments.run_a}\nB: {arguments.run_b}\n{found}")
    return 0


def _average(arguments: Arguments) -> int:
    folder = RunFolder.open(Path(arguments.run))
    there = folder.checkpoints()
    steps = arguments.steps or there[-arguments.last :]
    missing = sorted(set(steps) - set(there))
    if missing or len(steps) < (arguments.last or 1):
        raise TransduceError(
            f"{arguments.run} has checkpoints of steps {', '.join(map(str, there)) or 'none'}: "
            f"{f'not of {missing[0]}' if missing else f'not {arguments.last} of them'}. "
            "training.keep_checkpoints says how many stay."
        )
    averaged = average_tensors(
        {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        for tensors, _ in map(folder.read_checkpoint, steps)
    )
    facts = folder.facts | {"averaged": {"run": arguments.run, "steps": steps}}
    result = RunFolder.create(Path(arguments.output), config=folder.config, tokenizer=folder.tokenizer, facts=facts)
    result.write_model(averaged, {"steps": steps, "averaged": True, "validation": {}})
    _surroundings(arguments).report(f"{arguments.output}: the mean of steps {', '.join(map(str, steps))}")
    return 0


def _describe(arguments: Arguments) -> int:
    found: dict[str, Any] = {}
    if arguments.what in PRESETS:
        config, vocabulary = PRESETS[arguments.what], VocabularySizes.joint(arguments.vocab_size)
    else:
        if not (Path(arguments.what) / "run.json").is_file():
            hint = nearest(arguments.what, list(PRESETS))
            raise MissingInputError(f"'{arguments.what}' is neither a run folder nor a preset.{hint}")
        folder = RunFolder.open(Path(arguments.what))
        config = load_config(folder.config, "config.toml").model
        vocabulary = vocabulary_sizes(Tokenizer.from_json(folder.tokenizer))
        found |= {"model_is_of": folder.read_model()[1], "facts": folder.facts}
    with torch.device("meta"):
        model = Transformer(config, vocabulary)
    found = {"name": arguments.what, "parameters": _count_parameters(model), "config": vars(config)} | found
    if arguments.json:
        _print_json(found)
        return 0
    table = Table("part", "parameters", title=arguments.what, title_justify="left")
    table.columns[1].justify = "right"
    for part, count in found["parameters"].items():
        table.add_row(part, f"{count:,}", style="bold" if part == "total" else None)
    _print_table(table)
    print(", ".join(f"{name} {value}" for name, value in found["config"].items()))
    return 0


def _data(arguments: Arguments) -> int:
    surroundings = _surroundings(arguments)
    if arguments.name is None:
        listed = datasets.list_datasets()
        if arguments.json:
            named = ("name", "task", "description", "home", "licence", "splits")
            _print_json({"datasets": [{key: getattr(found, key) for key in named} for found in listed]})
            return 0
        table = Table("name", "what", "pairs", "licence", "home")
        for found in listed:
            pairs = ", ".join(f"{split} {count:,}" for split, count in found.splits.items())
            table.add_row(found.name, found.description, pairs, found.licence, found.home)
        _print_table(table)
        return 0
    if arguments.output is None:
        raise TransduceError(f"where to? Add -o DIR: transduce data {arguments.name} -o {arguments.name}")
    written = datasets.export(
        arguments.name, Path(arguments.output), root=surroundings.data_root, cache=surroundings.data_cache
    )
    if arguments.json:
        _print_json({"name": arguments.name, "files": [str(path) for path in written]})
    for path in written:
        surroundings.report(f"wrote {path}")
    return 0


def _verify(arguments: Arguments) -> int:
    results = RunFolder.open(Path(arguments.run)).verify()
    bad = [(name, problem) for name, problem in results if problem]
    if arguments.json:
        _print_json({"run": arguments.run, "is_intact": not bad, "files": dict(results)})
    else:
        for name, problem in results:
            print(f"{name}: {problem or 'intact'}")
    return DamagedFileError.exit_status if bad else 0


_VERBS: dict[str, Callable[[Arguments], int]] = {
    "fit": _fit,
    "train": _train,
    "predict": _predict,
    "translate": _predict,
    "evaluate": _evaluate,
    "compare": _compare,
    "average": _average,
    "describe": _describe,
    "data": _data,
    "verify": _verify,
}


def _surroundings(arguments: Arguments) -> Surroundings:
    root = os.environ.get("TRANSDUCE_DATA")
    return Surroundings(
        device=arguments.device,
        data_root=Path(root) if root else None,
        report=(lambda _line: None) if arguments.quiet else (lambda line: print(line, file=sys.stderr, flush=True)),
        show_progress=not arguments.quiet,
    )


def _with_tensorboard(surroundings: Surroundings, run_dir: Path) -> Surroundings:
    try:
        return replace(surroundings, observers=(TensorBoardWriter(run_dir / "tensorboard"),))
    except ImportError:
        surroundings.report("no TensorBoard events: that needs pip install 'transduce[tensorboard]'")
        return surroundings


def _resumable(work: Callable[[], Any], how_to_go_on: str) -> Any:
    """What `work` returns; a stop that saved something says how to go on from it."""
    try:
        return work()
    except Stopped as stopped:
        if stopped.message:
            stopped.message += f" Go on with: {how_to_go_on}"
        raise


def _load(arguments: Arguments, name: str) -> Predictor:
    predictor = Predictor.load(name, device=arguments.device, report=_surroundings(arguments).report)
    options = ("beam_size", "length_penalty", "temperature", "top_k", "top_p", "seed")
    given = {option: getattr(arguments, option, None) for option in options if option in vars(arguments)}
    if arguments.verb == "compare":
        given.pop("seed")  # of the resampling there
    chosen = {option: value for option, value in given.items() if value is not None}
    predictor.decoding = replace(predictor.decoding, **chosen)
    return predictor


def _references(arguments: Arguments) -> tuple[list[str], list[list[str]]]:
    sources = read_lines(Path(arguments.source))
    references = [read_lines(Path(name)) for name in arguments.target]
    for name, lines in zip(arguments.target, references, strict=True):
        if len(lines) != len(sources):
            raise DataError(
                f"{arguments.source} has {len(sources):,} lines and {name} has {len(lines):,}: line k of one must "
                "belong to line k of the other."
            )
    return sources, references


def _count_parameters(model: Transformer) -> dict[str, int]:
    """Parameters by part; what is shared counts once, where it is first."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        words = name.split(".")
        part = words[0] if words[0] not in ("encoder", "decoder") else f"{words[0]} {_sublayer(words)}"
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts | {"total": sum(counts.values())}


def _sublayer(words: list[str]) -> str:
    if words[1] == "final_norm" or words[3].startswith("residual"):
        return "norms"
    return words[3].replace("_", "-")


def _lines_of(name: str) -> tuple[Iterable[str], int]:
    """The lines of a file or of standard input, and how many to read ahead: none when a person types them."""
    if name == "-":
        return iterate_lines(sys.stdin.buffer, "standard input"), 1 if sys.stdin.isatty() else _READ_AHEAD
    return read_lines(Path(name)), _READ_AHEAD


@contextmanager
def _output(name: str | None) -> Iterator[BinaryIO]:
    if name is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with replacing(Path(name)) as file:
            yield file


def _utf8(path: Path) -> str:
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} cannot be read.") from None


def _print_scores(scores: list[Score], about: str) -> None:
    for found in scores:
        print(f"{found}  {about}")
    for found in scores:
        print(f"  {found.name}: {found.signature}")


def _print_table(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))
