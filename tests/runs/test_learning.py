"""The parts together learn what can be learnt, and nothing else."""

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from transduce.data.batches import encode_pairs
from transduce.data.pairs import Pairs
from transduce.evaluation.loss import corpus_loss
from transduce.inference.config import DecodingConfig
from transduce.inference.predictor import Predictor
from transduce.model import Transformer
from transduce.model.config import TransformerConfig
from transduce.runs.folder import RunFolder
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.trainer import Trainer

LETTERS = "abcde"
MAX_LEN = 11
MODEL = TransformerConfig(
    d_model=32, d_ff=64, num_heads=2, num_encoder_layers=2, num_decoder_layers=2, dropout=0.0, norm_first=True,
    max_len=MAX_LEN,
)  # fmt: skip


def shuffled_words(lengths: list[int], seed: int = 1) -> list[str]:
    """All words of these lengths, each once."""
    words = ["".join(letters) for length in lengths for letters in product(LETTERS, repeat=length)]
    return [words[i] for i in np.random.default_rng(seed).permutation(len(words))]


def trained(src: list[str], tgt: list[str], steps: int, folder: Path) -> tuple[Transformer, Tokenizer]:
    tokenizer = Tokenizer.learn(TokenizerConfig(source="characters", target="characters"), src, tgt)
    pairs, _ = encode_pairs(tokenizer, Pairs(src, tgt, {}, [], {}), max_len=MAX_LEN)
    torch.manual_seed(1)
    model = Transformer(MODEL, tokenizer.vocabulary_sizes)
    Trainer(
        model,
        pairs,
        config=TrainingConfig(steps=steps, batch_tokens=256, label_smoothing=0.0),
        optim=OptimConfig(schedule="cosine", learning_rate=4e-3, warmup_steps=50, max_grad_norm=1.0),
        store=RunFolder.create(folder / "run", config="", tokenizer=tokenizer.to_json(), facts={}),
    ).run()
    return model, tokenizer


@pytest.mark.parametrize(
    "task", [pytest.param(lambda word: word, marks=pytest.mark.proof), lambda word: word[::-1]], ids=["copy", "reverse"]
)
def test_held_out_words_are_all_answered_right(task: Callable[[str], str], tmp_path: Path):
    words = shuffled_words([4, 5])
    held_out, seen = words[:300], words[300:]
    model, tokenizer = trained(seen, [task(word) for word in seen], 500, tmp_path)
    predictor = Predictor(model, tokenizer, DecodingConfig(beam_size=1))
    assert predictor.predict(held_out) == [task(word) for word in held_out]


def test_random_answers_are_not_learnt(tmp_path: Path):
    words = shuffled_words([5])
    answers = shuffled_words([5], seed=2)
    model, tokenizer = trained(words[300:], answers[300:], 100, tmp_path)
    held_out, _ = encode_pairs(tokenizer, Pairs(words[:300], answers[:300], {}, [], {}), max_len=MAX_LEN)
    chance = 5 * math.log(len(LETTERS)) / 6  # nats per token: five letters by chance, and an end that is certain
    assert chance - 0.02 < corpus_loss(model, held_out) < 1.1 * chance
