import argparse
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import sacrebleu
import torch
from safetensors.torch import load_file

from calling import Outcome, command, content_of
from transduce.cli import main as cli
from transduce.cli import train as train_module
from transduce.errors import TransduceError
from transduce.runs.folder import RunFolder
from transduce.training import trainer

pytest_plugins = ["small_run"]

VERBS = [
    "fit", "train", "predict", "translate", "evaluate", "compare", "average", "describe", "data", "verify", "benchmark",
    "export", "import", "explain", "reproduce", "learn", "score",
]  # fmt: skip
HOSTILE = ["abc", "", "a\u2028b", "\u0085", "a\x0bb\x0cc", "\x1c", "a\rb", "   ", "ﷺ 👩‍👩‍👧", "<pad></s>"]


def in_shell(script: str, **names: object) -> subprocess.CompletedProcess[bytes]:
    """Runs a script of bash in which `$transduce` is the command, in a process of its own."""
    values = {name: str(value) for name, value in names.items()}
    environment = {**os.environ, **values, "transduce": f"{sys.executable} -m transduce", "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, check=False)


def flip_byte(path: Path, place: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy of the small run that a test may change."""
    return Path(shutil.copytree(run, tmp_path / "own"))


@pytest.fixture(scope="module")
def few(data: Path, run: Path) -> dict[str, Path]:
    """Files of 20 lines: sources, references, and what the run answers to the sources."""
    paths = {}
    for side in ("source", "target"):
        paths[side] = data / f"few.{side}"
        paths[side].write_text("".join((data / f"valid.{side}").read_text().splitlines(keepends=True)[:20]))
    paths["answers"] = data / "few.answers"
    assert command("predict", run, paths["source"], "-o", paths["answers"]).status == 0
    return paths


# Help


def test_help_of_every_verb_imports_no_torch() -> None:
    script = (
        "import contextlib, io, sys\n"
        "from transduce.cli.main import main\n"
        "for words in [[], *([verb] for verb in sys.argv[1:])]:\n"
        "    out = io.StringIO()\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(out):\n"
        "        main([*words, '--help'])\n"
        "    assert out.getvalue().startswith('usage: transduce' if words else 'Train'), words\n"
        "heavy = {'torch', 'numpy', 'tokenizers', 'sacrebleu', 'rich'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    found = subprocess.run([sys.executable, "-c", script, *VERBS], capture_output=True, check=False)
    assert found.returncode == 0, found.stderr.decode()


def test_no_command_loads_the_compiler_of_torch_before_it_trains(
    run: Path, few: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """It takes as long to load as torch itself; the constructor of every optimizer loads it."""
    train = f"train {data / 'config.toml'} --run-dir {tmp_path / 'new'}"
    expected = {
        f"describe {run}": 0,
        "describe base --json": 0,
        f"verify {run}": 0,
        "data": 0,
        f"learn {tmp_path / 'notebooks'}": 0,
        f"predict {run} {few['source']} -o {tmp_path / 'answers'}": 0,
        f"predict {run} {few['source']} --json -o {tmp_path / 'rows'}": 0,
        f"evaluate {run} --source {few['source']} --target {few['target']}": 0,
        f"compare {run} {run} --source {few['source']} --target {few['target']} --metric cer": 0,
        f"explain {run} abc -o {tmp_path / 'page.html'}": 0,
        f"average {run} --last 2 -o {tmp_path / 'mean'}": 0,
        "reproduce": 0,
        f"prepare {data / 'config.toml'}": 0,
        f"train {tmp_path / 'none.toml'}": 66,
        f"{train} --model.d_model 33": 2,
        f"{train} --data.train {tmp_path / 'none.tsv'}": 66,
        f"train {data / 'config.toml'} --run-dir {run}": 73,
    }
    script = (
        "import json, sys\n"
        "from transduce.cli.main import main\n"
        "commands = json.loads(sys.argv[1])\n"
        "told = {words: [main(words.split()), 'torch._dynamo' in sys.modules] for words in commands}\n"
        "print(json.dumps(told))\n"
    )
    words = [sys.executable, "-c", script, json.dumps([*expected])]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    told = json.loads(found.stdout.rstrip("\n").split("\n")[-1])
    assert told == {words: [status, False] for words, status in expected.items()}, found.stderr


TOPICS = ["benchmark train", "benchmark decode"]


@pytest.mark.parametrize("words", [*(verb for verb in VERBS if verb != "benchmark"), *TOPICS])
def test_every_option_is_explained_in_the_help(words: str) -> None:
    found = command(*words.split(), "--help")
    assert found.status == 0
    options = found.out.decode().partition("\nexamples:")[0]
    parts = re.split(r"\n  (?=[-\w])", options)[1:]
    bare = [part for part in parts if not re.search(r"  +\w|\n +\w", part)]
    assert len(parts) >= 5
    assert not bare


# train


def test_train_writes_nothing_on_standard_output(training: tuple[Path, Outcome]) -> None:
    outcome = training[1]
    assert outcome.out == b""
    assert "validation: loss" in outcome.err
    assert "transduce predict" in outcome.err


def test_quiet_training_says_nothing(data: Path, tmp_path: Path) -> None:
    found = command(
        "train", data / "config.toml", "--run-dir", tmp_path / "run", "--training.steps", "2",
        "--training.validate_every=2", "--quiet",
    )  # fmt: skip
    assert (found.status, found.out, found.err) == (0, b"", "")


def test_seed_is_short_for_the_setting(data: Path, tmp_path: Path) -> None:
    words = ["train", data / "config.toml", "--training.steps", "1", "--run-dir"]
    assert command(*words, tmp_path / "a", "--seed", "7").status == 0
    assert command(*words, tmp_path / "b", "--training.seed", "7").status == 0
    assert (tmp_path / "a/config.toml").read_bytes() == (tmp_path / "b/config.toml").read_bytes()
    assert load_file(tmp_path / "a/model.safetensors").keys() == load_file(tmp_path / "b/model.safetensors").keys()


def test_resuming_a_finished_run_changes_no_weight(own_run: Path, data: Path) -> None:
    before = load_file(own_run / "model.safetensors")
    found = command("train", data / "config.toml", "--run-dir", own_run, "--resume")
    assert found.status == 0, found.err
    after = load_file(own_run / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("--model.dropout 0.1 x.toml --run-dir a.b/c.d", ["--model.dropout", "0.1"]),
        ("--model.dropout=0.1 --quiet x.toml", ["--model.dropout=0.1"]),
        ("x.toml --optim.beta1 -3 --quiet", ["--optim.beta1", "-3"]),
        ("--run-dir=a.b --training.steps --quiet x.toml", ["--training.steps"]),
        ("--seed 1 x.toml --data.train=a=b --model.d_ff 2", ["--data.train=a=b", "--model.d_ff", "2"]),
    ],
)
def test_a_setting_is_one_wherever_it_stands(words: str, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr(cli, "_run", lambda arguments, _signals: seen.append(arguments) or 0)
    assert command("train", *words.split()).status == 0
    assert (seen[0].config, seen[0].overrides) == ("x.toml", settings)


def test_only_train_takes_settings(run: Path) -> None:
    found = command("predict", run, "--model.dropout", "0.1")
    assert found.status == 2
    assert "there is no option '--model.dropout'" in found.err


def test_a_config_may_begin_with_a_byte_order_mark(data: Path, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbf" + (data / "config.toml").read_bytes())
    found = command("train", tmp_path / "x.toml", "--run-dir", tmp_path / "run", "--training.steps", "1")
    assert found.status == 0, found.err


# predict


def test_predict_answers_line_k_with_line_k_whatever_the_line_is(run: Path) -> None:
    alone = [command("predict", run, stdin=line.encode() + b"\n").out for line in HOSTILE]
    together = command("predict", run, stdin="".join(f"{line}\n" for line in HOSTILE).encode())
    assert together.status == 0, together.err
    assert together.out == b"".join(alone)
    assert together.out.count(b"\n") == len(HOSTILE)


def test_predict_reads_a_file_as_it_reads_standard_input(run: Path, few: dict[str, Path]) -> None:
    from_file = command("predict", run, few["source"])
    from_input = command("translate", run, "-", stdin=few["source"].read_bytes())
    assert from_file.out == from_input.out == few["answers"].read_bytes()
    assert from_file.err == from_input.err


def test_a_last_line_without_its_end_and_windows_line_ends_change_no_answer(run: Path) -> None:
    expected = command("predict", run, stdin=b"abc\nde\n").out
    for same in (b"abc\nde", b"abc\r\nde\r\n", b"\xef\xbb\xbfabc\nde\n"):
        assert command("predict", run, stdin=same).out == expected


def test_predict_from_nothing_is_nothing(run: Path) -> None:
    found = command("predict", run, stdin=b"")
    assert (found.status, found.out, found.err) == (0, b"", "")


def test_answers_hold_what_is_asked_of_them(run: Path) -> None:
    lines = b"abc\nzyxwv\n"
    free = command("predict", run, stdin=lines).lines
    for line in command("predict", run, "--prefix", "qq", "--require", "mm", "--forbid", "a", stdin=lines).lines:
        assert line.startswith("qq")
        assert "mm" in line
        assert "a" not in line
    assert [len(line) for line in command("predict", run, "--max-length", "2", stdin=lines).lines] == [2, 2]
    longer = command("predict", run, "--min-length", "9", "--no-repeat-ngram", "2", stdin=lines).lines
    assert any(len(line) < 9 for line in free)
    for line in longer:
        assert len(line) >= 9
        assert len(set(pairwise(line))) == len(line) - 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--require", "x", "--beam-size", "1"], "need beam search"),
        (["--require", "x", "--temperature", "1"], "need beam search"),
        (["--require", ""], "an empty text"),
        (["--forbid", ""], "an empty text"),
        (["--prefix", "abcdef", "--max-length", "5"], "the output for text 1 may have at most 5"),
        (["--prefix", "a\nb"], "newline"),
    ],
)
def test_what_cannot_be_asked_is_explained(run: Path, options: list[str], said: str) -> None:
    found = command("predict", run, *options, stdin=b"abc\n")
    assert found.status == 2
    assert said in found.err
    assert found.out == b""


def test_a_file_may_follow_the_options(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("abc\n")
    assert (
        command("predict", run, "--json", tmp_path / "in").lines
        == command("predict", run, tmp_path / "in", "--json").lines
    )


def test_predict_gives_one_json_object_per_line(run: Path) -> None:
    found = command("predict", run, "--json", "--n-best", "2", stdin=b"abc\n\nde\n")
    rows = [json.loads(line) for line in found.lines]
    assert [row["source"] for row in rows] == ["abc", "", "de"]
    assert all(len(row["predictions"]) == 2 for row in rows)
    assert rows[0]["predictions"][0].keys() == {"text", "score", "log_prob", "confidence", "rough", "tokens"}
    for row in rows:
        for answer in row["predictions"]:
            assert sum(token["log_prob"] for token in answer["tokens"]) == pytest.approx(answer["log_prob"], abs=1e-4)
            assert all(0 <= token["source"] < len(row["source_tokens"]) for token in answer["tokens"])
            confidences = [token["confidence"] for token in answer["tokens"]]
            assert answer["confidence"] == (pytest.approx(math.prod(confidences)) if confidences else None)
    assert [token["token"] for token in rows[0]["predictions"][0]["tokens"]][-1] == "</s>"
    assert rows[1]["source_tokens"] == rows[1]["predictions"][0]["tokens"] == []  # nobody was asked


def test_several_answers_are_joined_by_tabs(run: Path) -> None:
    words = ["predict", run, "--n-best", "3"]
    rows = [json.loads(line) for line in command(*words, "--json", stdin=b"abc\nde\n").lines]
    expected = ["\t".join(answer["text"] for answer in row["predictions"]) for row in rows]
    assert command(*words, stdin=b"abc\nde\n").lines == expected


def test_answers_go_through_a_pipe_and_leave_it_one(run: Path, few: dict[str, Path], tmp_path: Path) -> None:
    script = (
        "mkfifo $pipe; cat $pipe > $read & $transduce predict $run $source -o $pipe --quiet; status=$?; "
        "test -p $pipe && wait || kill $!; exit $status"  # of a pipe replaced, the reader would never see the end
    )
    found = in_shell(script, run=run, source=few["source"], pipe=tmp_path / "pipe", read=tmp_path / "read")
    assert (found.returncode, found.stderr) == (0, b"")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "read").read_bytes() == few["answers"].read_bytes()


@pytest.mark.parametrize("exists", [True, False])
def test_answers_go_where_a_link_leads_and_leave_it_one(
    exists: bool, run: Path, few: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there/answers", tmp_path / "link"
    if exists:
        target.write_text("old\n")
    link.symlink_to("there/answers")
    assert command("predict", run, few["source"], "-o", link).status == 0
    assert link.is_symlink()
    assert target.read_bytes() == few["answers"].read_bytes()
    assert content_of(tmp_path).keys() == {"there/answers", "link"}


def test_answers_to_a_device_leave_it_one(tmp_path: Path) -> None:
    from transduce.cli.console import open_output

    link = tmp_path / "null"  # so that a mistake here replaces the link at most
    link.symlink_to(os.devnull)
    with open_output(str(link)) as output:
        output.write(b"abc\n")
    assert link.is_symlink()
    assert Path(os.devnull).is_char_device()


def test_an_error_half_way_leaves_the_old_output_file(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    output.write_text("old\n")
    source = b"ab\n" * 2500 + b"\xff\n"  # beyond what is read ahead: some lines are answered before
    found = command("predict", run, "-o", output, "--beam-size", "1", stdin=source)
    assert found.status == 65
    assert "line 2501" in found.err
    assert content_of(tmp_path) == {"out.txt": b"old\n"}


@pytest.mark.parametrize(
    ("unbuffered", "reader"), [("", "true"), pytest.param("1", "true", marks=pytest.mark.proof), ("", "head -1")]
)
def test_a_reader_that_leaves_ends_predict_without_a_word(unbuffered: str, reader: str, run: Path, data: Path) -> None:
    # `true` reads nothing and has left long before there is an answer.
    script = f"$transduce predict $run $source --beam-size 1 --quiet | {reader}; echo ${{PIPESTATUS[0]}}"
    gone = in_shell(script, run=run, source=data / "valid.source", PYTHONUNBUFFERED=unbuffered)
    *answers, status = gone.stdout.decode().rstrip("\n").split("\n")
    assert (len(answers), gone.stderr) == (int(reader == "head -1"), b"")
    assert status in (["141"] if reader == "true" else ["0", "141"])


@pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=pytest.mark.proof)])
def test_a_reader_that_leaves_ends_a_table_without_a_word(unbuffered: str) -> None:
    found = in_shell("$transduce describe tiny | true; echo ${PIPESTATUS[0]}", PYTHONUNBUFFERED=unbuffered)
    assert (found.stdout, found.stderr) == (b"141\n", b"")


def test_a_disk_error_is_one_line_where_standard_output_is_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    monkeypatch.setattr(cli, "_run", fail)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["data"]) == 74
    assert capsys.readouterr().err == "transduce: error: x: No space left on device\n"


def test_the_tensorboard_file_is_closed_when_training_fails(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Writer:
        is_closed = False

        def close(self) -> None:
            self.is_closed = True

    def fail(*_: object, observers: list[object], **__: object) -> None:
        assert observers == [writer]
        raise TransduceError("no")

    writer = Writer()
    monkeypatch.setattr(train_module, "TensorBoardWriter", lambda *_: writer)
    monkeypatch.setattr(train_module, "train", fail)
    assert command("train", data / "config.toml", "--run-dir", tmp_path / "run", "--tensorboard").status == 2
    assert writer.is_closed


def test_a_full_disk_under_standard_output_is_one_line(run: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    found = in_shell("echo abc | $transduce predict $run > /dev/full", run=run)
    assert found.returncode == 74
    assert found.stderr.count(b"\n") == 1
    assert found.stderr.startswith(b"transduce: error:")


def test_drawn_answers_depend_on_the_seed_alone(run: Path) -> None:
    def drawn(seed: int) -> bytes:
        return command("predict", run, "--temperature", "1.5", "--seed", seed, stdin=b"abcdef\n" * 5).out

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len(set(drawn(1).split(b"\n")[:-1])) > 1


# evaluate


def test_evaluate_gives_the_numbers_of_sacrebleu(run: Path, few: dict[str, Path], tmp_path: Path) -> None:
    answers = few["answers"].read_text().split("\n")[:-1]
    near = [f"{answer}" if row % 2 else f"x{answer}" for row, answer in enumerate(answers)]
    (tmp_path / "near").write_text("".join(f"{line}\n" for line in near))
    references = [near, few["target"].read_text().split("\n")[:-1]]
    targets = ["--target", tmp_path / "near", few["target"]]
    found = command("evaluate", run, "--source", few["source"], *targets, "--metric", "bleu, chrf,ter", "--json")
    assert found.status == 0, found.err
    scores = json.loads(found.out)["scores"]
    assert scores["bleu"]["value"] == pytest.approx(sacrebleu.corpus_bleu(answers, references).score, abs=1e-9)
    assert scores["chrf"]["value"] == pytest.approx(sacrebleu.corpus_chrf(answers, references).score, abs=1e-9)
    assert scores["ter"]["value"] == pytest.approx(sacrebleu.corpus_ter(answers, references).score, abs=1e-9)


def test_targets_can_be_given_together_or_one_by_one(run: Path, few: dict[str, Path]) -> None:
    words = ["evaluate", run, "--source", few["source"], "--metric", "exact_match", "--json"]
    together = json.loads(command(*words, "--target", few["target"], few["answers"]).out)
    one_by_one = json.loads(command(*words, "--target", few["answers"], "--target", few["target"]).out)
    assert together["scores"]["exact_match"]["value"] == one_by_one["scores"]["exact_match"]["value"] == 100


def test_evaluate_shows_each_score_with_its_interval_and_its_signature(run: Path, few: dict[str, Path]) -> None:
    found = command("evaluate", run, "--source", few["source"], "--target", few["answers"], "--metric", "chrf")
    assert found.lines[0].startswith("chrF2 100.00 [100.00, 100.00]")
    assert "version" in found.lines[1]
    assert len(found.lines) == 2


def test_evaluate_measures_confidence_before_and_after_calibration(run: Path, few: dict[str, Path]) -> None:
    """By the confidences of `predict --json`; a source that comes twice counts once, right by either reference."""
    words = ["evaluate", run, "--source", few["source"], "--target", few["target"], "--calibration"]
    found = json.loads(command(*words, "--json").out)["calibration"]
    sources, targets = (few[side].read_text().split("\n")[:-1] for side in ("source", "target"))
    rows = [json.loads(line)["predictions"][0] for line in command("predict", run, few["source"], "--json").lines]
    is_right = dict.fromkeys(sources, False)
    for source, target, row in zip(sources, targets, rows, strict=True):
        is_right[source] |= row["text"] == target
    last = dict(zip(sources, rows, strict=True))
    for name, of_row in (("before", lambda row: math.exp(row["log_prob"])), ("after", lambda row: row["confidence"])):
        expected = sum((of_row(last[source]) - right) ** 2 for source, right in is_right.items()) / len(is_right)
        assert found["outputs"][name]["brier"] == pytest.approx(expected, abs=1e-5)
    assert found["outputs"]["count"] == len(is_right)
    assert found["tokens"]["count"] == sum(len(target) + 1 for target in targets)
    share = found["tokens"]["share_right"]
    assert found["tokens"]["brier_of_share"] == pytest.approx(share * (1 - share))
    assert f"confidence of {found['tokens']['count']:,} tokens, {share:.1%} right" in command(*words).out.decode()


def test_no_confidence_is_measured_without_a_source_that_has_text(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n\n")
    found = command("evaluate", run, "--source", tmp_path / "empty", "--target", tmp_path / "empty", "--calibration")
    assert found.status == 65 and "all sources are empty" in found.err


def test_evaluate_says_how_many_lines_were_trained_on(run: Path, data: Path, tmp_path: Path) -> None:
    for side in ("source", "target"):
        seen = (data / f"train.{side}").read_text().split("\n")[:3]
        new = (data / f"test.{side}").read_text().split("\n")[:4]
        (tmp_path / side).write_text("".join(f"{line}\n" for line in seen + new))
    found = command("evaluate", run, "--source", tmp_path / "source", "--target", tmp_path / "target", "--json")
    assert json.loads(found.out)["in_training_too"] == {"pairs": 3, "source": 3, "target": 3}


def test_evaluate_finds_the_training_lines_of_a_run_from_another_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    config = (data / "config.toml").read_text().replace(f"{data}/", "")
    (tmp_path / "relative.toml").write_text(config)
    words = ["train", tmp_path / "relative.toml", "--run-dir", tmp_path / "run", "--training.steps", "1"]
    assert command(*words).status == 0
    monkeypatch.chdir(tmp_path)
    for side in ("source", "target"):
        (tmp_path / side).write_text("\n".join((data / f"train.{side}").read_text().split("\n")[:4]))
    lines = ["--source", "source", "--target", "target", "--beam-size", "1"]
    found = command("evaluate", "run", *lines)
    assert "also in the training data: 4 pairs, 4 source, 4 target\n" in found.err
    assert command("export", "run", "--format", "onnx", "-o", "onnx").status == 0
    folder = RunFolder.open(tmp_path / "run")
    folder.update_facts({"paths": {"train": ["gone"]}})
    found = command("evaluate", "run", *lines)
    assert "because train.source and train.target has moved or changed" in found.err
    monkeypatch.setattr("transduce.cli.evaluate.is_large", lambda _paths: True)
    assert "not counted, because the corpus is larger than memory" in command("evaluate", "run", *lines).err


def test_lines_outside_of_training_are_named(run: Path, tmp_path: Path) -> None:
    lines = ["abc", "ABC", "aB\x1bA", "", "x" * 99, "Ä"]
    (tmp_path / "lines").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "answers").write_text("".join(f"{line.lower()}\n" for line in lines))
    found = command("predict", run, tmp_path / "lines", "--json")
    rows = [json.loads(line) for line in found.lines]
    assert [row.get("unseen", []) for row in rows] == [[], ["A", "B", "C"], ["B", "\x1b", "A"], [], [], ["Ä"]]
    assert [row.get("long", False) for row in rows] == [False] * 4 + [True, False]
    longest = RunFolder.open(run).facts["seen"]["source_len"]
    notes = [
        "characters never seen in training: A, B, C, U+001B, Ä (line 2, 3, 6)",
        f"sources longer than nearly all in training (at most {longest} tokens): 1 of 6 lines (line 5)",
    ]
    assert found.err.split("\n") == [*notes, ""]
    evaluated = command("evaluate", run, "--source", tmp_path / "lines", "--target", tmp_path / "answers")
    assert evaluated.err.split("\n")[:2] == notes


def test_where_there_is_no_bleu_another_score_stands_for_it(run: Path, tmp_path: Path) -> None:
    for side in ("source", "target"):
        (tmp_path / side).write_text("abc\nde\nfgh\n")
    lines = ["--source", tmp_path / "source", "--target", tmp_path / "target", "--json"]
    compared = command("compare", run, run, *lines)
    assert json.loads(compared.out)["name"] == "exact_match"
    assert "references are too short for BLEU (fewer than four tokens): scored by exact_match\n" in compared.err
    named = command("evaluate", run, *lines, "--metric", "bleu,bleu:char")
    assert set(json.loads(named.out)["scores"]) == {"bleu", "bleu:char"}
    assert "hardly any reference has four tokens: bleu says little" in named.err
    (tmp_path / "target").write_text("abc\n我们每天散步。\n我们每天散步。\n")
    assert (
        "|tok:zh|"
        in json.loads(command("evaluate", run, *lines, "--metric", "bleu").out)["scores"]["bleu"]["signature"]
    )


def test_grouped_sources_are_scored_as_by_hand(run: Path, tmp_path: Path) -> None:
    words = ["abc", "defg", "hij"]
    answers = command("predict", run, stdin="".join(f"{word}\n" for word in words).encode()).lines
    assert all(answer.strip() and " " not in answer.strip() for answer in answers), answers
    # One phoneme each is answered. abc: right by its second alternative. defg: the only alternative is two other
    # phonemes, so 2 edits of 2. hij: the nearer alternative is one other phoneme, so 1 edit of 1.
    rows = [("abc", "Q Q"), ("abc", answers[0]), ("defg", "Q R"), ("hij", "Q R S"), ("hij", "Q")]
    (tmp_path / "source").write_text("".join(f"{source}\n" for source, _ in rows))
    (tmp_path / "target").write_text("".join(f"{target}\n" for _, target in rows))
    found = command(
        "evaluate", run, "--source", tmp_path / "source", "--target", tmp_path / "target", "--group-sources", "--json"
    )
    scores = json.loads(found.out)["scores"]
    assert set(scores) == {"word_error", "per"}
    assert scores["word_error"]["value"] == pytest.approx(100 * 2 / 3)
    assert scores["per"]["value"] == pytest.approx(100 * (0 + 2 + 1) / (1 + 2 + 1))


# compare, average, describe, data, verify


def test_a_run_does_not_differ_from_itself(run: Path, few: dict[str, Path]) -> None:
    words = ["compare", run, run, "--source", few["source"], "--target", few["target"], "--metric", "chrf"]
    for method in ("bootstrap", "randomization", "randomisation"):
        found = json.loads(command(*words, "--method", method, "--json").out)
        assert found["difference"] == found["low"] == found["high"] == 0
        assert found["p_value"] == 1
    assert command(*words).status == 0


def test_average_is_the_mean_of_the_checkpoints_and_can_predict(run: Path, tmp_path: Path) -> None:
    found = command("average", run, "--steps", "20,60", "-o", tmp_path / "mean")
    assert (found.status, found.out) == (0, b"")
    first, last = (load_file(run / f"checkpoints/step-{step:08d}.safetensors") for step in (20, 60))
    mean = load_file(tmp_path / "mean/model.safetensors")
    assert mean
    for name, tensor in mean.items():
        expected = (first[f"model.{name}"].double() + last[f"model.{name}"].double()) / 2
        torch.testing.assert_close(tensor, expected.float(), rtol=0, atol=1e-7)
    assert len(command("predict", tmp_path / "mean", stdin=b"abc\nde\n").lines) == 2
    assert command("verify", tmp_path / "mean").status == 0


def test_averaging_the_last_checkpoint_alone_gives_its_weights(run: Path, tmp_path: Path) -> None:
    assert command("average", run, "--last", "1", "-o", tmp_path / "one").status == 0
    last = load_file(run / "checkpoints/step-00000060.safetensors")
    for name, tensor in load_file(tmp_path / "one/model.safetensors").items():
        assert torch.equal(tensor, last[f"model.{name}"])


def test_describe_counts_the_parameters_of_the_base_model_as_by_hand() -> None:
    d, ff, vocabulary = 512, 2048, 1000
    attention, feed_forward, norm = 4 * (d * d + d), 2 * d * ff + ff + d, 2 * d
    layers = 6 * (attention + feed_forward + 2 * norm) + 6 * (2 * attention + feed_forward + 3 * norm)
    found = json.loads(command("describe", "base", "--vocab-size", vocabulary, "--json").out)
    assert found["parameters"]["total"] == layers + vocabulary * d
    assert sum(found["parameters"].values()) == 2 * found["parameters"]["total"]


def test_describe_shows_a_run(run: Path) -> None:
    found = json.loads(command("describe", run, "--json").out)
    weights = load_file(run / "model.safetensors")
    assert found["parameters"]["total"] == sum(tensor.numel() for tensor in weights.values())
    assert found["config"]["d_model"] == 32
    lines = command("describe", run).out.decode().split("\n")
    size = sum(path.stat().st_size for path in Path(run).rglob("*") if path.is_file()) / 1e6
    assert any("total" in line for line in lines)
    assert any(
        re.match(r"model file of \d{4}-\d\d-\d\d; trained with transduce \S+, torch \S+, device cpu$", line)
        for line in lines
    )
    assert any(line.startswith(f"data: {found['facts']['num_train_pairs']:,} training pairs from ") for line in lines)
    assert f"folder {size:,.1f} MB" in next(line for line in lines if line.startswith("size: "))


def test_describe_says_at_which_temperature_confidence_is_and_whether_it_is_rough(run: Path, tmp_path: Path) -> None:
    found = json.loads(command("describe", run, "--json").out)["facts"]["calibration"]
    assert 0.25 <= found["temperature"] <= 4 and found["num_pairs"] == 40
    line = f"calibration_temperature {found['temperature']:.3f}, fitted on 40 validation pairs"
    assert f"{line}: confidence is rough with fewer than 500\n" in command("describe", run).out.decode()
    older = RunFolder(shutil.copytree(run, tmp_path / "older"))
    older.update_facts({"calibration": None})
    assert "confidence is rough: it was never calibrated\n" in command("describe", older.path).out.decode()


def test_describe_says_which_step_the_model_is_of_and_how_good(run: Path, tmp_path: Path) -> None:
    model_is_of = json.loads(command("describe", run, "--json").out)["model_is_of"]
    last = command("describe", run).lines[-1]
    assert last.startswith(f"the model is from step {model_is_of['step']}, validation: ")
    told = {name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+)", last.split("validation: ")[1])}
    assert told.keys() == {"loss", "training_loss", "exact_match", "cer"}
    assert told == pytest.approx(model_is_of["validation"], rel=1e-3)
    assert command("average", run, "--steps", "20,60", "-o", tmp_path / "mean").status == 0
    assert command("describe", tmp_path / "mean").lines[-1] == "the model is the mean of steps 20, 60"


def test_a_run_stopped_before_its_first_model_is_described_and_verified(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = trainer.Trainer.train_step

    def stopping(self: trainer.Trainer, micro_batches: object, step: int) -> object:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, micro_batches, step)

    monkeypatch.setattr(trainer.Trainer, "train_step", stopping)
    young = tmp_path / "young"
    assert command("train", data / "config.toml", "--run-dir", young).status == 143
    assert RunFolder.open(young).checkpoints()
    found = command("verify", young)
    assert found.status == 0
    assert "model.safetensors: none yet" in found.lines
    assert json.loads(command("verify", young, "--json").out)["is_intact"] is True
    assert json.loads(command("describe", young, "--json").out)["model_is_of"] is None
    assert command("describe", young).lines[-1] == "no model yet: the first validation has not run"


def test_verify_misses_a_model_that_was_there(own_run: Path) -> None:
    (own_run / "model.safetensors").unlink()
    found = command("verify", own_run)
    assert found.status == 74
    assert "model.safetensors: " in found.out.decode()


def test_data_lists_the_sets_and_writes_one(tmp_path: Path) -> None:
    listed = json.loads(command("data", "--json").out)["datasets"]
    assert {"copy", "reverse"} <= {found["name"] for found in listed}
    assert "copy" in command("data").out.decode()
    found = command("data", "reverse", "-o", tmp_path / "out", "--json")
    assert {Path(name) for name in json.loads(found.out)["files"]} == set((tmp_path / "out").iterdir())
    source, target = ((tmp_path / f"out/test.{side}").read_text().split() for side in ("source", "target"))
    assert [word[::-1] for word in source] == target


def test_verify_passes_a_run_as_it_was_written(run: Path) -> None:
    found = command("verify", run, "--json")
    assert found.status == 0
    assert json.loads(found.out)["is_intact"] is True


@pytest.mark.parametrize(
    "name", ["run.json", "config.toml", "tokenizer.json", "model.safetensors", "checkpoints/step-00000040.safetensors"]
)
def test_verify_finds_a_flipped_bit(name: str, own_run: Path) -> None:
    flip_byte(own_run / name)
    found = command("verify", own_run, "--json")
    assert found.status == 74
    verdict = json.loads(found.out)
    assert verdict["is_intact"] is False
    assert verdict["files"][name]
    assert f"{name}: " in command("verify", own_run).out.decode()


@pytest.mark.parametrize(
    "words",
    [
        "evaluate {run} --source {source} --target {target}",
        "compare {run} {run} --source {source} --target {target}",
        "describe tiny",
        "describe {run}",
        "data",
        "verify {run}",
    ],
)
def test_json_is_one_object_and_nothing_else(words: str, run: Path, few: dict[str, Path]) -> None:
    found = command(*words.format(run=run, **few).split(), "--json")
    assert found.status == 0, found.err
    assert len(found.lines) == 1
    assert isinstance(json.loads(found.out), dict)


# What is wrong is said in one line

BAD_INPUT = {
    "an unknown section": ("train {config} --modle.dropout 0.1 --run-dir {new}", 2, "'model'"),
    "an unknown setting": ("train {config} --model.dropuot 0.1 --run-dir {new}", 2, "'model.dropout'"),
    "a value of the wrong type": ("train {config} --model.d_model wide --run-dir {new}", 2, "model.d_model"),
    "a setting that the model refuses": ("train {config} --model.num_heads 5 --run-dir {new}", 2, "model.num_heads"),
    "an unknown metric in the settings": ("train {config} --validation.metrics blue --run-dir {new}", 2, "'bleu'"),
    "an override without a value": ("train {config} --run-dir {new} --model.dropout", 2, "--model.dropout"),
    "a misspelt option of train": ("train {config} --resum", 2, "--resum"),
    "a missing config": ("train {work}/none.toml --run-dir {new}", 66, "none.toml"),
    "a folder as config": ("train {work} --run-dir {new}", 66, "{work}"),
    "a config that is not TOML": ("train {work}/broken.toml --run-dir {new}", 2, "broken.toml"),
    "a config that is not UTF-8": ("train {work}/latin.txt --run-dir {new}", 65, "latin.txt"),
    "a missing corpus": ("train {config} --data.train {work}/none.tsv --run-dir {new}", 66, "none.tsv"),
    "three columns": ("train {config} --data.train {work}/three.tsv --run-dir {new}", 65, "three.tsv, line 2"),
    "an empty corpus": ("train {config} --data.train {work}/empty.tsv --run-dir {new}", 65, "empty.tsv"),
    "a corpus that is not UTF-8": ("train {config} --data.train {work}/latin.tsv --run-dir {new}", 65, "line 1"),
    "a run folder in use": ("train {config} --run-dir {run}", 73, "{run}"),
    "a folder of other things": ("train {config} --run-dir {work}", 73, "{work}"),
    "a run folder that cannot be made": ("train {config} --run-dir {work}/three.tsv/run", 73, "three.tsv"),
    "a changed setting on resume": ("train {config} --run-dir {run} --resume --model.d_ff 32", 78, "model.d_ff"),
    "weights of no run": ("train {config} --run-dir {new} --init-from {work}", 66, "{work}"),
    "too few pairs": ("fit {work}/two.tsv --run-dir {new}", 65, "500"),
    "no minutes": ("fit {work}/two.tsv --run-dir {new} --minutes 0", 2, "--minutes"),
    "minutes that are no number": ("fit {work}/two.tsv --run-dir {new} --minutes nan", 2, "--minutes"),
    "no run": ("predict {work}", 66, "{work}"),
    "a missing source": ("predict {run} {work}/none.txt", 66, "none.txt"),
    "a source that is not UTF-8": ("predict {run} {work}/latin.txt", 65, "latin.txt"),
    "a beam of nothing": ("predict {run} {source} --beam-size 0", 2, "--beam-size"),
    "an average over a file": ("average {run} --last 2 -o {work}/two.tsv", 73, "two.tsv"),
    "a beam beyond all memory": ("predict {run} {source} --beam-size 1000000000", 2, "beam_size"),
    "more answers than hypotheses": ("predict {run} {source} --n-best 4 --beam-size 2", 2, "the beam size, 2"),
    "no answers": ("predict {run} {source} --n-best 0", 2, "--n-best"),
    "no threads": ("predict {run} {source} --threads 0", 2, "--threads"),
    "threads that are no number": ("predict {run} {source} --threads many", 2, "--threads"),
    "a length penalty that is no number": ("predict {run} {source} --length-penalty nan", 2, "length_penalty"),
    "a device that is not there": ("predict {run} {source} --device cuda:99", 2, "cuda:99"),
    "a device that cannot compute": ("predict {run} {source} --device meta", 2, "meta"),
    "a seed without a draw": ("predict {run} {source} --seed 3", 2, "--temperature"),
    "an output that is the input": ("predict {run} {work}/two.tsv -o {work}/../work/two.tsv", 2, "two.tsv"),
    "an output that is a folder": ("predict {run} {source} -o {work}", 2, "is a folder"),
    "an output in no folder": ("predict {run} {source} -o {work}/none/out", 73, "none/out"),
    "an unknown option": ("predict {run} {source} --beam 3", 2, "--beam"),
    "unequal line counts": ("evaluate {run} --source {source} --target {work}/two.tsv", 65, "two.tsv has 2:"),
    "nothing to score": ("evaluate {run} --source {work}/empty.tsv --target {work}/empty.tsv", 65, "empty.tsv"),
    "an unknown metric": ("evaluate {run} --source {source} --target {source} --metric blue", 2, "'bleu'"),
    "a metric not for groups": (
        "evaluate {run} --source {source} --target {source} --group-sources --metric bleu", 2, "--group-sources",
    ),
    "an unknown metric to compare": ("compare {run} {run} --source {source} --target {source} --metric x", 2, "'x'"),
    "a step without a checkpoint": ("average {run} --steps 20,21 -o {new}", 2, "21"),
    "more checkpoints than there are": ("average {run} --last 9 -o {new}", 2, "20, 40, 60"),
    "steps that are no numbers": ("average {run} --steps 20,last -o {new}", 2, "--steps"),
    "a step twice": ("average {run} --steps 20,20 -o {new}", 2, "--steps"),
    "an average over a run": ("average {run} --last 2 -o {run}", 73, "{run}"),
    "neither a run nor a preset": ("describe bsae", 66, "'base'"),
    "an unknown data set": ("data cpoy -o {new}", 2, "copy"),
    "a data set without a folder": ("data copy", 2, "-o"),
    "a folder without a data set": ("data -o {new}", 2, "NAME"),
    "nothing to verify": ("verify {work}", 66, "{work}"),
    "an unknown verb": ("lern {config}", 2, "lern"),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(data: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the bad input is made of, by the name it has in the table."""
    work = tmp_path_factory.mktemp("bad") / "work"
    work.mkdir()
    (work / "broken.toml").write_text("[data\n")
    (work / "latin.txt").write_bytes("é = 1\n".encode("latin-1"))
    (work / "latin.tsv").write_bytes("é\té\n".encode("latin-1"))
    (work / "two.tsv").write_text("a\tb\nc\td\n")
    (work / "three.tsv").write_text("a\tb\na\tb\tc\n")
    (work / "empty.tsv").write_text("")
    return {
        "config": data / "config.toml", "source": data / "valid.source", "run": run, "work": work, "new": work / "new",
    }  # fmt: skip


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line_and_changes_nothing(name: str, places: dict[str, Path]) -> None:
    words, status, named = BAD_INPUT[name]
    before = content_of(places["work"]), content_of(places["run"])
    found = command(*words.format(**places).split(), "--quiet") if "--threads" not in words else bare(words, places)
    assert found.err.startswith("transduce: error: "), found.err
    assert found.err.count("\n") == 1, found.err
    assert named.format(**places) in found.err
    assert found.status == status
    assert found.out == b""
    assert (content_of(places["work"]), content_of(places["run"])) == before
    assert not places["new"].exists()


def bare(words: str, places: dict[str, Path]) -> Outcome:
    """The command in a process of its own, with nothing added to what it is given."""
    found = in_shell(f"$transduce {words.format(**places)}")
    return Outcome(found.returncode, found.stdout, found.stderr.decode())


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.toml", "run.json"])
def test_a_damaged_run_does_not_predict(name: str, own_run: Path) -> None:
    flip_byte(own_run / name)
    found = command("predict", own_run, stdin=b"abc\n")
    assert found.status == 74
    assert found.out == b""
    assert found.err.startswith(f"transduce: error: {own_run / name}")
    assert found.err.count("\n") == 1


def test_a_run_without_a_sound_checkpoint_is_not_resumed(own_run: Path, data: Path) -> None:
    for path in (own_run / "checkpoints").iterdir():
        flip_byte(path)
    before = content_of(own_run)
    found = command(
        "train", data / "config.toml", "--run-dir", own_run, "--resume", "--training.steps", "70", "--quiet"
    )
    assert found.status == 74
    assert found.err.startswith("transduce: error: ")
    assert found.err.count("\n") == 1
    assert content_of(own_run) == before


def test_debug_shows_where_an_error_comes_from(run: Path) -> None:
    with pytest.raises(TransduceError, match="length_penalty"):
        command("predict", run, "--length-penalty", "-1", "--debug", stdin=b"abc\n")
    found = in_shell("$transduce describe nothing --debug")
    assert found.returncode == 1
    assert b"Traceback" in found.stderr


def test_an_error_of_ours_is_one_line_that_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(cli, "_run", broken)
    found = command("predict", run)
    assert found.status == 70
    assert found.err == "transduce: internal error: RuntimeError: first line second line (--debug shows where)\n"


def test_a_system_error_names_the_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object) -> int:
        raise PermissionError(13, "Permission denied", "/some/file")

    monkeypatch.setattr(cli, "_run", unreadable)
    found = command("predict", run)
    assert (found.status, found.err) == (74, "transduce: error: /some/file: Permission denied\n")
