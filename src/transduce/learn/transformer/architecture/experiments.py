"""The whole network: beside torch's own, learning a batch by heart, step by step, and the laws of its masks."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from transduce.data.batches import Batch
from transduce.inference.attention_maps import AttentionMaps, record_attention
from transduce.learn.ledger import FAST
from transduce.learn.tasks import EOS, FIRST_SYMBOL, PAD, batch_of, reversal
from transduce.learn.training import Training, small_transformer, train, written
from transduce.model import Transformer
from transduce.model.config import PRESETS, TransformerConfig, VocabularySizes
from transduce.model.positional import sinusoidal_table

TORCH_NAMES = {  # a part of our network: the same part of torch.nn.Transformer
    "self_attention": "self_attn",
    "cross_attention": "multihead_attn",
    "qkv_proj.": "in_proj_",
    "feed_forward.up_proj": "linear1",
    "feed_forward.down_proj": "linear2",
    "residual_1.norm": "norm1",
    "residual_2.norm": "norm2",
    "residual_3.norm": "norm3",
    "final_norm": "norm",
}


def torch_name(name: str) -> str:
    """What torch.nn.Transformer calls our parameter `name`."""
    for ours, theirs in TORCH_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def torch_transformer(model: Transformer, *, closing_norms: bool | None = None) -> nn.Transformer:
    """torch.nn.Transformer with the weights of our encoder and decoder.

    By itself torch closes both stacks with a norm even in post-norm, where neither the paper nor we have one; here
    `closing_norms` are there under pre-norm alone, if not said otherwise.
    """
    config = model.config
    shape = (config.d_model, config.num_heads, config.d_ff)
    settings: Any = {"dropout": 0.0, "norm_first": config.norm_first, "batch_first": True}
    is_closed = config.norm_first if closing_norms is None else closing_norms
    norms = [nn.LayerNorm(config.d_model) if is_closed else None for _ in range(2)]
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(*shape, **settings), config.num_encoder_layers, norms[0], enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(*shape, **settings), config.num_decoder_layers, norms[1])
    theirs = nn.Transformer(
        config.d_model, config.num_heads, custom_encoder=encoder, custom_decoder=decoder, batch_first=True
    )
    parts = {"encoder": model.encoder, "decoder": model.decoder}
    weights = {f"{part}.{torch_name(k)}": v for part, stack in parts.items() for k, v in stack.state_dict().items()}
    theirs.to(model.output_weight.dtype).load_state_dict(weights, strict=is_closed == config.norm_first)
    return theirs.eval()


@torch.no_grad()
def hidden_by_torch(theirs: nn.Transformer, model: Transformer, batch: Batch) -> Float[Tensor, "batch tgt_len d_model"]:
    """The hidden vectors of torch's network on our embeddings: its masks are True where nobody may look."""
    is_padding = batch.src == PAD
    length = batch.tgt_in.size(1)
    is_future = torch.ones(length, length, dtype=torch.bool).triu(1)
    src, tgt = _embedded(model.src_embedding, batch.src), _embedded(model.tgt_embedding, batch.tgt_in)
    return theirs(src, tgt, tgt_mask=is_future, src_key_padding_mask=is_padding, memory_key_padding_mask=is_padding)


@dataclass(frozen=True)
class BesideTorch:
    """Our hidden vectors beside those of torch.nn.Transformer, in float64."""

    differences: dict[str, float]  # the largest, by the place of the norm: "post", "pre"
    with_torchs_closing_norm: float  # the same for post-norm, if torch's closing norms are left in

    @property
    def largest_difference(self) -> float:
        return max(self.differences.values())


def beside_torch(*, fast: bool = FAST) -> BesideTorch:
    """Two networks with the same weights, all of them moved away from where they start, on a padded batch."""
    del fast  # it is done at once
    batch, differences = _batch(), {}
    for place in ("post", "pre"):
        model = _random_model(norm_first=place == "pre")
        with torch.no_grad():
            ours = model(batch.src, batch.tgt_in)
        theirs = torch_transformer(model)
        differences[place] = float((hidden_by_torch(theirs, model, batch) - ours).abs().max())
    model = _random_model(norm_first=False)
    theirs = torch_transformer(model, closing_norms=True)
    with torch.no_grad():
        closed = hidden_by_torch(theirs, model, batch) - model(batch.src, batch.tgt_in)
    return BesideTorch(differences, float(closed.abs().max()))


@dataclass(frozen=True)
class ByHeart:
    """One batch, learned by heart."""

    batch: Batch
    model: Transformer
    training: Training
    answers: list[list[int]]  # what the network then writes by itself

    @property
    def last_loss(self) -> float:
        return self.training.losses[-1]

    def attention(self, row: int) -> AttentionMaps:
        """Weights (1, H, queries, keys) of every attention, for one row of the batch without its padding."""
        src, tgt_in = (ids[row][ids[row] != PAD][None] for ids in (self.batch.src, self.batch.tgt_in))
        with torch.no_grad(), record_attention(self.model) as maps:
            self.model(src, tgt_in)
        return maps


def by_heart(*, fast: bool = FAST) -> ByHeart:
    """Trains the smallest network on one batch until it knows it: the first test of any training code.

    Two chapters look at the same one: it is trained once.
    """
    return _by_heart(fast)


@cache
def _by_heart(fast: bool) -> ByHeart:
    task = reversal(10, 3, 7)
    batch = task.draw(16, torch.Generator().manual_seed(3))
    model = small_transformer(task.vocabulary, d_model=32, d_ff=64)
    training = train(model, lambda _rows, _random: batch, steps=60 if fast else 250, learning_rate=4e-3)
    return ByHeart(batch, model, training, written(model, batch.src, batch.tgt_out.size(1) + 2))


@dataclass(frozen=True)
class Steps:
    """Scores of one target: from one pass over all of it, and token by token with a cache."""

    in_one_pass: Float[Tensor, "batch tgt_len ids"]
    by_steps: Float[Tensor, "batch tgt_len ids"]

    @property
    def largest_difference(self) -> float:
        return float((self.in_one_pass - self.by_steps).abs().max())


@torch.no_grad()
def steps(*, fast: bool = FAST) -> Steps:
    """`Transformer.step` beside `Transformer.forward`, in float64."""
    del fast  # it is done at once
    model, batch = _random_model(norm_first=False), _batch()
    state, parents, found = model.start(batch.src), torch.zeros(len(batch.src), 1, dtype=torch.long), []
    for token in batch.tgt_in.split(1, dim=1):
        scores, state = model.step(token, parents, state)
        found.append(scores)
    return Steps(model.logits(model(batch.src, batch.tgt_in)), torch.cat(found, dim=1))


@dataclass(frozen=True)
class Size:
    """How many parameters the paper's base model has, part by part."""

    config: TransformerConfig
    num_tokens: int
    base: int  # counted in the shipped network
    parts: dict[str, int]  # the same, by what they are for

    @property
    def tokens_for_65_million(self) -> float:
        """How many tokens the joint vocabulary would have if it were 65 million parameters in all."""
        return self.num_tokens + (65e6 - self.base) / self.config.d_model


def size(*, fast: bool = FAST) -> Size:
    """Counts the base model with a joint vocabulary of 37,000 (section 5.1); no memory is taken for its weights."""
    del fast  # it is done at once
    num_tokens = 37_000
    with torch.device("meta"):
        model = Transformer(PRESETS["base"], VocabularySizes.joint(num_tokens))
    parts = dict.fromkeys(("embedding", "self_attention", "cross_attention", "feed_forward", "norm"), 0)
    for name, parameter in model.named_parameters():
        (part,) = [part for part in parts if part in name]
        parts[part] += parameter.numel()
    return Size(PRESETS["base"], num_tokens, sum(p.numel() for p in model.parameters()), parts)


@dataclass(frozen=True)
class Laws:
    """What the scores of the answers must not depend on: largest changes, in float64."""

    by_padding: float  # all sources padded further
    by_order: float  # rows in another order
    by_mates: float  # each row alone
    by_future: Float[Tensor, "tgt_len tgt_len"]  # lengths of d scores_i / d input_j, of one answer

    @property
    def future_gradient(self) -> float:
        return float(self.by_future.triu(1).max())


def laws(*, fast: bool = FAST) -> Laws:
    """The laws of padding and of the future, on the whole network (section 3.2.3)."""
    del fast  # it is done at once
    model, batch = _random_model(norm_first=False), _batch()
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        plain = model(batch.src, batch.tgt_in)
        wider = model(nn.functional.pad(batch.src, (0, 6), value=PAD), batch.tgt_in)
        moved = model(batch.src[order], batch.tgt_in[order])
        alone = [model(row[row != PAD][None], tgt[None]) for row, tgt in zip(batch.src, batch.tgt_in, strict=True)]
    return Laws(
        by_padding=_most(model, wider, plain),
        by_order=_most(model, moved, plain[order]),
        by_mates=_most(model, torch.cat(alone), plain),
        by_future=_sensitivity(model, batch.src[:1], torch.tensor([[1, 3, 4, 5, 6, 7]])),
    )


def words_batch(rows: list[tuple[str, str]]) -> tuple[Batch, Callable[[Int[Tensor, " len"]], list[str]]]:
    """Pairs of words as a batch, and what turns a row of ids back into words."""
    words = sorted({word for pair in rows for side in pair for word in side.split()})
    ids = {word: FIRST_SYMBOL + number for number, word in enumerate(words)}
    names = {PAD: "⟨pad⟩", 1: "⟨begin⟩", EOS: "⟨end⟩"} | {number: word for word, number in ids.items()}
    batch = batch_of([tuple([ids[word] for word in side.split()] for side in pair) for pair in rows])
    return batch, lambda row: [names[i] for i in row.tolist()]


def _random_model(*, norm_first: bool) -> Transformer:
    """Three encoder layers and two decoder layers in float64, every weight somewhere else than at its start."""
    vocabulary = VocabularySizes(source=17, target=13, num_target_ids=13, is_joint=False)
    model = small_transformer(
        vocabulary, d_model=24, d_ff=40, num_encoder_layers=3, norm_first=norm_first, tie_embeddings=False
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def _batch() -> Batch:
    return batch_of([([5, 9, 7], [8, 4, 6, 5]), ([4], [3]), ([6, 3, 8, 11, 16], [7, 12]), ([12, 4, 4, 10], [9, 9, 3])])


def _embedded(embedding: nn.Embedding, ids: Int[Tensor, "batch len"]) -> Float[Tensor, "batch len d_model"]:
    d_model = embedding.embedding_dim
    positions = sinusoidal_table(ids.size(1), d_model).to(embedding.weight.dtype)
    return embedding(ids) * math.sqrt(d_model) + positions


def _most(model: Transformer, some: Tensor, others: Tensor) -> float:
    with torch.no_grad():
        return float((model.logits(some) - model.logits(others)).abs().max())


def _sensitivity(model: Transformer, src: Tensor, tgt_in: Tensor) -> Tensor:
    """d scores_i / d input_j as lengths: the tokens are all different, so each has a row of the embedding to itself."""
    model = copy.deepcopy(model)
    scores = model.logits(model(src, tgt_in))[0]
    found = []
    for row in scores:
        (gradient,) = torch.autograd.grad(row.square().sum(), model.tgt_embedding.weight, retain_graph=True)
        found.append(gradient[tgt_in[0]].norm(dim=-1))
    return torch.stack(found)
