"""Export to ONNX: an encoder, a decoder step with a cache, and `greedy.py`, a short program that searches with them."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transduce.errors import TransduceError
from transduce.export.tokenizer_files import library_tokenizer
from transduce.files.atomic import write_atomically
from transduce.inference.config import DecodingConfig
from transduce.inference.predictor import Predictor

if TYPE_CHECKING:
    from transduce.export.greedy_onnx import Greedy

TITLE = "ONNX Runtime"

_LARGEST_FILE = 2**31 - 1  # bytes in a protobuf message: twice as many as the weights of the paper's big model
_PACKAGES = ("onnx", "onnxruntime")
_PROGRAM = Path(__file__).with_name("greedy_onnx.py")


def refuse(predictor: Predictor, *, int8: bool) -> None:
    """Raises TransduceError for weights too large for a file, and where a package is missing."""
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise TransduceError(f"this export needs {package}: pip install 'transduce[export]'")
    num_bytes = sum(parameter.numel() for parameter in predictor.model.parameters()) * (1 if int8 else 4)
    if num_bytes > _LARGEST_FILE:
        raise TransduceError(
            f"the weights have {num_bytes:,} bytes, an ONNX file holds at most {_LARGEST_FILE:,}: export to another "
            "format, or use a smaller model."
        )
    for side in ("source", "target"):
        library_tokenizer(predictor.tokenizer, side)


def write(predictor: Predictor, folder: Path, *, int8: bool) -> None:
    """Writes the two graphs, the tokenizers of both sides, the search settings and the program."""
    from transduce.export.onnx_graph import encoder_graph, step_graph

    for name, graph in (("encoder", encoder_graph), ("decoder_step", step_graph)):
        content = graph(predictor.model, int8=int8).SerializeToString()
        write_atomically(folder / f"{name}.onnx", content)
    for side in ("source", "target"):
        text = library_tokenizer(predictor.tokenizer, side).to_str(pretty=True)
        write_atomically(folder / f"{side}_tokenizer.json", text.encode())
    write_atomically(folder / "settings.json", json.dumps(_settings(predictor), indent=2).encode() + b"\n")
    write_atomically(folder / "greedy.py", _PROGRAM.read_bytes())


def open_engine(folder: Path, predictor: Predictor) -> "OnnxEngine":  # noqa: ARG001 - the folder has everything
    """The written files in ONNX Runtime, on one thread."""
    from transduce.export.greedy_onnx import Greedy

    return OnnxEngine(Greedy(folder, num_threads=1))


def unexpressed(decoding: DecodingConfig) -> list[str]:
    """The run's decoding settings that `greedy.py` does not have, one line each."""
    limitations = {
        "temperature": (0.0, "takes the most likely token and does not sample"),
        "beam_size": (1, "follows one hypothesis"),
        "min_len": (0, "does not enforce a minimum length"),
        "no_repeat_ngram_size": (0, "does not prevent repetition"),
    }
    return [
        f"decoding.{name} = {getattr(decoding, name)}: greedy.py {limitation}"
        for name, (expressed, limitation) in limitations.items()
        if getattr(decoding, name) != expressed
    ]


def usage(predictor: Predictor) -> str:  # noqa: ARG001 - the same for every run
    """A Python program that predicts with the exported folder."""
    return """\
# pip install numpy onnxruntime tokenizers
# In this folder; as a command: python greedy.py < lines > outputs
from greedy import Greedy

translate = Greedy(".")
print(translate(["a text", "another text"]))
"""


class OnnxEngine:
    """The graphs, searched by the loop of `greedy.py`."""

    searches = (DecodingConfig(beam_size=1),)

    def __init__(self, greedy: "Greedy") -> None:
        self._greedy = greedy

    def search(self, sources: list[list[int]], max_lens: list[int], decoding: DecodingConfig) -> list[list[int]]:
        """See `Engine`; greedy search is the only one."""
        assert decoding.beam_size == 1, "the only search there is"
        return self._greedy.search(sources, max_lens)

    def log_probs(self, sources: list[list[int]], outputs: list[list[int]]) -> list[list[float]]:
        """Natural log-probability of each token of each output and of its end, by the cached step of the search."""
        from transduce.export.greedy_onnx import batches

        greedy = self._greedy
        output_log_probs: list[list[float]] = [[] for _ in sources]
        for batch in batches([max(len(sources[i]), len(outputs[i]) + 1) for i in range(len(sources))]):
            state = greedy.start([sources[i] for i in batch])
            ends = [[*outputs[i], greedy.eos_id] for i in batch]
            tokens = np.full(len(batch), greedy.bos_id)
            for position in range(max(map(len, ends))):
                log_probs, state = greedy.step(tokens, state)
                tokens = np.array([ids[min(position, len(ids) - 1)] for ids in ends])  # after the end any token will do
                for row, i in enumerate(batch):
                    if position < len(ends[row]):
                        output_log_probs[i].append(float(log_probs[row, tokens[row]]))
        return output_log_probs


def _settings(predictor: Predictor) -> dict[str, Any]:
    special, decoding = predictor.special, predictor.decoding
    return {
        "pad_id": special.pad,
        "bos_id": special.bos,
        "eos_id": special.eos,
        "max_len": predictor.model.config.max_len,
        "max_len_ratio": decoding.max_len_ratio,
        "max_len_extra": decoding.max_len(0),
    }
