"""A run folder from a stranger: it may hold anything, and every hash in it may be right.

Whatever it holds, nothing outside of it is changed, what is wrong is said in one line with the status of damaged files,
and it costs no more time and memory than an intact one of its size. The oracle is a folder beside the run, a clock and
the memory of the process; the changes are a table, what was once a fault (hostile_runs.jsonl), and random ones.
"""

import json
import os
import random
import re
import resource
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

import transduce
from calling import Outcome, command, content_of
from covering import rest_as_proofs
from hostile_runs import KINDS, VICTIM, Change, change_run, documents_of, kept_changes, outside_of, random_changes
from transduce.errors import DamagedFileError, TransduceError
from transduce.runs.folder import RunFolder

pytest_plugins = ["small_run"]

LINES = ["abc", "a longer line", "12"]
SECONDS, BYTES = (
    2.0,
    100_000_000,
)  # that reading may cost more than an intact run, and than twice the bytes of the folder
DAMAGED = DamagedFileError.exit_status
CONTROLS = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f]")


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy of the small run that a test may change, with a folder beside it that nobody may."""
    outside_of(tmp_path / "run")
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module", autouse=True)
def warm(run: Path) -> None:
    """What is loaded at the first use counts for no test."""
    assert command("predict", run, stdin="\n".join(LINES).encode()).status == 0
    assert command("verify", run).status == 0


@pytest.fixture(scope="module")
def lean(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run with its newest checkpoint alone, which is faster to copy and to check."""
    path = Path(shutil.copytree(run, tmp_path_factory.mktemp("lean") / "run"))
    for older in sorted((path / "checkpoints").iterdir())[:-1]:
        older.unlink()
    return path


@dataclass(frozen=True)
class Cost:
    """What a block of code took: seconds of the processor, and bytes beyond the most so far."""

    seconds: float
    num_bytes: int

    @classmethod
    def of(cls, work: Callable[[], Any]) -> tuple[Any, "Cost"]:
        started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = work()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return result, cls(time.process_time() - started, 1024 * (after - before))


def size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def refuse_harm(run: Path) -> None:
    """Fails if a file outside of the run is not as it was."""
    outside = run.with_name("outside")
    assert set(content_of(outside).values()) == {VICTIM} and len(content_of(outside)) == 9


def bounded(run: Path, *words: object) -> Outcome:
    """What the command says, after a check that it did no harm, cost no more than it may, and said it in one line."""
    outcome, cost = Cost.of(lambda: command(*words, stdin="\n".join(LINES).encode() + b"\n"))
    refuse_harm(run)
    assert cost.seconds < SECONDS and cost.num_bytes < 2 * size_of(run) + BYTES, cost
    assert outcome.status not in (1, 70), outcome.err
    told = outcome.err.removesuffix("\n").split("\n")[-1]
    assert not CONTROLS.search(outcome.err) and len(told) < 2_000
    if words[0] != "predict":
        assert not CONTROLS.search(outcome.out.decode())
    if outcome.status:
        assert told.startswith("transduce: error: ") or words[0] == "verify", outcome.err
    return outcome


def refused(run: Path, status: int = DAMAGED) -> None:
    """Fails unless `verify` finds the run damaged, and `predict` refuses it for that."""
    assert bounded(run, "verify", run).status == status
    assert bounded(run, "predict", run).status == status


# What stands in the place of a file

FILES = ["run.json", "config.toml", "tokenizer.json", "model.safetensors"]
LINKS = list(KINDS)[: list(KINDS).index("a folder") + 1]


@pytest.mark.parametrize(
    ("name", "kind"),
    rest_as_proofs(product(FILES, KINDS), [(FILES[i % len(FILES)], kind) for i, kind in enumerate(KINDS)]),
)
def test_what_is_no_file_of_the_run_is_refused_before_it_is_read(own: Path, name: str, kind: str) -> None:
    change_run(own, [{"file": name, "is": kind}])
    refused(own)


@pytest.mark.parametrize("kind", LINKS)
def test_a_lock_that_leads_elsewhere_is_neither_followed_nor_emptied(own: Path, kind: str) -> None:
    change_run(own, [{"file": "run.lock", "is": kind}])
    with pytest.raises(TransduceError, match=r"run\.lock"), RunFolder(own).lock():
        pass
    refuse_harm(own)


@pytest.mark.parametrize("kind", [kind for kind in LINKS if kind != "a folder"])
def test_checkpoints_elsewhere_are_neither_read_nor_removed(own: Path, kind: str) -> None:
    change_run(own, [{"file": "checkpoints", "is": kind}])
    folder = RunFolder(own)
    for work in (
        folder.checkpoints,
        lambda: folder.lock().__enter__(),
        lambda: folder.write_checkpoint(9, {}, {}, keep=1),
    ):
        with pytest.raises(DamagedFileError, match="checkpoints is damaged"):
            work()
    refuse_harm(own)
    assert bounded(own, "predict", own).status == 0  # needs none
    assert "checkpoints: " in bounded(own, "verify", own).out.decode()


@pytest.mark.parametrize("kind", [kind for kind in LINKS if kind != "a folder"])
def test_a_log_that_leads_elsewhere_is_replaced_where_the_run_goes_on(own: Path, kind: str) -> None:
    change_run(own, [{"file": "metrics.jsonl", "is": kind}])
    with pytest.raises(DamagedFileError):
        RunFolder(own).append_metrics({"kind": "training", "step": 1})
    reports: list[str] = []
    RunFolder(own).truncate_metrics(60, reports.append)
    RunFolder(own).append_metrics({"kind": "training", "step": 61})
    assert [row["step"] for row in RunFolder(own).metrics()] == [61]
    assert len(reports) == 1
    refuse_harm(own)


def test_a_copy_of_a_run_takes_no_file_from_elsewhere(own: Path, tmp_path: Path) -> None:
    loaded = transduce.load(own)
    (own / "notes").symlink_to("../outside/victim")
    loaded.save(tmp_path / "copy")
    assert (tmp_path / "copy/notes").is_symlink()
    change_run(own, [{"file": "config.toml", "is": "a link to a file"}])
    with pytest.raises(TransduceError):
        loaded.save(tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_a_run_may_itself_be_reached_by_a_link(own: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(own)
    with RunFolder(tmp_path / "link").lock():
        assert bounded(own, "verify", tmp_path / "link").status == 0
    assert transduce.load(tmp_path / "link")(LINES) == transduce.load(own)(LINES)


# Consistent, and wrong


def setting(section: str, name: str, value: Any) -> list[Change]:
    return [{"file": "config.toml", "at": [section, name], "set": value}]


def fact(*at: str, value: Any) -> list[Change]:
    return [{"file": "run.json", "at": ["facts", *at], "set": value}]


def token(*at: Any, value: Any) -> list[Change]:
    return [{"file": "tokenizer.json", "at": ["content", *at], "set": value}]


def model(*at: Any, value: Any) -> list[Change]:
    return [{"file": "model.safetensors", "at": [*at], "set": value}]


def without(name: str, *at: Any) -> list[Change]:
    return [{"file": name, "at": [*at], "delete": True}]


WEIGHT = "encoder.layers.0.feed_forward.up_proj.weight"
WRONG: dict[str, list[Change]] = {
    **{f"model.{name} = {value}": setting("model", name, value) for name, value in [
        ("d_model", 2**20), ("d_model", 2**13), ("d_model", 0), ("d_model", -32), ("d_model", "32"), ("d_model", 2**70),
        ("d_ff", 10**12), ("d_ff", 2**17), ("num_heads", 0), ("num_heads", 3), ("num_encoder_layers", 10**6),
        ("num_encoder_layers", 128), ("num_decoder_layers", 128), ("max_len", 10**9), ("positions", "learned"),
        ("positions", "x"), ("feed_forward", "swiglu"), ("norm", "rms"), ("norm_first", True),
        ("tie_embeddings", False),
        ("output_bias", True), ("dropout", 1.5), ("dropout", float("nan")), ("\x1b[31m", 1),
    ]},
    **{f"decoding.{name} = {value}": setting("decoding", name, value) for name, value in [
        ("beam_size", 10**9), ("beam_size", 0), ("max_len_ratio", 1e308), ("max_len_ratio", float("inf")),
        ("length_penalty", 1e308), ("length_penalty", float("nan")), ("min_len", 2**70), ("seed", 2**70),
        ("top_k", 2**64),
        ("temperature", float("inf")), ("top_p", 2.0),
    ]},
    **{f"{section}.{name} = {value}": setting(section, name, value) for section, name, value in [
        ("tokenizer", "vocab_size", 10**12), ("tokenizer", "source", "x"), ("training", "seed", 2**64),
        ("training", "steps", -1), ("training", "minutes", float("inf")), ("data", "max_len", 10**9),
        ("data", "train", 7),
        ("validation", "metrics", "x"), ("optim", "beta1", 2),
    ]},
    "no settings": [{"file": "config.toml", "at": [], "set": {}}],
    "no section training": without("config.toml", "training"),
    "a section that is a number": [{"file": "config.toml", "at": ["model"], "set": 1}],
    **{f"no {name} in run.json": without("run.json", name) for name in ("format", "files", "facts", "id")},
    **{f"run.json: {name} = {value!r}": [{"file": "run.json", "at": [name], "set": value}] for name, value in [
        ("format", "\x1b[31m1"), ("format", None), ("format", True), ("format", 1.5), ("files", []), ("files", {}),
        ("facts", []), ("facts", None), ("id", 7),
    ]},
    "run.json is a list": [{"file": "run.json", "at": [], "set": [1]}],
    **{f"run.json names {name!r}": [{"file": "run.json", "at": ["files", name], "set": ["0" * 64]}]
       for name in ("../outside/victim", "/etc/passwd", "", ".", "..", "a/b", ".hidden")},
    "no hash": [{"file": "run.json", "at": ["files", "config.toml"], "set": []}],
    "a hash that is a number": [{"file": "run.json", "at": ["files", "config.toml"], "set": [1]}],
    **{f"facts: {'.'.join(at)} = {value!r}": fact(*at, value=value) for at, value in [
        (("data",), []), (("data", "train"), "x"), (("num_train_pairs",), "x"), (("num_train_pairs",), None),
        (("seen",), []), (("seen", "source_characters"), 7), (("seen", "target_characters"), "\ud800"),
        (("seen", "source_len"), "x"), (("seen", "target_bytes"), ["x"]), (("seen", "target_bytes"), None),
        (("calibration",), 7), (("calibration",), {}), (("calibration",), {"temperature": 0.0, "num_pairs": 1}),
        (("calibration",), {"temperature": "x", "num_pairs": 1}),
        (("calibration",), {"temperature": float("nan"), "num_pairs": 9}),
        (("started",), []), (("started", "processes"), "x"), (("resumed",), {}), (("resumed",), [1]),
        (("resumed",), [{}]),
        (("paths",), 7), (("paths",), {"train": 7}), (("initialised_from",), 7), (("configured_batch",), ["x"]),
    ]},
    **{f"tokenizer without {'.'.join(at)}": without("tokenizer.json", *at) for at in [
        ("content",), ("format",), ("version",), ("content", "target"), ("content", "source"), ("content", "config"),
        ("content", "num_target_ids"), ("content", "target", "kind"), ("content", "target", "pieces"),
        ("content", "target", "scores"), ("content", "target", "merges"),
    ]},
    **{f"tokenizer: {'.'.join(map(str, at))} = {value!r:.40}": token(*at, value=value) for at, value in [
        (("target",), None), (("target",), []), (("source",), 7), (("source",), {}), (("num_target_ids",), -5),
        (("num_target_ids",), 0), (("num_target_ids",), 10**9), (("num_target_ids",), "x"), (("num_target_ids",), True),
        (("num_target_ids",), 260.0), (("target", "kind"), "x"), (("target", "kind"), []), (("target", "kind"), "bpe"),
        (("target", "kind"), "unigram"), (("target", "kind"), "sentencepiece"), (("target", "kind"), "words"),
        (("target", "pieces"), {}), (("target", "pieces"), 7), (("target", "pieces", 0), 7),
        (("target", "pieces", 0), ""),
        (("target", "pieces", 0), "A\nH"), (("target", "pieces", 0), "\ud800"), (("target", "pieces", 0), "\U0010f000"),
        (("target", "pieces"), ["a", "a"]), (("target", "pieces", 0), None), (("target", "merges"), [["x", "y"]]),
        (("target", "merges"), [1]), (("target", "scores"), [0.5]), (("target", "scores"), "x"), (("config",), []),
        (("config", "source"), "x"), (("config", "joint"), "x"), (("config", "joint"), None),
        (("config", "vocab_size"), "x"),
        (("config", "vocab_size"), 10**12), (("config", "normalize"), ["x"]), (("config", "normalize"), 7),
        (("config", "normalize"), [[]]), (("config", "other"), 1),
    ]},
    "a tokenizer that is a list": [{"file": "tokenizer.json", "at": [], "set": [1]}],
    "a tokenizer of a later version": [{"file": "tokenizer.json", "at": ["version"], "set": "\x1b[31m" * 99}],
    **{f"model without {'.'.join(at)}": without("model.safetensors", *at) for at in [
        ("__metadata__", "metadata"), ("__metadata__", "tokenizer"), ("__metadata__", "run"), (WEIGHT,),
        (WEIGHT, "dtype"),
        (WEIGHT, "shape"), (WEIGHT, "data_offsets"), ("__metadata__", "metadata", "validation"),
        ("__metadata__", "metadata", "step"),
    ]},
    **{f"model: {'.'.join(map(str, at))} = {value!r:.40}": model(*at, value=value) for at, value in [
        (("__metadata__", "metadata"), []), (("__metadata__", "metadata"), "x"),
        (("__metadata__", "metadata"), "[" * 9_999),
        (("__metadata__", "metadata", "step"), "\x1b[31m"), (("__metadata__", "metadata", "validation"), []),
        (("__metadata__", "metadata", "validation"), {"\x1b[31m": "x"}), (("__metadata__", "step"), "\x1b[31m"),
        (("__metadata__", "tokenizer"), "x"), (("__metadata__", "run"), "x"), (("__metadata__",), []), ((), []),
        ((), 7),
        ((WEIGHT,), []), ((WEIGHT, "dtype"), "F64"), ((WEIGHT, "dtype"), "PICKLE"), ((WEIGHT, "dtype"), []),
        ((WEIGHT, "shape"), [32, 64]), ((WEIGHT, "shape"), [2048]), ((WEIGHT, "shape"), [-64, -32]),
        ((WEIGHT, "shape"), [64.0, 32]), ((WEIGHT, "shape"), [2**40, 2**40]), ((WEIGHT, "shape"), [0, 2**62, 2**62]),
        ((WEIGHT, "shape"), [1] * 99), ((WEIGHT, "shape"), "x"), ((WEIGHT, "shape"), [10**400]),
        ((WEIGHT, "data_offsets"), [0, 0]), ((WEIGHT, "data_offsets"), [0, 2**62]), ((WEIGHT, "data_offsets"), [-8, 0]),
        ((WEIGHT, "data_offsets"), [0]), ((WEIGHT, "data_offsets"), "x"), ((WEIGHT, "data_offsets"), ["a", "b"]),
        (("more",), {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
        (("../more",), {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
    ]},
}  # fmt: skip


def test_the_table_is_long_enough() -> None:
    assert len(WRONG) + len(FILES) * len(KINDS) >= 200


@pytest.mark.parametrize("name", rest_as_proofs(WRONG, list(WRONG)[::6]))
def test_what_is_consistent_and_wrong_is_damage_and_no_fault_of_ours(own: Path, name: str) -> None:
    change_run(own, WRONG[name])
    refused(own)
    assert bounded(own, "describe", own).status == DAMAGED


def test_a_token_of_several_lines_makes_no_further_line(own: Path) -> None:
    change_run(own, token("target", "pieces", 0, value="A\nH"))
    assert bounded(own, "predict", own).out == b""


STATES: dict[str, list[Change]] = {
    f"{name} = {value!r:.20}": [{"file": "", "at": ["__metadata__", "state", name], "set": value}]
    for name, value in [
        ("step", "x"), ("step", -1), ("step", 59), ("epoch", 10**400), ("position", "x"), ("plan_of", 7),
        ("seconds", "x"),
        ("seconds", float("nan")), ("best_step", "x"), ("best_score", None), ("best_measure", 7),
        ("target_tokens", 0.5),
        ("minutes_over", "x"), ("window", None),
    ]
}  # fmt: skip


@pytest.mark.parametrize("name", rest_as_proofs(STATES, list(STATES)[::4]))
def test_a_checkpoint_that_says_what_no_training_does_is_damage(own: Path, name: str) -> None:
    newest = documents_of(own)[-1]
    change_run(own, [change | {"file": newest} for change in STATES[name]])
    assert newest in {file for file, problem in RunFolder.open(own).verify() if problem}
    with pytest.raises(DamagedFileError, match="is damaged"):
        RunFolder.open(own).read_checkpoint(60)


@pytest.mark.parametrize("name", ["model", "optimizer.exp_avg"])
def test_a_checkpoint_of_other_shapes_is_refused_before_a_model_is_built(own: Path, data: Path, name: str) -> None:
    folder = RunFolder.open(own)
    tensors, state = folder.read_checkpoint(60)
    tensors[f"{name}.src_embedding.weight"] = torch.zeros(3, 5)
    folder.write_checkpoint(60, tensors, state, keep=5)
    outcome = command("train", data / "config.toml", "--run-dir", own, "--resume", "--training.steps", 61)
    assert outcome.status == DAMAGED, outcome.err


# Many random changes


def faults(run: Path, folder: Path, changes: Sequence[Change]) -> str:
    """What is wrong with how a run with these changes is read; "" if nothing is."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    outside_of(folder / "run")
    own = shutil.copytree(run, folder / "run")
    change_run(own, changes)
    problems, outputs, told = [""], [""], ""

    def read() -> None:
        nonlocal problems, outputs, told
        try:
            problems = [problem for _, problem in RunFolder.open(own).verify() if problem]
            loaded = transduce.load(own)
            if not problems:
                outputs = loaded(
                    LINES[::2], beam_size=1, max_len_ratio=1.0, max_len_extra=3, min_len=0, temperature=0.0
                )
        except TransduceError as error:
            told = str(error)

    try:
        _, cost = Cost.of(read)
        refuse_harm(own)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    if cost.seconds > SECONDS or cost.num_bytes > 2 * size_of(own) + BYTES:
        return str(cost)
    if not problems and told:
        return f"found intact, and cannot be used: {told}"
    if any("\n" in output for output in outputs):
        return "an output has several lines"
    return "the error has several lines" if "\n" in told else ""


def failed(run: Path, folder: Path, kept: Sequence[list[Change]]) -> list[tuple[str, str]]:
    """Those of the changes that are faults, each with what is wrong."""
    found = [(json.dumps(changes), faults(run, folder / "own", changes)) for changes in kept]
    return [(changes, fault) for changes, fault in found if fault]


def seeded(run: Path, seeds: Sequence[int]) -> Iterator[list[Change]]:
    return (random_changes(run, random.Random(seed)) for seed in seeds)


def test_what_was_once_a_fault_is_none_again(lean: Path, tmp_path: Path) -> None:
    assert failed(lean, tmp_path, list(kept_changes(Path(__file__).with_name("hostile_runs.jsonl")))) == []


def test_random_changes_are_no_fault(lean: Path, tmp_path: Path) -> None:
    assert failed(lean, tmp_path, list(seeded(lean, range(100)))) == []


def _failed_of(run: Path, folder: Path, seeds: range) -> list[tuple[str, str]]:
    torch.set_num_threads(1)
    own = folder / str(os.getpid())
    own.mkdir(exist_ok=True)
    return failed(run, own, list(seeded(run, seeds)))


@pytest.mark.proof
def test_twenty_thousand_random_changes_are_no_fault(lean: Path, tmp_path: Path) -> None:
    blocks = [range(start, start + 250) for start in range(100, 20_100, 250)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which do not follow: torch's are none
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("fork")) as pool:
            found = [fault for faults in pool.map(partial(_failed_of, lean, tmp_path), blocks) for fault in faults]
    assert found == []
