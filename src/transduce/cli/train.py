"""Subcommands: fit, train, prepare."""

import argparse
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from transduce.cli.console import print_json, print_scores, refuse_other_encoding, report_of
from transduce.cli.environment import waiting_reported
from transduce.cli.line_notes import MOST_NAMED, named_lines
from transduce.cli.settings import read_config
from transduce.cli.tensorboard import TensorBoardWriter
from transduce.config.settings import load_config
from transduce.config.toml import to_table, to_toml
from transduce.data.batches import PreparedPairs
from transduce.data.large.prepare import LargePairs
from transduce.runs.corpus import learn_and_encode, places_of_environment, read_corpus
from transduce.runs.fit import fit, plan_fit
from transduce.runs.folder import RunFolder
from transduce.runs.train import train
from transduce.training.distributed import Process
from transduce.training.signals import Stopped

_HARDLY_USABLE = 10  # BLEU


def fit_command(arguments: argparse.Namespace) -> int:
    paths = arguments.pairs
    refuse_other_encoding(*paths, *(arguments.valid or ()), *(arguments.test or ()))
    run_dir = Path(arguments.run_dir or Path("runs") / Path(paths[0]).name.lstrip(".").split(".")[0])
    report = report_of(arguments)
    names = ("valid", "test", "init_from", "task", "minutes", "seed", "resume", "device", "processes")
    options = {name: getattr(arguments, name) for name in names} | {"report": report}
    if arguments.dry_run:
        plan = plan_fit(paths, run_dir, **options)
        print_json(to_table(plan.config)) if arguments.json else print(plan.to_toml(), end="")
        return 0
    with _with_resume_hint(arguments, run_dir):
        result = fit(paths, run_dir, **options, show_progress=not arguments.quiet)
    if arguments.json:
        print_json(result.as_dict())
    else:
        print_scores(result.scores, f"on {result.num_test:,} held-out pairs", with_signatures=False)
    if any(score.name.startswith("bleu") and score.value < _HARDLY_USABLE for score in result.scores):
        report(f"BLEU below {_HARDLY_USABLE}: these outputs are hardly usable. More pairs and more --minutes help.")
    if lines := result.truncated_outputs:
        named = named_lines(lines[:MOST_NAMED], len(lines))
        report(
            f"outputs truncated at the maximum length: {len(lines):,} of {result.num_test:,} ({named} of test.source)"
        )
    example = f"echo {shlex.quote(result.example)} | transduce predict {shlex.quote(str(run_dir))}"
    report(f"model saved to {run_dir}. Next: {example}")
    return 0


def train_command(arguments: argparse.Namespace) -> int:
    path = Path(arguments.config)
    overrides = [*arguments.overrides]
    if arguments.seed is not None:
        overrides += ["--training.seed", str(arguments.seed)]
    config = load_config(read_config(path), str(path), overrides)
    if arguments.print_config:
        print(to_toml(config), end="")
        return 0
    refuse_other_encoding(*config.data.train, *config.data.valid, *config.data.more)
    run_dir = Path(arguments.run_dir or Path("runs") / path.stem)
    report = report_of(arguments)
    has_valid = bool(config.data.valid or config.data.dataset)
    if not has_valid:
        report("no validation pairs (data.valid): nothing will be scored, and the last weights are kept")
    if arguments.init_from:
        names = [word.partition("=")[0] for word in overrides if word.startswith(("--model.", "--tokenizer."))]
        if ignored := ", ".join(name for name in names if name != "--model.dropout"):
            report(f"{ignored}: ignored, because tokenizer and model come from {arguments.init_from}")
    waiting = waiting_reported(report_of(arguments, of_every_process=True))
    with waiting, _with_resume_hint(arguments, run_dir), _tensorboard(arguments, run_dir, report) as observers:
        state = train(
            config,
            run_dir,
            resume=arguments.resume,
            accept_changes=arguments.accept_changes,
            init_from=arguments.init_from,
            device=arguments.device,
            processes=arguments.processes,
            places=places_of_environment(),
            report=report,
            observers=observers,
            show_progress=not arguments.quiet,
        )
    patience = config.training.patience
    why = f" (patience: {patience} validations without improvement)" * (0 < patience <= state.num_bad_validations)
    kept = f"the best weights are from step {state.best_step:,}" if has_valid else "the last weights were kept"
    report(
        f"finished at step {state.step:,}{why} after {state.seconds / 60:.1f} minutes of training; {kept}. Try: "
        f"transduce predict {shlex.quote(str(run_dir))}"
    )
    return 0


def prepare_command(arguments: argparse.Namespace) -> int:
    path = Path(arguments.config)
    config = load_config(read_config(path), str(path), arguments.overrides)
    report = report_of(arguments)
    tokenizer = RunFolder.open(Path(arguments.init_from)).tokenizer if arguments.init_from else None
    corpus = read_corpus(config.data, places_of_environment(), report)
    if isinstance(corpus.train, LargePairs):
        encoded = learn_and_encode(
            config, corpus, tokenizer, Process(), report=report, show_progress=not arguments.quiet
        )
        assert isinstance(encoded.pairs, PreparedPairs)
        file = encoded.pairs.file
        result: dict[str, Any] = {"path": str(file.path), "bytes": file.num_bytes} | vars(file.manifest)
    else:
        report("these pairs fit in memory: `train` reads them directly, and nothing needs preparing")
        result = {"path": None}
    if arguments.json:
        print_json(result)
    return 0


@contextmanager
def _tensorboard(
    arguments: argparse.Namespace, run_dir: Path, report: Callable[[str], None]
) -> Iterator[list[TensorBoardWriter]]:
    """The observers of training: TensorBoard's writer, if asked for, closed however training ends."""
    writer: TensorBoardWriter | None = None
    if arguments.tensorboard:
        try:
            writer = TensorBoardWriter(run_dir / "tensorboard", report)
        except ImportError:
            report("no TensorBoard events: they need pip install 'transduce[tensorboard]'")
    with closing(writer) if writer else nullcontext():
        yield [writer] if writer else []


@contextmanager
def _with_resume_hint(arguments: argparse.Namespace, run_dir: Path) -> Iterator[None]:
    """Adds to the message of a stop, once there is a run, the command that resumes it: the same one, with --resume."""
    try:
        yield
    except KeyboardInterrupt as stop:  # a second Ctrl-C is no more than that
        stopped = stop if isinstance(stop, Stopped) else Stopped(signal.SIGINT)
        if stopped.message or (run_dir / "run.json").exists():
            program = ["transduce"]
            if world_size := os.environ.get("LOCAL_WORLD_SIZE"):  # set by torchrun alone
                program = ["torchrun", f"--nproc-per-node={world_size}", "-m", "transduce"]
            command = program + arguments.words + ["--resume"] * (not arguments.resume)
            stopped.message = f"{stopped.message or 'stopped.'} Continue with: {shlex.join(command)}"
        raise stopped from None
