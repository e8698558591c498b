"""Settings that `fit` chooses on machines of made-up speed."""

from dataclasses import replace

import pytest
import torch

from transduce.config.settings import load_config
from transduce.config.toml import to_toml
from transduce.data.pairs import Pairs
from transduce.devices import machine
from transduce.model.config import PRESETS, TransformerConfig
from transduce.runs import sizing
from transduce.runs.sizing import Choice, choose_settings, measured_speed
from transduce.runs.tasks import find_task
from transduce.training.step import TrainStep


def sentences(num_pairs: int) -> Pairs:
    """Pairs whose targets have 40 characters: about 11 subwords with the end."""
    lines = [f"{number:010} seven words and no more of them"[:40].ljust(40, "x") for number in range(num_pairs)]
    return Pairs(lines, lines, {}, [], {})


def choice(num_pairs: int, *, minutes: float, tokens_per_second: float, device: str = "cpu") -> Choice:
    def speed(model: TransformerConfig) -> float:
        return tokens_per_second * PRESETS["tiny"].d_model / model.d_model

    return choose_settings(
        find_task("translation"),
        sentences(num_pairs),
        ["pairs.tsv"],
        minutes=minutes,
        seed=1,
        device=torch.device(device),
        speed=speed,
    )


@pytest.mark.parametrize(
    ("num_pairs", "minutes", "tokens_per_second", "width"),
    [
        (160_000, 10, 9_000, 128),  # two cores
        (160_000, 10, 700_000, 256),  # a GPU
        (29_000, 10, 700_000, 128),  # too little text for more
        (600_000, 10, 700_000, 256),  # too little time for more
        (600_000, 120, 700_000, 512),
    ],
)
def test_a_larger_model_is_taken_where_text_and_time_suffice(
    num_pairs: int, minutes: float, tokens_per_second: float, width: int
) -> None:
    config = choice(num_pairs, minutes=minutes, tokens_per_second=tokens_per_second).config
    assert config.model.d_model == width
    assert config.optim.learning_rate == pytest.approx(4e-3 * {128: 1, 256: 1 / 2, 512: 1 / 4}[width])


def test_dropout_grows_with_the_passes_over_the_text_and_the_batch_with_the_tokens() -> None:
    # 11 tokens a pair, 85 % of the time, so 5.1 million tokens in 10 minutes at this speed.
    short, long = (choice(29_000, minutes=minutes, tokens_per_second=10_000).config for minutes in (2, 60))
    assert (short.model.dropout, long.model.dropout) == (0.05, 0.3)
    assert (short.optim.weight_decay, long.optim.weight_decay) == (0.0, 0.3)
    sizes = [config.training.batch_tokens * config.training.micro_batches for config in (short, long)]
    assert sizes == [1024, 4096]
    on_gpu = choice(29_000, minutes=10, tokens_per_second=700_000, device="cuda").config.training
    assert (on_gpu.batch_tokens, on_gpu.micro_batches) == (16_384, 1)


def words(num_pairs: int, letters: str) -> Pairs:
    """Words of four of these letters and their sounds: five target tokens with the end."""
    src = [
        "".join(letters[number // len(letters) ** k % len(letters)] for k in range(4)) for number in range(num_pairs)
    ]
    return Pairs(src, [" ".join(f"s{ord(letter)}" for letter in word) for word in src], {}, [], {})


def test_a_run_that_begins_with_another_has_its_tokens_and_shape_and_a_lower_rate() -> None:
    plain = choice(29_000, minutes=10, tokens_per_second=10_000).config
    ancestor = replace(
        plain, model=replace(PRESETS["small"], max_len=200), data=replace(plain.data, max_len=200),
        tokenizer=replace(plain.tokenizer, vocab_size=777),
    )  # fmt: skip
    chosen = choose_settings(
        find_task("translation"), sentences(29_000), ["pairs.tsv"], minutes=10, seed=1, device=torch.device("cpu"),
        speed=lambda _model: 1000.0, ancestor=ancestor,
    )  # fmt: skip
    assert replace(chosen.config.model, dropout=0.0) == replace(ancestor.model, dropout=0.0)
    assert (chosen.config.tokenizer, chosen.config.data.max_len) == (ancestor.tokenizer, 200)
    assert chosen.config.optim.learning_rate == pytest.approx(4e-3 / 2 / 4)  # twice as wide, and trained already
    assert chosen.reasons["model.d_model"] == "as in the run that it starts from"


@pytest.mark.parametrize(
    ("task", "num_pairs", "made_of_others"),
    [("pronunciation", 800, (5, 1)), ("pronunciation", 18_000, (0, 0)),
     ("translation", 800, (0, 0))],
)  # fmt: skip
def test_few_words_are_recombined_and_concatenated(task: str, num_pairs: int, made_of_others: tuple[int, int]) -> None:
    # 10,000 tokens a second for 85 % of 4 minutes: 23 passes over 18,000 words of five tokens.
    chosen = choose_settings(
        find_task(task), words(num_pairs, "abcdefghijklmnopqrst"), ["pairs.tsv"], minutes=4, seed=1,
        device=torch.device("cpu"), speed=lambda _model: 10_000.0,
    )  # fmt: skip
    assert (chosen.config.data.recombinations, chosen.config.data.concatenations) == made_of_others


@pytest.mark.parametrize(
    ("letters", "form"),
    [
        ("abcdéèà", "nfc"),
        ("".join(chr(0xAC00 + 588 * first + 28 * vowel) for first in range(5) for vowel in range(6)), "nfd"),
    ],
)
def test_sources_are_taken_apart_where_that_leaves_far_fewer_symbols(letters: str, form: str) -> None:
    chosen = choose_settings(
        find_task("pronunciation"), words(900, letters), ["pairs.tsv"], minutes=4, seed=1,
        device=torch.device("cpu"), speed=lambda _model: 10_000.0,
    )  # fmt: skip
    assert form in chosen.config.tokenizer.normalize


def test_settings_are_printed_with_reasons_and_read_back_as_they_were() -> None:
    chosen = choice(29_000, minutes=10, tokens_per_second=10_000)
    text = to_toml(chosen.config, chosen.reasons)
    assert load_config(text, "pairs.toml") == chosen.config
    lines = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)
    assert lines["dropout"].split(maxsplit=1) == ["0.2", "# for about 16.0 passes over the pairs"]
    assert "  # " in lines["method"] and "  # " in lines["batch_tokens"]
    assert "#" not in lines["beta1"]
    assert all(f"\n{name.split('.')[1]} = " in text for name in chosen.reasons)


def test_the_speed_is_that_of_the_timed_steps_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, make_step = [], TrainStep.__call__

    def step(self: TrainStep, *arguments: object, **more: object) -> object:
        steps.append(torch.get_num_threads())
        return make_step(self, *arguments, **more)

    monkeypatch.setattr(TrainStep, "__call__", step)
    small = replace(PRESETS["tiny"], d_model=16, d_ff=16, num_heads=2, num_encoder_layers=1, num_decoder_layers=1)
    before, random = torch.get_num_threads(), torch.random.get_rng_state()
    speed = measured_speed(torch.device("cpu"), 2, lambda: 0.5 * max(1, len(steps)))
    num_tokens = sizing._TRIAL_ROWS * sizing._TRIAL_LEN
    assert speed(small) == pytest.approx(min(2, machine.usable_cores()) * num_tokens / 0.5)
    assert speed(small) == speed(small) and len(steps) == 1 + sizing._TRIAL_STEPS  # timed once
    assert torch.get_num_threads() == before and set(steps) == {max(1, before // 2)}
    assert torch.equal(torch.random.get_rng_state(), random)
