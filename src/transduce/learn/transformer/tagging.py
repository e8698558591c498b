"""An encoder that names something at every position: the smallest network that shows what one of its parts is for."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from transduce.learn.tasks import FIRST_SYMBOL
from transduce.learn.training import Training, optimize, small_transformer
from transduce.learn.varying import variation
from transduce.model.config import VocabularySizes

Answers = Int[Tensor, "batch len questions"]
Ask = Callable[[Int[Tensor, "batch len"]], Answers]  # symbols from 0 -> right answers, UNASKED where there is none
UNASKED = -100


class Tagger(nn.Module):
    """The shipped encoder, and on top of it one linear layer for each question that is asked at each position."""

    def __init__(
        self, num_symbols: int, num_questions: int = 1, *, feed_forward: bool = True, seed: int = 1, **settings: int
    ) -> None:
        """`settings` are those of TransformerConfig; without `feed_forward` it is taken out of every layer."""
        super().__init__()
        size = {"num_encoder_layers": 1, "num_decoder_layers": 1} | settings
        transformer = small_transformer(VocabularySizes.joint(FIRST_SYMBOL + num_symbols), seed, **size)
        if not feed_forward:
            for layer in transformer.encoder.layers:
                layer.feed_forward = nn.Identity()  # LayerNorm(x + x) = LayerNorm(x): nothing is left of the sub-layer
        transformer.decoder = nn.Identity()  # type: ignore[assignment]
        self.transformer = transformer
        self.num_questions = num_questions
        self.readout = nn.Linear(transformer.config.d_model, num_questions * num_symbols)

    def forward(self, symbols: Int[Tensor, "batch len"]) -> Float[Tensor, "batch len questions symbols"]:
        """Scores of every symbol as the answer to each question."""
        hidden, _ = self.transformer.encode(symbols + FIRST_SYMBOL)
        return self.readout(hidden).unflatten(-1, (self.num_questions, -1))

    @property
    def num_layer_parameters(self) -> int:
        """Parameters of the encoder's layers."""
        return sum(parameter.numel() for parameter in self.transformer.encoder.parameters())


def train_tagger(model: Tagger, ask: Ask, *, num_symbols: int, length: int, steps: int) -> Training:
    """Learns to answer `ask` on fresh rows of `length` random symbols at every step: see `optimize`."""
    random = torch.Generator().manual_seed(1 + variation().seed)

    def next_loss() -> Tensor:
        symbols = torch.randint(num_symbols, (64, length), generator=random)
        return F.cross_entropy(model(symbols).flatten(0, 2), ask(symbols).flatten(), ignore_index=UNASKED)

    return optimize(model.parameters(), next_loss, steps=steps, learning_rate=4e-3, warmup_steps=20)


@torch.no_grad()
def share_right(model: Tagger, ask: Ask, symbols: Int[Tensor, "batch len"]) -> tuple[float, list[float]]:
    """Share of positions at which all questions are answered right, and the share of each question by itself."""
    answers = ask(symbols)
    is_asked = (answers != UNASKED).all(dim=-1)
    is_right = (model(symbols).argmax(dim=-1) == answers)[is_asked]
    return float(is_right.all(dim=-1).float().mean()), is_right.float().mean(dim=0).tolist()
