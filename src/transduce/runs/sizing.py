"""Settings of `fit`: the tokens, the model and its training, sized to the pairs, the time and the machine."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unicodedata import is_normalized, normalize

import numpy as np
import torch

from transduce.config.settings import ExperimentConfig
from transduce.data.batches import EncodedPairs
from transduce.data.config import DataConfig
from transduce.data.pairs import Pairs
from transduce.devices import machine
from transduce.devices.cpu import num_threads
from transduce.evaluation.config import ValidationConfig
from transduce.model.config import PRESETS, TransformerConfig, VocabularySizes
from transduce.model.transformer import Transformer
from transduce.runs.device_choice import settled
from transduce.runs.parallelism import num_weights
from transduce.runs.tasks import Task
from transduce.text.config import NUM_FIXED_IDS, Kind, TokenizerConfig
from transduce.text.normal_form import Form
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.step import TrainStep
from transduce.training.workers import threads_of_each

Speed = Callable[[TransformerConfig], float]  # of a model, in target tokens of training per second

_NEARLY_ALL = 99.9  # per cent of the pairs are to be trained on however long they are,
_LONGEST = 4096  # up to so many tokens
_LETTERS_PER_SUBWORD = 4
_FAR_FEWER = 0.5
_SHARE_TRAINING = 0.85  # of the time; the rest goes into reading, validating and saving
# A larger model pays where it sees so many target tokens for each weight of its layers, and where the text has one for
# so many of them. (The paper's base model saw 57 and had less than one; the recipes here have up to four.)
_TOKENS_SEEN_PER_WEIGHT, _MOST_WEIGHTS_PER_TOKEN = 20, 8
_NUM_STEPS = 2500  # about: with fewer the weights are not there yet, with more a larger batch has steadier gradients
_TOKENS_PER_STEP = (1024, 4096, 16_384)  # at least; at most on a CPU, and on a GPU
_DROPOUT_BY_PASSES = ((6, 0.05), (15, 0.1), (40, 0.2), (math.inf, 0.3))  # over the text, up to so many
_WEIGHT_DECAY, _PASSES_OF_DECAY = 0.3, 15  # against overfitting, from so many passes on
# Pairs made of others, for sides that run in parallel, and of these end to end, where there are so many passes.
_PASSES_OF_FEW, _RECOMBINATIONS, _CONCATENATIONS = 60, 5, 1
_PART_TOKENS = 512
_TRIAL_STEPS, _TRIAL_LEN, _TRIAL_IDS = 2, 32, 2000
_TRIAL_ROWS, _TRIAL_ROWS_GPU = 32, 512
_RATE_TIMES_WIDTH = 0.512  # a learning rate of 0.004 for the tiny model
_FINE_TUNING = 0.25  # of the rate, for weights that are trained already


class Choice(NamedTuple):
    """Settings, and why those that were chosen are as they are, by their dotted names."""

    config: ExperimentConfig
    reasons: Mapping[str, str]


def choose_settings(
    task: Task,
    train_pairs: Pairs,
    paths: Sequence[str | Path],
    *,
    minutes: float,
    seed: int,
    device: torch.device,
    speed: Speed,
    ancestor: ExperimentConfig | None = None,
) -> Choice:
    """Settings that suit the task, the pairs, the time and the `speed` of the machine.

    Tokens and shape of the model are those of the `ancestor`, if the run begins with the weights of one.
    """
    tokenizer = ancestor.tokenizer if ancestor else _tokenizer_settings(task, train_pairs)
    num_tokens, seconds = _count_tokens(train_pairs.tgt, tokenizer.target), _SHARE_TRAINING * 60 * minutes
    preset = _preset_for(num_tokens, seconds, speed)
    shape = ancestor.model if ancestor else replace(PRESETS[preset], norm_first=True, positions="rotary")
    num_seen = seconds * speed(shape)
    passes = num_seen / num_tokens
    are_few = task.is_parallel and passes >= _PASSES_OF_FEW
    tokens_per_step = _tokens_per_step(num_seen, device)
    micro_batches = 1 if device.type == "cuda" else 2  # of different lengths: steadier gradients
    max_len = _longest(train_pairs)
    model = replace(
        shape,
        dropout=next(dropout for most, dropout in _DROPOUT_BY_PASSES if passes < most),
        max_len=ancestor.model.max_len if ancestor else max(TransformerConfig.max_len, max_len),
    )
    config = ExperimentConfig(
        data=DataConfig(
            train=tuple(map(str, paths)),
            max_len=min(max_len, model.max_len),
            recombinations=_RECOMBINATIONS if are_few else 0,
            concatenations=_CONCATENATIONS if are_few else 0,
        ),
        tokenizer=tokenizer,
        model=model,
        optim=_optim_settings(_RATE_TIMES_WIDTH / model.d_model * (_FINE_TUNING if ancestor else 1), passes),
        training=TrainingConfig(
            minutes=minutes,
            batch_tokens=tokens_per_step // micro_batches,
            micro_batches=micro_batches,
            part_tokens=_PART_TOKENS,
            seed=seed,
        ),
        # The score is what the model is for; the least loss comes long before it where there are few pairs.
        validation=ValidationConfig(
            metrics=task.metrics, best=task.metrics[0], ties_by_loss=True, group_sources=task.group_sources
        ),
    )
    reasons = _reasons(config, task, preset, num_tokens, num_seen)
    if ancestor:
        inherited = [name for name in reasons if name.startswith(("tokenizer.", "model.")) and name != "model.dropout"]
        reasons |= dict.fromkeys(inherited, "as in the run that it starts from")
        reasons["optim.learning_rate"] = "low, because the weights are already trained"
    return Choice(config, reasons)


def measured_speed(device: torch.device, num: int, clock: Callable[[], float] = time.perf_counter) -> Speed:
    """The speed of `num` processes at once, by timing a few steps of one on random ids; 0 if a GPU cannot do them."""
    num_rows = _TRIAL_ROWS_GPU if device.type == "cuda" else _TRIAL_ROWS
    random = np.random.default_rng(0)
    rows = [random.integers(NUM_FIXED_IDS, _TRIAL_IDS, _TRIAL_LEN).tolist() for _ in range(num_rows)]
    pairs, batch = EncodedPairs(rows, rows), [np.arange(num_rows)]

    @cache
    def speed(model: TransformerConfig) -> float:
        config = ExperimentConfig(
            data=DataConfig(dataset="trial"),
            model=model,
            optim=OptimConfig(method="muon", learning_rate=1e-3),
            training=TrainingConfig(steps=_TRIAL_STEPS, batch_tokens=num_rows * _TRIAL_LEN, part_tokens=_PART_TOKENS),
        )
        training = settled(config, torch.cuda.get_device_capability(device) if device.type == "cuda" else None)
        seconds = math.inf
        with suppress(RuntimeError), torch.random.fork_rng(devices=[]), num_threads(threads_of_each(num)):
            network = Transformer(model, VocabularySizes.joint(_TRIAL_IDS)).to(device)
            step = TrainStep(network, config=training, optim=config.optim)
            step(pairs, batch, 1).read()  # slower than any other
            started = clock()
            for number in range(_TRIAL_STEPS):
                step(pairs, batch, number + 2).read()
            seconds = max(clock() - started, 1e-6)
        return min(num, machine.usable_cores()) * _TRIAL_STEPS * num_rows * _TRIAL_LEN / seconds

    return speed


def _tokenizer_settings(task: Task, pairs: Pairs) -> TokenizerConfig:
    source, target = task.token_kind_of(pairs.src), task.token_kind_of(pairs.tgt)
    num_characters = sum(map(len, pairs.src)) + sum(map(len, pairs.tgt))
    return TokenizerConfig(
        source=source,
        target=target,
        joint=source == target,
        # Heaps' law: the number of useful subwords grows about as the square root of the text's length.
        vocab_size=min(8000, max(600, 100 * round(3.3 * math.sqrt(num_characters) / 100))),
        **_normal_forms(pairs, source),
    )


def _optim_settings(learning_rate: float, passes: float) -> OptimConfig:
    return OptimConfig(
        method="muon",
        schedule="linear",
        learning_rate=learning_rate,
        warmup_steps=200,
        max_grad_norm=1.0,
        ema_decay=0.995,
        weight_decay=_WEIGHT_DECAY if passes >= _PASSES_OF_DECAY else 0.0,
    )


def _longest(pairs: Pairs) -> int:
    """At most so many tokens have nearly all pairs: as many as characters, and an end."""
    lens = [max(map(len, pair)) + 1 for pair in zip(pairs.src, pairs.tgt, strict=True)]
    return min(_LONGEST, max(DataConfig.max_len, int(np.percentile(lens, _NEARLY_ALL, method="lower"))))


def _count_tokens(lines: Sequence[str], kind: str) -> int:
    """About how many tokens they are, with the end of each line."""
    if kind == "words":
        return sum(len(line.split()) + 1 for line in lines)
    num_characters = sum(map(len, lines))
    return len(lines) + (num_characters if kind == "characters" else num_characters // _LETTERS_PER_SUBWORD)


def _preset_for(num_tokens: int, seconds: float, speed: Speed) -> str:
    """The largest model for which the text and the time suffice."""
    for name in ("base", "small"):
        weights = num_weights(PRESETS[name])
        needed = _TOKENS_SEEN_PER_WEIGHT * weights / seconds
        # That of the tiny model first, as a trial of a large one may take long.
        if weights <= _MOST_WEIGHTS_PER_TOKEN * num_tokens and all(
            speed(PRESETS[each]) >= needed for each in ("tiny", name)
        ):
            return name
    return "tiny"


def _reasons(config: ExperimentConfig, task: Task, preset: str, num_tokens: int, num_seen: float) -> dict[str, str]:
    tokenizer, passes = config.tokenizer, f"{num_seen / num_tokens:,.1f}"
    learned = f"about {num_tokens:,} target tokens, each seen {passes} times in this time on this machine"
    return {
        "data.max_len": "nearly all pairs fit",
        "data.recombinations": "pairs are few, so more are made from them" if config.data.recombinations else "",
        "tokenizer.source": f"{task.name}: {task.form}",
        "tokenizer.normalize": "removes differences that do not matter in a source",
        "tokenizer.vocab_size": "suits the amount of text" if "bpe" in (tokenizer.source, tokenizer.target) else "",
        "model.d_model": f"the {preset} model: {learned}",
        "model.dropout": f"for about {passes} passes over the pairs",
        "model.positions": "learns faster than sinusoids",
        "model.norm_first": "allows a higher learning rate",
        "optim.method": "learns faster than Adam",
        "optim.ema_decay": "the average over the last steps is better than any one of them",
        "optim.weight_decay": "against overfitting" if config.optim.weight_decay else "",
        "training.batch_tokens": f"for about {_NUM_STEPS:,} steps",
        "training.part_tokens": "so that several processes have work in each batch",
        "validation.best": "the metric of the task",
    }


def _tokens_per_step(num_seen: float, device: torch.device) -> int:
    """Batch size: a power of two, for about _NUM_STEPS steps."""
    least, most_cpu, most_gpu = _TOKENS_PER_STEP
    wanted = 2 ** round(math.log2(max(1.0, num_seen / _NUM_STEPS)))
    return min(max(least, wanted), most_gpu if device.type == "cuda" else most_cpu)


def _normal_forms(pairs: Pairs, source: Kind) -> dict[str, tuple[Form, ...]]:
    """Forms of both sides: letters and marks, or the parts of a Hangul syllable, as one symbol or apart.

    On the target as most targets have them; on a source of characters apart where that leaves far fewer symbols, as
    each of them is then seen more often.
    """
    is_lower = all(line == line.lower() for line in pairs.src) and any(line.islower() for line in pairs.src)
    num_other = {form: sum(not is_normalized(form, line) for line in pairs.tgt) for form in ("NFC", "NFD")}
    num_symbols = {form: len(set(normalize(form, "".join(pairs.src)))) for form in ("NFC", "NFD")}
    is_apart = source == "characters" and num_symbols["NFD"] <= _FAR_FEWER * num_symbols["NFC"]
    forms: tuple[Form, ...] = ("nfd" if is_apart else "nfc", "strip")
    return {
        "normalize": ("lower", *forms) if is_lower else forms,
        "normalize_target": ("nfd",) if num_other["NFD"] < num_other["NFC"] else (),
    }
