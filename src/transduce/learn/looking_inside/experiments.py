"""Inside a small trained model: what its heads look at, which of them can go, when the right token comes up."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from transduce.data.batches import Batch, collate
from transduce.inference.attention_maps import record_attention
from transduce.inference.config import DecodingConfig
from transduce.inference.predictor import Predictor
from transduce.learn.ledger import FAST
from transduce.learn.tasks import PAD
from transduce.learn.training import Training, small_transformer, token_accuracy, train
from transduce.learn.training_recipe.experiments import Words, words
from transduce.model import MultiHeadAttention, Transformer

_OFFSETS = {"the one before": -1, "itself": 0, "the next one": 1}
Head = tuple[str, int]  # name of an attention in the model, number of the head
Change = Callable[[MultiHeadAttention, int], AbstractContextManager[None]]  # of one head, undone at the end


@dataclass(frozen=True)
class Pronouncer:
    """A model that says how words are pronounced, and words it has never seen."""

    data: Words
    model: Transformer
    training: Training

    @cached_property
    def batch(self) -> Batch:
        """All the words it has never seen."""
        return collate(self.data.valid, np.arange(len(self.data.valid)))

    @cached_property
    def predictor(self) -> Predictor:
        return Predictor(self.model, self.data.tokenizer, DecodingConfig(beam_size=1))

    @cached_property
    def attention(self) -> dict[str, Float[Tensor, "batch heads queries keys"]]:
        """Weights of every attention while it is told the right phonemes."""
        with torch.no_grad(), record_attention(self.model) as maps:
            self.model(*self.batch.inputs)
        return maps

    def tokens(self, word: str) -> tuple[list[str], list[str]]:
        """Names of what the encoder and the decoder are given."""
        row, names = self.data.valid_words.index(word), self.data.tokenizer
        letters, phonemes = ([i for i in ids[row].tolist() if i != PAD] for ids in self.batch.inputs)
        return names.source_tokens(letters), names.target_tokens(phonemes)

    def maps(self, word: str) -> dict[str, Float[Tensor, "heads queries keys"]]:
        """The weights of every attention for one word, without padding."""
        row, (letters, phonemes) = self.data.valid_words.index(word), map(len, self.tokens(word))
        found = {}
        for name, weights in self.attention.items():
            queries = letters if name.startswith("encoder") else phonemes
            keys = phonemes if name.startswith("decoder") and "self" in name else letters
            found[name] = weights[row, :, :queries, :keys]
        return found

    def accuracy(self) -> float:
        """Share of phonemes, ends included, that are likeliest when those before are told."""
        return token_accuracy(self.model, self.batch)

    @cached_property
    def is_real(self) -> Tensor:
        return self.batch.tgt_out != PAD


def pronouncer(*, fast: bool = FAST) -> Pronouncer:
    """Two layers on each side, four heads in each attention, post-norm; learns short words of CMUdict.

    All experiments look into the same one: it is trained once.
    """
    return _pronouncer(fast)


@cache
def _pronouncer(fast: bool) -> Pronouncer:
    data = words(1_500, 100) if fast else words(24_000, 400)
    model = small_transformer(data.tokenizer.vocabulary_sizes, dropout=0.0)
    pairs = data.train

    def draw(num_rows: int, random: torch.Generator) -> Batch:
        return collate(pairs, torch.randint(len(pairs), (num_rows,), generator=random).numpy())

    training = train(model, draw, steps=150 if fast else 1_200, batch_size=64, learning_rate=3e-3)
    return Pronouncer(data, model, training)


@dataclass(frozen=True)
class Roles:
    """What each head of the encoder gives to the letter before, to the same one and to the next, on average."""

    shares: dict[Head, dict[str, float]]
    entropy: dict[Head, float]  # of its rows, in bits; of all attentions

    @property
    def sharpest(self) -> float:
        """The largest share that any head gives to one place beside its query."""
        return max(max(of_head.values()) for of_head in self.shares.values())


def roles(*, fast: bool = FAST) -> Roles:
    """Reads the heads of the encoder off their maps (after Voita et al. 2019)."""
    found = pronouncer(fast=fast)
    shares: dict[Head, dict[str, float]] = {}
    entropy: dict[Head, float] = {}
    for name, maps in found.attention.items():
        rows = found.batch.src != PAD if name.startswith("encoder") else found.is_real
        for number in range(maps.size(1)):
            weights = maps[:, number]
            bits = -(weights * weights.clamp(min=1e-9).log2()).sum(dim=-1)
            entropy[name, number] = float(bits[rows].mean())
            if name.startswith("encoder"):
                shares[name, number] = {
                    place: _mean_beside(weights, rows, offset) for place, offset in _OFFSETS.items()
                }
    return Roles(shares, entropy)


def _mean_beside(weights: Float[Tensor, "batch queries keys"], rows: Tensor, offset: int) -> float:
    """Mean weight that a query gives to the place `offset` from its own, where there is one."""
    diagonal = weights.diagonal(offset=offset, dim1=1, dim2=2)
    first = max(0, -offset)
    is_there = rows[:, first : first + diagonal.size(1)]
    if offset > 0:
        is_there = is_there & rows[:, offset : offset + diagonal.size(1)]
    return float(diagonal[is_there].mean())


@dataclass(frozen=True)
class Alignment:
    """Where cross-attention looks while it writes: the heads of the last layer together."""

    forward: float  # share of steps at which the place it looks at most is not left of the one before
    shuffled: float  # the same if the steps of each word are put in random order
    centre: Float[Tensor, "steps two"]  # how far through the word it writes, and how far through it looks: 0 to 1


def alignment(*, fast: bool = FAST) -> Alignment:
    """English is written from left to right, and said in that order: does cross-attention go that way?"""
    found = pronouncer(fast=fast)
    random = np.random.default_rng(1)
    steps, mixed, places = [], [], []
    for _, weights in _letters_by_phoneme(found):
        num_phonemes, num_letters = weights.shape
        where = weights.argmax(dim=1).numpy()
        steps.append(np.diff(where) >= 0)
        mixed.append(np.diff(random.permutation(where)) >= 0)
        centres = (weights / weights.sum(dim=1, keepdim=True)) @ torch.arange(num_letters).float()
        written = np.linspace(0, 1, num_phonemes)
        places += list(zip(written, (centres / max(1, num_letters - 1)).tolist(), strict=True))
    return Alignment(float(np.concatenate(steps).mean()), float(np.concatenate(mixed).mean()), torch.tensor(places))


def _letters_by_phoneme(found: Pronouncer) -> Iterator[tuple[int, Float[Tensor, "phonemes letters"]]]:
    """Row of the batch, and the weights of its last cross-attention, all heads together, without the two ends."""
    last = f"decoder.layers.{found.model.config.num_decoder_layers - 1}.cross_attention"
    mean = found.attention[last].mean(dim=1)  # (B, T, S)
    for row, (src, is_real) in enumerate(zip(found.batch.src, found.is_real, strict=True)):
        yield row, mean[row, : int(is_real.sum()) - 1, : int((src != PAD).sum()) - 1]


@dataclass(frozen=True)
class Needed:
    """How often each guess names the letter without which the phoneme suffers most, as a share of all phonemes."""

    looked_at: float  # the letter that cross-attention looks at most
    straight_line: float  # the letter as far through the word as the phoneme is through the answer
    any_letter: float  # one at random

    @property
    def gain(self) -> float:
        return self.looked_at - self.straight_line


@torch.no_grad()
def needed(*, fast: bool = FAST) -> Needed:
    """Hides one letter at a time from cross-attention, and sees which phonemes become less likely, and how much."""
    found = pronouncer(fast=fast)
    log_probs = _of_the_right_phonemes(found)
    most_letters = found.batch.src.size(1) - 1
    loss = torch.stack([log_probs - _hiding(found, letter) for letter in range(most_letters)], dim=-1)  # (B, T, S)
    hits = []
    for row, weights in _letters_by_phoneme(found):
        num_phonemes, num_letters = weights.shape
        worst = loss[row, :num_phonemes, :num_letters].argmax(dim=1)
        line = torch.linspace(0, num_letters - 1, num_phonemes).round()
        right = [(guess == worst).float().mean().item() for guess in (weights.argmax(dim=1), line)]
        hits += [(*right, 1 / num_letters)] * num_phonemes
    return Needed(*np.mean(hits, axis=0).tolist())


def _of_the_right_phonemes(found: Pronouncer) -> Float[Tensor, "batch tgt_len"]:
    scores = found.model.logits(found.model(*found.batch.inputs)).log_softmax(dim=-1)
    return scores.gather(-1, found.batch.tgt_out[..., None])[..., 0]


def _hiding(found: Pronouncer, letter: int) -> Float[Tensor, "batch tgt_len"]:
    """The same while no cross-attention may look at this letter; the encoder has seen it."""
    may_look = torch.ones(found.batch.src.size(1), dtype=torch.bool)
    may_look[letter] = False
    handle = found.model.decoder.register_forward_pre_hook(lambda _, given: (*given[:2], given[2] & may_look))
    try:
        return _of_the_right_phonemes(found)
    finally:
        handle.remove()


@dataclass(frozen=True)
class Pruning:
    """What each head is worth: phonemes that are named wrong, in points, when it says nothing or looks everywhere."""

    accuracy: float
    costs: dict[Head, float]  # silenced, one at a time
    flat: dict[Head, float]  # with every visible key weighed alike, one at a time
    together: float  # all heads silenced at once that cost less than one point alone

    @property
    def idle(self) -> float:
        """Share of heads that cost less than one point, silenced one at a time."""
        return sum(cost < 1 for cost in self.costs.values()) / len(self.costs)

    @property
    def flat_idle(self) -> float:
        """Share of heads whose map can be made flat for less than one point."""
        return sum(cost < 1 for cost in self.flat.values()) / len(self.flat)

    @property
    def dearest(self) -> float:
        return max(self.costs.values())


def pruning(*, fast: bool = FAST) -> Pruning:
    """Silences one head at a time (after Michel et al. 2019), or flattens its map, without training again."""
    found = pronouncer(fast=fast)
    parts = {name: part for name, part in found.model.named_modules() if isinstance(part, MultiHeadAttention)}
    heads: list[Head] = [(name, number) for name, part in parts.items() for number in range(part.num_heads)]
    whole = found.accuracy()

    def cost(change: Change, chosen: list[Head]) -> float:
        with ExitStack() as changes:
            for name, number in chosen:
                changes.enter_context(change(parts[name], number))
            return 100 * (whole - found.accuracy())

    costs = {head: cost(silenced, [head]) for head in heads}
    flat = {head: cost(flattened, [head]) for head in heads}
    return Pruning(whole, costs, flat, cost(silenced, [head for head in heads if costs[head] < 1]))


@contextmanager
def silenced(attention: MultiHeadAttention, head: int) -> Iterator[None]:
    """In this context, nothing this head finds is passed on: its columns of W^O are zero."""
    with _zero(attention.out_proj.weight.data[:, _channels(attention, head)]):
        yield


@contextmanager
def flattened(attention: MultiHeadAttention, head: int) -> Iterator[None]:
    """In this context, this head weighs all keys it may see equally: its queries, and so its scores, are zero."""
    rows = _channels(attention, head)  # W^Q is the first of the three
    with _zero(attention.qkv_proj.weight.data[rows]), _zero(attention.qkv_proj.bias.data[rows]):
        yield


@contextmanager
def _zero(part: Tensor) -> Iterator[None]:
    kept = part.clone()
    part.zero_()
    try:
        yield
    finally:
        part.copy_(kept)


def _channels(attention: MultiHeadAttention, head: int) -> slice:
    width = attention.out_proj.in_features // attention.num_heads
    return slice(head * width, (head + 1) * width)


@dataclass(frozen=True)
class Lens:
    """What the output matrix reads after each part of the decoder, of the phoneme that the model ends up naming."""

    agreement: dict[str, float]  # share of places where it already is the likeliest
    example: dict[str, list[str]]  # the likeliest phonemes of one word

    @property
    def after_first_layer(self) -> float:
        return self.agreement["layer 1, feed-forward"]


def lens(word: str = "", *, fast: bool = FAST) -> Lens:
    """Reads the residual stream of the decoder by the output matrix, layer after layer (the "logit lens")."""
    found = pronouncer(fast=fast)
    model, tokenizer = found.model, found.data.tokenizer
    row = found.data.valid_words.index(word) if word else 0
    stream: dict[str, Tensor] = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: object, _inputs: object, output: Tensor) -> None:
            stream[name] = output

        return modules[name].register_forward_hook(hook)

    modules = dict(model.named_modules())
    names = {"tgt_positions": "embedding and position"}
    names |= {
        f"decoder.layers.{layer}.residual_{k}": f"layer {layer + 1}, {part}"
        for layer in range(model.config.num_decoder_layers)
        for k, part in enumerate(("self-attention", "cross-attention", "feed-forward"), start=1)
    }
    handles = [keep(name) for name in names]
    try:
        with torch.no_grad():
            final = model.logits(model(*found.batch.inputs)).argmax(dim=-1)
            read = {names[name]: model.logits(x).argmax(dim=-1) for name, x in stream.items()}
    finally:
        for handle in handles:
            handle.remove()
    real = found.is_real
    return Lens(
        {name: float((guess == final)[real].float().mean()) for name, guess in read.items()},
        {name: tokenizer.target_tokens(_ids(guess[row], real[row])) for name, guess in read.items()},
    )


def _ids(guess: Int[Tensor, " len"], real: Tensor) -> list[int]:
    return [int(i) for i in guess[real]]
