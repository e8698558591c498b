"""Subcommands: fit, train, prepare."""

import argparse
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from transduce.cli.console import print_json, print_scores, read_utf8, report_of
from transduce.cli.processes import spawn
from transduce.cli.tensorboard import TensorBoardWriter
from transduce.config.settings import load_config
from transduce.runs.corpus import places_of_environment, prepare
from transduce.runs.fit import fit
from transduce.runs.folder import RunFolder
from transduce.runs.train import train
from transduce.training.distributed import num_processes
from transduce.training.signals import Stopped

Arguments = argparse.Namespace


def fit_command(arguments: Arguments) -> int:
    paths = arguments.pairs
    run_dir = Path(arguments.run_dir or Path("runs") / Path(paths[0]).name.split(".")[0])
    report = report_of(arguments)
    with _telling_how_to_go_on(arguments):
        result = fit(
            paths,
            run_dir,
            task=arguments.task,
            minutes=arguments.minutes,
            seed=arguments.seed,
            resume=arguments.resume,
            device=arguments.device,
            report=report,
            show_progress=not arguments.quiet,
        )
    if arguments.json:
        print_json(result.as_dict())
    else:
        print_scores(result.scores, f"on {result.num_test:,} pairs that were never seen")
    example = f"echo {shlex.quote(result.example)} | transduce predict {shlex.quote(str(run_dir))}"
    report(f"the model is in {run_dir}; try: {example}")
    return 0


def train_command(arguments: Arguments) -> int:
    path = Path(arguments.config)
    overrides = [*arguments.overrides]
    if arguments.seed is not None:
        overrides += ["--training.seed", str(arguments.seed)]
    config = load_config(read_utf8(path), str(path), overrides)
    if arguments.processes > 1 and num_processes() == 1:  # after the settings: a mistake in them is told at once
        return spawn(arguments.processes, arguments.words)
    run_dir = Path(arguments.run_dir or Path("runs") / path.stem)
    report = report_of(arguments)
    with _telling_how_to_go_on(arguments), _tensorboard(arguments, run_dir, report) as observers:
        state = train(
            config,
            run_dir,
            resume=arguments.resume,
            accept_changes=arguments.accept_changes,
            init_from=arguments.init_from,
            device=arguments.device,
            places=places_of_environment(),
            report=report,
            observers=observers,
            show_progress=not arguments.quiet,
        )
    report(
        f"finished at step {state.step:,} after {state.seconds / 60:.1f} minutes of training; the best weights are of "
        f"step {state.best_step:,}. Try: transduce predict {run_dir}"
    )
    return 0


def prepare_command(arguments: Arguments) -> int:
    path = Path(arguments.config)
    config = load_config(read_utf8(path), str(path), arguments.overrides)
    report = report_of(arguments)
    tokenizer = RunFolder.open(Path(arguments.init_from)).tokenizer if arguments.init_from else None
    found = prepare(config, tokenizer, places_of_environment(), report=report, show_progress=not arguments.quiet)
    if found is None:
        report("these pairs fit into memory: `train` reads them in a moment, nothing needs preparing")
    if arguments.json:
        folder = {"path": str(found.path), "bytes": found.num_bytes} | vars(found.manifest) if found else {"path": None}
        print_json(folder)
    return 0


@contextmanager
def _tensorboard(
    arguments: Arguments, run_dir: Path, report: Callable[[str], None]
) -> Iterator[list[TensorBoardWriter]]:
    """TensorBoard's writer among the observers, if asked for; its file is closed however training ends."""
    if not arguments.tensorboard:
        yield []
        return
    try:
        writer = TensorBoardWriter(run_dir / "tensorboard")
    except ImportError:
        report("no TensorBoard events: that needs pip install 'transduce[tensorboard]'")
        yield []
        return
    with closing(writer):
        yield [writer]


@contextmanager
def _telling_how_to_go_on(arguments: Arguments) -> Iterator[None]:
    """A stop that saved something names the command that goes on from it: the same one, with --resume."""
    try:
        yield
    except Stopped as stopped:
        if stopped.message:
            here = os.environ.get("LOCAL_WORLD_SIZE")  # set by torchrun alone
            program = ["torchrun", f"--nproc-per-node={here}", "-m", "transduce"] if here else ["transduce"]
            command = program + arguments.words + ["--resume"] * (not arguments.resume)
            stopped.message += f" Go on with: {shlex.join(command)}"
        raise
