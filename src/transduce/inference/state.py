"""The keys and values of a batch between two tokens, for the fast engine.

A beam search reorders its hypotheses at every step. Copying their keys and values along would cost more than the
attention itself, so those are only ever appended, and `ancestry` says which of a sentence's slots each hypothesis
descends from. Only those bits are reordered; slots that nobody descends from any more are dropped now and then. Keys
are padded to whole vectors, because the softmax handles a remainder one number at a time.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_VECTOR_LEN = 16  # float32 numbers in the widest registers of a CPU (AVX-512)
_MANY_SENTENCES = 8  # from so many on, keys are padded to whole vectors; with fewer, the calls take the time
_FIRST_SLOTS = 16  # a multiple of _VECTOR_LEN, as every later capacity is
_STEPS_PER_PRUNING = 4  # steps that there is room for after dead slots are dropped


class InferenceState:
    """The keys and values of a batch between two tokens. One slot holds those of one token of one hypothesis.

    During a step, by layer: `keys` (transposed) and `values` are those of all tokens so far, to which `append` adds its
    own.
    """

    shape: tuple[int, int, int, int]  # of the queries: batch, beam, heads, head_dim
    keys: tuple[Float[Tensor, "batch_heads head_dim slots"], ...]
    values: tuple[Float[Tensor, "batch_heads slots head_dim"], ...]
    bias: Float[Tensor, "#batch_heads #beam slots"] | None  # added to scores: -inf at slots of others and empty ones
    cross_keys: tuple[Float[Tensor, "batch_heads head_dim src_len"], ...]
    cross_values: tuple[Float[Tensor, "batch_heads src_len head_dim"], ...]
    cross_bias: Float[Tensor, "batch_heads 1 src_len"] | None

    def __init__(
        self,
        cross: Float[Tensor, "layers two batch heads src_len head_dim"],
        source_mask: Bool[Tensor, "batch src_len"],
    ) -> None:
        num_more = -source_mask.size(1) % _VECTOR_LEN if len(source_mask) >= _MANY_SENTENCES else 0
        self._cross = F.pad(cross, (0, 0, 0, num_more)).contiguous()
        self._source_mask = F.pad(source_mask, (0, num_more))
        self._past = cross.new_zeros(*cross.shape[:4], _FIRST_SLOTS, cross.size(5))
        self._ancestry: Bool[Tensor, "batch beam slots"] | None = None
        self.num_steps = self.num_slots = 0
        self._set_cross()

    def advance(self, parents: Int[Tensor, "batch beam"]) -> None:
        """Open the next position; hypothesis i now continues what was hypothesis `parents[i]`."""
        width = parents.size(1)
        # Greedy search and the first step of a beam need no ancestry: all slots are those of the one hypothesis.
        if self._ancestry is None and width > 1:
            self._ancestry = self._source_mask.new_ones(len(parents), 1, self._past.size(4))
        if self._ancestry is not None:
            parents = parents if self.num_steps else torch.zeros_like(parents)
            self._ancestry = self._ancestry.gather(1, parents[..., None].expand(-1, -1, self._past.size(4)))
        if self.num_slots + width > self._past.size(4):
            self._make_room(_STEPS_PER_PRUNING * width)
        first, self.num_slots = self.num_slots, self.num_slots + width
        if self._ancestry is not None:
            # Of the new slots each hypothesis sees its own alone.
            is_same = torch.eye(width, dtype=torch.bool, device=parents.device)
            self._ancestry[:, :, first:] = F.pad(is_same, (0, self._past.size(4) - self.num_slots))
        self.num_steps += 1
        self.shape = (*parents.shape, self._past.size(3), self._past.size(5))
        # (L, 2, B, H, beam, K) -> (L, B, beam, 2, H, K)
        self._new_slots = self._past[:, :, :, :, first : self.num_slots].permute(0, 2, 4, 1, 3, 5).unbind(0)
        end = self.num_slots
        if len(parents) >= _MANY_SENTENCES:
            end = _to_whole_vectors(end)
        self.keys, self.values = _by_layer(self._past[:, :, :, :, :end])
        self.bias = self._bias(end)

    @property
    def position(self) -> int:
        """The position of the current token."""
        return self.num_steps - 1

    def append(self, layer: int, keys_and_values: Float[Tensor, "batch beam two heads head_dim"]) -> None:
        """Store the current tokens' keys and values of one layer."""
        self._new_slots[layer].copy_(keys_and_values)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop all sentences but `rows`, so that finished ones cost nothing more."""
        self._cross, self._past = self._cross.index_select(2, rows), self._past.index_select(2, rows)
        self._source_mask = self._source_mask[rows]
        self._ancestry = None if self._ancestry is None else self._ancestry[rows]
        self._set_cross()

    def _set_cross(self) -> None:
        self.cross_keys, self.cross_values = _by_layer(self._cross)
        is_hidden = ~self._source_mask
        self.cross_bias = None
        if is_hidden.any():
            bias = self._cross.new_zeros(is_hidden.shape).masked_fill(is_hidden, -math.inf)
            self.cross_bias = bias.repeat_interleave(self._cross.size(3), dim=0)[:, None]

    def _bias(self, end: int) -> Tensor | None:
        if self._ancestry is None:
            if end == self.num_slots:
                return None
            bias = self._past.new_zeros(1, 1, end)
            bias[..., self.num_slots :] = -math.inf
            return bias
        is_other = ~self._ancestry[:, None, :, :end]  # (B, 1, beam, slots)
        bias = self._past.new_zeros(is_other.shape).masked_fill(is_other, -math.inf)
        return bias.expand(-1, self._past.size(3), -1, -1).flatten(0, 1)

    def _make_room(self, num_more: int) -> None:
        """Make room for `num_more` slots, dropping dead ones: those that no hypothesis descends from.

        In a beam most are dead: soon all hypotheses descend from the same one, and the slots of those beside it are of
        no use. An empty slot may hold any numbers: its attention weight is zero.
        """
        num_layers, _, batch_size, num_heads, num_slots, head_dim = self._past.shape
        if self._ancestry is None:  # one hypothesis: nothing is dead, so the capacity doubles
            self._past = F.pad(self._past, (0, 0, 0, num_slots))
            return
        is_live = self._ancestry[:, :, : self.num_slots].any(dim=1)  # (B, slots)
        # Sentences share one tensor, so each keeps as many slots as the one with the most live ones.
        self.num_slots = int(is_live.sum(dim=1).max())
        # A stable sort of the bits moves live slots to the front and keeps their order, which is that of the tokens.
        live_first = is_live.byte().sort(dim=1, descending=True, stable=True).indices[:, : self.num_slots]
        slots = F.pad(live_first, (0, _to_whole_vectors(self.num_slots + num_more) - self.num_slots))  # (B, new slots)
        # One index_select over sentences, heads and slots flattened together copies each vector once, all layers alike.
        sentences_and_heads = torch.arange(batch_size * num_heads, device=slots.device).view(batch_size, num_heads, 1)
        places = (sentences_and_heads * num_slots + slots[:, None]).flatten()
        past = self._past.view(num_layers, 2, -1, head_dim).index_select(2, places)
        self._past = past.view(num_layers, 2, batch_size, num_heads, -1, head_dim)
        # The bits move with their slots; the padding, copies of slot 0, belongs to nobody.
        self._ancestry = self._ancestry.gather(2, slots[:, None].expand(-1, self._ancestry.size(1), -1))
        self._ancestry[:, :, self.num_slots :] = False


class StaticState:
    """The keys and values of a batch of constant shape, for a captured graph: `InferenceState` without its economies.

    There is room for `num_steps` tokens of each hypothesis from the start, and all that differs between two steps is in
    tensors.
    """

    def __init__(self, cross: Tensor, beam: int, num_steps: int) -> None:
        """`cross` is zeros of the shape that `fill` will be given."""
        _, _, batch_size, num_heads, src_len, head_dim = cross.shape
        self.shape = (batch_size, beam, num_heads, head_dim)
        self._cross = cross
        self._past = cross.new_zeros(*cross.shape[:4], num_steps * beam, head_dim)
        slots = torch.arange(num_steps * beam, device=cross.device)
        self._step_of, self._rank_of = slots // beam, slots % beam
        self._is_ancestor = torch.zeros(batch_size, beam, len(slots), dtype=torch.bool, device=cross.device)
        self._is_own_rank = self._rank_of == torch.arange(beam, device=cross.device)[:, None]  # (beam, slots)
        self.position = torch.zeros(1, dtype=torch.int64, device=cross.device)
        self._cross_bias = cross.new_zeros(batch_size, num_heads, 1, src_len)
        self.cross_bias = self._cross_bias.flatten(0, 1)
        self.cross_keys, self.cross_values = _by_layer(cross)
        self.keys, self.values = _by_layer(self._past)
        self.bias = cross.new_zeros(batch_size * num_heads, beam, len(slots))

    def fill(self, other: InferenceState) -> None:
        """Begin with the sources of `other`, of which there may be fewer tokens and fewer sentences."""
        batch_size, src_len = other._source_mask.shape
        self._cross[:, :, :batch_size, :, :src_len] = other._cross
        self._cross_bias.fill_(-math.inf)
        self._cross_bias[..., 0] = 0.0  # of a sentence that is not there
        is_hidden = ~other._source_mask[:, None, None]
        self._cross_bias[:batch_size, ..., :src_len] = torch.where(is_hidden, -math.inf, 0.0)
        self._is_ancestor.zero_()
        self.position.fill_(-1)

    def advance(self, parents: Int[Tensor, "batch beam"]) -> None:
        """Open the next position; hypothesis i now continues what was hypothesis `parents[i]`."""
        self.position += 1
        ancestors = self._is_ancestor.gather(1, parents[..., None].expand_as(self._is_ancestor))
        self._is_ancestor.copy_(ancestors | (self._is_own_rank & (self._step_of == self.position)))
        bias = torch.zeros_like(self._is_ancestor, dtype=self.bias.dtype).masked_fill(~self._is_ancestor, -math.inf)
        self.bias.copy_(bias[:, None].expand(-1, self.shape[2], -1, -1).flatten(0, 1))

    def append(self, layer: int, keys_and_values: Float[Tensor, "batch beam two heads head_dim"]) -> None:
        """Store the current tokens' keys and values of one layer."""
        slots = self.position * self.shape[1] + torch.arange(self.shape[1], device=self.position.device)
        self._past[layer].index_copy_(3, slots, keys_and_values.permute(2, 0, 3, 1, 4))  # (2, B, H, beam, K)


def _by_layer(
    keys_and_values: Float[Tensor, "layers two batch heads slots head_dim"],
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The keys (B * H, K, slots) and the values (B * H, slots, K) of each layer, as views."""
    keys, values = keys_and_values.flatten(2, 3).unbind(1)
    return keys.transpose(2, 3).unbind(0), values.unbind(0)


def _to_whole_vectors(length: int) -> int:
    return -(-length // _VECTOR_LEN) * _VECTOR_LEN
