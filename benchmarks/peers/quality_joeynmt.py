"""JoeyNMT's own trainer and `translate`, for quality.py; hooked where a step begins."""

import contextlib
import io
import json
import sys
from importlib.metadata import version
from pathlib import Path

import joeynmt.training
import minutes
import torch
from joeynmt.__main__ import main

WIDTH, INNER_WIDTH, HEADS, LAYERS, DROPOUT = 128, 256, 4, 4, 0.1


class TimeIsOverError(Exception):
    pass


def side(folder: Path, lang: str) -> dict:
    return {
        "lang": lang,
        "level": "word",
        "max_length": 256,
        "lowercase": False,
        "normalize": False,
        "voc_min_freq": 1,
        "voc_file": str(folder / "work/words"),
    }


def stack() -> dict:
    return {
        "type": "transformer",
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "embeddings": {"embedding_dim": WIDTH, "scale": True, "dropout": DROPOUT},
        "hidden_size": WIDTH,
        "ff_size": INNER_WIDTH,
        "dropout": DROPOUT,
        "layer_norm": "pre",
    }


def config(folder: Path, batch_tokens: int, beam_size: int) -> Path:
    """The file of settings."""
    symbols = {"unk": ("<unk>", 0), "pad": ("<pad>", 1), "bos": ("<s>", 2), "eos": ("</s>", 3)}
    settings = {
        "name": "quality",
        "joeynmt_version": version("joeynmt"),
        "model_dir": str(folder / "joeynmt/model"),
        "use_cuda": False,
        "fp16": False,
        "random_seed": 1,
        "data": {
            "train": str(folder / "work/train"),
            "dev": str(folder / "work/valid"),
            "dataset_type": "plain",
            "src": side(folder, "src"),
            "trg": side(folder, "tgt"),
            "special_symbols": {
                key: value
                for name, (token, number) in symbols.items()
                for key, value in ((f"{name}_token", token), (f"{name}_id", number))
            },
        },
        "testing": {
            "n_best": 1,
            "beam_size": beam_size,
            "beam_alpha": 1.0,
            "batch_size": 2048,
            "batch_type": "token",
            "max_output_length": 100,
            "eval_metrics": ["bleu"],
        },
        "training": {
            "optimizer": "adamw",
            "normalization": "tokens",
            "adam_betas": [0.9, 0.98],
            "clip_grad_norm": 1.0,
            "scheduling": "warmupinversesquareroot",  # the clock's rate takes its place before every step
            "learning_rate_warmup": 300,
            "learning_rate": 1e-3,
            "learning_rate_min": 0.0,
            "weight_decay": 0.0,
            "label_smoothing": 0.1,
            "loss": "crossentropy",
            "batch_size": batch_tokens,
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
    path = folder / f"joeynmt/{beam_size}.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path


def train(folder: Path, num_minutes: float, rate: float, batch_tokens: int, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    own_step = joeynmt.training.TrainManager._train_step
    clock: minutes.Clock | None = None

    def step(self, batch):
        nonlocal clock
        clock = clock or minutes.Clock(folder / "joeynmt", num_minutes, rate)
        # The weights are those after the step before this one.
        if clock.tick(lambda path: torch.save({"model_state": self.model.state_dict()}, path)):
            raise TimeIsOverError
        for group in self.optimizer.param_groups:
            group["lr"] = clock.learning_rate
        return own_step(self, batch)

    joeynmt.training.TrainManager._train_step = step
    sys.argv = ["joeynmt", "train", str(config(folder, batch_tokens, 1)), "--skip-test"]
    with contextlib.suppress(TimeIsOverError):
        main()


def answer(folder: Path, snapshot: Path, lines: list[str], beam_size: int) -> list[str]:
    path = config(folder, 4096, beam_size)
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "testing": {**settings["testing"], "load_model": str(snapshot)}}))
    sys.argv = ["joeynmt", "translate", str(path)]
    sys.stdin = io.StringIO("".join(f"{line}\n" for line in lines))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main()
    return printed.getvalue().split("\n")[-len(lines) - 1 : -1]


minutes.main(train, answer)
