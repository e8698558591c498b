"""Learns how English words are pronounced, scores itself, and pronounces words that are in no dictionary.

Run it again after an interruption and it goes on; with the model finished, it scores and pronounces at once.
"""

import argparse
import io
import json
import os
import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure  # not pyplot: no window system, no global state

import transduce
from transduce.cli.main import main as main_of_command
from transduce.data.datasets import load_split
from transduce.evaluation.evaluate import score
from transduce.inference.attention_maps import record_attention
from transduce.runs.folder import RunFolder

CONFIG = Path(__file__).parents[1] / "configs" / "cmudict.toml"
NEW_WORDS = ["transduce", "tokenizer", "blorptastic", "snizzlewick", "quantumly", "grokking", "zephyrine", "vaswanian"]


def main() -> int:
    """Trains or resumes, scores, pronounces, draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/demo"))
    run_dir = parser.parse_args().run_dir
    began, is_new = _clocks(), not (run_dir / "run.json").exists()
    status = main_of_command(["train", str(CONFIG), "--run-dir", str(run_dir), "--resume"])
    if status:
        return status
    folder = RunFolder.open(run_dir)
    predictor = transduce.load(run_dir)
    known = {split: load_split("cmudict", split) for split in ("train", "valid", "test")}
    word_errors, phoneme_errors = score(
        predictor, known["test"].src, [known["test"].tgt], ("word_error", "per"), group_sources=True
    )
    spent = {name: round(now - then, 1) for (name, now), then in zip(_clocks().items(), began.values(), strict=True)}
    found = {
        "word_error": round(word_errors.value, 2),
        "per": round(phoneme_errors.value, 2),
        "word_error_interval": [round(word_errors.low, 2), round(word_errors.high, 2)],
        "per_interval": [round(phoneme_errors.low, 2), round(phoneme_errors.high, 2)],
        "num_test_words": word_errors.num_segments,
        "num_test_pronunciations": len(known["test"]),
        "steps": folder.checkpoints()[-1],
        "beam_size": predictor.decoding.beam_size,
        "machine": folder.facts["started"] | {"cores": os.cpu_count()},
    }
    if is_new:  # the clocks of a sitting that only went on say nothing of the whole
        found |= {"training_seconds": spent["wall"], "cpu_seconds": spent["cpu"], "stolen_seconds": spent["stolen"]}
        folder.write_file("score.json", json.dumps(found, indent=2).encode() + b"\n")
    print(f"\n{word_errors}  on {found['num_test_words']:,} words that were not in training: the share that is wrong")
    print(f"{phoneme_errors}  the share of wrong phonemes")
    print(f"{spent['wall']:.0f} seconds from the command to the score\n")

    print("Rare and invented words:")
    words = {word for pairs in known.values() for word in pairs.src}
    for word, phonemes in zip(NEW_WORDS, predictor.predict(NEW_WORDS), strict=True):
        print(f"  {word:14} {phonemes}{'   (in the dictionary after all)' if word in words else ''}")
    folder.write_file("attention.png", draw_attention(predictor, NEW_WORDS[0]))
    print(f"\nAttention of each phoneme to the letters: {run_dir}/attention.png")
    print(f"Learning curve: {run_dir}/learning_curve.png")
    print(f"Try your own: {Path(sys.executable).parent / 'transduce'} predict {run_dir}")
    return 0


def draw_attention(predictor: transduce.Predictor, word: str) -> bytes:
    """A PNG of the last decoder layer's cross-attention, averaged over its heads, while it writes its output."""
    tokenizer, model = predictor.tokenizer, predictor.model
    device = model.output_weight.device
    src = tokenizer.encode_source([word])[0]
    tgt = tokenizer.encode_target(predictor.predict([word]))[0]
    with torch.inference_mode(), record_attention(model) as maps:
        model(torch.tensor([src], device=device), torch.tensor([[tokenizer.bos_id, *tgt[:-1]]], device=device))
    last = f"decoder.layers.{model.config.num_decoder_layers - 1}.cross_attention"
    figure = Figure(figsize=(1.6 + 0.42 * len(src), 1.4 + 0.36 * len(tgt)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(maps[last][0].mean(dim=0).tolist(), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axis.set_xticks(range(len(src)), tokenizer.source_tokens(src), fontsize=11)
    axis.set_yticks(range(len(tgt)), tokenizer.target_tokens(tgt), fontsize=11)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(f"Cross-attention while pronouncing “{word}”", fontsize=11)
    figure.colorbar(image, ax=axis, shrink=0.7, label="attention weight")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    return buffer.getvalue()


def _clocks() -> dict[str, float]:
    """Seconds by the wall, of this process's work, and taken from this machine by its neighbors."""
    work = sum(os.times()[:4])  # with that of the processes it started
    stat = Path("/proc/stat")
    stolen = int(stat.read_text().split(maxsplit=9)[8]) / os.sysconf("SC_CLK_TCK") if stat.exists() else 0.0
    return {"wall": time.perf_counter(), "cpu": work, "stolen": stolen}


if __name__ == "__main__":
    sys.exit(main())
