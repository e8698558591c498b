"""Import of a Marian translation model in Hugging Face form, as the OPUS-MT models are published.

The network is ours except for the order of channels and ids. Marian's sinusoids are all sines, then all cosines, where
ours alternate: so the channels of every weight at the residual stream are put into our order. Control symbols come
first among our ids. And Marian has no begin symbol but begins with padding, whose embedding our begin symbol gets.

Logits are those of the transformers library. Outputs are those of its `generate` with early_stopping = true, which ends
a search as ours does; at the maximum length the library may end an output at no cost, where ours adds the score of the
end symbol.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from transduce.config.settings import ExperimentConfig
from transduce.config.toml import build, to_toml
from transduce.data.config import DataConfig
from transduce.errors import DamagedFileError, TransduceError
from transduce.files.atomic import new_folder
from transduce.files.certified import refuse_long_header
from transduce.files.certified_json import json_object
from transduce.files.content import damaged, open_regular, read_regular, sha256_of_file, well_formed
from transduce.files.system_errors import explained_read_errors
from transduce.inference.config import DecodingConfig
from transduce.model.config import TransformerConfig
from transduce.model.positional import sinusoidal_table
from transduce.runs.folder import RunFolder
from transduce.text.config import CONTROL_NAMES, TokenizerConfig
from transduce.text.sentencepiece import UNKNOWN, SentencePieces
from transduce.text.tokenizer import Tokenizer
from transduce.training.config import TrainingConfig

_FILE_NAMES = ("config.json", "generation_config.json", "model.safetensors", "source.spm", "target.spm", "vocab.json")
_PAD, _EOS = "<pad>", "</s>"
_KINDS = ("weight", "bias")

# The settings that a model must have to equal ours, each with the library's default.
_NEEDED = {
    "scale_embedding": (True, False),
    "normalize_before": (False, False),
    "normalize_embedding": (False, False),
    "add_final_layer_norm": (False, False),
    "static_position_embeddings": (True, True),
    "share_encoder_decoder_embeddings": (True, True),
    "tie_word_embeddings": (True, True),
}
_ACTIVATIONS = {"swish": "silu", "silu": "silu", "gelu": "gelu", "relu": "relu"}

# A file has the one embedding matrix under one or more of these names, and may have the sinusoids.
_EMBEDDINGS = (
    "model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight",
)  # fmt: skip
_POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")

_SEARCH_SETTINGS = {"num_beams", "length_penalty", "max_length", "renormalize_logits"}
_WITHOUT_EFFECT = {  # ids of control symbols (padding is never predicted here either), and notes
    "bad_words_ids", "bos_token_id", "decoder_start_token_id", "eos_token_id", "forced_eos_token_id", "pad_token_id",
    "transformers_version", "use_cache", "_from_model_config",
}  # fmt: skip

# Subtracted from a logit: e^-100 of a probability vanishes in any sum, and 100 fits 16 bits, too.
_EXCLUSION = 100.0

_ADVICE = "Download it again."
_NOTE = """\
# This model was imported; run.json says from where. [tokenizer], [model] and [decoding] are its own; the other sections
# are defaults, and do not describe how it was trained.
"""


def import_marian(
    source: str | Path, output: str | Path, report: Callable[[str], None] = lambda _line: None
) -> RunFolder:
    """Write the run folder `output` from the files in `source`; `report` gets a line on each setting that is lost.

    Raises MissingInputError or DamagedFileError for a file that is missing or damaged, TransduceError for a model that
    ours cannot equal, RunFolderError if `output` is in use.
    """
    source, output = Path(source), Path(output)
    RunFolder(output).refuse_other_use()
    config = _read_json(source / "config.json")
    _refuse_unlike(config, source / "config.json")
    search_path = source / "generation_config.json"
    search = _read_json(search_path) if search_path.exists() else config  # older models have them in one file
    pieces = _read_pieces(source / "vocab.json", config)
    ids = [config["pad_token_id"], config["pad_token_id"], config["eos_token_id"]]  # Marian's ids, in our order
    ids += [i for i in range(len(pieces)) if i not in ids]
    tokenizer = _build_tokenizer(source, [pieces[i] for i in ids[len(CONTROL_NAMES) :]])
    settings = _settings(config, search, tokenizer.config)
    weights = _Converter(source, settings.model).convert(ids)
    weights["output_bias"][tokenizer.bos_id] -= _EXCLUSION
    if search.get("renormalize_logits"):  # then `generate` excludes padding from the softmax
        weights["output_bias"][tokenizer.pad_id] -= _EXCLUSION
    if search_path.exists():
        for name in sorted(name for name in search.keys() - _SEARCH_SETTINGS - _WITHOUT_EFFECT if search[name]):
            report(f"{search_path}: {name} = {search[name]!r:.100} has no equivalent here and is ignored")
    hashes = {name: sha256_of_file(source / name) for name in _FILE_NAMES if (source / name).exists()}
    facts = {"data": {}, "num_train_pairs": 0, "imported": {"from": str(source), "files": hashes}}
    with new_folder(output) as temporary:
        run = RunFolder.create(temporary, config=_NOTE + to_toml(settings), tokenizer=tokenizer.to_json(), facts=facts)
        run.write_model(weights, {"step": 0, "validation": {}})
    return RunFolder(output)


def _read_json(path: Path) -> dict[str, Any]:
    """The values of a JSON file that are not null."""
    values = json_object(read_regular(path, follows_links=True), path, _ADVICE)  # links are what a cache is made of
    return {name: value for name, value in values.items() if value is not None}


def _refuse_unlike(config: Mapping[str, Any], path: Path) -> None:
    """Raises TransduceError if our network cannot equal this model."""
    if config.get("model_type") != "marian":
        raise TransduceError(f"{path}: model_type is {config.get('model_type')!r}: only 'marian' can be imported.")
    for name, (needed, default) in _NEEDED.items():
        if config.get(name, default) != needed:
            raise TransduceError(f"{path}: {name} is {config.get(name, default)!r}: only {needed!r} can be imported.")
    for name, other in (
        ("encoder_ffn_dim", "decoder_ffn_dim"),
        ("encoder_attention_heads", "decoder_attention_heads"),
        ("vocab_size", "decoder_vocab_size"),
        ("pad_token_id", "decoder_start_token_id"),
    ):
        if config.get(other, config.get(name)) != config.get(name):
            raise TransduceError(
                f"{path}: {name} ({config.get(name)!r}) and {other} ({config[other]!r}) differ: only a model "
                "in which they are the same can be imported."
            )
    if (activation := config.get("activation_function")) not in list(_ACTIVATIONS):  # any type, also an unhashable one
        raise TransduceError(
            f"{path}: activation_function is {activation!r}: only {', '.join(_ACTIVATIONS)} can be imported."
        )


def _read_pieces(path: Path, config: Mapping[str, Any]) -> list[str]:
    """The pieces in the order of Marian's ids. Raises DamagedFileError if the files disagree on the ids."""
    vocabulary = _read_json(path)
    with well_formed(path, _ADVICE):
        "".join(vocabulary).encode()  # a lone surrogate is no text
    for piece, name in ((_PAD, "pad_token_id"), (_EOS, "eos_token_id")):
        if piece not in vocabulary or vocabulary[piece] != config.get(name):
            raise damaged(path, f"{piece} is {vocabulary.get(piece)}, in config.json it is {config.get(name)}", _ADVICE)
    ids = [str(i) for i in range(len(vocabulary))]
    piece_of = {str(i): piece for piece, i in vocabulary.items()}
    if piece_of.keys() != set(ids) or UNKNOWN not in vocabulary:
        raise damaged(path, f"its ids should be 0, 1, 2, ..., one of them for {UNKNOWN}", _ADVICE)
    return [piece_of[i] for i in ids]


def _build_tokenizer(source: Path, pieces: list[str]) -> Tokenizer:
    src, tgt = (_read_side(source / name, (*CONTROL_NAMES, *pieces)) for name in ("source.spm", "target.spm"))
    size = len(tgt.tokens)
    config = TokenizerConfig(source="sentencepiece", target="sentencepiece", joint=True, vocab_size=size)
    return Tokenizer(config, src, tgt, num_target_ids=size)


def _read_side(path: Path, pieces: tuple[str, ...]) -> SentencePieces:
    side = SentencePieces(pieces, read_regular(path, follows_links=True))
    try:
        list(side.encode([""]))
    except DamagedFileError as error:
        raise DamagedFileError(f"{path}: {error}") from None
    return side


def _settings(config: Mapping[str, Any], search: Mapping[str, Any], tokenizer: TokenizerConfig) -> ExperimentConfig:
    """The settings of the run. Raises TransduceError for values that cannot be used."""
    shape = {
        "d_model": config.get("d_model"),
        "d_ff": config.get("encoder_ffn_dim"),
        "num_heads": config.get("encoder_attention_heads"),
        "num_encoder_layers": config.get("encoder_layers"),
        "num_decoder_layers": config.get("decoder_layers"),
        "dropout": config.get("dropout", TransformerConfig.dropout),
        "feed_forward": _ACTIVATIONS[config["activation_function"]],
        "output_bias": True,
        "max_len": config.get("max_position_embeddings"),
    }
    model = build(TransformerConfig, shape, "model.")
    max_length = search.get("max_length", model.max_len + 1)
    if type(max_length) is not int or max_length < 2:
        raise TransduceError(
            f"max_length is {max_length!r}: it must be a whole number, 2 or more, to leave room for outputs."
        )
    decoding = {
        "beam_size": search.get("num_beams", 1),
        "length_penalty": search.get("length_penalty", 1.0),
        "length_norm": "power",
        "max_len_ratio": 0.0,
        "max_len_extra": max_length - 1,  # theirs counts the begin symbol
    }
    return ExperimentConfig(
        data=DataConfig(train=("unknown (imported)",), max_len=min(DataConfig.max_len, model.max_len)),
        training=TrainingConfig(steps=1),
        tokenizer=tokenizer,
        model=model,
        decoding=build(DecodingConfig, decoding, "decoding."),
    )


class _Converter:
    """The tensors of a file; each is removed once converted, so that what is left over can be reported."""

    def __init__(self, source: Path, config: TransformerConfig) -> None:
        self.path = source / "model.safetensors"
        self.config = config
        # Marian's channels: the first half sines, the second half cosines; in our order they alternate.
        half = (config.d_model + 1) // 2
        self.order = torch.stack((torch.arange(half), torch.arange(half) + half), dim=1).flatten()[: config.d_model]
        if not self.path.exists() and (source / "pytorch_model.bin").exists():
            raise TransduceError(
                f"{source} has its weights in pytorch_model.bin, a pickle, which is never read. With the transformers "
                f"library: AutoModelForSeq2SeqLM.from_pretrained('{source}').save_pretrained('{source}')"
            )
        with explained_read_errors(self.path), open_regular(self.path, follows_links=True) as file:
            refuse_long_header(file, self.path, _ADVICE)
            try:
                self.tensors = load_file(self.path)
            except SafetensorError as error:
                raise damaged(self.path, str(error), _ADVICE) from None

    def convert(self, ids: list[int]) -> dict[str, Tensor]:
        """All weights under our names, channels and ids in our order; `ids[i]` is Marian's id of our id i."""
        vocab_size, d_model = max(ids) + 1, self.config.d_model
        weights = self._layers("encoder", self.config.num_encoder_layers, {"self_attn": "self_attention"})
        attentions = {"self_attn": "self_attention", "encoder_attn": "cross_attention"}
        weights |= self._layers("decoder", self.config.num_decoder_layers, attentions)
        present = [name for name in _EMBEDDINGS if name in self.tensors] or [_EMBEDDINGS[0]]
        # The names are of one tied matrix: each is taken, the first is kept.
        embedding, *_ = [self._take(name, vocab_size, d_model) for name in present]
        weights["src_embedding.weight"] = embedding[ids][:, self.order]
        weights["output_bias"] = self._take("final_logits_bias", 1, vocab_size)[0, ids]
        for name in [name for name in _POSITIONS if name in self.tensors]:
            positions = self._take(name, self.config.max_len, d_model)[:, self.order]
            if not torch.allclose(positions, sinusoidal_table(*positions.shape), atol=1e-3):
                raise TransduceError(f"{self.path}: {name} is not sinusoidal: only sinusoids can be imported.")
        if self.tensors:
            raise TransduceError(f"{self.path}: {min(self.tensors)} is in no model that can be imported.")
        return weights

    def _layers(self, side: str, count: int, attentions: dict[str, str]) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        d_model, d_ff = self.config.d_model, self.config.d_ff
        names = [(f"model.{side}.layers.{i}", f"{side}.layers.{i}", kind) for i in range(count) for kind in _KINDS]
        for theirs, ours, kind in names:
            for name, our_name in attentions.items():
                parts = [self._take_input(f"{theirs}.{name}.{part}_proj.{kind}", d_model) for part in "qkv"]
                weights[f"{ours}.{our_name}.qkv_proj.{kind}"] = torch.cat(parts)
                out_proj = self._take_output(f"{theirs}.{name}.out_proj.{kind}", d_model)
                weights[f"{ours}.{our_name}.out_proj.{kind}"] = out_proj
            weights[f"{ours}.feed_forward.up_proj.{kind}"] = self._take_input(f"{theirs}.fc1.{kind}", d_ff)
            weights[f"{ours}.feed_forward.down_proj.{kind}"] = self._take_output(f"{theirs}.fc2.{kind}", d_ff)
            for number, name in enumerate([*attentions, "final"], start=1):
                norm = self._take(f"{theirs}.{name}_layer_norm.{kind}", d_model)
                weights[f"{ours}.residual_{number}.norm.{kind}"] = norm[self.order]
        return weights

    def _take_input(self, name: str, num_rows: int) -> Tensor:
        """The matrix or bias of a projection that reads the residual stream."""
        if name.endswith("bias"):
            return self._take(name, num_rows)
        return self._take(name, num_rows, self.config.d_model)[:, self.order]

    def _take_output(self, name: str, num_columns: int) -> Tensor:
        """The matrix or bias of a projection that is added to the residual stream."""
        shape = (self.config.d_model,) if name.endswith("bias") else (self.config.d_model, num_columns)
        return self._take(name, *shape)[self.order]

    def _take(self, name: str, *shape: int) -> Tensor:
        if name not in self.tensors:
            raise damaged(self.path, f"it has no {name}", _ADVICE)
        tensor = self.tensors.pop(name)
        if tensor.shape != shape:
            raise damaged(self.path, f"{name} has shape {list(tensor.shape)}, not {list(shape)}", _ADVICE)
        if not (tensor := tensor.float()).isfinite().all():
            raise damaged(self.path, f"{name} contains NaN or infinite values", _ADVICE)
        return tensor
