"""The lesson of `notebooks/transformer.ipynb` under one name: all that it uses besides torch and the code it shows.

    from transduce.learn import transformer as lesson

    lesson.figure_one_map("self-attention")   # the map at the head of a chapter
    lesson.picture("attention")               # one of the workshop's pictures
    lesson.saturation()                       # an experiment; lesson.saturation_curves(...) is its picture

What is defined here belongs to no other lesson; all else comes from where the names below say.
"""

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transduce.config.settings import load_config
from transduce.data.batches import pad_sources
from transduce.data.datasets import load_split
from transduce.evaluation.evaluate import score
from transduce.inference.attention_maps import record_attention
from transduce.inference.predictor import Predictor
from transduce.learn.build_it.example import PAIRS, SEES_ALL, TOKENS, X, feed_forward_example, plain_heads, rows
from transduce.learn.build_it.pictures import picture
from transduce.learn.build_it.pieces import sinusoids
from transduce.learn.build_it.shipping import shipped
from transduce.learn.canvas import Picture
from transduce.learn.explained import explained
from transduce.learn.ledger import FAST
from transduce.learn.maps import head_maps
from transduce.learn.masks.pictures import batch_masks
from transduce.learn.norm_and_depth.experiments import stream
from transduce.learn.norm_and_depth.pictures import stream_bars
from transduce.learn.positions.pictures import rotations, table_and_similarity
from transduce.learn.training_recipe.batches import batching
from transduce.learn.transformer.architecture.experiments import beside_torch, by_heart, laws, size, steps, words_batch
from transduce.learn.transformer.architecture.pictures import by_heart_curve, parameter_bars
from transduce.learn.transformer.attention.experiments import (
    embedding_scale,
    saturation,
    training_without_root,
    two_look_ups,
)
from transduce.learn.transformer.attention.pictures import (
    attention_alone_curves,
    look_up_bars,
    look_up_maps,
    root_curves,
    saturation_curves,
    scale_curves,
)
from transduce.learn.transformer.decoding.experiments import lengths, own_writing, searches, without_shift
from transduce.learn.transformer.decoding.pictures import (
    alignment,
    padding,
    schedules,
    search_errors,
    smoothed_target,
    unshifted,
)
from transduce.learn.transformer.decoding.pictures import lengths as length_curves
from transduce.learn.transformer.decoding.pictures import own_writing as own_writing_curves
from transduce.learn.transformer.feed_forward.experiments import attention_alone, random_table
from transduce.learn.transformer.figure1 import figure_one, figure_one_map
from transduce.learn.transformer.matrices_page import attention_page
from transduce.learn.transformer.pictures import (
    blind_to_order,
    chain_lengths,
    clock_hands,
    distances,
    loss_curve,
    position_schemes,
    quality_curves,
    soft_look_up,
    through_layers,
)
from transduce.learn.transformer.predicting import predicted
from transduce.learn.transformer.reasons import chains, quality_by_steps
from transduce.learn.transformer.sentences import Sentences
from transduce.learn.transformer.tracing import SENTENCE, Reverser, Trace, live_shapes, sentence_reverser, trace
from transduce.learn.why_it_matters.experiments import gradients
from transduce.runs.corpus import Corpus
from transduce.runs.run import load
from transduce.runs.train import train as train_as_shipped

__all__ = [
    "PAIRS",
    "SEES_ALL",
    "SENTENCE",
    "TOKENS",
    "Sentences",
    "X",
    "attention_alone",
    "attention_alone_curves",
    "attention_page",
    "batch_masks",
    "batching",
    "beside_torch",
    "blind_to_order",
    "by_heart",
    "by_heart_curve",
    "chain_lengths",
    "chains",
    "clock_hands",
    "distances",
    "embedding_scale",
    "feed_forward_example",
    "figure_one_map",
    "gradients",
    "head_maps",
    "laws",
    "length_curves",
    "lengths",
    "live_figure_one",
    "look_up_bars",
    "look_up_maps",
    "looked_at",
    "loss_curve",
    "own_writing",
    "own_writing_curves",
    "padding",
    "page_of",
    "parameter_bars",
    "picture",
    "plain_heads",
    "position_schemes",
    "predicted",
    "quality_by_steps",
    "quality_curves",
    "random_table",
    "root_curves",
    "rotations",
    "rows",
    "saturation",
    "saturation_curves",
    "scale_curves",
    "schedules",
    "search_errors",
    "searches",
    "sentence_reverser",
    "shipped",
    "sinusoids",
    "size",
    "smoothed_target",
    "soft_look_up",
    "steps",
    "stream",
    "stream_bars",
    "table_and_similarity",
    "through_layers",
    "trace",
    "traced_text",
    "train_to_pronounce",
    "training_without_root",
    "two_look_ups",
    "unshifted",
    "without_shift",
    "words_batch",
]

_FIRST_BYTE = 3  # the first id behind padding, begin and end
_BATCH = (SENTENCE, "a dog hears the old horse", "the fox sees a bird")
_QUICK = ["--training.steps", "60", "--training.validate_every", "30", "--model.d_model", "32", "--model.d_ff", "64"]


def live_figure_one(reverser: Reverser) -> Picture:
    """Figure 1 with the shapes that leave each box while three sentences run through the reverser."""
    turned = [" ".join(reversed(sentence.split(" "))) for sentence in _BATCH]
    src = pad_sources(reverser.tokenizer.encode_source(list(_BATCH)))
    targets = pad_sources(reverser.tokenizer.encode_target(turned))
    tgt_in = torch.cat((torch.full_like(targets[:, :1], reverser.tokenizer.bos_id), targets[:, :-1]), dim=1)
    # The begin symbol and four tokens: so a length of the target differs from one of the source.
    return figure_one(live_shapes(reverser.model, src, tgt_in[:, :5]), num_encoder_layers=2, num_decoder_layers=2)


def traced_text(traced: Trace, reverser: Reverser) -> str:
    """One sentence on its way: text, tokens, ids, the beginning of a vector, and the first output tokens."""
    after = traced.steps["encoder.layers.0.residual_1"]
    lines = [
        f"text       {traced.text}",
        f"tokens     {' '.join(traced.source)}",
        f"ids        {' '.join(map(str, traced.source_ids))}",
        f"(ids 0 to {_FIRST_BYTE - 1} are special; {_FIRST_BYTE} to {_FIRST_BYTE + 255} are single bytes, so that any "
        "text can be spelled; then come words and parts of words)",
        f"{traced.source[0]!r} as a vector, its first six of {traced.embedded.size(1)} channels:",
        f"   embedding, scaled          {_numbers(traced.embedded[0])}",
        f"   position 0                 {_numbers(traced.positions[0])}",
        f"   after the first attention  {_numbers(after[0])}",
        "",
    ]
    for place in range(3):
        best = traced.next_tokens(reverser.tokenizer, place, 3)
        likely = ", ".join(f"{name} {chance:.3f} (logit {value:.1f})" for name, value, chance in best)
        lines.append(f"after {traced.written[place]:8} {likely}")
    return "\n".join(lines)


def page_of(reverser: Reverser, sentence: str) -> Any:
    """The page of `transduce explain` about one sentence."""
    return explained(Predictor(reverser.model, reverser.tokenizer), sentence, height=900)


@dataclass(frozen=True)
class Pronouncer:
    """A model that pronounces English words, and words that it never saw."""

    predictor: Predictor
    words: list[str]
    phonemes: list[str]

    def scores(self) -> list[Any]:
        """Errors on the unseen words, in percent: of words, and of phonemes."""
        return score(self.predictor, self.words, [self.phonemes], ("word_error", "per"), group_sources=True)


def train_to_pronounce(settings: str) -> Pronouncer:
    """Trains as `transduce train` does, with the text of its settings, on the CMU Pronouncing Dictionary."""
    pairs = {split: load_split("cmudict", split) for split in ("train", "valid", "test")}
    most = {"train": 3_000, "valid": 100, "test": 100} if FAST else {name: len(of) for name, of in pairs.items()}
    some = {name: replace(of, src=of.src[: most[name]], tgt=of.tgt[: most[name]]) for name, of in pairs.items()}

    in_training = math.nan  # the loss of the last row of training

    def tell(row: Any) -> None:
        nonlocal in_training
        if "word_error" not in row:
            in_training = row["loss"]
            return
        losses = f"loss {in_training:.2f} in training, {row['loss']:.2f} in validation"
        print(f"step {row['step']:5,}: {losses}, {row['word_error']:.0f}% of validation words wrong")

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        config = load_config(settings, "the cell above", _QUICK if FAST else [])
        corpus = Corpus(some["train"], some["valid"])
        train_as_shipped(config, run, corpus=corpus, observers=[tell], show_progress=False)
        print("the run folder:", ", ".join(sorted(path.name for path in run.iterdir())))
        print("model.safetensors: the parameters; checkpoints: states of the training, to go on from")
        predictor = load(run)
        if config.training.label_smoothing:
            num_ids = predictor.tokenizer.num_target_ids
            least = _least_loss(config.training.label_smoothing, num_ids)
            print(f"In training, targets are smoothed over {num_ids} ids: the loss cannot fall below {least:.2f}.")
            print("In validation nothing is smoothed, and the averaged parameters are used: hence the lower loss.")
        return Pronouncer(predictor, list(some["test"].src), list(some["test"].tgt))


def _least_loss(label_smoothing: float, num_ids: int) -> float:
    """Cross-entropy, in nats, of a model that gives exactly the smoothed probabilities."""
    others = label_smoothing / num_ids
    right = 1 - label_smoothing + others
    return -right * math.log(right) - (num_ids - 1) * others * math.log(others)


def looked_at(predictor: Predictor, word: str) -> Picture:
    """Where the last layer's cross-attention looked while the model wrote, averaged over its heads."""
    tokenizer = predictor.tokenizer
    src = tokenizer.encode_source([word])[0]
    tgt_in = [tokenizer.bos_id, *tokenizer.encode_target(predictor.predict([word]))[0][:-1]]
    with torch.inference_mode(), record_attention(predictor.model, "cross_attention") as recorded:
        predictor.model(torch.tensor([src]), torch.tensor([tgt_in]))
    weights = list(recorded.values())[-1][0].mean(dim=0).numpy()
    return alignment(weights, source=tokenizer.source_tokens(src), target=tokenizer.target_tokens(tgt_in))


def _numbers(vector: Tensor) -> str:
    return " ".join(f"{x:6.2f}" for x in vector[:6].tolist())
