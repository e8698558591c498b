"""eole's own trainer, told of nothing but its configuration; hooked where a step begins."""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import eole.trainer
import gate as peers
from eole.bin.main import main

gate, work = peers.begin(f"eole {version('eole')}")
tokens_before = None  # of the step before this one
own_step = eole.trainer.Trainer._train_step


def step(self, batches, *args, **options):
    global tokens_before
    if tokens_before is None:
        gate.facts = {"version": version("eole"), "parameters": peers.count_parameters(self.model)}
    else:
        gate.tick(tokens_before)
    result = own_step(self, batches, *args, **options)
    pad_id = self.train_loss.padding_idx
    tokens_before = sum(int(batch["tgt"][:, 1:].ne(pad_id).sum()) for batch in batches)
    return result


folder = Path(tempfile.mkdtemp())
config = {
    "save_data": str(folder / "data"),
    "overwrite": True,
    "seed": 1,
    "report_every": 1000,
    "src_vocab": str(work.folder / "words_counted"),
    "tgt_vocab": str(work.folder / "words_counted"),
    "src_vocab_size": work.facts["vocabulary"],
    "tgt_vocab_size": work.facts["vocabulary"],
    "vocab_size_multiple": 8,
    "share_vocab": True,
    "n_sample": 0,
    "data": {"all": {"path_src": str(work.folder / "train.src"), "path_tgt": str(work.folder / "train.tgt")}},
    "training": {
        "model_path": str(folder / "model"),
        "train_steps": 1_000_000,
        "save_checkpoint_steps": 0,
        "valid_steps": 100_000_000,
        "bucket_size": work.facts["pairs"],
        "num_workers": 0,
        "prefetch_factor": 400,
        "world_size": 0,
        "gpu_ranks": [],
        "batch_type": "tokens",
        "batch_size": work.facts["batch_tokens"],
        "batch_size_multiple": 1,
        "accum_count": [1],
        "accum_steps": [0],
        "dropout": [peers.DROPOUT],
        "attention_dropout": [0.0],
        "dropout_steps": [0],
        "compute_dtype": "fp32",
        "optim": "adamw",
        "learning_rate": 2,
        "warmup_steps": 4000,
        "decay_method": "noam",
        "adam_beta2": peers.BETAS[1],
        "max_grad_norm": 0,
        "label_smoothing": peers.LABEL_SMOOTHING,
        "param_init_method": "xavier_uniform",
        "normalization": "tokens",
    },
    "model": {
        "architecture": "transformer",
        "hidden_size": peers.D_MODEL,
        "share_decoder_embeddings": True,
        "share_embeddings": True,
        "layers": peers.NUM_LAYERS,
        "heads": peers.NUM_HEADS,
        "transformer_ff": peers.D_FF,
        "add_qkvbias": True,
        "add_ffnbias": True,
        "embeddings": {"word_vec_size": peers.D_MODEL, "position_encoding_type": "SinusoidalInterleaved"},
    },
}
(folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
eole.trainer.Trainer._train_step = step
sys.argv = ["eole", "train", "-c", str(folder / "config.yaml")]
main()
