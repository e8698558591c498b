"""This project: the real predictor; its workers share a large batch, one line is answered on one thread."""

import sys
from pathlib import Path

import answering
import torch

import transduce
from transduce.devices.cpu import speed_up_cpu
from transduce.inference.config import DecodingConfig
from transduce.runs.run import load

speed_up_cpu()
is_int8 = sys.argv[3:] == ["int8"]
predictor = load(Path(sys.argv[2]), device="cpu", int8=is_int8)


def answer(texts: list[str], beam_size: int, at_once: int) -> tuple[list[str], int]:
    torch.set_num_threads(1 if at_once == 1 else 2)
    decoding = DecodingConfig(beam_size=beam_size, length_penalty=1.0, length_norm="power")
    answers = [best[0] for best in predictor.predict_n_best(texts, 1, decoding=decoding)]
    return [best.text for best in answers], sum(len(best.ids) + 1 for best in answers)


answering.serve(f"transduce {transduce.__version__}, {'int8' if is_int8 else 'float32'}", transduce.__version__, answer)
