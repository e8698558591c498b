"""Schemas of the documents of a run folder: a hash says that nothing has changed, not who wrote it."""

# The files of a run itself; training and `fit` write others beside them.
RUN_FILES = (
    "config.toml", "tokenizer.json", "run.json", "model.safetensors", "checkpoints", "metrics.jsonl", "run.lock",
)  # fmt: skip
OTHER_FIELDS = "it does not have the fields, or the kinds of values, that are written there"

_NUMBER, _NAME = (int, float), (str, type(None))
_SESSION = {"processes?": int, "threads?": int, "commit?": _NAME}
_FACTS = {
    "data?": {"*": [str]}, "paths?": {"*": [str]}, "num_train_pairs?": int, "configured_batch?": [int],
    "initialised_from?": _NAME, "started?": _SESSION, "resumed?": [{"machine": _SESSION, "changes?": dict}],
    "seen?": {"source_characters": str, "target_characters": str, "source_len": int, "target_bytes?": [int]},
    "calibration?": (type(None), {"temperature": float, "num_pairs": int}),
}  # fmt: skip
_SCORES = {"validation": {"*": _NUMBER}}

_HASHES = {"config.toml": [str], "tokenizer.json": [str], "*": [str]}

RECORD = {"format": int, "id?": str, "files": _HASHES, "facts": _FACTS}
METADATA = ({"step": int, **_SCORES}, {"steps": [int], **_SCORES})  # of a model: that of a step, or a mean of several
ROW = {"kind": str, "step": int, "*": _NUMBER}  # of metrics.jsonl
