"""JoeyNMT's own trainer, told of nothing but its configuration; hooked where a step begins."""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import gate as peers
import joeynmt.training
from joeynmt.__main__ import main
from joeynmt_settings import write_settings

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


config = write_settings(
    Path(tempfile.mkdtemp()),
    work.folder,
    layer_norm="post",
    dropout=peers.DROPOUT,
    testing={"beam_size": 1, "batch_size": 4096},
    training={"batch_size": work.facts["batch_tokens"]},
)
joeynmt.training.TrainManager._train_step = step
sys.argv = ["joeynmt", "train", str(config)]
main()
