import io
import re
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from transduce.cli.tensorboard import TensorBoardWriter
from transduce.runs.learning_curve import learning_curve
from transduce.runs.monitoring import best_validation, metrics_of, report_to_notebook, training_display

TRAINING = {
    "kind": "training", "step": 50, "epoch": 1, "seconds": 3.2, "loss": 2.5, "learning_rate": 1e-3, "grad_norm": 0.5,
    "tokens_per_second": 1234.5,
}  # fmt: skip
VALIDATION = {"kind": "validation", "step": 100, "seconds": 6.1, "loss": 2.25, "bleu": 31.5}


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height, from where the format has them."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert png[12:16] == b"IHDR"
    return struct.unpack(">II", png[16:24])


@pytest.mark.parametrize(
    "rows", [[], [TRAINING], [TRAINING, VALIDATION], [VALIDATION, {**VALIDATION, "step": 200, "chrf": 55.0}]]
)
def test_a_learning_curve_is_a_png_for_whatever_rows_there_are(rows: list) -> None:
    width, height = size_of(learning_curve(rows, "a run"))
    assert width > 500
    assert height > 200


@pytest.mark.parametrize("title", ["$1_b_$2", "a\\$", "語 🎉", "r\udcc3\udcbc"])
def test_any_name_is_a_title(title: str) -> None:
    assert size_of(learning_curve([TRAINING], title)) == size_of(learning_curve([TRAINING], "a run"))


def test_a_display_that_nobody_can_see_takes_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError  # at which rich would end the program

    for stream in (Gone(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        with training_display(1000) as display:
            display(TRAINING)
            display(VALIDATION)


def test_a_learning_curve_has_a_part_for_every_score() -> None:
    alone = size_of(learning_curve([TRAINING], "a run"))
    with_bleu = size_of(learning_curve([TRAINING, VALIDATION], "a run"))
    assert with_bleu == (alone[0], 3 * alone[1] // 2)


def shown(*rows: dict, is_terminal: bool, width: int = 40, num_steps: int = 1000) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, width=width, highlight=False)
    with training_display(num_steps, console=console) as display:
        for row in rows:
            display(row)
    return output.getvalue()


def test_where_there_is_no_terminal_each_row_is_one_plain_line() -> None:
    assert shown(TRAINING, VALIDATION, is_terminal=False).splitlines() == [
        "step 50/1,000  loss 2.500  1,234 tokens/s",
        "step 100  validation: loss 2.250  BLEU 31.50  (best loss so far)",
    ]


def test_on_a_terminal_of_eighty_columns_there_is_a_bar_with_nothing_cut_off() -> None:
    text = shown({**TRAINING, "step": 50_000}, is_terminal=True, width=80, num_steps=100_000)
    assert "\x1b[" in text
    assert "step 50,000/100,000" in text
    assert "loss 2.500  1,234 tokens/s" in text
    assert "…" not in text


VALIDATIONS = [
    {"kind": "validation", "step": step, "seconds": 6.0 * step, "loss": loss, "training_loss": 0.9, "word_error": wrong,
     "samples": (("cat", "K AE T", "K AE T"), ("two dogs play in the snow", "zwei Hunde", "Zwei Hunde im Schnee"))}
    for step, loss, wrong in ((10, 2.0, 60.0), (20, 1.5, 31.25), (30, 1.25, 40.5))
]  # fmt: skip


def test_validations_are_a_table_with_units_that_marks_the_best_one_and_shows_outputs() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, height=30, highlight=False)
    with training_display(40, best="word_error", console=console) as display:
        for row in VALIDATIONS:
            display(row)
        display.step(31)
    last = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", output.getvalue()).replace("\r", "\n").split("step 31/40")[-2]
    lines = [line.rstrip() for line in last.split("\n") if line.strip()]
    header = next(i for i, line in reversed([*enumerate(lines)]) if "word error %" in line)
    assert [line.split() for line in lines[header : header + 4]] == [
        ["step", "time", "loss", "training_loss", "word", "error", "%"],
        ["10", "1:00", "2.000", "0.900", "60.00"],
        ["20", "2:00", "1.500", "0.900", "31.25", "best"],
        ["30", "3:00", "1.250", "0.900", "40.50"],
    ]
    assert lines[header + 4].strip() == "cat -> K AE T   reference: K AE T"
    assert max(map(len, lines)) <= 80


def test_of_equal_scores_the_first_is_the_best_unless_the_loss_decides() -> None:
    rows = [VALIDATIONS[0], {**VALIDATIONS[1], "word_error": 60.0}]
    for by_loss, step in ((False, 10), (True, 20)):
        best = best_validation(rows, "word_error", ties_by_loss=by_loss)
        assert best is not None and best["step"] == step


def test_a_sample_never_controls_a_terminal() -> None:
    row = {**VALIDATIONS[0], "samples": (("a\x1b]0;title\x07", "b\u00a0c", "b"),)}
    for is_terminal in (True, False):
        text = shown(row, is_terminal=is_terminal, width=80)
        assert "\\x1b]0;title\\x07" in text and "b\u00a0c" in text


def test_in_a_log_each_validation_is_a_line_with_its_outputs_below() -> None:
    assert shown(VALIDATIONS[0], is_terminal=False).splitlines() == [
        "step 10  validation: loss 2.000  training_loss 0.900  word error % 60.00  (best loss so far)",
        "  cat -> K AE T  (as the reference)",
        "  two dogs play in the snow -> zwei Hunde  (reference: Zwei Hunde im Schnee)",
    ]


def test_a_notebook_sees_one_line_written_anew_and_what_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report_to_notebook("nobody asked for this")
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=object))
    report_to_notebook("800 pairs")
    assert shown(TRAINING, VALIDATION, is_terminal=False) == ""
    first, live, after = capsys.readouterr().out.split("\n")
    assert first == "800 pairs" and after == ""
    assert [text.rstrip() for text in live.split("\r")] == [
        "",
        "step 50/1,000  loss 2.500  1,234 tokens/s",
        "step 100  validation: loss 2.250  BLEU 31.50  (best loss so far)",
    ]
    assert len({len(text) for text in live.split("\r")[1:]}) == 1  # nothing of a longer one is left


def test_the_place_of_a_row_in_the_run_is_no_metric() -> None:
    assert metrics_of(VALIDATION) == {"loss": 2.25, "bleu": 31.5}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_tensorboard_reads_the_rows_that_were_written(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path / "events")
    writer(TRAINING)
    writer({**TRAINING, "step": 100, "loss": 2.0})
    writer(VALIDATION)
    found = scalars(tmp_path / "events")
    assert found["training/loss"] == [(50, 2.5), (100, 2.0)]
    assert found["validation/bleu"] == [(100, 31.5)]
    assert set(found) == {
        "training/loss", "training/learning_rate", "training/grad_norm", "training/tokens_per_second",
        "validation/loss", "validation/bleu",
    }  # fmt: skip


def test_tensorboard_forgets_the_steps_that_a_resumed_run_repeats(tmp_path: Path) -> None:
    killed = TensorBoardWriter(tmp_path)
    for step in (50, 100, 150):
        killed({**TRAINING, "step": step, "loss": 9.0})
    killed.close()
    resumed = TensorBoardWriter(tmp_path)
    resumed({**TRAINING, "step": 100, "loss": 2.0})
    resumed.close()
    assert scalars(tmp_path)["training/loss"] == [(50, 9.0), (100, 2.0)]


def test_events_that_cannot_be_written_are_told_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "events").write_text("a file where a folder should be")
    lines: list[str] = []
    writer = TensorBoardWriter(tmp_path / "events", lines.append)
    for _ in range(3):
        writer(TRAINING)
    writer.close()
    assert len(lines) == 1 and lines[0].startswith("TensorBoard events are missing: ")


def test_tensorboard_touches_no_folder_before_the_first_row(tmp_path: Path) -> None:
    TensorBoardWriter(tmp_path / "events").close()
    assert not (tmp_path / "events").exists()
