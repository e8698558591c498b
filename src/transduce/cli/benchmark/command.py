"""Subcommand: benchmark train, benchmark decode."""

import argparse
import json
from pathlib import Path
from typing import Any

from transduce.cli.benchmark.decoding import measure_decoding
from transduce.cli.benchmark.tables import print_decoding_speed, print_training_speed
from transduce.cli.benchmark.training import TrainingWork, measure_training
from transduce.cli.console import open_output, print_json, refuse_missing_folder, refuse_output, report_of
from transduce.cli.export import read_test_lines
from transduce.devices.device import find_device, local_device
from transduce.inference.predictor import ignore
from transduce.runs.corpus import places_of_environment
from transduce.runs.folder import RunFolder
from transduce.runs.run import load
from transduce.training.distributed import joined
from transduce.training.workers import refuse_processes, shared


def benchmark_command(arguments: argparse.Namespace) -> int:
    refuse_missing_folder(arguments.output)
    if arguments.topic == "decode":
        refuse_output(arguments.output, arguments.source, arguments.run)
        result: dict[str, Any] | None = _measure_run(arguments)
    else:
        work = TrainingWork(
            model=arguments.model,
            data=arguments.data or "",
            steps=arguments.steps or 0,
            batch_tokens=arguments.batch_tokens,
        )
        device = local_device(find_device(arguments.device))
        given: dict[str, Any] = {"work": work, "device": device, "places": places_of_environment()}
        refuse_processes(arguments.processes, device)
        with joined(device) as alone, shared(arguments.processes, alone, measure_training, **given) as process:
            report = report_of(arguments) if process.is_main else ignore
            result = measure_training(**given, process=process, report=report)
    if result is None:  # the first process prints it
        return 0
    if arguments.output:
        with open_output(arguments.output) as file:
            file.write(json.dumps(result, indent=1).encode() + b"\n")
    show = print_decoding_speed if arguments.topic == "decode" else print_training_speed
    (print_json if arguments.json else show)(result)
    return 0


def _measure_run(arguments: argparse.Namespace) -> dict[str, Any]:
    report = report_of(arguments)
    lines = read_test_lines(RunFolder.open(Path(arguments.run)), places_of_environment(), arguments.source)
    predictor = load(arguments.run, device=arguments.device, int8=arguments.int8, report=report)
    return {"run": arguments.run, "lines_from": lines.origin} | measure_decoding(predictor, lines.sources, report)
