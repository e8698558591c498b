"""Greedy search with the model in this folder: the most likely token at each position.

Needs numpy, onnxruntime and tokenizers, nothing else. As a command, which writes line k for line k read:

    python greedy.py < lines > outputs

and in a program:

    from greedy import Greedy

    translate = Greedy("the/folder")
    print(translate(["a text", "another text"]))
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

TOKENS_AT_ONCE = 4_096  # source tokens in a batch, padding included
LINES_AT_ONCE = 2_000  # read ahead, so that lines of about one length share a batch

State = dict[str, NDArray[Any]]  # the decoder's cache, by the name of its input


class Greedy:
    """A predictor: a list of texts in, a list of texts out.

    The output for an empty text is empty; a text too long for the model is truncated.
    """

    def __init__(self, folder: str | Path, *, num_threads: int = 0) -> None:
        """`num_threads` 0 takes every core."""
        folder = Path(folder)
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self.pad_id, self.bos_id, self.eos_id = (settings[name] for name in ("pad_id", "bos_id", "eos_id"))
        self.max_len = settings["max_len"]  # tokens of a source or an output, end included
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
        sources = [self.truncate(encoding.ids) for encoding in encoded]
        outputs = self.search(sources, [self.max_output_len(source) for source in sources])
        predictions = [""] * len(texts)
        for row, ids in zip(rows, outputs, strict=True):
            predictions[row] = self.target_tokenizer.decode(ids)
        return predictions

    def truncate(self, source: list[int]) -> list[int]:
        """A source of at most `max_len` ids, ended by eos."""
        return source if len(source) <= self.max_len else [*source[: self.max_len - 1], self.eos_id]

    def max_output_len(self, source: list[int]) -> int:
        """Maximum number of tokens of an output, its end included."""
        return min(int(self.max_len_ratio * len(source)) + self.max_len_extra, self.max_len)

    def search(self, sources: list[list[int]], max_lens: list[int]) -> list[list[int]]:
        """The outputs, as ids without eos, for sources given as ids with eos."""
        outputs: list[list[int]] = [[] for _ in sources]
        for batch in batches([len(source) for source in sources]):
            batch_outputs = self.search_batch([sources[i] for i in batch], np.array([max_lens[i] for i in batch]))
            for i, ids in zip(batch, batch_outputs, strict=True):
                outputs[i] = ids
        return outputs

    def search_batch(self, sources: list[list[int]], max_lens: NDArray[np.int64]) -> list[list[int]]:
        """The outputs for one batch of sources. A sentence that has ended leaves the batch."""
        outputs: list[list[int]] = [[] for _ in sources]
        rows = np.arange(len(sources))  # the source of each row of the batch
        tokens, state = np.full(len(sources), self.bos_id, dtype=np.int64), self.start(sources)
        for length in count(1):
            log_probs, state = self.step(tokens, state)
            log_probs[:, [self.pad_id, self.bos_id]] = -np.inf  # never part of an output
            tokens = log_probs.argmax(axis=-1)
            is_open = (tokens != self.eos_id) & (max_lens[rows] > length)  # the last position is for eos
            rows, tokens, state = rows[is_open], tokens[is_open], keep(state, is_open)
            for row, token in zip(rows, tokens, strict=True):
                outputs[row].append(int(token))
            if not len(rows):
                break
        return outputs

    def start(self, sources: list[list[int]]) -> State:
        """Encode the sources: the state before the first token."""
        source_ids = np.full((len(sources), max(map(len, sources))), self.pad_id, dtype=np.int64)
        for row, source in enumerate(sources):
            source_ids[row, : len(source)] = source
        cross_keys, cross_values, source_mask = self.encoder.run(None, {"source_ids": source_ids})
        no_keys = cross_keys[:, :, :, :0]  # (layers, batch, heads, 0, head_dim)
        return {
            "cross_keys": cross_keys,
            "cross_values": cross_values,
            "source_mask": source_mask,
            "past_keys": no_keys,
            "past_values": no_keys,
        }

    def step(self, tokens: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """Append one token to each sentence: log-probabilities (batch, ids) of the next one, and the new state."""
        log_probs, keys, values = self.decoder_step.run(None, {"tokens": tokens, **state})
        return log_probs, state | {"past_keys": keys, "past_values": values}


def keep(state: State, is_kept: NDArray[np.bool_]) -> State:
    """The state of the sentences that stay in the batch."""
    if is_kept.all():
        return state
    return {name: x[is_kept] if name == "source_mask" else x[:, is_kept] for name, x in state.items()}


def batches(lens: list[int]) -> Iterator[list[int]]:
    """The indices of the sentences of each batch: of about one length, so that little is padded."""
    batch: list[int] = []
    for i in sorted(range(len(lens)), key=lens.__getitem__):
        if batch and (len(batch) + 1) * lens[i] > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def main() -> None:
    """Answer the lines of standard input, one line each."""
    greedy = Greedy(Path(__file__).parent)
    num_ahead = 1 if sys.stdin.isatty() else LINES_AT_ONCE
    # A line ends at \n alone, and text is UTF-8, whatever the machine is set to.
    with open(0, encoding="utf-8-sig", newline="\n") as lines, open(1, "w", encoding="utf-8", newline="\n") as outputs:
        while block := [line.removesuffix("\r\n").removesuffix("\n") for line in islice(lines, num_ahead)]:
            outputs.writelines(f"{text}\n" for text in greedy(block))
            outputs.flush()


if __name__ == "__main__":
    main()
