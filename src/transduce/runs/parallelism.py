"""The number of processes that share the steps of a run."""

from collections.abc import Mapping
from typing import Any

import torch

from transduce.config.settings import ExperimentConfig
from transduce.data.large.prepare import LargePairs
from transduce.data.pairs import Pairs
from transduce.devices import machine
from transduce.model.config import TransformerConfig
from transduce.runs.folder import RunFolder
from transduce.text.config import NUM_FIXED_IDS
from transduce.training.config import TrainingConfig
from transduce.training.distributed import num_processes
from transduce.training.workers import usable_threads

_COUNTS = (4, 2, 1)  # powers of two, as a batch is cut into 1, 2, 4, ... equal parts
_LEAST_TOKENS = 400_000  # of a run: with fewer, it is over when the other processes have begun
_LEAST_MINUTES = 0.5
_BYTES_PER_WEIGHT = 24  # of a process: itself, gradient, two moments, average, and what is exchanged
_BYTES_PER_CHARACTER = 4  # of the pairs, whose ids every process has: an id, of a token of at least one character
_CHARACTERS_PER_TOKEN = 4  # of the longer side, by which batches count: about, both sides together
_BYTES_OF_A_PROCESS = 600_000_000  # beside: libraries, and what the layers compute
_MOST_OF_MEMORY = 0.5  # of what is free, for all of them


def choose_processes(
    config: ExperimentConfig,
    device: torch.device,
    *,
    given: int | None = None,
    saved: RunFolder | None = None,
    text: Pairs | LargePairs | None = None,
    cores: int | None = None,
    free_bytes: int | None = None,
) -> tuple[int, str]:
    """How many processes of this machine share each step, and why.

    As many as are `given`, or as the `saved` run was trained with. By default, on a CPU, one per usable core, at most
    four: processes are faster than threads, which wait for one another in every layer, and lose less where another
    program has a core. Fewer where a batch has too few parts, the run is short, or memory is: each process holds the
    model and the `text` of the training, unless that is on disk.
    """
    if given or num_processes() > 1:
        return given or 1, "as requested"
    if device.type != "cpu":
        return 1, "one process on a GPU"
    if saved:
        return processes_of(saved.facts, device), "as before the stop"
    num_characters = sum(map(len, (*text.src, *text.tgt))) if isinstance(text, Pairs) else 0
    cores = usable_threads() if cores is None else cores
    free_bytes = machine.free_memory() if free_bytes is None else free_bytes
    training = config.training
    num_parts = training.micro_batches * max(1, training.batch_tokens // training.part_tokens)
    weights = num_weights(config.model, max(NUM_FIXED_IDS, config.tokenizer.vocab_size))
    num_bytes = _BYTES_OF_A_PROCESS + _BYTES_PER_WEIGHT * weights + _BYTES_PER_CHARACTER * num_characters
    limits = {
        f"{cores} usable core{'s' * (cores > 1)}": cores,
        f"a batch of {training.batch_tokens * training.micro_batches:,} tokens (training.part_tokens = "
        f"{training.part_tokens:,})": num_parts,
        f"{free_bytes / 2**30:.1f} GiB of free memory": int(_MOST_OF_MEMORY * free_bytes / num_bytes),
        "the short run": 1 if _is_short(config.training, num_characters) else _COUNTS[0],
    }
    reason = min(limits, key=lambda name: limits[name])
    num = _count_within(limits[reason])
    return num, f"limited by {reason}" if num < _COUNTS[0] else "the maximum"


def processes_of(facts: Mapping[str, Any], device: torch.device) -> int:
    """The number of processes that a run was last trained with, by the facts it has recorded; here it may be less."""
    last = sessions_of(facts)[-1]
    return min(int(last.get("processes", 1)), machine.usable_cores()) if device.type == "cpu" else 1


def sessions_of(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The machine, processes and threads of each session of a run, by the facts it has recorded."""
    return [facts.get("started", {}), *(resumption["machine"] for resumption in facts.get("resumed", []))]


def _is_short(training: TrainingConfig, num_characters: int) -> bool:
    num_tokens = training.steps * training.batch_tokens * training.micro_batches
    if not training.steps:
        num_tokens = int(training.epochs * num_characters / _CHARACTERS_PER_TOKEN)
    return 0 < num_tokens < _LEAST_TOKENS or 0 < training.minutes < _LEAST_MINUTES


def fastest_processes(device: torch.device) -> int:
    """How many processes are fastest on this machine, whatever they train."""
    return _count_within(usable_threads()) if device.type == "cpu" else 1


def _count_within(limit: int) -> int:
    return next(count for count in _COUNTS if count <= max(1, limit))


def num_weights(model: TransformerConfig, vocab_size: int = 0) -> int:
    """About, and at most, as a vocabulary may turn out smaller; without one, of the layers alone."""
    feed_forward = model.d_model * model.d_ff * (3 if model.feed_forward == "swiglu" else 2)
    encoder = model.num_encoder_layers * (4 * model.d_model**2 + feed_forward)
    decoder = model.num_decoder_layers * (8 * model.d_model**2 + feed_forward)
    return vocab_size * model.d_model * (1 if model.tie_embeddings else 3) + encoder + decoder
