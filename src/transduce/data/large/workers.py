"""A few processes of this machine that do jobs for this one: asked and answered in JSON, a line each.

Plain subprocesses rather than `multiprocessing`: that would fork a process with threads in it, or run the caller's main
script a second time, and it speaks in pickles.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from transduce import errors
from transduce.errors import TransduceError

Job = dict[str, Any]


@contextmanager
def worker_processes(num: int, module: str) -> Iterator[Callable[[Iterable[Job]], Iterator[Any]]]:
    """Yields a function that gives jobs to `num` processes of `python -m MODULE` and returns their results in order.

    The first job, in order, that raises a TransduceError raises it here. All processes end with the block, and by
    themselves when this process is killed.
    """
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

    def do(job: Job) -> Any:
        process = idle.get()
        try:
            return _ask(process, job)
        finally:
            idle.put(process)

    workers = [_start(module) for _ in range(num)]
    threads = ThreadPoolExecutor(num)
    for worker in workers:
        idle.put(worker)
    try:
        yield lambda jobs: threads.map(do, jobs)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()
        threads.shutdown()
        for worker in workers:
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                assert pipe is not None
                pipe.close()


def serve(jobs: Mapping[str, Callable[..., Any]]) -> None:
    """What such a process does: the job `{"do": NAME, ...}` calls the function of that name with all the rest."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but answers goes to the other side
    for line in sys.stdin.buffer:
        job = json.loads(line)
        try:
            answer = {"result": jobs[job.pop("do")](**job)}
        except TransduceError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        except Exception:
            answer = {"error": "", "message": traceback.format_exc()}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def python_module(module: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment that run a module of this package, found where it was found here.

    Without `-P` every package would be looked for in the current folder first, and a file of that name be run.
    """
    paths = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return [sys.executable, "-P", "-m", module], os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _start(module: str) -> "subprocess.Popen[bytes]":
    command, environment = python_module(module)
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # a Ctrl-C in the terminal reaches this process alone, which ends the others
    )


def _ask(process: "subprocess.Popen[bytes]", job: Job) -> Any:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = b""
    if not line.endswith(b"\n"):
        raise TransduceError(
            f"a process that prepares the corpus came to its end early (status {process.wait()}): was it killed, or is "
            "there too little memory? Start again."
        )
    answer = json.loads(line)
    if "result" in answer:
        return answer["result"]
    if not answer["error"]:
        raise RuntimeError(answer["message"])
    raise getattr(errors, answer["error"])(answer["message"])
