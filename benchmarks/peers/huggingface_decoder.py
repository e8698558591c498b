"""Hugging Face `generate` on the exported weights, in sorted batches of 64; the first 256 lines, as it is slow."""

import answering
import torch
import transformers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

transformers.logging.set_verbosity_error()
torch.set_flush_denormal(True)
model = answering.folder() / "huggingface"
tokenizer = AutoTokenizer.from_pretrained(model)
network = AutoModelForSeq2SeqLM.from_pretrained(model).eval()
folders = network.generation_config
# The folder's own also keeps padding from being chosen, which costs time, and has a longest length for all answers.
network.generation_config = GenerationConfig(
    **{name: getattr(folders, name) for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id")}
)


@torch.inference_mode()
def answer(texts: list[str], beam_size: int, at_once: int) -> tuple[list[str], int]:
    torch.set_num_threads(1 if at_once == 1 else 2)
    answers, num_tokens = [""] * len(texts), 0
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    for first in range(0, len(order), 64):
        rows = order[first : first + 64]
        batch = tokenizer([texts[row] for row in rows], return_tensors="pt", padding=True)
        found = network.generate(
            **batch,
            num_beams=beam_size,
            do_sample=False,
            length_penalty=1.0,
            early_stopping=beam_size > 1,
            max_new_tokens=2 * batch["input_ids"].size(1) + 20,
        )
        is_end = found[:, 1:] == tokenizer.eos_token_id
        num_tokens += int(((is_end.cumsum(dim=1) - is_end.long()) == 0).sum())  # up to the first end, with it
        for row, text in zip(rows, tokenizer.batch_decode(found, skip_special_tokens=True), strict=True):
            answers[row] = text
    return answers, num_tokens


answering.serve(
    f"Hugging Face transformers {transformers.__version__}", transformers.__version__, answer, most_lines=256
)
