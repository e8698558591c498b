"""Export to a folder that Hugging Face transformers opens without remote code.

A post-norm model becomes a Marian model, a pre-norm model a Pegasus model. Three things are arranged differently
there. Their sinusoids stand in two halves, sines before cosines, so every weight at the residual stream gets its
channels in that order. They have one embedding table, so where ours are two, the source rows stand below the target
rows. Their softmax ranges over the whole table, so a bias excludes the ids that are no target ids.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from transduce.data.batches import EncodedPairs, collate, pad_sources
from transduce.errors import TransduceError
from transduce.export.certificate import SEARCHES
from transduce.export.tokenizer_files import library_tokenizer, two_sided_tokenizer
from transduce.files.atomic import write_atomically
from transduce.files.tensors import write_tensors
from transduce.inference.config import DecodingConfig
from transduce.inference.predictor import Predictor
from transduce.model.positional import sinusoidal_table
from transduce.model.transformer import Transformer
from transduce.text.tokenizer import Tokenizer

TITLE = "Hugging Face transformers"

# Finite, so that no sum of scores is NaN, and yet exactly 0 after a softmax.
_NEVER = -1e9

# ((5 + length) / 6)^alpha grows with the length as length^(0.7 alpha) does for outputs of some twelve tokens.
_POWER_LIKE_WU = 0.7

_SENTENCES_AT_ONCE = 64

_SPECIAL_IDS = {
    "pad_token_id": Tokenizer.pad_id,
    "bos_token_id": Tokenizer.bos_id,
    "eos_token_id": Tokenizer.eos_id,
    "decoder_start_token_id": Tokenizer.bos_id,
}


def refuse(predictor: Predictor, *, int8: bool) -> None:
    """Raises TransduceError, in one line, for what Marian and Pegasus cannot express."""
    config = predictor.model.config
    # Both load a table of positions, but Marian saves none: after a fine-tuning it would have its sinusoids again.
    positions = ("sinusoidal", "learned", "none") if config.norm_first else ("sinusoidal",)
    activations = ("relu", "gelu", "silu")
    for name, allowed in (("positions", positions), ("norm", ("layer",)), ("feed_forward", activations)):
        if getattr(config, name) not in allowed:
            raise TransduceError(
                f'model.{name} is "{getattr(config, name)}": {TITLE} has a {"pre" if config.norm_first else "post"}-'
                f"norm model only with {', '.join(allowed)}. Export to another format, or train with one of these."
            )
    if int8:
        raise TransduceError(f"--int8 is for ctranslate2 and onnx; {TITLE} gets float32 weights: leave it out.")
    _library_tokenizer(predictor)
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise TransduceError(f"{TITLE} needs transformers: pip install 'transduce[export]'") from None


def unexpressed(decoding: DecodingConfig) -> list[str]:
    """The run's decoding settings that `generation_config.json` cannot express, one line each."""
    lines = [
        f"decoding.max_len_ratio = {decoding.max_len_ratio} and decoding.max_len_extra = {decoding.max_len(0)}: "
        "generate() limits all outputs by one number, here model.max_len."
    ]
    if _length_penalty(decoding) != decoding.length_penalty:
        lines.append(
            f'decoding.length_norm = "wu" with length_penalty = {decoding.length_penalty}: generate() divides by a '
            f"power of the length, here length^{_length_penalty(decoding)}, which is near it."
        )
    if decoding.temperature > 0:
        lines.append(
            f"decoding.temperature = {decoding.temperature}: generate() uses other random numbers; "
            "the export searches instead of sampling."
        )
    return lines


def write(predictor: Predictor, folder: Path, *, int8: bool) -> None:  # noqa: ARG001 - the formats have one signature
    """Writes config.json, generation_config.json, model.safetensors and the tokenizer's two files."""
    import transformers

    model = predictor.model
    is_pegasus = model.config.norm_first
    kind = transformers.PegasusConfig if is_pegasus else transformers.MarianConfig
    architecture = "PegasusForConditionalGeneration" if is_pegasus else "MarianMTModel"
    kind(architectures=[architecture], **_config(model)).save_pretrained(folder)
    settings = _search_settings(predictor.decoding, model.config.max_len) | {"forced_eos_token_id": Tokenizer.eos_id}
    transformers.GenerationConfig(**settings).save_pretrained(folder)
    write_tensors(folder / "model.safetensors", dict(_tensors(model)), {"format": "pt"})
    write_atomically(folder / "tokenizer.json", _library_tokenizer(predictor).to_str(pretty=True).encode())
    write_atomically(folder / "tokenizer_config.json", json.dumps(_tokenizer_config(model), indent=2).encode())


def _library_tokenizer(predictor: Predictor) -> tokenizers.Tokenizer:
    one_for_both = _is_shared(predictor.model)
    tokenizer = predictor.tokenizer
    return library_tokenizer(tokenizer, "source") if one_for_both else two_sided_tokenizer(tokenizer)


def _is_shared(model: Transformer) -> bool:
    """Whether source and target share one embedding, hence one vocabulary."""
    return model.src_embedding is model.tgt_embedding


def _config(model: Transformer) -> dict[str, Any]:
    config = model.config
    sides: dict[str, Any] = {}
    for side, num_layers in (("encoder", config.num_encoder_layers), ("decoder", config.num_decoder_layers)):
        sides[f"{side}_layers"] = num_layers
        sides[f"{side}_attention_heads"] = config.num_heads
        sides[f"{side}_ffn_dim"] = config.d_ff
    return sides | {
        "vocab_size": model.vocabulary.target + (0 if _is_shared(model) else model.vocabulary.source),
        "d_model": config.d_model,
        "max_position_embeddings": config.max_len,
        "activation_function": config.feed_forward,
        "dropout": config.dropout,
        "scale_embedding": True,
        "tie_word_embeddings": config.tie_embeddings,
        "forced_eos_token_id": None,  # by default they force the id of their own end symbol
        **_SPECIAL_IDS,
    }


def _search_settings(decoding: DecodingConfig, max_len: int) -> dict[str, Any]:
    """The settings with which `generate` searches as the run does."""
    settings: dict[str, Any] = {
        "num_beams": decoding.beam_size,
        "max_new_tokens": max_len,
        "min_new_tokens": decoding.min_len,
        "no_repeat_ngram_size": decoding.no_repeat_ngram_size,
        "suppress_tokens": [Tokenizer.pad_id, Tokenizer.bos_id],  # after the softmax, as in our search
        **_SPECIAL_IDS,
    }
    if decoding.beam_size > 1:
        # A search ends when as many hypotheses as the beam size are complete, not earlier by a heuristic.
        settings |= {"length_penalty": _length_penalty(decoding), "early_stopping": True}
    return settings


def _length_penalty(decoding: DecodingConfig) -> float:
    """The exponent of the length that a log-probability is divided by."""
    is_power = decoding.length_norm == "power" or decoding.beam_size == 1
    return decoding.length_penalty if is_power else round(_POWER_LIKE_WU * decoding.length_penalty, 3)


def _tokenizer_config(model: Transformer) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "split_special_tokens": True,  # "</s>" in a text is text
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": model.config.max_len,
    }


def _tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The weights on the CPU, under their names there, the channels of the residual stream in the order there."""
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    halves = torch.cat((torch.arange(0, model.config.d_model, 2), torch.arange(1, model.config.d_model, 2)))
    for name, tensor in (*_embeddings(model, state), *_position_tables(model, state)):
        yield name, tensor[:, halves]
    bias = torch.full((1, _config(model)["vocab_size"]), _NEVER)
    bias[:, : model.vocabulary.num_target_ids] = state.get("output_bias", torch.zeros(1))
    yield "final_logits_bias", bias
    for name, tensor in state.items():
        if name.startswith(("encoder.", "decoder.")):
            yield from _layer_tensors(name, tensor, halves)


def _embeddings(model: Transformer, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    table = state["src_embedding.weight"]
    if not _is_shared(model):
        table = torch.cat((state["tgt_embedding.weight"], table))
    yield "model.shared.weight", table
    if not model.config.tie_embeddings:  # then each is a matrix of its own
        yield "model.encoder.embed_tokens.weight", table
        yield "model.decoder.embed_tokens.weight", table
        output = state["separate_output_weight"]
        yield "lm_head.weight", F.pad(output, (0, 0, 0, len(table) - len(output)))


def _position_tables(model: Transformer, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    config = model.config
    for ours, theirs in (("src", "encoder"), ("tgt", "decoder")):
        table = torch.zeros(config.max_len, config.d_model)  # positions = "none"
        if config.positions == "sinusoidal":
            table = sinusoidal_table(config.max_len, config.d_model)
        elif config.positions == "learned":
            table = state[f"{ours}_positions.weight"]
        yield f"model.{theirs}.embed_positions.weight", table


_MODULES = {
    "self_attention": "self_attn",
    "cross_attention": "encoder_attn",
    "feed_forward.up_proj": "fc1",
    "feed_forward.down_proj": "fc2",
    "final_norm": "layer_norm",
}
_NORMS = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}


def _layer_tensors(name: str, tensor: Tensor, halves: Int[Tensor, " d_model"]) -> Iterator[tuple[str, Tensor]]:
    """The tensors there that one of our encoder's or decoder's becomes, channels of the residual stream in order."""
    module, _, kind = name.rpartition(".")
    for number, norm in enumerate(_NORMS[name.partition(".")[0]], start=1):
        module = module.replace(f"residual_{number}.norm", norm)
    for ours, theirs in _MODULES.items():
        module = module.replace(ours, theirs)
    if module.endswith(("qkv_proj", "fc1")):  # reads the residual stream
        tensor = tensor[:, halves] if kind == "weight" else tensor
    else:
        tensor = tensor[halves]
    if module.endswith("qkv_proj"):
        for letter, part in zip("qkv", tensor.chunk(3), strict=True):
            yield f"model.{module.replace('qkv', letter)}.{kind}", part
    else:
        yield f"model.{module}.{kind}", tensor


def open_engine(folder: Path, predictor: Predictor) -> "TransformersEngine":
    """The folder's model, run by transformers on the CPU."""
    import transformers

    with _no_progress_bars():
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    model.generation_config = transformers.GenerationConfig()  # the folder's own would mix with those of each search
    ours = predictor.model
    return TransformersEngine(model, 0 if _is_shared(ours) else ours.vocabulary.target)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class TransformersEngine:
    """The exported model, called with our ids."""

    model: Any
    first_source_id: int
    searches: tuple[DecodingConfig, ...] = SEARCHES

    def search(self, sources: list[list[int]], max_lens: list[int], decoding: DecodingConfig) -> list[list[int]]:
        """The best output for each source, without its end."""
        outputs: list[list[int]] = [[] for _ in sources]
        by_len = sorted(range(len(sources)), key=lambda i: len(sources[i]))
        for start in range(0, len(by_len), _SENTENCES_AT_ONCE):
            batch = by_len[start : start + _SENTENCES_AT_ONCE]
            batch_outputs = self._generate([sources[i] for i in batch], [max_lens[i] for i in batch], decoding)
            for i, ids in zip(batch, batch_outputs, strict=True):
                outputs[i] = ids[: ids.index(Tokenizer.eos_id)]
        return outputs

    @torch.inference_mode()
    def log_probs(self, sources: list[list[int]], outputs: list[list[int]]) -> list[list[float]]:
        """Natural log-probability of each token of each output and of its end, given the tokens before it."""
        pairs = EncodedPairs(sources, [[*ids, Tokenizer.eos_id] for ids in outputs])
        batch = collate(pairs, range(len(pairs)))
        logits = self.model(**self._inputs(sources), decoder_input_ids=batch.tgt_in, use_cache=False).logits
        chosen = logits.log_softmax(dim=-1).gather(2, batch.tgt_out[..., None])[..., 0].tolist()
        return [row[: len(ids) + 1] for row, ids in zip(chosen, outputs, strict=True)]

    def _inputs(self, sources: list[list[int]]) -> dict[str, Tensor]:
        ids = pad_sources(sources)
        mask = ids != Tokenizer.pad_id
        return {"input_ids": torch.where(mask, ids + self.first_source_id, ids), "attention_mask": mask.long()}

    def _generate(self, sources: list[list[int]], max_lens: list[int], decoding: DecodingConfig) -> list[list[int]]:
        import transformers

        limits = torch.tensor(max_lens).repeat_interleave(decoding.beam_size)
        generated = self.model.generate(
            **self._inputs(sources),
            generation_config=transformers.GenerationConfig(**_search_settings(decoding, max(max_lens))),
            logits_processor=transformers.LogitsProcessorList([_EndAtLimit(limits)]),
        )
        return [ids[1:] for ids in generated.tolist()]


@dataclass(frozen=True)
class _EndAtLimit:
    """A logits processor that lets a hypothesis of the maximum length only end, at the score of the end symbol."""

    limits: Int[Tensor, " rows"]

    def __call__(self, ids: Int[Tensor, "rows len"], scores: Tensor) -> Tensor:
        is_at_limit = ids.size(1) >= self.limits  # counting the begin symbol in place of the end symbol
        ended = torch.full_like(scores, -torch.inf)
        ended[:, Tokenizer.eos_id] = scores[:, Tokenizer.eos_id]
        return torch.where(is_at_limit[:, None], ended, scores)


def usage(predictor: Predictor) -> str:
    """A Python program that predicts with the exported folder, by transformers alone."""
    decoding, longest = predictor.decoding, predictor.model.config.max_len
    return f"""\
# pip install transformers torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = "."  # where this file is
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSeq2SeqLM.from_pretrained(folder)


def translate(lines: list[str]) -> list[str]:
    inputs = tokenizer(lines, return_tensors="pt", padding=True, truncation=True)
    longest = int({decoding.max_len_ratio} * inputs["input_ids"].shape[1]) + {decoding.max_len(0)}
    generated = model.generate(**inputs, max_new_tokens=min(longest, {longest}))
    outputs = tokenizer.batch_decode(generated, skip_special_tokens=True)
    return [text if line.strip() else "" for line, text in zip(lines, outputs)]


print(*translate(["a line of text", "another one"]), sep="\\n")
"""
