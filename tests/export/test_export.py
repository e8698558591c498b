import errno
import fcntl
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch

from calling import command, content_of
from transduce.errors import DataError
from transduce.export import Certificate, Exported, Lines, certify
from transduce.export.certificate import MOST_LINES, SEARCHES
from transduce.inference.config import DecodingConfig
from transduce.inference.forced_decoding import token_log_probs
from transduce.inference.predictor import Predictor
from transduce.model import Transformer
from transduce.model.config import TransformerConfig
from transduce.runs.folder import RunFolder
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

pytest_plugins = ["small_run"]

EXPORTED = Exported(format="fake", precision="float32", versions={"fake": "1"}, model_sha256="0" * 64, unexpressed=[])
SOURCES = ["ab c", "", "bca", "  ", "c", "aab cab"]
TARGETS = ["x y", "", "y z z", "", "z", "x x y z y"]
MAX_LEN = 9


@pytest.fixture
def predictor() -> Predictor:
    """Characters to words; seeded random weights."""
    settings = TokenizerConfig(source="characters", target="words", joint=False)
    tokenizer = Tokenizer.learn(settings, SOURCES, TARGETS)
    shape = TransformerConfig(
        d_model=12, d_ff=20, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, max_len=MAX_LEN
    )
    torch.manual_seed(3)
    model = Transformer(shape, tokenizer.vocabulary_sizes)
    return Predictor(model, tokenizer, DecodingConfig(max_len_ratio=0.5, max_len_extra=2))


class Honest:
    """Answers as the run does; notes what it is asked."""

    def __init__(self, predictor: Predictor, searches: tuple[DecodingConfig, ...] = SEARCHES[:1]) -> None:
        self.predictor = predictor
        self.searches = searches
        self.asked: list[tuple[list[int], int]] = []

    def search(self, sources: list[list[int]], max_lens: list[int], decoding: DecodingConfig) -> list[list[int]]:
        self.asked = list(zip(sources, max_lens, strict=True))
        native = Predictor(self.predictor.model, self.predictor.tokenizer, decoding)
        return [best.ids for best, *_ in native.search(sources)]

    def log_probs(self, sources: list[list[int]], answers: list[list[int]]) -> list[list[float]]:
        return token_log_probs(self.predictor.model, sources, answers)


class Lying(Honest):
    """Gives `answer` to the source of number `row`."""

    def __init__(self, predictor: Predictor, row: int, answer: list[int], *more: DecodingConfig) -> None:
        super().__init__(predictor, more or SEARCHES[:1])
        self.row, self.answer = row, answer

    def search(self, sources: list[list[int]], max_lens: list[int], decoding: DecodingConfig) -> list[list[int]]:
        found = super().search(sources, max_lens, decoding)
        found[self.row] = self.answer
        return found


def certificate_of(engine: Honest, lines: Lines | None = None) -> Certificate:
    lines = lines or Lines(sources=SOURCES, origin="here")
    return certify(engine.predictor, engine, lines, EXPORTED)


def score_by_hand(predictor: Predictor, source: str, answer: list[int]) -> float:
    src = torch.tensor(predictor.tokenizer.encode_source([source]))
    logits = predictor.model.logits(predictor.model(src, torch.tensor([[Tokenizer.bos_id, *answer]])))[0]
    tokens = [*answer, Tokenizer.eos_id]
    return sum((logits[t] - logits[t].logsumexp(0))[i].item() for t, i in enumerate(tokens))


# The certificate


def test_an_engine_that_answers_as_the_run_does_is_equal(predictor: Predictor) -> None:
    found = certificate_of(Honest(predictor, SEARCHES))
    assert found.is_equal
    assert [search.num_equal for search in found.searches] == [4, 4, 4]
    assert (found.num_lines, found.log_prob_difference) == (4, 0.0)


def test_a_lie_about_one_line_is_found_with_both_texts_and_scores(predictor: Predictor) -> None:
    lie = predictor.tokenizer.encode_target(["z z"])[0][:-1]
    search = replace(SEARCHES[2], beam_size=2)
    engine = Lying(predictor, 1, lie, search)
    found = certificate_of(engine)
    (of_search,) = found.searches
    (difference,) = of_search.differences
    native = Predictor(predictor.model, predictor.tokenizer, replace(search, max_len_ratio=0.5, max_len_extra=2))
    (own,) = native.predict_n_best(["bca"], 1)[0]
    assert not found.is_equal
    assert (of_search.num_equal, of_search.num_tied, of_search.num_different) == (3, 0, 1)
    assert (difference.line, difference.source, difference.engine) == (3, "bca", "z z")
    assert (difference.native, difference.native_score) == (own.text, pytest.approx(own.score, abs=1e-5))
    by_hand = score_by_hand(predictor, "bca", lie) / (len(lie) + 1)
    assert difference.engine_score == pytest.approx(by_hand, abs=1e-5)


def test_another_answer_that_is_as_good_is_a_tie(predictor: Predictor) -> None:
    liked, other = Honest(predictor).search([[4, 2]], [3], SEARCHES[0])[0][0], 100
    with torch.no_grad():
        weight = predictor.model.tgt_embedding.weight
        weight[other] = weight[liked]  # read and written alike

    class Twin(Honest):
        def search(self, sources: list[list[int]], max_lens: list[int], decoding: DecodingConfig) -> list[list[int]]:
            return [
                [{liked: other, other: liked}.get(i, i) for i in ids]
                for ids in super().search(sources, max_lens, decoding)
            ]

    found = certificate_of(Twin(predictor))
    assert found.searches[0].num_tied > 0
    assert found.searches[0].num_tied + found.searches[0].num_equal == 4
    assert found.is_equal


def test_other_log_probabilities_are_found(predictor: Predictor) -> None:
    class Off(Honest):
        def log_probs(self, sources: list[list[int]], answers: list[list[int]]) -> list[list[float]]:
            found = super().log_probs(sources, answers)
            found[2][0] -= 0.25
            return found

    found = certificate_of(Off(predictor))
    assert found.log_prob_difference == pytest.approx(0.25)
    assert found.searches[0].num_different == 0
    assert not found.is_equal


def test_a_log_probability_that_is_no_number_is_not_equal(predictor: Predictor) -> None:
    class Broken(Honest):
        def log_probs(self, sources: list[list[int]], answers: list[list[int]]) -> list[list[float]]:
            return [[math.nan for _ in row] for row in super().log_probs(sources, answers)]

    assert not certificate_of(Broken(predictor)).is_equal


def test_blank_lines_are_not_asked_and_long_ones_are_cut(predictor: Predictor) -> None:
    engine = Honest(predictor)
    certificate_of(engine, Lines(sources=["", "a", " ", "abcabcabcabc"], origin="here"))
    a, long = predictor.tokenizer.encode_source(["a", "abcabcab"])
    assert [source for source, _ in engine.asked] == [a, long]
    assert len(long) == MAX_LEN
    assert [max_len for _, max_len in engine.asked] == [int(0.5 * 2) + 2, int(0.5 * 9) + 2]


def test_an_engine_is_asked_the_ids_that_the_run_reads_of_a_line_that_is_far_too_long() -> None:
    tokenizer = Tokenizer.learn(TokenizerConfig(source="words", target="words"), ["w" * 700], ["x"])
    shape = TransformerConfig(
        d_model=12, d_ff=20, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, max_len=MAX_LEN
    )
    predictor = Predictor(Transformer(shape, tokenizer.vocabulary_sizes), tokenizer)
    line = "w" * 700  # one word that is known, of which a run reads 64 * 9 letters: they are another word
    engine = Honest(predictor)
    certificate_of(engine, Lines(sources=[line], origin="here"))
    (read,), _ = predictor.encode([line])
    assert [source for source, _ in engine.asked] == [read]


def test_an_answer_may_be_no_longer_than_the_model_is_meant_for(predictor: Predictor) -> None:
    engine = Honest(predictor)
    predictor.decoding = DecodingConfig(max_len_ratio=3.0, max_len_extra=1)
    certificate_of(engine, Lines(sources=["abc"], origin="here"))
    assert [max_len for _, max_len in engine.asked] == [MAX_LEN]


def test_no_more_lines_are_asked_than_are_useful(predictor: Predictor) -> None:
    engine = Honest(predictor)
    found = certificate_of(engine, Lines(sources=["", *"ab" * 600], origin="here"))
    assert found.num_lines == len(engine.asked) == MOST_LINES == 1000
    assert found.num_lines_scored == 200


def test_lines_without_any_text_are_refused() -> None:
    with pytest.raises(DataError, match=r"nothing\.txt: all lines are blank"):
        Lines(sources=["", " "], origin="nothing.txt")


def test_bleu_of_both_is_that_of_sacrebleu(predictor: Predictor) -> None:
    right = [["x y"] * 6, ["x y z z z", "", "x x y z y", "", "y", "x y z"]]
    (lie,) = predictor.tokenizer.encode_target(["x x y z"])
    engine = Lying(predictor, 3, lie[:-1])
    (found,) = certificate_of(engine, Lines(sources=SOURCES, references=right, origin="here")).searches
    rows = [row for row, text in enumerate(SOURCES) if text.strip()]
    own = predictor.predict([SOURCES[row] for row in rows])
    right_of_asked = [[side[row] for row in rows] for side in right]
    assert found.native_bleu == pytest.approx(sacrebleu.corpus_bleu(own, right_of_asked).score)
    assert found.engine_bleu == pytest.approx(sacrebleu.corpus_bleu([*own[:3], "x x y z"], right_of_asked).score)
    assert found.bleu_difference == pytest.approx(found.engine_bleu - found.native_bleu)
    assert found.engine_bleu > 1


def test_a_certificate_is_json_that_says_how_it_was_made(predictor: Predictor) -> None:
    found = json.loads(json.dumps(certificate_of(Lying(predictor, 0, [])).as_dict()))
    (search,) = found["searches"]
    assert (found["is_equal"], found["format"], found["lines_from"], found["num_lines"]) == (False, "fake", "here", 4)
    assert found["model_sha256"] == "0" * 64
    assert (search["num_equal"], search["num_different"], search["bleu_difference"]) == (3, 1, None)
    assert search["differences"][0]["engine"] == ""


# The folder


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy of the small run that a test may change."""
    return Path(shutil.copytree(run, tmp_path / "own"))


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """An empty folder."""
    path = tmp_path / "room"
    path.mkdir()
    return path


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


FAULTS = [
    pytest.param("write", OSError(errno.ENOSPC, "No space left on device"), 73, "bytes needed", id="disk full"),
    pytest.param("write", OSError(errno.EACCES, "Permission denied"), 73, "Check the permissions", id="not allowed"),
    pytest.param("write", KeyboardInterrupt(), 130, "stopped.", id="Ctrl-C while writing"),
    pytest.param("open_engine", KeyboardInterrupt(), 130, "stopped.", id="Ctrl-C while certifying"),
    pytest.param("open_engine", RuntimeError("unreadable"), 70, "unreadable", id="an engine that fails"),
]


@pytest.mark.parametrize(("place", "error", "status", "told"), FAULTS)
def test_nothing_is_left_where_an_export_fails(
    place: str, error: BaseException, status: int, told: str, run: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transduce.export.ctranslate2 as known

    real = known.write

    def half(*arguments: object, **options: object) -> None:
        real(*arguments, **options)  # type: ignore[arg-type]
        raise error

    monkeypatch.setattr(known, place, half if place == "write" else raising(error))
    found = command("export", run, "--format", "ctranslate2", "-o", room / "out")
    assert (found.status, found.out) == (status, b"")
    assert told in found.err
    assert list(room.iterdir()) == []


def test_what_a_killed_export_left_is_removed_by_the_next_one_to_the_same_name(run: Path, room: Path) -> None:
    for name in (".out.0123abcd.tmp", ".out.89abcdef.tmp", ".other.0123abcd.tmp", ".out.mine.tmp"):
        (room / name).mkdir()
        (room / name / "model.bin").write_text("half")
    busy = os.open(room / ".out.89abcdef.tmp", os.O_RDONLY)
    fcntl.flock(busy, fcntl.LOCK_EX)  # as an export at work does
    found = command("export", run, "--format", "ctranslate2", "-o", room / "out")
    os.close(busy)
    assert found.status == 0, found.err
    names = {path.name for path in room.iterdir()}
    assert names == {"out", ".out.89abcdef.tmp", ".other.0123abcd.tmp", ".out.mine.tmp"}


def test_an_export_at_work_holds_its_folder_locked(run: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transduce.export.ctranslate2 as known

    real = known.write
    seen: list[str] = []

    def write(predictor: Predictor, folder: Path, *, int8: bool) -> None:
        another = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(another)
        seen.append(folder.name)
        real(predictor, folder, int8=int8)

    monkeypatch.setattr(known, "write", write)
    found = command("export", run, "--format", "ctranslate2", "-o", room / "out")
    assert found.status == 0, found.err
    assert len(seen) == 1


def test_a_folder_that_cannot_take_its_name_is_gone(run: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "rename", raising(OSError(errno.EROFS, "Read-only file system")))
    found = command("export", run, "--format", "ctranslate2", "-o", room / "out")
    assert found.status == 73
    assert f"{room / 'out'}: cannot be written: Read-only file system" in found.err
    assert list(room.iterdir()) == []


def test_the_written_folder_holds_what_it_promises(run: Path, room: Path) -> None:
    found = command("export", run, "--format", "ctranslate2", "-o", room / "out")
    assert found.status == 0, found.err
    assert [path.name for path in room.iterdir()] == ["out"]
    certificate = json.loads((room / "out/certificate.json").read_text())
    assert certificate["lines_from"] == "the run's validation pairs"
    assert certificate["num_lines"] == 40
    assert certificate["versions"].keys() == {"transduce", "torch", "ctranslate2", "tokenizers"}
    header = (run / "model.safetensors").read_bytes()[:200]
    assert certificate["model_sha256"].encode() in header
    readme = (room / "out/README.md").read_text()
    assert "| greedy | 40 | 0 | 0 |" in readme
    assert "40 lines of the run's validation pairs" in found.lines[0]


def test_the_certificate_names_the_weights_that_were_exported_though_others_were_saved_meanwhile(
    own_run: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transduce.cli.export as exporting

    real, folder = exporting.load, RunFolder.open(own_run)

    def load_before_a_better_one_is_saved(*arguments: Any, **options: Any) -> Any:
        run = real(*arguments, **options)
        tensors, metadata, _ = folder.read_model()
        folder.write_model({name: tensor + 1 for name, tensor in tensors.items()}, metadata)
        return run

    exported_header = (own_run / "model.safetensors").read_bytes()[:200]
    monkeypatch.setattr(exporting, "load", load_before_a_better_one_is_saved)
    assert command("export", own_run, "--format", "onnx", "-o", room / "out").status == 0
    digest = json.loads((room / "out/certificate.json").read_text())["model_sha256"].encode()
    assert digest in exported_header and digest not in (own_run / "model.safetensors").read_bytes()[:200]
    run = real(own_run, device="cpu")
    assert run.model_sha256.encode() in (own_run / "model.safetensors").read_bytes()[:200]


def test_json_on_standard_output_is_the_certificate(run: Path, room: Path) -> None:
    found = command("export", run, "--format", "ctranslate2", "-o", room / "out", "--json")
    assert json.loads(found.out) == json.loads((room / "out/certificate.json").read_text())
    assert len(found.lines) == 1


def test_an_output_that_exists_is_refused_and_stays(run: Path, room: Path) -> None:
    (room / "out").mkdir()
    (room / "out/mine").write_text("mine")
    (room / "nowhere").symlink_to(room / "gone")
    before = content_of(room)
    for name in ("out", "nowhere"):
        found = command("export", run, "--format", "ctranslate2", "-o", room / name)
        assert found.status == 73
        assert f"{room / name} already exists" in found.err
    assert content_of(room) == before


def test_an_output_in_no_folder_is_refused(run: Path, room: Path) -> None:
    found = command("export", run, "--format", "ctranslate2", "-o", room / "no/out")
    assert found.status == 73
    assert f"there is no folder {room / 'no'}: make it first" in found.err


def test_what_a_format_cannot_hold_is_refused_before_anything_is_written(
    run: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", raising(AssertionError("too late")))
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    found = command("export", run, "--format", "ctranslate2", "-o", room / "out")
    assert found.status == 2
    assert "needs ctranslate2: pip install 'transduce[export]'" in found.err


def test_an_unknown_format_is_told_which_there_are(run: Path) -> None:
    found = command("export", run, "--format", "tflite", "-o", "out")
    assert found.status == 2
    assert "ctranslate2" in found.err and "onnx" in found.err and "huggingface" in found.err


# The lines


def export_of(run: Path, room: Path, *more: object) -> dict[str, object]:
    found = command("export", run, "--format", "ctranslate2", "-o", room / "out", "--json", *more)
    assert found.status == 0, found.err
    return dict(json.loads(found.out))


def test_lines_of_ones_own_are_compared(run: Path, room: Path, tmp_path: Path) -> None:
    (tmp_path / "few").write_text("abc\n\nba\n")
    found = export_of(run, room, "--source", tmp_path / "few")
    assert (found["lines_from"], found["num_lines"]) == (str(tmp_path / "few"), 2)
    assert [search["native_bleu"] for search in found["searches"]] == [None] * 3


def test_right_answers_of_ones_own_give_bleu(run: Path, data: Path, room: Path) -> None:
    found = export_of(run, room, "--source", data / "valid.source", "--target", data / "valid.target")
    assert all(search["bleu_difference"] == 0.0 for search in found["searches"])


def test_right_answers_without_lines_are_refused(run: Path, data: Path, room: Path) -> None:
    found = command("export", run, "--format", "ctranslate2", "-o", room / "out", "--target", data / "valid.target")
    assert found.status == 2
    assert "add --source FILE" in found.err


def test_the_part_that_fit_held_out_is_compared(own_run: Path, room: Path) -> None:
    (own_run / "test.source").write_text("ab\nba\n")
    (own_run / "test.target").write_text("ab\nba\n")
    found = export_of(own_run, room)
    assert (found["lines_from"], found["num_lines"]) == ("the test part that `fit` held out", 2)


@pytest.mark.parametrize("name", ["gone.", "test."], ids=["gone", "other pairs"])
def test_without_the_validation_pairs_lines_are_asked_for(name: str, own_run: Path, room: Path) -> None:
    folder = RunFolder.open(own_run)
    with folder.lock():
        folder.rewrite_config(folder.config_text.replace("valid.", name))
        folder.update_facts({"paths": {}})
    found = command("export", own_run, "--format", "ctranslate2", "-o", room / "out")
    assert found.status == 66
    assert "give others to compare, with --source FILE" in found.err
    assert list(room.iterdir()) == []
