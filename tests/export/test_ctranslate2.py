import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calling import command
from small_model import random_predictor
from transduce.export import ctranslate2 as known
from transduce.inference.config import DecodingConfig
from transduce.inference.forced_decoding import token_log_probs
from transduce.inference.predictor import Predictor
from transduce.model.config import TransformerConfig
from transduce.runs.run import load
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

pytest_plugins = ["small_run"]

SRC = ["der Hund rennt", "die Katze schläft", "Hund und Katze", "ein <s> zu viel ▁"]
TGT = ["the dog runs", "the cat sleeps", "dog and cat", "one <pad> too many ▁"]
SHAPE = TransformerConfig(d_model=24, d_ff=40, num_heads=3, num_encoder_layers=2, num_decoder_layers=1, max_len=37)


def predictor_of(
    shape: TransformerConfig, tokens: TokenizerConfig, decoding: DecodingConfig | None = None
) -> Predictor:
    """Seeded random weights, those that begin as ones and zeros too."""
    tokenizer = Tokenizer.learn(tokens, SRC, TGT)
    return random_predictor(shape, tokenizer, decoding or DecodingConfig(beam_size=1), seed=5)


def written(predictor: Predictor, folder: Path, *, int8: bool = False) -> known.CTranslate2Engine:
    folder.mkdir()
    known.write(predictor, folder, int8=int8)
    return known.open_engine(folder, predictor)


JOINT = TokenizerConfig(source="bpe", target="bpe", vocab_size=310)
APART = TokenizerConfig(source="characters", target="words", joint=False)
SHAPES = [
    pytest.param({}, JOINT, id="as in the paper"),
    pytest.param({"norm_first": True}, APART, id="pre-norm"),
    pytest.param({"norm": "rms"}, APART, id="rms, post-norm"),
    pytest.param({"norm": "rms", "norm_first": True}, JOINT, id="rms, pre-norm"),
    pytest.param({"positions": "learned"}, JOINT, id="learned positions"),
    pytest.param({"positions": "rotary"}, JOINT, id="rotary positions"),
    pytest.param({"positions": "rotary", "norm_first": True}, APART, id="rotary positions, pre-norm"),
    pytest.param({"positions": "none"}, JOINT, id="no positions"),
    pytest.param({"feed_forward": "gelu"}, JOINT, id="gelu"),
    pytest.param({"feed_forward": "silu"}, JOINT, id="silu"),
    pytest.param({"feed_forward": "swiglu"}, APART, id="swiglu"),
    pytest.param({"tie_embeddings": False}, JOINT, id="not tied"),
    pytest.param({"tie_embeddings": False, "output_bias": True}, APART, id="output bias"),
    pytest.param({"d_model": 27, "num_encoder_layers": 1}, JOINT, id="an odd width"),
]


@pytest.mark.parametrize(("changes", "tokens"), SHAPES)
def test_every_network_gives_the_same_log_probabilities(
    changes: dict[str, object], tokens: TokenizerConfig, tmp_path: Path
) -> None:
    predictor = predictor_of(replace(SHAPE, **changes), tokens)
    engine = written(predictor, tmp_path / "out")
    sources = predictor.tokenizer.encode_source([*SRC, "x", ""])
    answers = [ids[:-1] for ids in predictor.tokenizer.encode_target([*TGT, "", "the dog and the cat"])]
    expected = token_log_probs(predictor.model, sources, answers)
    for ours, theirs in zip(expected, engine.log_probs(sources, answers), strict=True):
        assert theirs == pytest.approx(ours, abs=1e-4)
    assert max(max(row) - min(row) for row in expected) > 1  # they could differ


@pytest.mark.parametrize("tokens", [JOINT, APART], ids=["joint", "apart"])
def test_greedy_answers_are_the_same_where_all_are_as_long_as_they_may_be(
    tokens: TokenizerConfig, tmp_path: Path
) -> None:
    decoding = DecodingConfig(beam_size=1, max_len_ratio=0.5, max_len_extra=3)
    predictor = predictor_of(replace(SHAPE, norm_first=True), tokens, decoding)
    sources = predictor.tokenizer.encode_source([*SRC, "x"])
    own = [best.ids for best, *_ in predictor.search(sources)]
    max_lens = [decoding.max_len(len(ids)) for ids in sources]
    assert [len(ids) + 1 for ids in own] == max_lens
    assert written(predictor, tmp_path / "out").search(sources, max_lens, decoding) == own


def test_greedy_answers_keep_to_the_same_rules(tmp_path: Path) -> None:
    decoding = DecodingConfig(beam_size=1, no_repeat_ngram_size=2, min_len=6)
    predictor = predictor_of(replace(SHAPE, norm_first=True), APART, decoding)
    sources = predictor.tokenizer.encode_source([*SRC, "x"])
    own = [best.ids for best, *_ in predictor.search(sources)]
    predictor.decoding = replace(decoding, no_repeat_ngram_size=0, min_len=0)
    assert own != [best.ids for best, *_ in predictor.search(sources)]
    max_lens = [predictor.max_len(ids) for ids in sources]
    assert written(predictor, tmp_path / "out").search(sources, max_lens, decoding) == own


def test_a_trained_run_gives_the_same_answers_unless_they_have_no_end(run: Path, tmp_path: Path) -> None:
    found = command("export", run, "--format", "ctranslate2", "-o", tmp_path / "out", "--json")
    assert found.status == 0, found.err
    certificate = json.loads(found.out)
    greedy, *beams = certificate["searches"]
    assert [search["beam_size"] for search in (greedy, *beams)] == [1, 5, 5]
    assert greedy["num_equal"] == 40
    assert all(search["num_different"] == search["num_different_at_limit"] <= 2 for search in beams)
    assert certificate["log_prob_difference"] < 1e-5


def test_bytes_are_smaller_and_leave_the_run_as_it_is(run: Path, tmp_path: Path) -> None:
    predictor = load(run, device="cpu")
    before = {name: tensor.clone() for name, tensor in predictor.model.state_dict().items()}
    for name, int8 in (("float32", False), ("int8", True)):
        (tmp_path / name).mkdir()
        known.write(predictor, tmp_path / name, int8=int8)
    assert all(torch.equal(before[name], tensor) for name, tensor in predictor.model.state_dict().items())
    sizes = [(tmp_path / name / "model.bin").stat().st_size for name in ("float32", "int8")]
    assert sizes[1] < sizes[0]
    engine = known.open_engine(tmp_path / "int8", predictor)
    sources = predictor.tokenizer.encode_source(["abc", "ab"])
    answers = [ids[:-1] for ids in predictor.tokenizer.encode_target(["abc", "ab"])]
    for ours, theirs in zip(
        token_log_probs(predictor.model, sources, answers), engine.log_probs(sources, answers), strict=True
    ):
        assert theirs != pytest.approx(ours, abs=1e-6)
        assert theirs == pytest.approx(ours, abs=0.5)


def test_the_readme_turns_text_into_the_text_that_the_run_answers(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = command("export", run, "--format", "ctranslate2", "-o", tmp_path / "out")
    assert found.status == 0, found.err
    snippet = (tmp_path / "out/README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "beam_size=3" in snippet
    monkeypatch.chdir(tmp_path / "out")
    names: dict[str, object] = {}
    exec(snippet.replace("beam_size=3", "beam_size=1"), names)
    greedy = load(run, device="cpu", decoding=DecodingConfig(beam_size=1))
    assert capsys.readouterr().out == f"{greedy.predict(['a line of text'])[0]}\n"
    texts = ["abcde", "a b", "ba", "é"]
    assert [names["translate"](text) for text in texts] == greedy.predict(texts)
    assert [names["translate"](text) for text in ("", " ")] == ["", ""]
    longest = greedy.model.config.max_len
    assert names["translate"]("a" * (longest + 5)) == names["translate"]("a" * (longest - 1))  # the end takes a place


def test_tokens_have_names_of_their_own(tmp_path: Path) -> None:
    predictor = predictor_of(SHAPE, JOINT)
    written(predictor, tmp_path / "out")
    for side, size in (
        ("source", predictor.tokenizer.source_vocab_size),
        ("target", predictor.tokenizer.num_target_ids),
    ):
        names = json.loads((tmp_path / "out" / f"{side}_vocabulary.json").read_text())
        assert len(names) == len(set(names)) == size
        assert names[:4] == ["<pad>", "<s>", "</s>", "<0x00>"]


@pytest.mark.parametrize(
    ("decoding", "told"),
    [
        (DecodingConfig(beam_size=1), []),
        (DecodingConfig(beam_size=1, temperature=0.5), ["decoding.temperature = 0.5"]),
        (DecodingConfig(length_norm="power"), ["decoding.max_len_ratio"]),
        (DecodingConfig(length_penalty=0.0), ["decoding.max_len_ratio"]),
        (DecodingConfig(length_penalty=0.0, min_len=2), ["decoding.max_len_ratio", "decoding.min_len"]),
        (DecodingConfig(length_penalty=0.5), ["decoding.max_len_ratio", 'decoding.length_norm = "wu"']),
    ],
)
def test_settings_that_cannot_be_expressed_are_told(decoding: DecodingConfig, told: list[str]) -> None:
    lines = known.unexpressed(decoding)
    assert [line.startswith(start) for line, start in zip(lines, told, strict=True)] == [True] * len(told)
