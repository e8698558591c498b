"""What the decoder remembers between two tokens."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transduce.model.attention import KeysAndValues


class DecoderState:
    """Keys and values of the source, once a sentence, and of all target tokens so far, never moved.

    A beam search reorders its hypotheses at every step. Copying their keys and values along would cost more than the
    attention itself, so they are only ever appended: step t fills slots t * beam ... t * beam + beam - 1, and
    `ancestry` says which slots each hypothesis descends from. Only those bits are reordered.
    """

    def __init__(
        self,
        cross: list[KeysAndValues],
        memory_mask: Bool[Tensor, "batch 1 1 src_len"],
        *,
        beam_size: int,
    ) -> None:
        keys = cross[0][0]
        batch_size, num_heads, _, head_dim = keys.shape
        self.cross = cross
        self.memory_mask = memory_mask
        self.beam_size = beam_size
        self.num_steps = 0
        empty = keys.new_empty(len(cross), batch_size, num_heads, 16 * beam_size, head_dim)
        self._keys, self._values = empty, torch.empty_like(empty)  # (L, B, H, slots, K)
        self._ancestry = torch.zeros(batch_size, beam_size, 16 * beam_size, dtype=torch.bool, device=keys.device)

    @property
    def positions(self) -> Int[Tensor, "beam"]:
        """The position of the current token: the same for every hypothesis."""
        return torch.full((self.beam_size,), self.num_steps - 1, device=self._keys.device)

    @property
    def ancestry_mask(self) -> Bool[Tensor, "batch 1 beam slots"] | None:
        """True at the slots that a hypothesis descends from, its own included; None if that is all of them."""
        if self.beam_size == 1:
            return None
        return self._ancestry[:, None, :, : self.num_steps * self.beam_size]

    def advance(self, parents: Int[Tensor, "batch beam"]) -> None:
        """Opens the next position; hypothesis i now continues what was hypothesis `parents[i]`."""
        first_slot = self.num_steps * self.beam_size
        if first_slot == self._ancestry.size(-1):
            self._grow()
        self._ancestry = self._ancestry.gather(1, parents[..., None].expand_as(self._ancestry))
        own = torch.eye(self.beam_size, dtype=torch.bool, device=parents.device)
        self._ancestry[:, :, first_slot : first_slot + self.beam_size] = own
        self.num_steps += 1

    def append(
        self,
        layer: int,
        k: Float[Tensor, "batch heads beam head_dim"],
        v: Float[Tensor, "batch heads beam head_dim"],
    ) -> tuple[Float[Tensor, "batch heads slots head_dim"], Float[Tensor, "batch heads slots head_dim"]]:
        """Stores the current tokens' keys and values of one layer; returns those of all tokens so far."""
        end = self.num_steps * self.beam_size
        self._keys[layer, :, :, end - self.beam_size : end] = k
        self._values[layer, :, :, end - self.beam_size : end] = v
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]

    def keep(self, rows: Int[Tensor, "kept"]) -> None:
        """Drops all sentences but `rows`, so that finished ones cost nothing more."""
        self.cross = [(k[rows], v[rows]) for k, v in self.cross]
        self.memory_mask = self.memory_mask[rows]
        self._keys, self._values = self._keys[:, rows], self._values[:, rows]
        self._ancestry = self._ancestry[rows]

    def _grow(self) -> None:
        self._keys = torch.cat((self._keys, torch.empty_like(self._keys)), dim=3)
        self._values = torch.cat((self._values, torch.empty_like(self._values)), dim=3)
        self._ancestry = torch.cat((self._ancestry, torch.zeros_like(self._ancestry)), dim=2)
