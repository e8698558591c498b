"""The decoder's cache: keys and values kept between two tokens."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transduce.model.attention import KeysAndValues


class DecoderState:
    """Keys and values of the source, once a sentence, and of all target tokens so far, for each hypothesis.

    A beam search reorders its hypotheses at every step, and here their keys and values are copied along: the plain way.
    `transduce.inference.state` holds the same without copying.
    """

    def __init__(self, cross: list[KeysAndValues], memory_mask: Bool[Tensor, "batch 1 1 src_len"]) -> None:
        self.cross = cross
        self.memory_mask = memory_mask
        self.num_steps = 0
        self._past: list[KeysAndValues] = []  # of each layer: (B, beam, H, T, K)

    @property
    def position(self) -> Int[Tensor, "1"]:
        """The position of the current token: the same for every hypothesis."""
        return torch.tensor([self.num_steps - 1], device=self.memory_mask.device)

    def advance(self, parents: Int[Tensor, "batch beam"]) -> None:
        """Opens the next position; hypothesis i now continues what was hypothesis `parents[i]`."""
        rows = torch.arange(parents.size(0), device=parents.device)[:, None]
        self._past = [(k[rows, parents], v[rows, parents]) for k, v in self._past]
        self.num_steps += 1

    def append(
        self,
        layer: int,
        k: Float[Tensor, "batch heads beam head_dim"],
        v: Float[Tensor, "batch heads beam head_dim"],
    ) -> tuple[Float[Tensor, "batch beam heads len head_dim"], Float[Tensor, "batch beam heads len head_dim"]]:
        """Stores the current tokens' keys and values of one layer; returns those of all tokens so far."""
        k, v = (x.transpose(1, 2)[:, :, :, None] for x in (k, v))  # (B, H, beam, K) -> (B, beam, H, 1, K)
        if layer == len(self._past):
            self._past.append((k, v))
        else:
            past_k, past_v = self._past[layer]
            self._past[layer] = (torch.cat((past_k, k), dim=3), torch.cat((past_v, v), dim=3))
        return self._past[layer]

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drops all sentences but `rows`, so that finished ones cost nothing more."""
        self.cross = [(k[rows], v[rows]) for k, v in self.cross]
        self.memory_mask = self.memory_mask[rows]
        self._past = [(k[rows], v[rows]) for k, v in self._past]
