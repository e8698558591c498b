"""What the Transformer replaced: recurrent encoder-decoders, without attention and with it, behind its interface.

A source is read token by token into a state; the decoder starts from the last one (Sutskever et al. 2014, Cho et al.
2014). With attention it also looks back at every state of the encoder (Bahdanau et al. 2015, in the simpler form of
Luong et al. 2015, section 3.1, whose score here is the paper's equation 1). Whatever is no matter of recurrence is as
in `transduce.model.Transformer`: embeddings tied to the output and multiplied by sqrt(d_model), dropout, loss, search.
Letters: B batch, S source, T target, D d_model, L layers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from transduce.model.attention import attention
from transduce.model.config import VocabularySizes
from transduce.model.dropout import Dropout

_CELLS = {"gru": (nn.GRU, 1), "lstm": (nn.LSTM, 2)}  # and how many vectors its state has
_LSTM_FORGET_BIAS = 1.0  # Jozefowicz et al. 2015: an LSTM that starts by remembering

Memory = tuple[Float[Tensor, "batch src_len memory_size"], Bool[Tensor, "batch src_len"]]


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """The shape of the network."""

    d_model: int = 64  # of embeddings and of each state
    cell: Literal["gru", "lstm"] = "gru"
    num_encoder_layers: int = 1
    num_decoder_layers: int = 1
    attends: bool = False  # the decoder looks at all states of the encoder, not at its last one alone
    reads_both_ways: bool = False  # a second encoder reads from the end to the beginning
    dropout: float = 0.0  # on embeddings and on what the logits are made of

    def __post_init__(self) -> None:
        if self.cell not in _CELLS:
            raise ValueError(f"the cell is '{self.cell}': it must be one of {', '.join(_CELLS)}.")


class RecurrentState:
    """What the decoder knows before its next token: of each hypothesis its own state, of each sentence the memory."""

    def __init__(self, memory: Memory, hidden: list[Float[Tensor, "batch beam layers d_model"]]) -> None:
        self.memory = memory
        self.hidden = hidden

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drops all sentences but `rows`."""
        self.memory = (self.memory[0][rows], self.memory[1][rows])
        self.hidden = [part[rows] for part in self.hidden]


class RecurrentSeq2Seq(nn.Module):
    """Source ids and target ids in, one vector per target position out, as `Transformer`; token after token inside."""

    def __init__(self, config: RecurrentConfig, vocabulary: VocabularySizes) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        size, (cell, num_parts) = config.d_model, _CELLS[config.cell]
        self.src_embedding = nn.Embedding(vocabulary.source, size)
        self.tgt_embedding = self.src_embedding if vocabulary.is_joint else nn.Embedding(vocabulary.target, size)
        self.encoder = cell(
            size, size, config.num_encoder_layers, batch_first=True, bidirectional=config.reads_both_ways
        )
        self.decoder = cell(size, size, config.num_decoder_layers, batch_first=True)
        memory_size = size * (2 if config.reads_both_ways else 1)
        self.bridge = nn.Linear(memory_size, config.num_decoder_layers * num_parts * size)
        if config.attends:
            self.key_proj = nn.Linear(memory_size, size)  # of Luong's score "general", h^T W m
            self.out_proj = nn.Linear(memory_size + size, size)
        self.dropout = Dropout(config.dropout)
        self._initialize()

    def forward(
        self, src: Int[Tensor, "batch src_len"], tgt_in: Int[Tensor, "batch tgt_len"]
    ) -> Float[Tensor, "batch tgt_len d_model"]:
        """What each position of the target knows when it has to name the next token."""
        memory, hidden = self._encode(src)
        x, _ = self.decoder(self._embed(tgt_in, self.tgt_embedding), self._as_torch(hidden))
        return self.dropout(self._look_back(x, memory))

    @property
    def output_weight(self) -> Float[Tensor, "num_target_ids d_model"]:
        """The matrix before the softmax: the target embedding's rows (section 3.4)."""
        return self.tgt_embedding.weight[: self.vocabulary.num_target_ids]

    def logits(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch num_target_ids"]:
        """Scores before the softmax."""
        return F.linear(hidden, self.output_weight)

    def start(self, src: Int[Tensor, "batch src_len"]) -> RecurrentState:
        """Reads `src`: the state before the first `step`."""
        memory, hidden = self._encode(src)
        return RecurrentState(memory, [part[:, None] for part in hidden])

    def step(
        self, tokens: Int[Tensor, "batch beam"], parents: Int[Tensor, "batch beam"], state: RecurrentState
    ) -> tuple[Float[Tensor, "batch beam num_target_ids"], RecurrentState]:
        """Appends `tokens[b, i]` to hypothesis `parents[b, i]` of sentence b; scores the token after it."""
        rows = torch.arange(len(parents), device=parents.device)[:, None]
        hidden = [part[rows, parents].flatten(0, 1) for part in state.hidden]  # (B * beam, L, D)
        x = self._embed(tokens.reshape(-1, 1), self.tgt_embedding)
        x, after = self.decoder(x, self._as_torch(hidden))
        parts = after if isinstance(after, tuple) else (after,)
        state.hidden = [part.transpose(0, 1).unflatten(0, tokens.shape) for part in parts]
        return self.logits(self._look_back(x.view(*tokens.shape, -1), state.memory)), state

    def _encode(self, src: Tensor) -> tuple[Memory, list[Float[Tensor, "batch layers d_model"]]]:
        """Every state of the encoder's last layer with the mask of real ones, and what the decoder starts from."""
        is_real = src != self.vocabulary.pad_id
        states, last = _run(self.encoder, self._embed(src, self.src_embedding), is_real.sum(dim=1))
        ends = torch.cat(list(last[-2:] if self.config.reads_both_ways else last[-1:]), dim=-1)
        start = self.bridge(ends).tanh()
        parts = start.chunk(_CELLS[self.config.cell][1], dim=-1)
        return (states, is_real), [part.unflatten(-1, (-1, self.config.d_model)) for part in parts]

    def _look_back(self, x: Float[Tensor, "batch len d_model"], memory: Memory) -> Float[Tensor, "batch len d_model"]:
        """What `x` finds in the memory, joined to it; without attention, `x` itself."""
        if not self.config.attends:
            return x
        states, is_real = memory
        found, _ = attention(x, self.key_proj(states), states, is_real[:, None, :])
        return self.out_proj(torch.cat((found, x), dim=-1)).tanh()

    def _as_torch(self, hidden: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
        """The state as torch's modules take it: (L, B, D), an LSTM's two in a tuple."""
        parts = [part.transpose(0, 1).contiguous() for part in hidden]
        return parts[0] if len(parts) == 1 else tuple(parts)

    def _embed(self, ids: Tensor, embedding: nn.Embedding) -> Tensor:
        return self.dropout(embedding(ids) * math.sqrt(self.config.d_model))  # section 3.4

    def _initialize(self) -> None:
        """Orthogonal recurrent matrices and Xavier-uniform others, each gate's by itself; N(0, 1 / d_model) embeddings;
        zero biases, but for the forget gate of an LSTM."""
        num_gates = 3 if self.config.cell == "gru" else 4
        for name, parameter in self.named_parameters():
            if "embedding" in name:
                nn.init.normal_(parameter, std=self.config.d_model**-0.5)
            elif parameter.dim() == 1:
                nn.init.zeros_(parameter)
                if num_gates == 4 and "bias_ih" in name:
                    nn.init.constant_(parameter.chunk(4)[1], _LSTM_FORGET_BIAS)
            elif "weight_hh" in name:
                for matrix in parameter.chunk(num_gates):
                    nn.init.orthogonal_(matrix)
            else:
                for matrix in parameter.chunk(num_gates if "weight_ih" in name else 1):
                    nn.init.xavier_uniform_(matrix)


def num_parameters(model: nn.Module) -> int:
    """Trained numbers, each once."""
    return sum(parameter.numel() for parameter in model.parameters())


def as_large_as(target: int, build: Callable[[int], nn.Module]) -> nn.Module:
    """The network among `build(1)`, `build(2)`, ... whose number of parameters is nearest to `target`.

    `build` takes the width; wider networks must have more parameters.
    """
    low, high = 1, 2
    while num_parameters(build(high)) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if num_parameters(build(middle)) < target else (low, middle)
    return min((build(low), build(high)), key=lambda model: abs(num_parameters(model) - target))


def _run(
    rnn: nn.RNNBase, x: Float[Tensor, "batch len d_model"], lengths: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch len memory_size"], Float[Tensor, "layers batch d_model"]]:
    """All states of the last layer, and the last real state of every layer and direction (of an LSTM its h alone).

    Padding is never read: a row's state stands still at its own last token, and the other direction begins there.
    """
    if bool((lengths == x.size(1)).all()):  # whole rows go to the faster kernels
        states, last = rnn(x)
    else:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, last = rnn(packed)
        states, _ = pad_packed_sequence(states, batch_first=True, total_length=x.size(1))
    return states, last[0] if isinstance(last, tuple) else last
