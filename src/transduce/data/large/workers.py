"""A few processes of this machine that encode for this one: asked and answered in JSON, with bytes behind it.

Plain subprocesses rather than `multiprocessing`: that would fork a process with threads in it, or run the caller's main
script a second time; its processes outlive the one they work for when that is killed; and it speaks in pickles.
"""

import json
import os
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import IO, Any

from transduce import errors
from transduce.data.large.jobs import Message, block_encoder
from transduce.devices.machine import child_processes


@contextmanager
def answers_in_order(
    settings: dict[str, Any], questions: Iterable[Message], *, num: int, module: str = "transduce.data.large.workers"
) -> Iterator[Iterator[Message]]:
    """Yields the answers of `num` processes, each with a `block_encoder`, to questions, which are taken as needed.

    The first question, in order, at which one raises a TransduceError raises it here. All processes end with the block,
    and by themselves when this process is killed.
    """
    alone = {"TOKENIZERS_PARALLELISM": "false"}  # every core has a process of ours
    with child_processes(module, [()] * num, stdout=subprocess.PIPE, env=alone) as workers:
        yield _answers(workers, settings, iter(questions))


def _serve() -> None:
    """The loop of a worker: reads the settings of its encoder, then answers one question after another."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but answers goes to the other side
    with suppress(EOFError, BrokenPipeError):  # the other side has ended
        encode_block = block_encoder(**_receive(sys.stdin.buffer)[0])
        while True:
            question = _receive(sys.stdin.buffer)
            try:
                answer = encode_block(*question)
            except Exception as error:
                message = str(error) if isinstance(error, errors.TransduceError) else traceback.format_exc()
                answer = {"error": type(error).__name__, "message": message}, ()
            _send(output, answer)


def _answers(workers: Sequence[Any], settings: dict[str, Any], questions: Iterator[Message]) -> Iterator[Message]:
    """From one process after the other, so that they come in order; each has one question at a time."""
    asked = deque[Any]()
    try:
        for worker, question in zip(workers, questions, strict=False):
            _send(worker.stdin, (settings, ()))
            _send(worker.stdin, question)
            asked.append(worker)
        while asked:
            worker = asked.popleft()
            answer, content = _receive(worker.stdout)
            if "error" in answer:
                raise getattr(errors, answer["error"], RuntimeError)(answer["message"])
            for question in islice(questions, 1):  # before the answer is looked at: the process need not wait
                _send(worker.stdin, question)
                asked.append(worker)
            yield answer, content
    except (BrokenPipeError, EOFError):
        raise errors.TransduceError(
            "a process that was preparing the corpus ended early: it was killed, or memory ran out. Run the command "
            "again."
        ) from None


def _send(stream: IO[bytes], message: Message) -> None:
    value, content = message
    stream.write(json.dumps([value, [len(part) for part in content]]).encode() + b"\n")
    stream.writelines(content)
    stream.flush()


def _receive(stream: IO[bytes]) -> Message:
    """Raises EOFError unless all of it came."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    value, sizes = json.loads(line)
    content = [stream.read(size) for size in sizes]
    if [len(part) for part in content] != sizes:
        raise EOFError
    return value, content


if __name__ == "__main__":
    _serve()
