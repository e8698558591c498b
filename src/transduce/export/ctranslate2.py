"""Export to CTranslate2, a fast inference engine for the CPU, in float32 or int8.

It can express every network of ours. Its beam search is ours, too, except at the maximum length: there it takes the
best hypothesis as it stands, where ours first adds the score of the end symbol to each.
"""

from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor, nn

from transduce.errors import TransduceError
from transduce.export.certificate import SEARCHES
from transduce.export.tokenizer_files import library_tokenizer
from transduce.files.atomic import write_atomically
from transduce.inference.config import DecodingConfig
from transduce.inference.predictor import Predictor
from transduce.model.attention import MultiHeadAttention
from transduce.model.config import TransformerConfig
from transduce.model.feed_forward import GatedFeedForward
from transduce.model.positional import LearnedPositions, sinusoidal_table
from transduce.model.transformer import Transformer
from transduce.text.tokenizer import Tokenizer

TITLE = "CTranslate2"

# Without a length penalty CTranslate2 ends a search as soon as the most likely continuation is the end symbol, although
# fewer hypotheses than the beam size are complete. This penalty makes it wait for them, as ours does, and changes no
# score: length^1e-30 is 1.
_NO_PENALTY = 1e-30

_SENTENCES_AT_ONCE = 32


def refuse(predictor: Predictor, *, int8: bool) -> None:  # noqa: ARG001 - every network can be int8
    """Raises TransduceError for the tokenizer of an imported model, and where the package is missing."""
    library_tokenizer(predictor.tokenizer, "source")
    try:
        import ctranslate2  # noqa: F401
    except ImportError:
        raise TransduceError(f"{TITLE} needs ctranslate2: pip install 'transduce[export]'") from None


def write(predictor: Predictor, folder: Path, *, int8: bool) -> None:
    """Writes the weights, the vocabularies and the tokenizers of both sides."""
    model, tokenizer = predictor.model, predictor.tokenizer
    spec = _network(model)
    source, target = library_tokenizer(tokenizer, "source"), library_tokenizer(tokenizer, "target")
    for side, library in (("source", source), ("target", target)):
        write_atomically(folder / f"{side}_tokenizer.json", library.to_str(pretty=True).encode())
    spec.register_source_vocabulary([source.id_to_token(i) for i in range(tokenizer.source_vocab_size)])
    spec.register_target_vocabulary([target.id_to_token(i) for i in range(tokenizer.num_target_ids)])
    spec.config.unk_token = source.id_to_token(tokenizer.pad_id)  # it needs one; no text has any
    spec.validate()
    spec.optimize("int8" if int8 else None)
    spec.save(str(folder))


def open_engine(folder: Path, predictor: Predictor) -> "CTranslate2Engine":  # noqa: ARG001 - the folder has everything
    """The written files, run on one thread."""
    return CTranslate2Engine(folder)


def unexpressed(decoding: DecodingConfig) -> list[str]:
    """The run's decoding settings that CTranslate2 cannot express, one line each."""
    if decoding.temperature > 0:
        return [
            f"decoding.temperature = {decoding.temperature}: {TITLE} uses other random numbers; "
            "the export searches instead of sampling."
        ]
    if decoding.beam_size == 1:
        return []
    lines = [
        "decoding.max_len_ratio and max_len_extra: hypotheses of the maximum length compete unfinished, "
        "while the run's own search ends each of them first."
    ]
    if decoding.min_len or decoding.no_repeat_ngram_size:
        lines.append(
            f"decoding.min_len and no_repeat_ngram_size: {TITLE} redistributes the probability of excluded tokens "
            "among the others."
        )
    if decoding.length_norm == "wu" and decoding.length_penalty > 0:
        lines.append(
            f'decoding.length_norm = "wu": {TITLE} divides by length^{decoding.length_penalty:g}, as "power" does, '
            "which favors long outputs more."
        )
    return lines


def usage(predictor: Predictor) -> str:
    """A Python program that predicts with the exported folder, by the run's search as far as CTranslate2 has it."""
    decoding, longest = predictor.decoding, predictor.model.config.max_len
    options = "".join(f"        {name}={value!r},\n" for name, value in _options(decoding).items())
    return f"""\
# pip install ctranslate2 tokenizers
import ctranslate2
import tokenizers

folder = "."  # where this file is
translator = ctranslate2.Translator(folder)
source = tokenizers.Tokenizer.from_file(f"{{folder}}/source_tokenizer.json")
target = tokenizers.Tokenizer.from_file(f"{{folder}}/target_tokenizer.json")


def translate(text: str) -> str:
    if not text.strip():
        return ""
    tokens = source.encode(text).tokens  # with the end symbol
    if len(tokens) > {longest}:
        tokens = tokens[: {longest - 1}] + tokens[-1:]
    longest = min(int({decoding.max_len_ratio} * len(tokens)) + {decoding.max_len(0)}, {longest})
    (result,) = translator.translate_batch(
        [tokens],
        max_decoding_length=max({max(1, decoding.min_len)}, longest - 1),  # where an output does not end by itself
{options}    )
    return target.decode([target.token_to_id(token) for token in result.hypotheses[0]])


print(translate("a line of text"))
"""


class CTranslate2Engine:
    """The exported model, called with our ids."""

    searches = SEARCHES

    def __init__(self, folder: Path) -> None:
        import ctranslate2

        self._translator = ctranslate2.Translator(str(folder), inter_threads=1, intra_threads=1)
        self._source, self._target = (
            tokenizers.Tokenizer.from_file(str(folder / f"{side}_tokenizer.json")) for side in ("source", "target")
        )

    def search(self, sources: list[list[int]], max_lens: list[int], decoding: DecodingConfig) -> list[list[int]]:
        """The best output for each source. One call has one maximum length, so there is a call for each length."""
        outputs: list[list[int]] = [[] for _ in sources]
        for longest in sorted(set(max_lens)):
            rows = [row for row, max_len in enumerate(max_lens) if max_len == longest]
            results = self._translator.translate_batch(
                [self._names(self._source, sources[row]) for row in rows],
                max_batch_size=_SENTENCES_AT_ONCE,
                max_decoding_length=max(1, longest - 1),  # ours keeps the last position for the end symbol
                **_options(decoding),
            )
            for row, result in zip(rows, results, strict=True):
                ids = [self._target.token_to_id(name) for name in result.hypotheses[0]]
                outputs[row] = [i for i in ids if i != Tokenizer.eos_id]
        return outputs

    def log_probs(self, sources: list[list[int]], outputs: list[list[int]]) -> list[list[float]]:
        """Natural log-probability of each token of each output and of its end, given the tokens before it."""
        scored = self._translator.score_batch(
            [self._names(self._source, ids) for ids in sources],
            [self._names(self._target, ids) for ids in outputs],
            max_input_length=0,
        )
        return [result.log_probs for result in scored]

    @staticmethod
    def _names(library: tokenizers.Tokenizer, ids: list[int]) -> list[str]:
        return [library.id_to_token(i) for i in ids]


def _options(decoding: DecodingConfig) -> dict[str, Any]:
    """The search settings under CTranslate2's names, without the maximum length."""
    options = {
        "beam_size": decoding.beam_size,
        "length_penalty": decoding.length_penalty or _NO_PENALTY,
        "return_end_token": True,  # so that the length it divides by counts the end
        "min_decoding_length": decoding.min_len,
        "no_repeat_ngram_size": decoding.no_repeat_ngram_size,
        "max_input_length": 0,
    }
    # The probability of a suppressed token goes to the others. That leaves the order of one step as it is, which is all
    # that greedy search looks at, but a beam ranks sums of log-probabilities, which ours never renormalizes. So with a
    # beam nothing is suppressed: no trained model gives padding enough probability to be ranked.
    return options | ({"suppress_sequences": [["<pad>"], ["<s>"]]} if decoding.beam_size == 1 else {})


# The network


def _network(model: Transformer) -> Any:
    """CTranslate2's specification of the network, filled with our weights."""
    from ctranslate2.specs import TransformerDecoderSpec, TransformerEncoderSpec, TransformerSpec

    config, num_target_ids, shape = model.config, model.vocabulary.num_target_ids, _shape(model.config)
    encoder = TransformerEncoderSpec(config.num_encoder_layers, config.num_heads, **shape)
    decoder = TransformerDecoderSpec(config.num_decoder_layers, config.num_heads, **shape)
    encoder.embeddings[0].weight = _plain(model.src_embedding.weight)
    decoder.embeddings.weight = _plain(model.tgt_embedding.weight[:num_target_ids])
    decoder.projection.weight = _plain(model.output_weight)
    if model.output_bias is not None:
        decoder.projection.bias = _plain(model.output_bias)
    if config.positions != "rotary":
        encoder.position_encodings.encodings = _position_table(config, model.src_positions)
        decoder.position_encodings.encodings = _position_table(config, model.tgt_positions)
    if config.norm_first:
        _set_norm(encoder.layer_norm, model.encoder.final_norm)
        _set_norm(decoder.layer_norm, model.decoder.final_norm)
    layer: Any
    for spec, layer in zip(encoder.layer, model.encoder.layers, strict=True):
        _set_self_attention(spec.self_attention, layer.self_attention, layer.residual_1.norm)
        _set_feed_forward(spec.ffn, layer.feed_forward, layer.residual_2.norm)
    for spec, layer in zip(decoder.layer, model.decoder.layers, strict=True):
        _set_self_attention(spec.self_attention, layer.self_attention, layer.residual_1.norm)
        _set_cross_attention(spec.attention, layer.cross_attention, layer.residual_2.norm)
        _set_feed_forward(spec.ffn, layer.feed_forward, layer.residual_3.norm)
    network = TransformerSpec(encoder, decoder)
    network.config.layer_norm_epsilon = layer.residual_1.norm.eps
    return network


def _shape(config: TransformerConfig) -> dict[str, Any]:
    from ctranslate2.specs.common_spec import Activation

    swish = Activation.SWISH
    activations = {"relu": Activation.RELU, "gelu": Activation.GELU, "silu": swish, "swiglu": swish}
    shape: dict[str, Any] = {
        "pre_norm": config.norm_first,
        "rms_norm": config.norm == "rms",
        "activation": activations[config.feed_forward],
        "ffn_glu": config.feed_forward == "swiglu",
    }
    if config.positions == "rotary":
        shape |= {"rotary_dim": 0, "rotary_interleave": True}  # all channels, in pairs of neighbors
    return shape


def _position_table(config: TransformerConfig, positions: nn.Module | None) -> Tensor:
    """The vector added at each position: without a table CTranslate2 would add sinusoids in another order."""
    if config.positions == "sinusoidal":
        return sinusoidal_table(config.max_len, config.d_model)
    if isinstance(positions, LearnedPositions):
        return _plain(positions.weight)
    return torch.zeros(config.max_len, config.d_model)


def _set_self_attention(spec: Any, attention: MultiHeadAttention, norm: Any) -> None:
    _set_linear(spec.linear[0], attention.qkv_proj.weight, attention.qkv_proj.bias)
    _set_linear(spec.linear[1], attention.out_proj.weight, attention.out_proj.bias)
    _set_norm(spec.layer_norm, norm)


def _set_cross_attention(spec: Any, attention: MultiHeadAttention, norm: Any) -> None:
    weight, bias = attention.qkv_proj.weight, attention.qkv_proj.bias
    num_queries = len(weight) // 3
    _set_linear(spec.linear[0], weight[:num_queries], bias[:num_queries])
    _set_linear(spec.linear[1], *attention.memory_projection())
    _set_linear(spec.linear[2], attention.out_proj.weight, attention.out_proj.bias)
    _set_norm(spec.layer_norm, norm)


def _set_feed_forward(spec: Any, network: Any, norm: Any) -> None:
    if isinstance(network, GatedFeedForward):
        (gate, up), (gate_bias, up_bias) = network.gate_up_proj.weight.chunk(2), network.gate_up_proj.bias.chunk(2)
        _set_linear(spec.linear_0, gate, gate_bias)
        _set_linear(spec.linear_0_noact, up, up_bias)
    else:
        _set_linear(spec.linear_0, network.up_proj.weight, network.up_proj.bias)
    _set_linear(spec.linear_1, network.down_proj.weight, network.down_proj.bias)
    _set_norm(spec.layer_norm, norm)


def _set_linear(spec: Any, weight: Tensor, bias: Tensor) -> None:
    spec.weight, spec.bias = _plain(weight), _plain(bias)


def _set_norm(spec: Any, norm: Any) -> None:
    spec.gamma = _plain(norm.weight)
    if isinstance(norm, nn.LayerNorm):
        spec.beta = _plain(norm.bias)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()  # `optimize` quantizes in place, and the run still needs its weights
