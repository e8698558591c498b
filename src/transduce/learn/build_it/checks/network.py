"""Pieces 9 to 11: masks, the network, batches and their loss."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.learn.build_it import pieces
from transduce.learn.build_it.checks.comparing import Slips, Unwritten, built, pair_of, parts_of, random, same
from transduce.learn.build_it.pieces import BEGIN, END, PAD
from transduce.learn.build_it.shipping import shipped
from transduce.learn.exercising import Wrong, exercise, returned, tensor_of

# 9 · masks


@exercise(
    "build-masks",
    hints=(
        "True is where a query may look. Which ids are real tokens? Which keys are not in the future of query i?",
        "The padding mask is the same for all heads and all queries: give it axes of size 1, `[:, None, None, :]`.",
        "`(ids != PAD)[:, None, None, :]` and `torch.ones(length, length, dtype=torch.bool).tril()`",
    ),
    solution=(pieces.padding_mask, pieces.causal_mask),
    wrong=(
        (lambda ids: (ids == PAD)[:, None, None, :], pieces.causal_mask),
        (lambda ids: (ids != PAD)[:, None, :, None], pieces.causal_mask),
        (lambda ids: ids != PAD, pieces.causal_mask),
        (pieces.padding_mask, lambda n: torch.ones(n, n, dtype=torch.bool).tril(-1)),
        (pieces.padding_mask, lambda n: torch.ones(n, n, dtype=torch.bool).triu()),
        (pieces.padding_mask, lambda n: torch.ones(n, n).tril()),
        (lambda _: None, lambda _: None),
        pieces.causal_mask,
    ),
)
def _check_masks(answer: Any) -> None:
    padding, causal = pair_of(answer, "(padding_mask, causal_mask)")
    ids = torch.tensor([[5, 6, 7, 2], [8, 2, PAD, PAD]])
    found = tensor_of(padding(ids))
    if found.shape == (2, 4):
        raise Wrong(
            "the padding mask has the shape (2, 4): against scores of (B, H, T, S) it needs [:, None, None, :]."
        )
    if found.shape == (2, 1, 4, 1):
        raise Wrong("the padding mask hides *queries*; the axis of keys is the last one.")
    found = tensor_of(found, (2, 1, 1, 4))
    expected = torch.tensor([[True] * 4, [True, True, False, False]])[:, None, None, :]
    if found.dtype != torch.bool:
        raise Wrong(f"the padding mask is of {found.dtype}; True and False were expected.")
    if bool((found == ~expected).all()):
        raise Wrong("the padding mask is the wrong way round: True is where attention may look, at real tokens.")
    if not bool((found == expected).all()):
        raise Wrong(f"the padding mask of the ids {ids.tolist()} is {found[:, 0, 0].tolist()}.")
    future = tensor_of(causal(4), (4, 4))
    if future.dtype != torch.bool:
        raise Wrong(f"the causal mask is of {future.dtype}; True and False were expected.")
    naive = torch.tensor([[key <= query for key in range(4)] for query in range(4)])
    if bool((future == naive.tril(-1)).all()):
        raise Wrong("a query does not see its own position: the first one could look nowhere, 0/0.")
    if bool((future == naive.T).all()):
        raise Wrong("it shows the future and hides the past: query i may look at keys 0 to i.")
    if not bool((future == naive).all()):
        raise Wrong(f"the causal mask of 4 positions is {future.int().tolist()}.")


# 10 · the network


class _NoFactor(pieces.Transformer):
    def embed(self, ids: Tensor, embedding: nn.Embedding) -> Tensor:
        return embedding(ids) + pieces.sinusoids(ids.size(1), embedding.embedding_dim)


class _NoPositions(pieces.Transformer):
    def embed(self, ids: Tensor, embedding: nn.Embedding) -> Tensor:
        return embedding(ids) * math.sqrt(embedding.embedding_dim)


class _ScalesPositions(pieces.Transformer):
    def embed(self, ids: Tensor, embedding: nn.Embedding) -> Tensor:
        x = embedding(ids) + pieces.sinusoids(ids.size(1), embedding.embedding_dim)
        return x * math.sqrt(embedding.embedding_dim)


class _WithoutCausalMask(pieces.Transformer):
    def decode(self, tgt_in: Tensor, memory: Tensor, src: Tensor) -> Tensor:
        x = self.embed(tgt_in, self.tgt_embedding)
        for layer in self.decoder:
            x = layer(x, memory, torch.ones(tgt_in.size(1), tgt_in.size(1), dtype=torch.bool), pieces.padding_mask(src))
        return x @ self.tgt_embedding.weight.T


class _EncodesPadding(pieces.Transformer):
    def encode(self, src: Tensor) -> Tensor:
        x = self.embed(src, self.src_embedding)
        for layer in self.encoder:
            x = layer(x, torch.ones(src.shape, dtype=torch.bool)[:, None, None, :])
        return x


class _LooksAtPadding(pieces.Transformer):
    def decode(self, tgt_in: Tensor, memory: Tensor, src: Tensor) -> Tensor:
        return super().decode(tgt_in, memory, torch.full_like(src, END))


class _WithoutEncoder(pieces.Transformer):
    def encode(self, src: Tensor) -> Tensor:
        return self.embed(src, self.src_embedding)


class _Untied(pieces.Transformer):
    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.readout = nn.Linear(sizes[2], sizes[1])

    def decode(self, tgt_in: Tensor, memory: Tensor, src: Tensor) -> Tensor:
        x = self.embed(tgt_in, self.tgt_embedding)
        for layer in self.decoder:
            x = layer(x, memory, pieces.causal_mask(tgt_in.size(1)), pieces.padding_mask(src))
        return self.readout(x)


class _OneLayer(pieces.Transformer):
    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.encoder = nn.ModuleList([self.encoder[0]] * len(self.encoder))


@exercise(
    "build-transformer",
    hints=(
        "`embed`: the row of the table, times √d_model, plus the row of its position, then dropout.",
        "`encode` sends the source through the encoder's layers with its padding mask; `decode` needs both masks.",
        "Logits are `x @ self.tgt_embedding.weight.T`: how well x matches each token's own embedding.",
    ),
    solution=pieces.Transformer,
    wrong=(
        _NoFactor,
        _NoPositions,
        _ScalesPositions,
        _WithoutCausalMask,
        _EncodesPadding,
        _LooksAtPadding,
        _WithoutEncoder,
        _Untied,
        _OneLayer,
        Unwritten,
    ),
)
def _check_transformer(answer: Any) -> None:
    model = built(answer, 9, 7, 8, 2, 12, 2, 0.0)
    *_, encoder, decoder = parts_of(model, "src_embedding", "tgt_embedding", "encoder", "decoder")
    if len({id(layer) for layer in [*encoder, *decoder]}) != 4:
        raise Wrong("2 + 2 layers were expected, each an object of its own: `[layer] * 2` is the same layer twice.")
    expected_size = sum(parameter.numel() for parameter in pieces.Transformer(9, 7, 8, 2, 12, 2, 0.0).parameters())
    size = sum(parameter.numel() for parameter in model.parameters())
    if size == expected_size + 7 * 8 + 7 or size == expected_size + 7 * 8:
        raise Wrong("the output has a matrix of its own; it is the target's embedding, `self.tgt_embedding.weight.T`.")
    std = float(answer(500, 500, 64, 2, 12, 1, 0.0).tgt_embedding.weight.detach().std())
    if not 0.06 < std < 0.25:
        raise Wrong(
            f"embeddings start with a standard deviation of {std:.2g}; with 1/√d_model, 0.125 here, the first logits "
            "are about 1."
        )
    src = torch.tensor([[3, 4, 5, 8, END], [6, 3, END, PAD, PAD]])
    tgt_in = torch.tensor([[BEGIN, 3, 4, 5], [BEGIN, 6, 6, PAD]])
    ours = shipped(model).double().eval()
    is_real = (tgt_in != PAD)[..., None]
    with torch.no_grad():
        expected = ours.logits(ours(src, tgt_in))

        def of(slip: Any) -> Callable[[], Tensor]:
            def forward() -> Tensor:
                other = slip(9, 7, 8, 2, 12, 2, 0.0).double().eval()
                other.load_state_dict(model.state_dict(), strict=False)  # without buffers of the reader's
                return other(src, tgt_in) * is_real

            return forward

        slips: Slips = {
            "embeddings are not multiplied by √d_model.": of(_NoFactor),
            "positions are not added (or the sum is not kept: `x + positions` alone changes nothing).": of(
                _NoPositions
            ),
            "the positions are multiplied by √d_model, too; only the embedding is.": of(_ScalesPositions),
            "there is no causal mask: the decoder sees the very tokens it has to name.": of(_WithoutCausalMask),
            "the encoder has no padding mask: real tokens look at padding.": of(_EncodesPadding),
            "cross-attention has no padding mask: the decoder looks at the source's padding.": of(_LooksAtPadding),
            "the source does not go through the encoder's layers.": of(_WithoutEncoder),
        }
        found = tensor_of(model(src, tgt_in), expected.shape)
        same(found * is_real, expected * is_real, slips, "the shipped model with your weights.")


# 11 · shift, padding, loss


def _batch(pairs: Any, begin: bool = True, end: bool = True, left: bool = False, shift: bool = True) -> Any:
    def pad(rows: list[list[int]]) -> Tensor:
        longest = max(map(len, rows))
        gaps = [[PAD] * (longest - len(row)) for row in rows]
        return torch.tensor([gap + row if left else row + gap for row, gap in zip(rows, gaps, strict=True)])

    tgt_in = [[BEGIN] * begin + tgt for _, tgt in pairs] if shift else [[*tgt, END] for _, tgt in pairs]
    tgt_out = [tgt + [END] * end for _, tgt in pairs]
    return pad([[*src, END] for src, _ in pairs]), pad(tgt_in), pad(tgt_out)


def _token_losses(logits: Tensor, tgt_out: Tensor) -> Tensor:
    return -logits.log_softmax(-1).gather(-1, tgt_out[..., None])[..., 0]


@exercise(
    "build-loss",
    hints=(
        "The decoder is given BEGIN and the target; it has to name the target and END: the same, one step later.",
        "The probability of the right token: `logits.log_softmax(-1)`, then `gather` with `tgt_out[..., None]`.",
        "Padding must be missing twice: from the sum, and from the count it is divided by.",
    ),
    solution=(pieces.batch_of, pieces.loss_of),
    wrong=(
        (lambda pairs: _batch(pairs, shift=False), pieces.loss_of),
        (lambda pairs: _batch(pairs, end=False), pieces.loss_of),
        (lambda pairs: _batch(pairs, begin=False), pieces.loss_of),
        (lambda pairs: _batch(pairs, left=True), pieces.loss_of),
        (pieces.batch_of, lambda logits, out: _token_losses(logits, out).mean()),
        (pieces.batch_of, lambda logits, out: (_token_losses(logits, out) * (out != PAD)).mean()),
        (pieces.batch_of, lambda logits, out: (_token_losses(logits, out) * (out != PAD)).sum()),
        (
            pieces.batch_of,
            lambda logits, out: ((_token_losses(logits, out) * (out != PAD)).sum(1) / (out != PAD).sum(1)).mean(),
        ),
        (lambda _: None, lambda *_: None),
        pieces.loss_of,
    ),
)
def _check_loss(answer: Any) -> None:
    make_batch, loss = pair_of(answer, "(batch_of, loss_of)")
    pairs = [([5, 6, 7], [3, 4, 5]), ([8], [6])]
    found = returned(make_batch([(list(src), list(tgt)) for src, tgt in pairs]))
    if not isinstance(found, tuple | list) or len(found) != 3:
        raise Wrong("`batch_of` gives three tensors: src, tgt_in, tgt_out.")
    src, tgt_in, tgt_out = map(tensor_of, found)
    if int(src[1, 0]) == PAD:
        raise Wrong(
            "padding stands on the left; a token's position would depend on its neighbors' lengths. Pad on the right."
        )
    if tgt_in.shape == tgt_out.shape and bool((tgt_in == tgt_out).all()):
        raise Wrong(
            "tgt_in and tgt_out are the same: the decoder is given the very token it has to name. Shift by one."
        )
    if int(tgt_in[0, 0]) != BEGIN:
        raise Wrong("tgt_in does not begin with BEGIN: what would the first token be named from?")
    if int(tgt_out[0, -1]) != END:
        raise Wrong("tgt_out does not end with END: the model would never learn to stop.")
    for name, tensor, expected in zip(("src", "tgt_in", "tgt_out"), (src, tgt_in, tgt_out), _batch(pairs), strict=True):
        if tensor.is_floating_point():
            raise Wrong(f"`{name}` is of {tensor.dtype}; ids are whole numbers, torch.long.")
        if tensor.tolist() != expected.tolist():
            raise Wrong(f"`{name}` of the pairs {pairs} is {tensor.tolist()}; {expected.tolist()} was expected.")
    logits = random(2, 4, 9)
    labels = _batch(pairs)[2]
    token_losses, is_real = _token_losses(logits, labels), labels != PAD
    slips: Slips = {
        "it averages over padding, too.": lambda: token_losses.mean(),
        "padding is out of the sum, but still in the count.": lambda: (token_losses * is_real).mean(),
        "it is the sum; divide by the number of real tokens.": lambda: (token_losses * is_real).sum(),
        "it averages the sentences' means, so that a token of a short sentence weighs more.": lambda: (
            (token_losses * is_real).sum(1) / is_real.sum(1)
        ).mean(),
        "the sign is missing: a loss is minus the log-probability.": lambda: (
            -(token_losses * is_real).sum() / is_real.sum()
        ),
    }
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=PAD)
    same(loss(logits, labels), expected, slips, "torch's cross_entropy over the real tokens.")
