"""One sentence traced: all that a small model, which has learned to turn sentences round, makes of it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from transduce.data.batches import EncodedPairs, collate, pad_sources
from transduce.inference.attention_maps import AttentionMaps, record_attention
from transduce.learn.ledger import FAST
from transduce.learn.tasks import BOS
from transduce.learn.training import Training, small_transformer, train, written
from transduce.model import Transformer
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

SENTENCE = "the small gardener likes a birdhouse"  # one that is in no training data: see `sentence_reverser`
_NOUNS = ("dog", "cat", "bird", "horse", "teacher", "gardener", "child", "fox")
_ADJECTIVES = ("small", "old", "red", "quiet", "young")
_VERBS = ("sees", "hears", "finds", "likes", "follows")
_RARE_NOUN, _RARE_SHARE = "birdhouse", 0.08  # too rare to become one piece
_MOST_PIECES = 24


@dataclass(frozen=True)
class Reverser:
    """A tokenizer, and a model that writes the words of a sentence in reverse order."""

    tokenizer: Tokenizer
    model: Transformer
    training: Training
    num_sentences: int  # trained on
    test: tuple[str, ...]  # sentences it was not trained on

    def answer(self, sentences: list[str]) -> list[str]:
        """What it writes, greedily."""
        src = pad_sources(self.tokenizer.encode_source(sentences))
        return [self.tokenizer.decode_target(ids) for ids in written(self.model, src, _MOST_PIECES)]

    @property
    def share_right(self) -> float:
        """Of the test sentences: those whose whole answer is right."""
        answers = self.answer(list(self.test))
        return sum(a == _reversed(s) for a, s in zip(answers, self.test, strict=True)) / len(self.test)


@cache  # the notebook comes back to it
def sentence_reverser(*, fast: bool = FAST) -> Reverser:
    """Learns subwords and trains a small post-norm Transformer, as the paper has it, to reverse word by word."""
    draw, sentences = random.Random(3), dict[str, None]()
    while len(sentences) < 3_200:
        sentences[_draw_sentence(draw)] = None
    sentences.pop(SENTENCE, None)
    every = list(sentences)
    test, known = [SENTENCE, *every[:199]], every[199:]
    turned = [_reversed(sentence) for sentence in known]
    tokenizer = Tokenizer.learn(TokenizerConfig(vocab_size=360), known, turned)
    pairs = EncodedPairs(tokenizer.encode_source(known), tokenizer.encode_target(turned))

    def batch(num_rows: int, order: torch.Generator) -> Any:
        return collate(pairs, torch.randint(len(pairs), (num_rows,), generator=order).numpy())

    model = small_transformer(tokenizer.vocabulary_sizes, max_len=_MOST_PIECES + 8, num_heads=4, d_ff=256)
    training = train(model, batch, steps=150 if fast else 350, batch_size=48, learning_rate=3e-3)
    return Reverser(tokenizer, model, training, len(known), tuple(test))


@dataclass(frozen=True)
class Trace:
    """One source, all that the network makes of it, and of the answer that it writes by itself.

    `steps` has the output of every module that ran, by its name in the model, such as
    "encoder.layers.0.self_attention" or "decoder.layers.1.residual_3", without the axis of the batch.
    """

    text: str
    source: tuple[str, ...]  # names of pieces, the end included
    source_ids: tuple[int, ...]
    written: tuple[str, ...]  # what the decoder is given: begin, then the answer
    written_ids: tuple[int, ...]
    embedded: Float[Tensor, "src_len d_model"]  # rows of the embedding, times sqrt(d_model)
    positions: Float[Tensor, "src_len d_model"]  # rows of the table that are added
    steps: dict[str, Tensor]
    attention: AttentionMaps  # (heads, queries, keys)
    logits: Float[Tensor, "tgt_len num_target_ids"]
    answer: str

    @property
    def probabilities(self) -> Float[Tensor, "tgt_len num_target_ids"]:
        """Of the next token after each one."""
        return self.logits.softmax(dim=-1)

    def next_tokens(self, tokenizer: Tokenizer, position: int, count: int = 5) -> list[tuple[str, float, float]]:
        """The likeliest tokens after `position`: name, score, probability."""
        best = self.logits[position].topk(count)
        names = tokenizer.target_tokens(best.indices.tolist())
        chances = self.probabilities[position, best.indices]
        return list(zip(names, best.values.tolist(), chances.tolist(), strict=True))


@torch.no_grad()
def trace(model: Transformer, tokenizer: Tokenizer, text: str) -> Trace:
    """Writes the answer to `text`, then runs the network over source and answer once more and keeps everything."""
    model.eval()
    src = torch.tensor(tokenizer.encode_source([text]))
    answer = written(model, src, _MOST_PIECES)[0]
    tgt_in = torch.tensor([[BOS, *answer]])
    with record_outputs(model) as outputs:
        hidden = model(src, tgt_in)
    with record_attention(model) as maps:  # apart, for it projects a second time
        model(src, tgt_in)
    embedded = model.src_embedding(src)[0] * model.config.d_model**0.5
    return Trace(
        text=text,
        source=tuple(tokenizer.source_tokens(src[0].tolist())),
        source_ids=tuple(src[0].tolist()),
        written=tuple(tokenizer.target_tokens(tgt_in[0].tolist())),
        written_ids=tuple(tgt_in[0].tolist()),
        embedded=embedded,
        positions=outputs["src_positions"][0] - embedded,
        steps={name: output[0] for name, output in outputs.items()},
        attention={name: weights[0] for name, weights in maps.items()},
        logits=model.logits(hidden)[0],
        answer=tokenizer.decode_target(answer),
    )


@contextmanager
def record_outputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Fills the dictionary it gives with the output of every module that runs while it is entered.

    A module that runs a second time, as a shared embedding does, adds NAME, again.
    """
    outputs: dict[str, Tensor] = {}

    def recorder(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[f"{name}, again" if name in outputs else name] = output.detach()

        return hook

    handles = [module.register_forward_hook(recorder(name)) for name, module in model.named_modules() if name]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def live_shapes(
    model: Transformer, src: Int[Tensor, "batch src_len"], tgt_in: Int[Tensor, "batch tgt_len"]
) -> dict[str, tuple[int, ...]]:
    """The shape of what comes out of every module, by its name, and of "logits"."""
    with record_outputs(model) as outputs:
        hidden = model(src, tgt_in)
    return {name: tuple(output.shape) for name, output in outputs.items()} | {
        "src": tuple(src.shape),
        "tgt_in": tuple(tgt_in.shape),
        "logits": tuple(model.logits(hidden).shape),
    }


def _draw_sentence(draw: random.Random) -> str:
    def pick(words: tuple[str, ...]) -> str:
        return words[int(draw.random() * len(words))]

    def noun_phrase() -> list[str]:
        article = "the" if draw.random() < 0.5 else "a"
        adjective = [pick(_ADJECTIVES)] if draw.random() < 0.5 else []
        return [article, *adjective, _RARE_NOUN if draw.random() < _RARE_SHARE else pick(_NOUNS)]

    return " ".join([*noun_phrase(), pick(_VERBS), *noun_phrase()])


def _reversed(sentence: str) -> str:
    return " ".join(reversed(sentence.split(" ")))
