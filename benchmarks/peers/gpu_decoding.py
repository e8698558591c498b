"""Decoding of random sentences from ids to ids with a model of random weights, by gpu.py; PYTHONPATH names the tree.

    gpu_decoding.py --way WAY --output FILE [--lines N] [--rehearse]    # plain, graphed, bfloat16 or huggingface

It runs with this version of the project and with older ones, whose modules have other names; with tiny sizes for a
rehearsal. Every output has 20 tokens, whoever decodes: the length of a random model's outputs would be chance.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

VOCABULARY, PAD, BOS, EOS, NUM_TOKENS = 8_000, 0, 1, 2, 20
MEAN_LEN, LEN_SPREAD, MOST_TOKENS = 14.0, 0.35, 60
NUM_BLOCKS, NUM_ALONE = 5, 30
WAYS = {"plain": {}, "graphed": {"cuda_graph": True}, "bfloat16": {"cuda_graph": True, "precision": "bfloat16"}}


def sentences(num: int) -> list[list[int]]:
    random = np.random.default_rng(1)
    lens = np.exp(random.normal(np.log(MEAN_LEN), LEN_SPREAD, num)).round().clip(2, MOST_TOKENS).astype(int)
    return [[*random.integers(300, VOCABULARY, length - 1).tolist(), EOS] for length in lens]


def transduce_search(way: str, beam_size: int, device: str) -> Any:
    """Our own search: a function of sources."""
    from transduce.model import PRESETS, Transformer, VocabularySizes

    try:
        from transduce.inference.config import DecodingConfig
        from transduce.inference.predictor import Predictor
    except ImportError:  # version 0.1
        from transduce.decoding import DecodingConfig  # type: ignore[no-redef]
        from transduce.predictor import Predictor  # type: ignore[no-redef]
    torch.manual_seed(1)
    model = Transformer(replace(PRESETS["tiny"], max_len=256), VocabularySizes.joint(VOCABULARY)).to(device)
    with torch.no_grad():
        model.output_weight[EOS] = 0.0  # never among the most likely, so that no output ends before it must
    # What a search without constraints asks of one.
    tokenizer: Any = SimpleNamespace(
        pad_id=PAD, bos_id=BOS, eos_id=EOS, config=SimpleNamespace(target="words"),
        encode_target=lambda texts: [[EOS] for _ in texts], normal_target=list, target_bytes=list,
    )  # fmt: skip
    decoding = DecodingConfig(beam_size=beam_size, max_len_ratio=0.0, max_len_extra=NUM_TOKENS, **WAYS[way])
    return Predictor(model, tokenizer, decoding).search


def huggingface_search(beam_size: int, device: str) -> Any:
    """`generate` of a MarianMTModel of the same size, in batches of 512 sorted sentences, in bfloat16."""
    from transformers import MarianConfig, MarianMTModel

    sides = {}
    for side in ("encoder", "decoder"):
        sides |= {f"{side}_layers": 4, f"{side}_ffn_dim": 256, f"{side}_attention_heads": 4}
    config = MarianConfig(
        vocab_size=VOCABULARY, d_model=128, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
        decoder_start_token_id=BOS, forced_eos_token_id=None, **sides,
    )  # fmt: skip
    model = MarianMTModel(config).to(device, torch.bfloat16 if device == "cuda" else torch.float32).eval()

    def search(sources: list[list[int]]) -> None:
        ordered = sorted(sources, key=len)
        for first in range(0, len(ordered), 512):
            rows = ordered[first : first + 512]
            ids = torch.tensor([row + [PAD] * (len(rows[-1]) - len(row)) for row in rows], device=device)
            model.generate(
                ids, attention_mask=(ids != PAD).long(), num_beams=beam_size, do_sample=False,
                min_new_tokens=NUM_TOKENS, max_new_tokens=NUM_TOKENS,
            )  # fmt: skip

    return search


def seconds_of(search: Any, sources: list[list[int]], device: str) -> float:
    started = time.perf_counter()
    search(sources)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description="Times decoding on a GPU.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--way", choices=[*WAYS, "huggingface"], required=True)
    parser.add_argument("--lines", type=int, default=8_000)
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    device, num_blocks, num_alone = ("cpu", 1, 1) if arguments.rehearse else ("cuda", NUM_BLOCKS, NUM_ALONE)
    sources, rows = sentences(arguments.lines), []
    for beam_size in (1, 5):
        if arguments.way == "huggingface":
            search = huggingface_search(beam_size, device)
        else:
            search = transduce_search(arguments.way, beam_size, device)
        with torch.inference_mode():
            first = seconds_of(search, sources, device)
            blocks = [seconds_of(search, sources, device) for _ in range(num_blocks)]
            seconds_of(search, sources[:1], device)
            alone = [seconds_of(search, [source], device) for source in sources[:num_alone]]
        rows.append(
            {
                "way": arguments.way,
                "beam_size": beam_size,
                "lines": len(sources),
                "first_seconds": first,
                "seconds": {"median": median(blocks), "min": min(blocks), "max": max(blocks)},
                "tokens_per_second": len(sources) * NUM_TOKENS / median(blocks),
                "milliseconds_alone": 1e3 * median(alone),
            }
        )
        arguments.output.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
