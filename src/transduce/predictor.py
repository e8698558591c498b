"""Text in, predictions out: the one object that every front end uses, from memory or from a run folder."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transduce.checkpoint import RunFolder
from transduce.config import build, parse_toml
from transduce.data import EncodedPairs, bucket_batches, collate, pad_sources
from transduce.decoding import DecodingConfig, Hypothesis, SpecialIds, beam_search, greedy_search, sample
from transduce.errors import TransduceError
from transduce.loss import cross_entropy_sum
from transduce.model import Transformer, TransformerConfig, VocabularySizes
from transduce.tensor_files import load_parameters
from transduce.tokenizer import Tokenizer

# Source tokens decoded side by side, over all hypotheses: large products, but a state of moderate size.
_TOKENS_AT_ONCE = 16_384


@dataclass(frozen=True)
class Prediction:
    """One answer; `score` is its natural log-probability after length normalisation: beam search ranks by it."""

    text: str
    score: float
    log_prob: float

    def as_dict(self) -> dict[str, Any]:
        return {"text": self.text, "score": self.score, "log_prob": self.log_prob}


class Predictor:
    """A model and the tokenizer it was trained with.

    `predict` answers texts; `predict_n_best` gives several answers to each; `stream` answers any number of lines in
    constant memory. An empty text is answered by an empty one. A source longer than the model is meant for is cut
    off, counted in `num_truncated` and reported.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        decoding: DecodingConfig = DecodingConfig(),  # noqa: B008 - frozen
        *,
        report: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.decoding = decoding
        self.report = report
        self.num_truncated = 0
        self.special = SpecialIds(tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        device: str = "auto",
        decoding: DecodingConfig | None = None,
        report: Callable[[str], None] = lambda _line: None,
    ) -> "Predictor":
        """The best model of a run folder, with the run's own decoding settings unless others are given.

        Raises MissingInputError if there is no run or no model yet, DamagedFileError if a byte of it has changed.
        """
        folder = RunFolder.open(Path(run))
        settings = parse_toml(folder.config, "config.toml")
        tokenizer = Tokenizer.from_json(folder.tokenizer)
        with torch.random.fork_rng(devices=[]):  # the random start is overwritten: it must not cost the caller's draws
            model = Transformer(build(TransformerConfig, settings["model"], "model."), vocabulary_sizes(tokenizer))
        load_parameters(model, folder.read_model()[0])
        model.to(find_device(device))
        return cls(
            model, tokenizer, decoding or build(DecodingConfig, settings["decoding"], "decoding."), report=report
        )

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The best answer to each text, in their order."""
        return [answers[0].text for answers in self.predict_n_best(texts, 1)]

    def predict_n_best(self, texts: Sequence[str], num_best: int, *, first_row: int = 0) -> list[list[Prediction]]:
        """The `num_best` best answers to each text, best first; at most `beam_size` can be had.

        With sampling they are draws, and `first_row` is the number of the first text among all: text k is always
        drawn for with the same numbers, whatever comes before it.
        """
        self._check(num_best)
        answers: list[list[Prediction]] = [[Prediction("", 0.0, 0.0)] * num_best for _ in texts]
        rows = [row for row, text in enumerate(texts) if text.strip()]
        sources = [self._cut(ids) for ids in self.tokenizer.encode_source([texts[row] for row in rows])]
        lens = np.array([len(ids) for ids in sources], dtype=np.int32)
        budget = _TOKENS_AT_ONCE // (1 if self._is_sampling else self.decoding.beam_size)
        for batch in bucket_batches(lens, lens, batch_tokens=budget, order=range(len(lens))):
            found = self._search([sources[i] for i in batch], num_best, [first_row + rows[i] for i in batch])
            for i, hypotheses in zip(batch, found, strict=True):
                answers[rows[i]] = [
                    Prediction(self.tokenizer.decode_target(h.ids), h.score, h.log_prob) for h in hypotheses
                ]
        return answers

    def stream(self, lines: Iterable[str], num_best: int = 1, *, read_ahead: int = 2_000) -> Iterator[list[Prediction]]:
        """Answers line by line, in order. `read_ahead` lines are in memory at a time and sorted among themselves, so
        that little is padded; 1 answers each line before it reads the next.
        """
        self._check(num_best)  # now, not when the first answer is asked for
        return self._stream(lines, num_best, read_ahead)

    def _stream(self, lines: Iterable[str], num_best: int, read_ahead: int) -> Iterator[list[Prediction]]:
        remaining, first_row = iter(lines), 0
        while ahead := list(islice(remaining, read_ahead)):
            yield from self.predict_n_best(ahead, num_best, first_row=first_row)
            first_row += len(ahead)

    @property
    def _is_sampling(self) -> bool:
        return self.decoding.temperature > 0

    def _check(self, num_best: int) -> None:
        beam_size = self.decoding.beam_size
        if num_best < 1 or (num_best > beam_size and not self._is_sampling):
            raise TransduceError(
                f"{num_best} answers per line were asked for: from 1 to the beam size ({beam_size}) can be had."
            )

    def _cut(self, ids: list[int]) -> list[int]:
        longest = self.model.config.max_len
        if len(ids) <= longest:
            return ids
        self.num_truncated += 1
        if self.num_truncated == 1:
            self.report(f"a source of {len(ids)} tokens is cut off at model.max_len = {longest}.")
        return [*ids[: longest - 1], self.tokenizer.eos_id]

    @torch.inference_mode()
    def _search(self, sources: list[list[int]], num_best: int, rows: list[int]) -> list[list[Hypothesis]]:
        src = pad_sources(sources).to(self.model.output_weight.device)
        max_lens = torch.tensor([self._max_len(ids) for ids in sources], device=src.device)
        config, step = self.decoding, self.model.step
        if self._is_sampling:
            draws = []
            for draw in range(num_best):
                uniforms = _uniforms(rows, draw, config.seed, int(max_lens.max())).to(src.device)
                state = self.model.start(src)
                draws.append(sample(step, state, max_lens, self.special, config=config, uniforms=uniforms))
            return [list(of_one_source) for of_one_source in zip(*draws, strict=True)]
        if config.beam_size == 1:
            found = greedy_search(step, self.model.start(src), max_lens, self.special, config=config)
            return [[hypothesis] for hypothesis in found]
        state = self.model.start(src, config.beam_size)
        return beam_search(step, state, max_lens, self.special, config=config, num_best=num_best)

    def _max_len(self, source: list[int]) -> int:
        longest = self.decoding.max_len(len(source))
        return min(longest, self.model.config.max_len)


def load(run: str | Path, *, device: str = "auto") -> Predictor:
    """The best model of a run folder, ready to answer: `transduce.load("runs/x").predict(["a text"])`."""
    return Predictor.load(run, device=device)


@torch.inference_mode()
def corpus_loss(model: Transformer, pairs: EncodedPairs, *, batch_tokens: int = _TOKENS_AT_ONCE) -> float:
    """Cross-entropy of the targets in nats per token, without smoothing or dropout."""
    model.eval()
    total, num_tokens = 0.0, 0
    rows = range(len(pairs))
    for batch_rows in bucket_batches(pairs.src_lens, pairs.tgt_lens, batch_tokens=batch_tokens, order=rows):
        batch = collate(pairs, batch_rows).to(model.output_weight.device)
        hidden = model(batch.src, batch.tgt_in)
        loss, count = cross_entropy_sum(hidden, model.output_weight, batch.tgt_out, pad_id=model.vocabulary.pad_id)
        total, num_tokens = total + loss.item(), num_tokens + int(count)
    return total / num_tokens


def vocabulary_sizes(tokenizer: Tokenizer) -> VocabularySizes:
    """What the network has to know of the tokenizer."""
    return VocabularySizes(
        source=tokenizer.source_vocab_size,
        target=tokenizer.target_vocab_size,
        num_target_ids=tokenizer.num_target_ids,
        is_joint=tokenizer.is_joint,
        pad_id=tokenizer.pad_id,
    )


def find_device(name: str) -> torch.device:
    """The device called `name`, a CPU or CUDA one; "auto" is the first GPU if there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):  # others, such as mps, lack float64
            raise RuntimeError
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):
        has_gpu = torch.cuda.is_available()
        raise TransduceError(
            f"there is no device '{name}' to compute on here, which must be a CPU or an NVIDIA GPU: take "
            f"{'cpu, cuda or cuda:N' if has_gpu else 'cpu'} or auto."
        ) from None
    return device


def _uniforms(rows: list[int], draw: int, seed: int, length: int) -> Tensor:
    """Numbers in [0, 1) for each row, a function of (seed, row, draw): (B, length)."""
    table = torch.empty(len(rows), length)
    for place, row in enumerate(rows):
        table[place] = torch.from_numpy(np.random.default_rng([seed, row, draw]).random(length, np.float32))
    return table
