"""What JoeyNMT is told, for training speed and for quality alike."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gate as peers


def write_settings(
    folder: Path,
    work: Path,
    *,
    layer_norm: str,
    dropout: float,
    testing: dict[str, Any],
    training: dict[str, Any],
) -> Path:
    """The file of settings in `folder`, for the pairs in `work`; `testing` and `training` go over what is set here."""
    stack = _stack(layer_norm, dropout)
    settings = {
        "name": "benchmark",
        "joeynmt_version": version("joeynmt"),
        "model_dir": str(folder / "model"),
        "use_cuda": False,
        "fp16": False,
        "random_seed": 1,
        "data": {
            "train": str(work / "train"),
            "dev": str(work / "valid"),
            "dataset_type": "plain",
            "src": _side("src", work),
            "trg": _side("tgt", work),
            "special_symbols": _SYMBOLS,
        },
        "testing": {"n_best": 1, "batch_type": "token", "eval_metrics": ["bleu"], **testing},
        "training": {**_TRAINING, **training},
        "model": {**_START, "encoder": stack, "decoder": stack},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path


def _side(language: str, work: Path) -> dict[str, Any]:
    return {
        "lang": language,
        "level": "word",
        "max_length": 256,
        "lowercase": False,
        "normalize": False,
        "voc_min_freq": 1,
        "voc_file": str(work / "words"),
    }


def _stack(layer_norm: str, dropout: float) -> dict[str, Any]:
    return {
        "type": "transformer",
        "num_layers": peers.NUM_LAYERS,
        "num_heads": peers.NUM_HEADS,
        "embeddings": {"embedding_dim": peers.D_MODEL, "scale": True, "dropout": dropout},
        "hidden_size": peers.D_MODEL,
        "ff_size": peers.D_FF,
        "dropout": dropout,
        "layer_norm": layer_norm,
    }


_SYMBOLS = {
    "unk_token": "<unk>",
    "unk_id": 0,
    "pad_token": "<pad>",
    "pad_id": 1,
    "bos_token": "<s>",
    "bos_id": 2,
    "eos_token": "</s>",
    "eos_id": 3,
}
_TRAINING = {
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
    "batch_type": "token",
    "batch_multiplier": 1,
    "early_stopping_metric": "bleu",
    "epochs": 10_000,
    "updates": 10_000_000,
    "validation_freq": 10_000_000,
    "logging_freq": 1000,
    "overwrite": True,
    "shuffle": True,
    "keep_best_ckpts": 1,
}
_START = {
    "initializer": "xavier_uniform",
    "bias_initializer": "zeros",
    "embed_initializer": "xavier_uniform",
    "tied_embeddings": True,
    "tied_softmax": True,
}
