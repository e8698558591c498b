"""What transformers makes of an exported folder is what the run itself says."""

import io
import os
from contextlib import chdir, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import small_model
from transduce.errors import TransduceError
from transduce.export import huggingface
from transduce.inference.config import DecodingConfig
from transduce.inference.forced_decoding import token_log_probs
from transduce.inference.predictor import Predictor
from transduce.model.config import TransformerConfig
from transduce.runs.run import load
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
os.environ["HF_HUB_OFFLINE"] = "1"

pytest_plugins = ["small_run"]

SRC = ["the old man sees the dog.", "the old dog sees the man", "two men and 17 dogs run"]
TGT = ["der alte Mann sieht den Hund.", "der alte Hund sieht den Mann", "zwei Männer und 17 Hunde laufen"]
SHAPE = {"d_model": 24, "d_ff": 20, "num_heads": 4, "num_encoder_layers": 2, "num_decoder_layers": 3, "max_len": 90}
BEAM = DecodingConfig(beam_size=3, length_norm="power", length_penalty=1.0)


def random_predictor(*, joint: bool = True, seed: int = 7, decoding: DecodingConfig = BEAM, **model: Any) -> Predictor:
    """A small model in which every number is drawn, those that begin as 0 or 1 too."""
    tokenizer = Tokenizer.learn(TokenizerConfig(joint=joint, vocab_size=320), SRC, TGT)
    config = TransformerConfig(**SHAPE | model)
    return small_model.random_predictor(config, tokenizer, decoding, seed=seed, scale=0.1)


def export(predictor: Predictor, folder: Path) -> huggingface.TransformersEngine:
    huggingface.refuse(predictor, int8=False)
    folder.mkdir()
    huggingface.write(predictor, folder, int8=False)
    return huggingface.open_engine(folder, predictor)


def their_logits(model: Any, predictor: Predictor, src: Tensor, tgt_in: Tensor) -> Tensor:
    """Over the ids that can be written; `src` in our ids, padded with 0."""
    ours = predictor.model
    is_shared = ours.src_embedding is ours.tgt_embedding
    moved = src if is_shared else torch.where(src != 0, src + ours.vocabulary.target, src)
    with torch.no_grad():
        logits = model(input_ids=moved, attention_mask=(src != 0).long(), decoder_input_ids=tgt_in).logits
    num_target_ids = ours.vocabulary.num_target_ids
    torch.testing.assert_close(
        logits.log_softmax(-1)[..., :num_target_ids], logits[..., :num_target_ids].log_softmax(-1)
    )
    return logits[..., :num_target_ids]


def assert_same_logits(model: Any, predictor: Predictor, lengths: tuple[int, ...] = (11, 5)) -> None:
    torch.manual_seed(3)
    src = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        src[row, :length] = torch.randint(3, predictor.model.vocabulary.source, (length,))
    tgt_in = torch.randint(1, predictor.model.vocabulary.target, (len(lengths), max(lengths)))
    with torch.no_grad():
        ours = predictor.model.logits(predictor.model(src, tgt_in))
    torch.testing.assert_close(their_logits(model, predictor, src, tgt_in), ours, rtol=0, atol=1e-5)


MODELS = [
    {"norm_first": False},
    {"norm_first": True},
    {"norm_first": False, "joint": False, "feed_forward": "gelu"},
    {"norm_first": True, "joint": False, "feed_forward": "silu"},
    {"norm_first": False, "tie_embeddings": False},
    {"norm_first": True, "tie_embeddings": False, "joint": False},
    {"norm_first": False, "d_model": 15, "num_heads": 3},  # one sine more than cosines
    {"norm_first": True, "positions": "learned"},
    {"norm_first": True, "positions": "none"},
    {"norm_first": False, "output_bias": True},
]


@pytest.mark.parametrize("settings", MODELS, ids=str)
def test_logits_are_ours(settings: dict[str, Any], tmp_path: Path) -> None:
    predictor = random_predictor(**settings)
    assert_same_logits(export(predictor, tmp_path / "out").model, predictor)


@pytest.mark.parametrize("settings", [MODELS[0], MODELS[5], MODELS[7]], ids=str)
def test_a_folder_opened_and_saved_again_gives_the_same_logits(settings: dict[str, Any], tmp_path: Path) -> None:
    predictor = random_predictor(**settings)
    export(predictor, tmp_path / "out").model.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again").eval()
    assert_same_logits(again, predictor)


@pytest.mark.parametrize("norm_first", [False, True])
def test_positions_reach_the_longest_sequence(norm_first: bool, tmp_path: Path) -> None:
    predictor = random_predictor(norm_first=norm_first, max_len=300)
    assert_same_logits(export(predictor, tmp_path / "out").model, predictor, lengths=(300,))


@pytest.mark.parametrize("settings", [MODELS[0], MODELS[3]], ids=str)
def test_log_probs_of_given_answers_are_ours(settings: dict[str, Any], tmp_path: Path) -> None:
    predictor = random_predictor(**settings)
    sources, answers = predictor.tokenizer.encode_source(SRC), [[5, 9, 270], [], [261, 262, 263, 264, 265, 266]]
    theirs = export(predictor, tmp_path / "out").log_probs(sources, answers)
    ours = token_log_probs(predictor.model, sources, answers)
    assert [len(row) for row in theirs] == [4, 1, 7]
    for their_row, our_row in zip(theirs, ours, strict=True):
        assert their_row == pytest.approx(our_row, abs=1e-5)


@pytest.mark.parametrize("settings", [MODELS[0], MODELS[3]], ids=str)
@pytest.mark.parametrize("longest", [1, 2, 7])
def test_searches_are_ours_though_each_sentence_has_its_own_longest_length(
    settings: dict[str, Any], longest: int, tmp_path: Path
) -> None:
    predictor = random_predictor(**settings)
    engine = export(predictor, tmp_path / "out")
    sources = predictor.tokenizer.encode_source([*SRC, "dog", "", "the old old old old dog"])
    for decoding in engine.searches:
        decoding = replace(decoding, max_len_ratio=0.1 * longest, max_len_extra=longest)
        native = Predictor(predictor.model, predictor.tokenizer, decoding).search(sources)
        max_lens = [decoding.max_len(len(ids)) for ids in sources]
        assert engine.search(sources, max_lens, decoding) == [answers[0].ids for answers in native]


@pytest.mark.parametrize("norm_first", [False, True])
def test_pad_and_begin_are_never_written_but_keep_their_share(norm_first: bool, tmp_path: Path) -> None:
    predictor = random_predictor(norm_first=norm_first)
    with torch.no_grad():  # a model that would write nothing else
        predictor.model.src_embedding.weight[:2] *= 4
    engine = export(predictor, tmp_path / "out")
    sources = predictor.tokenizer.encode_source(SRC)
    for decoding in engine.searches:
        native = Predictor(predictor.model, predictor.tokenizer, decoding).search(sources)
        answers = engine.search(sources, [decoding.max_len(len(ids)) for ids in sources], decoding)
        assert answers == [found[0].ids for found in native]
        assert not {0, 1} & {i for ids in answers for i in ids}


@pytest.mark.parametrize(
    "decoding",
    [DecodingConfig(beam_size=1), BEAM, replace(BEAM, min_len=9, no_repeat_ngram_size=2)],
    ids=["greedy", "beam", "with rules"],
)
def test_text_in_and_text_out_by_transformers_alone(decoding: DecodingConfig, run: Path, tmp_path: Path) -> None:
    decoding = replace(decoding, max_len_ratio=0.0, max_len_extra=30)
    predictor = load(run, device="cpu", decoding=decoding)
    export(predictor, tmp_path / "out")
    lines = ["abc", "b c a d e", "f", "gh ij kl </s>"]
    answers = answered_by_transformers(tmp_path / "out", lines)
    assert answers == predictor.predict(lines)


def answered_by_transformers(folder: Path, lines: list[str]) -> list[str]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    generated = model.generate(**tokenizer(lines, return_tensors="pt", padding=True), max_new_tokens=30)
    return tokenizer.batch_decode(generated, skip_special_tokens=True)


def test_the_snippet_of_the_readme_answers(run: Path, tmp_path: Path) -> None:
    predictor = load(run, device="cpu", decoding=BEAM)
    export(predictor, tmp_path / "out")
    with chdir(tmp_path / "out"), redirect_stdout(io.StringIO()) as printed:
        exec(huggingface.usage(predictor), names := {})
    assert printed.getvalue().splitlines() == predictor.predict(["a line of text", "another one"])
    assert names["translate"]([" ", "abc"])[0] == ""


def test_a_tokenizer_for_two_vocabularies_reads_and_the_model_writes(tmp_path: Path) -> None:
    decoding = DecodingConfig(beam_size=1, max_len_ratio=0.0, max_len_extra=12)
    predictor = random_predictor(joint=False, decoding=decoding)
    export(predictor, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    answers = model.generate(**tokenizer(SRC, return_tensors="pt", padding=True), max_new_tokens=12).tolist()
    native = predictor.search(predictor.tokenizer.encode_source(SRC))
    assert [ids[1 : ids.index(Tokenizer.eos_id)] for ids in answers] == [found[0].ids for found in native]


@pytest.mark.parametrize("joint", [True, False])
def test_no_text_is_read_as_a_special_token(joint: bool, tmp_path: Path) -> None:
    predictor = random_predictor(joint=joint)
    export(predictor, tmp_path / "out")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "out"), predictor.tokenizer
    first_source_id = 0 if joint else ours.target_vocab_size
    for line in ["the </s> dog <pad>", "<s><0x41>", "", " 👩\u200d👧 ", "</s>"]:
        (source,), (target,) = ours.encode_source([line]), ours.encode_target([line])
        assert theirs(line)["input_ids"] == [i + first_source_id for i in source]
        assert theirs.decode([*target, 0, 0], skip_special_tokens=True) == line


def test_a_source_too_long_is_cut_as_we_cut_it(tmp_path: Path) -> None:
    predictor = random_predictor(max_len=40)
    export(predictor, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    (ids,) = predictor.tokenizer.encode_source(["dog " * 50])
    assert theirs("dog " * 50, truncation=True)["input_ids"] == [*ids[:39], Tokenizer.eos_id]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"positions": "rotary"}, 'model.positions is "rotary"'),
        ({"positions": "learned"}, 'model.positions is "learned"'),
        ({"positions": "rotary", "norm_first": True}, "pre-norm model only with sinusoidal, learned, none"),
        ({"norm": "rms"}, 'model.norm is "rms"'),
        ({"feed_forward": "swiglu"}, 'model.feed_forward is "swiglu"'),
    ],
)
def test_what_they_cannot_express_is_refused_in_one_line(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(TransduceError) as refusal:
        huggingface.refuse(random_predictor(**settings), int8=False)
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_int8_is_refused() -> None:
    with pytest.raises(TransduceError, match=r"^--int8 is for ctranslate2 and onnx"):
        huggingface.refuse(random_predictor(), int8=True)


def test_settings_that_the_folder_cannot_hold_are_named() -> None:
    assert len(huggingface.unexpressed(BEAM)) == 1
    wu = huggingface.unexpressed(DecodingConfig(beam_size=5, length_norm="wu", length_penalty=1.5, temperature=0.5))
    assert ["max_len_ratio" in wu[0], "wu" in wu[1], "temperature" in wu[2]] == [True] * 3
    assert len(huggingface.unexpressed(DecodingConfig(beam_size=5, length_penalty=0.0))) == 1
