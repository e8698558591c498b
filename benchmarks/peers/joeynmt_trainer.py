"""JoeyNMT's own trainer, told of nothing but its configuration; hooked where a step begins."""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import gate as peers
import joeynmt.training
from joeynmt.__main__ import main

gate, work = peers.begin(f"JoeyNMT {version('joeynmt')}")
tokens_before = None  # of the step before this one
own_step = joeynmt.training.TrainManager._train_step


def step(self, batch):
    global tokens_before
    if tokens_before is None:
        gate.facts = {"version": version("joeynmt"), "parameters": peers.count_parameters(self.model)}
    else:
        gate.tick(tokens_before)
    loss = own_step(self, batch)
    tokens_before = int(batch.ntokens)
    return loss


def side(lang: str) -> dict:
    return {
        "lang": lang,
        "level": "word",
        "max_length": 256,
        "lowercase": False,
        "normalize": False,
        "voc_min_freq": 1,
        "voc_file": str(work.folder / "words"),
    }


def stack() -> dict:
    return {
        "type": "transformer",
        "num_layers": peers.NUM_LAYERS,
        "num_heads": peers.NUM_HEADS,
        "embeddings": {"embedding_dim": peers.D_MODEL, "scale": True, "dropout": peers.DROPOUT},
        "hidden_size": peers.D_MODEL,
        "ff_size": peers.D_FF,
        "dropout": peers.DROPOUT,
        "layer_norm": "post",
    }


folder = Path(tempfile.mkdtemp())
config = {
    "name": "benchmark",
    "joeynmt_version": version("joeynmt"),
    "model_dir": str(folder / "model"),
    "use_cuda": False,
    "fp16": False,
    "random_seed": 1,
    "data": {
        "train": str(work.folder / "train"),
        "dev": str(work.folder / "valid"),
        "dataset_type": "plain",
        "src": side("src"),
        "trg": side("tgt"),
        "special_symbols": {
            "unk_token": "<unk>",
            "unk_id": 0,
            "pad_token": "<pad>",
            "pad_id": 1,
            "bos_token": "<s>",
            "bos_id": 2,
            "eos_token": "</s>",
            "eos_id": 3,
        },
    },
    "testing": {"n_best": 1, "beam_size": 1, "batch_size": 4096, "batch_type": "token", "eval_metrics": ["bleu"]},
    "training": {
        "optimizer": "adamw",
        "normalization": "tokens",
        "adam_betas": list(peers.BETAS),
        "scheduling": "warmupinversesquareroot",
        "learning_rate_warmup": 2000,
        "learning_rate": peers.LEARNING_RATE,
        "learning_rate_min": 0.0,
        "weight_decay": 0.0,
        "label_smoothing": peers.LABEL_SMOOTHING,
        "loss": "crossentropy",
        "batch_size": work.facts["batch_tokens"],
        "batch_type": "token",
        "batch_multiplier": 1,
        "early_stopping_metric": "bleu",
        "epochs": 1000,
        "updates": 1_000_000,
        "validation_freq": 10_000_000,
        "logging_freq": 1000,
        "overwrite": True,
        "shuffle": True,
        "keep_best_ckpts": 1,
    },
    "model": {
        "initializer": "xavier_uniform",
        "bias_initializer": "zeros",
        "embed_initializer": "xavier_uniform",
        "tied_embeddings": True,
        "tied_softmax": True,
        "encoder": stack(),
        "decoder": stack(),
    },
}
(folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
joeynmt.training.TrainManager._train_step = step
sys.argv = ["joeynmt", "train", str(folder / "config.yaml")]
main()
