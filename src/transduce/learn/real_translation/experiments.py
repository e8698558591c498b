"""A translator trained in a minute or two, and what its scores do and do not say."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import sacrebleu
import torch

from transduce.config.settings import load_config
from transduce.data.batches import pad_sources
from transduce.evaluation.metrics import Score, evaluate
from transduce.inference.predictor import Predictor
from transduce.learn.ledger import FAST
from transduce.learn.real_translation.corpora import TranslationCorpus, captions, sentences_of_a_grammar
from transduce.runs.folder import RunFolder
from transduce.runs.run import load
from transduce.runs.train import train

SETTINGS = """
[data]
train = ["{folder}/train.en", "{folder}/train.de"]      # line k of one belongs to line k of the other
valid = ["{folder}/valid.en", "{folder}/valid.de"]

[tokenizer]
source = "bpe"                      # subwords, one vocabulary for both languages
target = "bpe"
joint = true
vocab_size = {vocab_size}

[model]
{shape}
norm_first = true
dropout = 0.1
max_len = 256

[optim]
schedule = "linear"
learning_rate = 0.003
warmup_steps = {warmup_steps}
max_grad_norm = 1.0
ema_decay = 0.99

[training]
steps = {steps}
batch_tokens = 512
validate_every = {validate_every}
seed = 1

[validation]
metrics = ["bleu"]
max_pairs = 100
"""

_TINY = 'preset = "tiny"                     # 4 + 4 layers of width 128'
_TINIER = "d_model = 64\nd_ff = 128\nnum_heads = 4\nnum_encoder_layers = 2\nnum_decoder_layers = 2"
_SIZES = {
    False: {"shape": _TINY, "vocab_size": 4_000, "steps": 1_700, "warmup_steps": 150, "validate_every": 340},
    True: {"shape": _TINIER, "vocab_size": 400, "steps": 350, "warmup_steps": 40, "validate_every": 175},
}


@dataclass(frozen=True)
class Translator:
    """A trained model, what it was trained on, and what it answers to the test part."""

    corpus: TranslationCorpus
    settings: str
    predictor: Predictor
    rows: list[dict[str, float]]  # of metrics.jsonl: step, loss, ...
    fast: bool  # trained as in a fast run

    @cached_property
    def sources(self) -> list[str]:
        return [english for english, _ in self.corpus.test]

    @cached_property
    def references(self) -> list[str]:
        return [german for _, german in self.corpus.test]

    @cached_property
    def beam(self) -> list[str]:
        """Beam search of 5, scores divided by the length."""
        return self.answers(5, 1.0)

    @cached_property
    def greedy(self) -> list[str]:
        return self.answers(1, 0.0)

    @cached_property
    def teacher_forced(self) -> list[str]:
        """The likeliest token at each place when the reference's own tokens stand before it: no translation at all."""
        return teacher_forced_answers(self.predictor, self.sources, self.references)

    def answers(self, beam_size: int, length_penalty: float) -> list[str]:
        settings = replace(
            self.predictor.decoding, beam_size=beam_size, length_penalty=length_penalty, length_norm="power"
        )
        return self.predictor.predict(self.sources, decoding=settings)

    @cached_property
    def score(self) -> Score:
        return evaluate(("bleu",), self.beam, [self.references])[0]

    # What the claims read

    @property
    def bleu(self) -> float:
        return self.score.value

    @property
    def interval_half_width(self) -> float:
        """Of the 95 % bootstrap interval, in BLEU."""
        return (self.score.high - self.score.low) / 2

    @property
    def beam_gain(self) -> float:
        return self.bleu - bleu_of(self.greedy, self.references)

    @property
    def teacher_forcing_excess(self) -> float:
        """BLEU of teacher-forced tokens above that of what the model writes by itself, both greedy."""
        return bleu_of(self.teacher_forced, self.references) - bleu_of(self.greedy, self.references)

    @property
    def mean_of_sentences_gap(self) -> float:
        """How far the mean of the lines' own BLEU is from the corpus's, in BLEU."""
        lines = zip(self.beam, self.references, strict=True)
        return abs(float(np.mean([sacrebleu.sentence_bleu(a, [b]).score for a, b in lines])) - self.bleu)

    @property
    def tokenisation_gap(self) -> float:
        """By how much the same answers score better in lower case than as they are written."""
        lowered = [[text.lower() for text in texts] for texts in (self.beam, self.references)]
        return bleu_of(*lowered) - self.bleu

    @cached_property
    def shortening(self) -> float:
        """Words of beam search's answers without length normalization, by those with it."""
        return sum(len(a.split()) for a in self.answers(5, 0.0)) / sum(len(a.split()) for a in self.beam)


def translator(*, fast: bool = FAST) -> Translator:
    """Trains a Transformer-Tiny to translate, about 100 seconds on two cores; `fast`: sentences of a grammar, seconds.

    Where the captions can neither be found nor fetched, the grammar stands in, in its fast form.
    """
    corpus = None if fast else captions()
    fast = corpus is None
    corpus = corpus or sentences_of_a_grammar(2_000, 60)
    with TemporaryDirectory() as name:
        folder = Path(name)
        corpus.write(folder)
        config = load_config(SETTINGS.format(folder=folder, **_SIZES[fast]), "settings", [])
        train(config, folder / "run", device="cpu")
        rows = list(RunFolder.open(folder / "run").metrics())
        predictor = load(folder / "run", device="cpu")
    return Translator(corpus, SETTINGS.format(folder="DIR", **_SIZES[fast]).strip(), predictor, rows, fast)


@torch.inference_mode()
def teacher_forced_answers(predictor: Predictor, sources: list[str], references: list[str]) -> list[str]:
    """The most likely token at each position, after the reference's own tokens, as during training."""
    model, tokenizer = predictor.model, predictor.tokenizer
    told = []
    for source, reference in zip(tokenizer.encode_source(sources), tokenizer.encode_target(references), strict=True):
        tgt_in = torch.tensor([[tokenizer.bos_id, *reference[:-1]]])
        guesses = model.logits(model(pad_sources([source]), tgt_in)).argmax(dim=-1)[0].tolist()
        told.append(tokenizer.decode_target([i for i in guesses if i != tokenizer.eos_id]))
    return told


def bleu_of(answers: list[str], references: list[str]) -> float:
    """sacreBLEU's corpus BLEU, in its default form."""
    return float(sacrebleu.corpus_bleu(answers, [references]).score)
