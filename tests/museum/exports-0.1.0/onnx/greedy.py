"""Answers lines of text with the model in this folder: greedy search, the likeliest token at each position.

Needs numpy, onnxruntime and tokenizers, nothing else. As a command, line k of the answers belonging to line k read:

    python greedy.py < lines > answers

and in a program:

    from greedy import Greedy

    answer = Greedy("the/folder")
    print(answer(["a text", "another text"]))
"""

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

TOKENS_AT_ONCE = 4_096  # source tokens answered side by side, padding included
LINES_AT_ONCE = 2_000  # read ahead, so that those of about one length are answered together

State = dict[str, NDArray[Any]]  # what the decoder remembers of each sentence, by the name of its input


class Greedy:
    """Calling it answers texts. An empty text is answered by an empty one; a text too long for the model is cut."""

    def __init__(self, folder: str | Path, *, num_threads: int = 0) -> None:
        """`num_threads` 0 takes every core."""
        folder = Path(folder)
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self.pad_id, self.bos_id, self.eos_id = (settings[name] for name in ("pad_id", "bos_id", "eos_id"))
        self.max_len = settings["max_len"]  # tokens in the longest source or answer, end included
        self.max_len_ratio, self.max_len_extra = settings["max_len_ratio"], settings["max_len_extra"]
        self.source_tokenizer = Tokenizer.from_file(str(folder / "source_tokenizer.json"))
        self.target_tokenizer = Tokenizer.from_file(str(folder / "target_tokenizer.json"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        self.encoder, self.decoder_step = (
            onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
            for name in ("encoder.onnx", "decoder_step.onnx")
        )

    def __call__(self, texts: Sequence[str]) -> list[str]:
        rows = [row for row, text in enumerate(texts) if text.strip()]
        encoded = self.source_tokenizer.encode_batch([texts[row] for row in rows])
        sources = [self.cut(encoding.ids) for encoding in encoded]
        found = self.search(sources, [self.longest_answer(source) for source in sources])
        answers = [""] * len(texts)
        for row, ids in zip(rows, found, strict=True):
            answers[row] = self.target_tokenizer.decode(ids)
        return answers

    def cut(self, source: list[int]) -> list[int]:
        """A source that the model can read: its end stays."""
        return source if len(source) <= self.max_len else [*source[: self.max_len - 1], self.eos_id]

    def longest_answer(self, source: list[int]) -> int:
        """Tokens that an answer may have, its end included."""
        return min(int(self.max_len_ratio * len(source)) + self.max_len_extra, self.max_len)

    def search(self, sources: list[list[int]], max_lens: list[int]) -> list[list[int]]:
        """The answers to sources given as ids with their ends, as ids without."""
        answers: list[list[int]] = [[] for _ in sources]
        for batch in batches([len(source) for source in sources]):
            found = self.search_batch([sources[i] for i in batch], np.array([max_lens[i] for i in batch]))
            for i, ids in zip(batch, found, strict=True):
                answers[i] = ids
        return answers

    def search_batch(self, sources: list[list[int]], max_lens: NDArray[np.int64]) -> list[list[int]]:
        """The answers to sources side by side. A sentence that has ended leaves the batch."""
        answers: list[list[int]] = [[] for _ in sources]
        rows = np.arange(len(sources))  # which source each row of the batch is
        tokens, state = np.full(len(sources), self.bos_id, dtype=np.int64), self.start(sources)
        for length in count(1):
            log_probs, state = self.step(tokens, state)
            log_probs[:, [self.pad_id, self.bos_id]] = -np.inf  # never an answer's
            tokens = log_probs.argmax(axis=-1)
            is_open = (tokens != self.eos_id) & (max_lens[rows] > length)  # the last place is the end's
            rows, tokens, state = rows[is_open], tokens[is_open], keep(state, is_open)
            for row, token in zip(rows, tokens, strict=True):
                answers[row].append(int(token))
            if not len(rows):
                break
        return answers

    def start(self, sources: list[list[int]]) -> State:
        """Reads the sources: the state before the first token."""
        source_ids = np.full((len(sources), max(map(len, sources))), self.pad_id, dtype=np.int64)
        for row, source in enumerate(sources):
            source_ids[row, : len(source)] = source
        cross_keys, cross_values, source_mask = self.encoder.run(None, {"source_ids": source_ids})
        nothing = cross_keys[:, :, :, :0]  # (layers, batch, heads, 0, head_dim)
        return {
            "cross_keys": cross_keys,
            "cross_values": cross_values,
            "source_mask": source_mask,
            "past_keys": nothing,
            "past_values": nothing,
        }

    def step(self, tokens: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """Appends one token to each sentence: log-probabilities (batch, ids) of the next one, and the new state."""
        log_probs, keys, values = self.decoder_step.run(None, {"tokens": tokens, **state})
        return log_probs, state | {"past_keys": keys, "past_values": values}


def keep(state: State, is_kept: NDArray[np.bool_]) -> State:
    """The state of some of the sentences."""
    if is_kept.all():
        return state
    return {name: x[is_kept] if name == "source_mask" else x[:, is_kept] for name, x in state.items()}


def batches(lens: list[int]) -> Iterator[list[int]]:
    """The numbers of sentences to be answered together: of about one length, so that little is padded."""
    batch: list[int] = []
    for i in sorted(range(len(lens)), key=lens.__getitem__):
        if batch and (len(batch) + 1) * lens[i] > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def main() -> None:
    answer = Greedy(Path(__file__).parent)
    num_ahead = 1 if sys.stdin.isatty() else LINES_AT_ONCE
    # A line ends at \n alone, and text is UTF-8, whatever the machine is set to.
    with open(0, encoding="utf-8-sig", newline="\n") as lines, open(1, "w", encoding="utf-8", newline="\n") as answers:
        while block := [line.removesuffix("\r\n").removesuffix("\n") for line in islice(lines, num_ahead)]:
            answers.writelines(f"{text}\n" for text in answer(block))
            answers.flush()


if __name__ == "__main__":
    main()
