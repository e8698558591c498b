import ast
import errno
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count, product
from pathlib import Path

import pytest
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import safe_open

import transduce
from covering import rest_as_proofs
from crashing import Disk, Killed, forked, kill_this_process
from transduce.cli.runs import average_tensors
from transduce.config.settings import load_config
from transduce.errors import DamagedFileError, MissingInputError, RunFolderError, TransduceError
from transduce.files.tensors import read_tensors, write_tensors
from transduce.model.weights import parameter_shapes
from transduce.runs.folder import RunFolder
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

CONFIG = """
[data]
train = ["train.tsv"]  # ä
[training]
steps = 30
[tokenizer]
source = "characters"
target = "characters"
[model]
d_model = 2
d_ff = 3
num_heads = 1
num_encoder_layers = 1
num_decoder_layers = 1
"""
CHARACTERS = TokenizerConfig(source="characters", target="characters")
TOKENIZER = Tokenizer.learn(CHARACTERS, ["ab"], ["b"]).to_json()
OTHER_TOKENIZER = Tokenizer.learn(CHARACTERS, ["ac"], ["c"]).to_json()
SHAPES = parameter_shapes(load_config(CONFIG, "").model, Tokenizer.from_json(TOKENIZER).vocabulary_sizes)
METADATA = {"step": 30, "validation": {"bleu": 5.5}}
DIGEST_AT = 8 + len('{"__metadata__":{"sha256":"')


def weights(number: float) -> dict[str, torch.Tensor]:
    return {name: torch.full(shape, number) for name, shape in SHAPES.items()}


def value(number: float) -> dict[str, torch.Tensor]:
    model = {f"model.{name}": tensor for name, tensor in weights(number).items()}
    return model | {"optimizer.mean.weight": torch.tensor(number)}


def row(step: int) -> dict[str, object]:
    return {"kind": "training", "step": step, "loss": 1 / step}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    run = RunFolder.create(
        tmp_path_factory.mktemp("runs") / "demo", config=CONFIG, tokenizer=TOKENIZER, facts={"machine": "abacus"}
    )
    run.write_model(weights(5.0), METADATA)
    for step in (10, 20, 30):
        run.write_checkpoint(step, value(step), {"epoch": step}, keep=3)
        run.append_metrics(row(step))
    run.write_file("score.json", b"[]")
    return run.path


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(finished_run, tmp_path / "demo"))


def stamped(content: bytes, at: int = DIGEST_AT) -> bytes:
    """The content with the hash that makes it look as we wrote it: what somebody who knows the format can forge."""
    zeroed = content[:at] + b"0" * 64 + content[at + 64 :]
    return zeroed[:at] + hashlib.sha256(zeroed).hexdigest().encode() + zeroed[at + 64 :]


# Files of tensors


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (2, 3, 5)])
def test_tensors_come_back_with_the_same_type_shape_and_bits(tmp_path, dtype, shape):
    path = tmp_path / "x.safetensors"
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 50).to(dtype)
    write_tensors(path, {"a.b": tensor, "odd": torch.ones(3, dtype=torch.uint8)}, {"note": 'ä"\n\\'})
    tensors, metadata = read_tensors(path)
    assert tensors["a.b"].dtype == dtype and tensors["a.b"].shape == shape
    assert torch.equal(tensors["a.b"], tensor)
    assert metadata.pop("sha256").encode() in path.read_bytes() and metadata == {"note": 'ä"\n\\'}


def test_strided_tensors_and_parameters_are_written_as_they_look(tmp_path):
    matrix = torch.arange(15.0).view(3, 5)
    write_tensors(tmp_path / "x", {"t": matrix.T, "row": matrix[1, ::2], "p": torch.nn.Parameter(torch.ones(2))}, {})
    tensors, _ = read_tensors(tmp_path / "x")
    assert tensors["t"].tolist() == matrix.T.tolist()
    assert tensors["row"].tolist() == [5.0, 7.0, 9.0]
    assert tensors["p"].tolist() == [1.0, 1.0] and not tensors["p"].requires_grad


def test_other_tools_read_our_files(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"b": torch.arange(3), "a": torch.tensor([1.5]), "c": torch.tensor([True])}, {"k": "v"})
    with safe_open(path, framework="pt") as file:
        assert file.metadata().keys() == {"k", "sha256"}
        assert sorted(file.keys()) == ["a", "b", "c"]
    assert safetensors.numpy.load_file(path)["b"].tolist() == [0, 1, 2]
    assert safetensors.torch.load(path.read_bytes())["a"].tolist() == [1.5]


def test_every_tensor_lies_at_a_multiple_of_its_element_size(tmp_path):
    write_tensors(
        tmp_path / "x", {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(1), "c": torch.ones(5).double()}, {}
    )
    content = (tmp_path / "x").read_bytes()
    header_len = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_len])
    assert header_len % 8 == 0
    assert [header[name]["data_offsets"][0] % size for name, size in (("a", 1), ("b", 4), ("c", 8))] == [0, 0, 0]


def test_the_stored_hash_is_that_of_the_file_with_zeros_in_its_place(tmp_path):
    write_tensors(tmp_path / "x", value(1.0), {"k": "v"})
    with safe_open(tmp_path / "x", framework="pt") as file:
        stated = file.metadata()["sha256"]
    content = (tmp_path / "x").read_bytes()
    assert content.count(stated.encode()) == 1
    assert hashlib.sha256(content.replace(stated.encode(), b"0" * 64)).hexdigest() == stated


def test_tensors_read_do_not_change_when_the_file_is_overwritten_in_place(tmp_path):
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.arange(1000.0)}, {})
    tensor = read_tensors(path)[0]["a"]
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(tensor, torch.arange(1000.0))


SAME_BYTES = """
import sys, torch
from pathlib import Path
from transduce.runs.folder import RunFolder
run = RunFolder.create(Path(sys.argv[1]), config="a = 1", tokenizer="{}", facts={"b": 1, "a": 2})
names = {f"model.{letter}" for letter in "qwertyuiop"}  # a set: its order depends on PYTHONHASHSEED
tensors = {name: torch.full((2,), len(name), dtype=torch.float16) for name in names}
run.write_checkpoint(7, tensors, {letter: 1 for letter in set("asdfgh")}, keep=1)
run.write_model(tensors, {letter: "x" for letter in set("asdfgh")})
"""


def test_two_processes_write_the_same_bytes(tmp_path, monkeypatch):
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # another than that of this process
    command = [sys.executable, "-c", SAME_BYTES, str(tmp_path / "other")]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, check=True)
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "this")])
    exec(SAME_BYTES, {})
    for name in ("run.json", "model.safetensors", "checkpoints/step-00000007.safetensors"):
        assert (tmp_path / "this" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"../x": torch.ones(1)}, {}, "cannot be called"),
        ({"x": torch.ones(1, dtype=torch.complex64)}, {}, "complex64"),
        ({"x": torch.ones(1)}, {"sha256": "y"}, "taken"),
        ({"x": torch.ones(1)}, {"k": "y" * 100_000_001}, "header"),
        ({"x": torch.ones(1)}, {"k": "\ud800"}, "surrogates"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, tensors, metadata, message):
    with pytest.raises(ValueError, match=message):
        write_tensors(tmp_path / "x", tensors, metadata)
    assert list(tmp_path.iterdir()) == []


def test_a_tied_parameter_under_two_names_is_refused(tmp_path):
    shared = torch.ones(2, 3)
    with pytest.raises(ValueError, match="same memory"):
        write_tensors(tmp_path / "x", {"a": shared, "b": shared}, {})
    write_tensors(tmp_path / "x", {"a": shared[0], "b": shared[1]}, {})  # rows of one matrix are different parameters


# Damage


def readers(run: RunFolder) -> dict[str, Callable[[], object]]:
    return {
        "model.safetensors": run.read_model,
        "checkpoints/step-00000030.safetensors": lambda: run.read_checkpoint(30),
        "run.json": lambda: RunFolder.open(run.path),
        "config.toml": lambda: run.config_text,
        "tokenizer.json": lambda: run.tokenizer_text,
    }


def is_refused(read: Callable[[], object], path: Path) -> bool:
    try:
        read()
    except DamagedFileError as error:
        return str(error).startswith(f"{path} is damaged") and "\n" not in str(error)
    return False


@pytest.mark.parametrize("name", readers(RunFolder(Path())))
def test_every_flipped_missing_or_added_byte_is_detected(run, name):
    run.write_model({"a": torch.ones(2, 3)}, METADATA)  # smaller files have fewer bytes to change
    run.write_checkpoint(30, {"model.a": torch.ones(2, 3)}, {"epoch": 30}, keep=3)
    read, path = readers(run)[name], run.path / name
    content, generator = path.read_bytes(), random.Random(11)
    read()
    damaged = [content[:cut] for cut in range(0, len(content), 7)]
    damaged += [content + b"\0", content + b"\n", content + content, b"\0" + content]
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << generator.randrange(8)
        damaged.append(bytes(flipped))
    for wrong in damaged:
        path.write_bytes(wrong)
        assert is_refused(read, path), wrong
        assert path.read_bytes() == wrong  # left for the user to look at
    path.write_bytes(content)
    read()


def test_files_that_are_whole_but_in_the_wrong_place_are_refused(run, tmp_path):
    older, newer = (run.path / f"checkpoints/step-000000{step}.safetensors" for step in (20, 30))
    shutil.copy(older, newer)
    assert is_refused(lambda: run.read_checkpoint(30), newer)
    shutil.copy(older, run.path / "model.safetensors")
    assert is_refused(run.read_model, run.path / "model.safetensors")
    other = RunFolder.create(tmp_path / "other", config=CONFIG, tokenizer=OTHER_TOKENIZER, facts={})
    other.write_model(weights(5.0), METADATA)
    shutil.copy(other.path / "model.safetensors", run.path / "model.safetensors")
    assert is_refused(run.read_model, run.path / "model.safetensors")


def test_verify_names_each_damaged_file(run):
    run.write_checkpoint(30, value(30.0), {"best_step": 30}, keep=3)  # which tells of a model
    names = [name for name, problem in run.verify() if problem == ""]
    steps = [f"checkpoints/step-000000{step}.safetensors" for step in (10, 20, 30)]
    texts = ["run.json", "config.toml", "tokenizer.json"]
    assert names == [*texts, *steps, "model.safetensors", "score.json", "metrics.jsonl"]
    (run.path / "config.toml").write_text("[model]\n")
    (run.path / "model.safetensors").unlink()
    (run.path / steps[1]).write_bytes(b"")
    (run.path / "metrics.jsonl").write_bytes(b'{"kind": "training", "step": 1}\n{"kind"\n{"step": 3}\n')
    problems = {name: problem for name, problem in run.verify() if problem}
    assert list(problems) == ["config.toml", steps[1], "model.safetensors", "metrics.jsonl"]
    assert "no such file" in problems["model.safetensors"] and "metrics.jsonl:2" in problems["metrics.jsonl"]


def test_a_model_that_was_never_written_is_no_damage(tmp_path):
    run = RunFolder.create(tmp_path / "young", config=CONFIG, tokenizer=TOKENIZER, facts={})
    run.write_checkpoint(1, value(1.0), {"best_step": 0}, keep=1)
    checkpoint = "checkpoints/step-00000001.safetensors"
    names = ["run.json", "config.toml", "tokenizer.json", checkpoint]
    assert run.verify() == [(name, "") for name in names]


def test_the_metadata_of_a_model_is_read_alone_but_not_unverified(run, monkeypatch):
    _, expected, _ = run.read_model()
    monkeypatch.setattr("transduce.runs.folder.read_tensors", lambda *_: pytest.fail("the weights were read"))
    assert run.read_model_metadata() == expected == METADATA
    path = run.path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert is_refused(run.read_model_metadata, path)


def test_the_newest_valid_checkpoint_is_found_behind_damaged_ones(run):
    (run.path / "checkpoints/step-00000030.safetensors").write_bytes(b"")
    reports: list[str] = []
    step, tensors, state = run.newest_checkpoint(reports.append)
    assert (step, state, tensors["model.src_embedding.weight"][0, 0].item()) == (20, {"epoch": 20}, 20.0)
    assert len(reports) == 1 and "step-00000030" in reports[0]
    with pytest.warns(UserWarning, match="step-00000030"):
        run.newest_checkpoint()


def test_no_checkpoint_is_none_and_only_damaged_ones_are_an_error(run):
    for path in (run.path / "checkpoints").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(DamagedFileError, match="none of its 3 checkpoints"):
        run.newest_checkpoint(lambda _: None)
    shutil.rmtree(run.path / "checkpoints")  # safe to delete
    assert run.newest_checkpoint() is None and run.checkpoints() == []
    run.write_checkpoint(40, value(40), {}, keep=1)
    assert run.checkpoints() == [40]


# Malice


class Canary:
    """Run when unpickled: leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def safetensors_file(header: bytes, data: bytes = b"") -> bytes:
    return stamped(len(header).to_bytes(8, "little") + header + data)


def forged(entries: str, data: bytes = b"") -> bytes:
    return safetensors_file(f'{{"__metadata__":{{"sha256":"{"0" * 64}"}}{entries}}}'.encode(), data)


HOSTILE = {
    "empty": b"",
    "a header of 2**63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "a stamped header of 2**63 bytes": stamped((2**63).to_bytes(8, "little") + forged("")[8:]),
    "deep JSON": safetensors_file(b'{"__metadata__":' + b'{"a":' * 100_000),
    "stamped deep JSON": forged(',"x":' + "[" * 100_000),
    "a path as a name": forged(',"../../x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}', b"1"),
    "an absolute path as a name": forged(',"/tmp/x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}', b"1"),
    "overlapping tensors": forged(
        ',"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}', b"1"
    ),
    "a petabyte announced": forged(
        ',"a":{"dtype":"U8","shape":[1125899906842624],"data_offsets":[0,1125899906842624]}'
    ),
    "an unknown type": forged(',"a":{"dtype":"PICKLE","shape":[1],"data_offsets":[0,1]}', b"1"),
    "no JSON": safetensors_file(b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'"\xff'),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_at_once(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    path.write_bytes(HOSTILE[kind])
    start = time.perf_counter()
    with pytest.raises(DamagedFileError, match=r"x\.safetensors is damaged"):
        read_tensors(path)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("name", readers(RunFolder(Path())))
def test_a_pickle_in_place_of_any_file_is_refused_and_not_run(run, tmp_path, name):
    payload = pickle.dumps(Canary(tmp_path / "canary"))
    pickle.loads(payload)
    (tmp_path / "canary").unlink()  # the canary sings
    (run.path / name).write_bytes(payload)
    assert is_refused(readers(run)[name], run.path / name)
    assert not (tmp_path / "canary").exists()


def test_a_forged_record_of_deep_json_is_refused(run):
    start = '{\n  "sha256": "'
    content = f'{start}{"0" * 64}", "facts": {"[" * 100_000}'.encode()
    (run.path / "run.json").write_bytes(stamped(content, at=len(start)))
    assert is_refused(lambda: RunFolder.open(run.path), run.path / "run.json")


def test_the_package_has_no_way_to_run_code_from_a_file():
    unsafe_modules = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml"}
    for path in Path(transduce.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not unsafe_modules & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load", "np.load", "numpy.load"), f"{path}: {called}"
                assert "trust_remote_code" not in [keyword.arg for keyword in node.keywords], path


# Faults: every operation that changes the disk fails in turn


ACTIONS: dict[str, Callable[[RunFolder], object]] = {
    "write_checkpoint, keeping 1 of 4": lambda run: run.write_checkpoint(40, value(40.0), {"epoch": 40}, keep=1),
    "write_checkpoint, keeping 2 of 4": lambda run: run.write_checkpoint(40, value(40.0), {"epoch": 40}, keep=2),
    "write_checkpoint over the newest": lambda run: run.write_checkpoint(30, value(33.0), {"epoch": 33}, keep=3),
    "write_model": lambda run: run.write_model(weights(6.0), METADATA | {"step": 40}),
    "update_facts": lambda run: run.update_facts({"threads": 2}),
    "rewrite_config": lambda run: run.rewrite_config("[model]\nd_model = 48\n"),
    "append_metrics": lambda run: run.append_metrics(row(40)),
    "append_metrics, a long row": lambda run: run.append_metrics(row(40) | {"x" * 100_000: 1.0}),
    "truncate_metrics": lambda run: run.truncate_metrics(20),
    "write_file": lambda run: run.write_file("curve.png", b"png" * 99),
    "write_file over one": lambda run: run.write_file("score.json", b"{}"),
    "lock": lambda run: run.lock().__enter__(),
}


MOMENTS = ["before", "halfway"]  # of an operation


def content_of(path: Path) -> object:
    """All that can be read from a run; equal for equal runs. None where there is no run."""
    try:
        run = RunFolder.open(path)
    except MissingInputError:
        return None
    model, metadata, _ = run.read_model() if (path / "model.safetensors").exists() else ({}, {}, "")
    step, tensors, state = run.newest_checkpoint(pytest.fail) or (None, {}, {})
    weights = [{name: tensor.tolist() for name, tensor in group.items()} for group in (model, tensors)]
    others = [file.read_bytes() for file in map(run.checked_file, ("curve.png", "score.json")) if file]
    return (run.config_text, run.tokenizer_text, run.facts, metadata, step, state, weights, run.metrics(), others)


def temporaries(path: Path) -> list[Path]:
    return list(path.rglob("*.tmp"))


def each_fault(source: Path, action: Callable[[RunFolder], object], fault, *, is_late: bool) -> Iterator[tuple]:
    """The action on copies of the folder with the fault at operation 1, 2, ... until it no longer fires."""
    for at in count(1):
        path = source.with_name(f"copy-{at}")
        shutil.copytree(source, path)
        raised = None
        with Disk(at, fault, is_late=is_late).in_use() as disk:
            try:
                action(RunFolder(path))
            except BaseException as error:
                raised = error
        if not disk.has_fired:
            assert raised is None and at > 1
            return
        yield path, raised
        shutil.rmtree(path)


@pytest.mark.parametrize("is_late", [False, True], ids=["before", "halfway"])
@pytest.mark.parametrize("name", [name for name in ACTIONS if name != "lock"])
def test_a_crash_at_any_operation_leaves_the_old_state_or_the_new(run, name, is_late):
    action, before = ACTIONS[name], content_of(run.path)
    reached = []
    shutil.copytree(run.path, done := run.path.with_name("done"))
    action(RunFolder(done))
    after = content_of(done)
    assert before != after
    for path, raised in each_fault(run.path, action, Killed, is_late=is_late):
        assert isinstance(raised, Killed)
        reached.append(content_of(path))
        assert reached[-1] in (before, after)
        with RunFolder.open(path).lock():
            assert temporaries(path) == []  # the next process tidies up
            if reached[-1] == before:
                action(RunFolder(path))
        assert content_of(path) == after
    assert before in reached


FAULTS: dict[str, Callable[[], BaseException]] = {
    "disk full": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "bad disk": lambda: OSError(errno.EIO, "Input/output error"),
    "no permission": lambda: PermissionError(errno.EACCES, "Permission denied"),
    "Ctrl-C": KeyboardInterrupt,
}


# What goes wrong matters to the message alone, tested here with one action: the others meet an OSError and a Ctrl-C.
@pytest.mark.parametrize(
    ("name", "moment", "fault"),
    rest_as_proofs(
        product(ACTIONS, MOMENTS, FAULTS),
        [*product(list(ACTIONS)[:1], MOMENTS, FAULTS), *product(ACTIONS, MOMENTS, ["disk full", "Ctrl-C"])],
    ),
)
def test_an_error_at_any_operation_is_one_line_and_loses_nothing(run, name, moment, fault):
    action, before = ACTIONS[name], content_of(run.path)
    shutil.copytree(run.path, done := run.path.with_name("done"))
    action(RunFolder(done))
    after = content_of(done)
    for path, raised in each_fault(run.path, action, FAULTS[fault], is_late=moment == "halfway"):
        if raised is None:  # mkdir failed, of a folder that was there
            assert content_of(path) == after
        else:
            assert type(raised) in (KeyboardInterrupt, RunFolderError) and "\n" not in str(raised)
        if "No space" in str(raised):
            assert " free)" in str(raised)
        assert content_of(path) in (before, after)
        assert temporaries(path) == []


@pytest.mark.parametrize("is_late", [False, True], ids=["before", "halfway"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_crash_at_any_operation_of_create_leaves_no_run_or_the_whole(tmp_path, exists, is_late):
    (tmp_path / "all").mkdir()
    if exists:
        (tmp_path / "all" / "demo").mkdir()

    def create(run: RunFolder) -> RunFolder:
        return RunFolder.create(run.path / "demo", config=CONFIG, tokenizer=TOKENIZER, facts={"a": 1})

    whole = (CONFIG, TOKENIZER, {"a": 1})
    for path, _ in each_fault(tmp_path / "all", create, Killed, is_late=is_late):
        found = content_of(path / "demo")
        if found is None:
            create(RunFolder(path))
            found = content_of(path / "demo")
        assert found[:3] == whole
        with RunFolder(path / "demo").lock():
            assert temporaries(path) == []


def test_nothing_takes_effect_before_its_bytes_are_on_disk(run):
    for action in ACTIONS.values():
        with Disk(10_000, Killed).in_use() as disk:
            action(RunFolder(run.path))
        for place, (kind, inode) in enumerate(disk.log):
            touched = [other for other, of in disk.log[:place] if of == inode]
            if kind == "replace":
                assert touched[-1] == "fsync" and "write" in touched  # a rename follows the data
            if kind == "unlink":
                assert disk.log[place - 1][0] in ("unlink", "fsync")  # a removal follows the synced rename
                assert "replace" in [other for other, _ in disk.log[:place]]
        if "replace" in [kind for kind, _ in disk.log]:
            assert [kind for kind, _ in disk.log if kind != "unlink"][-1] == "fsync"


@pytest.mark.parametrize("is_late", [False, True], ids=["before", "halfway"])
def test_kill_9_at_any_operation_of_a_checkpoint_leaves_the_old_or_the_new(run, is_late):
    before, statuses = content_of(run.path), []
    for at in count(1):
        shutil.copytree(run.path, path := run.path.with_name(f"copy-{at}"))

        def work(path=path, at=at):
            with Disk(at, kill_this_process, is_late=is_late).in_use():
                RunFolder(path).write_checkpoint(40, value(40.0), {"epoch": 40}, keep=1)

        with forked(work) as child:
            statuses.append(child.wait())
        content = content_of(path)
        assert content == before or content[4:6] == (40, {"epoch": 40})
        if statuses[-1] == 0:
            break
    assert statuses[:-1] == [-signal.SIGKILL] * (len(statuses) - 1) and len(statuses) > 10


# The folder


def test_a_run_gives_back_what_it_was_given(run):
    opened = RunFolder.open(run.path)
    assert (opened.config_text, opened.tokenizer_text, opened.facts) == (CONFIG, TOKENIZER, {"machine": "abacus"})
    tensors, metadata, _ = opened.read_model()
    assert metadata == METADATA and torch.equal(
        tensors["src_embedding.weight"], torch.full(SHAPES["src_embedding.weight"], 5.0)
    )
    opened.update_facts({"threads": 2})
    assert RunFolder.open(run.path).facts == {"machine": "abacus", "threads": 2}


def test_a_run_can_be_copied_anywhere_and_still_works(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "far" / "away")
    assert content_of(tmp_path / "far" / "away") == content_of(run.path)


def test_a_rewritten_config_replaces_the_old_one(run):
    run.rewrite_config("new = 1\n")
    assert RunFolder.open(run.path).config_text == "new = 1\n"
    (run.path / "config.toml").write_text(CONFIG)
    with pytest.raises(DamagedFileError, match=r"config\.toml"):
        _ = run.config_text


def test_only_the_newest_checkpoints_are_kept(run):
    for step in (40, 50):
        run.write_checkpoint(step, value(step), {}, keep=2)
    assert run.checkpoints() == [40, 50]
    with pytest.raises(ValueError, match="at least 1"):
        run.write_checkpoint(60, value(60), {}, keep=0)


def test_a_damaged_newest_checkpoint_does_not_outlive_the_one_written_after_it(run):
    (run.path / "checkpoints/step-00000030.safetensors").write_bytes(b"")
    run.write_checkpoint(25, value(25), {}, keep=1)  # resumed at 20
    assert run.checkpoints() == [25]
    assert run.newest_checkpoint(pytest.fail)[0] == 25


def test_steps_sort_as_numbers_and_other_files_are_no_checkpoints(run):
    run.write_checkpoint(123_456_789, value(1), {}, keep=9)
    for name in ("step-12.safetensors", "step-000000040.safetensors", "step-x.safetensors", "notes.txt"):
        (run.path / "checkpoints" / name).write_bytes(b"")
    assert run.checkpoints() == [10, 20, 30, 123_456_789]


def test_create_refuses_a_folder_that_holds_a_run(run):
    with pytest.raises(RunFolderError, match=r"another --run-dir, or add --resume to continue it\.$"):
        RunFolder.create(run.path, config="other", tokenizer="{}", facts={})
    assert run.config_text == CONFIG


@pytest.mark.parametrize(
    "name", ["config.toml", "model.safetensors", "notes.txt", "checkpoints/step-00000001.safetensors"]
)
def test_create_refuses_a_folder_with_other_things_and_leaves_it_alone(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunFolderError, match="contains other files"):
        RunFolder.create(tmp_path, config=CONFIG, tokenizer=TOKENIZER, facts={})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert (tmp_path / name).read_text() == "mine"


def test_create_accepts_an_empty_folder_and_hidden_files(tmp_path):
    (tmp_path / ".gitignore").write_text("*")
    assert RunFolder.create(tmp_path, config=CONFIG, tokenizer=TOKENIZER, facts={}).config_text == CONFIG


def test_create_says_in_one_line_where_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "demo"):
        with pytest.raises(RunFolderError, match=f"^{path}: cannot be written"):
            RunFolder.create(path, config=CONFIG, tokenizer=TOKENIZER, facts={})
        with pytest.raises(RunFolderError, match=f"^{path}: cannot be written"):
            RunFolder(path).refuse_other_use()  # before the long work


def test_open_names_the_runs_nearby(run):
    for path in (run.path.parent, run.path.with_name("dmeo")):
        with pytest.raises(MissingInputError, match=f"not a run folder.*{run.path.parent}/ holds: demo"):
            RunFolder.open(path)
    with pytest.raises(MissingInputError):
        RunFolder.open(Path("no/such/place"))


def test_a_later_format_is_named_not_called_damaged(run):
    content = (run.path / "run.json").read_bytes().replace(b'"format": 1', b'"format": 2')
    (run.path / "run.json").write_bytes(stamped(content, at=len('{\n  "sha256": "')))
    with pytest.raises(RunFolderError, match="format 2"):
        RunFolder.open(run.path)


def test_a_second_process_is_refused_until_the_first_is_gone(run):
    receiver, sender = os.pipe()

    def hold():
        with run.lock():
            os.write(sender, b"locked")
            time.sleep(60)

    with forked(hold) as child:
        assert os.read(receiver, 6) == b"locked"
        with pytest.raises(RunFolderError, match=f"process {child.pid}"), run.lock():
            pass
        assert child.kill() == -signal.SIGKILL
        with run.lock():
            assert (run.path / "run.lock").read_text().strip() == str(os.getpid())
    os.close(receiver)
    os.close(sender)


def test_the_lock_removes_left_over_temporaries_and_nothing_else(run):
    for name in (".run.json.0123abcd.tmp", "checkpoints/.step-00000040.safetensors.0123abcd.tmp"):
        path = run.path / name
        path.write_bytes(b"half")
    (run.path / "notes.tmp").write_text("mine")
    with run.lock():
        assert temporaries(run.path) == [run.path / "notes.tmp"]


def test_a_torn_last_row_of_metrics_is_dropped(run):
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "training", "step": 40, "lo')
    assert [row["step"] for row in run.metrics()] == [10, 20, 30]
    run.append_metrics(row(40))
    assert [row["step"] for row in run.metrics()] == [10, 20, 30, 40]


def test_truncated_metrics_keep_the_rows_up_to_the_step(run):
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 1')
    run.truncate_metrics(20)
    assert run.metrics() == [row(10), row(20)]
    assert (run.path / "metrics.jsonl").read_bytes().endswith(b"}\n")


def test_a_row_of_metrics_is_one_write(run):
    with Disk(10_000, Killed).in_use() as disk:
        run.append_metrics(row(40) | {"x" * 100_000: 1.0})
    assert [kind for kind, _ in disk.log] == ["open", "write"]


def test_a_run_without_metrics_has_no_rows(tmp_path):
    run = RunFolder.create(tmp_path / "new", config=CONFIG, tokenizer=TOKENIZER, facts={})
    assert run.metrics() == []
    run.truncate_metrics(5)
    assert run.metrics() == []


@pytest.mark.parametrize("name", ["run.json", "checkpoints", "../x", "a/b", "model.safetensors", "..", ".x.tmp"])
def test_write_file_takes_plain_names_that_are_not_ours(run, name):
    with pytest.raises(ValueError, match="plain file name"):
        run.write_file(name, b"x")


def test_a_written_file_holds_just_the_bytes_given(run):
    run.write_file("score.txt", b"\xc3\xa4\r\n\n")
    assert (run.path / "score.txt").read_bytes() == b"\xc3\xa4\r\n\n"


# Averaging


def test_the_average_is_the_arithmetic_mean():
    sets = [{"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(number)} for number in (1.0, 2.0, 6.0)]
    mean = average_tensors(iter(sets))
    assert mean["a"].tolist() == [1.0, 2.0] and mean["b"].item() == 3.0
    assert sets[0]["b"].item() == 1.0


def test_the_average_of_bfloat16_is_added_up_in_float64():
    sets = [{"a": torch.tensor(1.0, dtype=torch.bfloat16)} for _ in range(1000)]  # bf16 would stop adding at 256
    mean = average_tensors(sets)["a"]
    assert mean.dtype == torch.bfloat16 and mean.item() == 1.0


@pytest.mark.parametrize(
    "other",
    [{"a": torch.ones(3)}, {"b": torch.ones(2)}, {}, {"a": torch.ones(2), "b": torch.ones(1)}, {"a": torch.ones(1)}],
)
def test_sets_that_differ_in_names_or_shapes_are_not_averaged(other):
    with pytest.raises(TransduceError, match=r"Cannot average: [ab] differs"):
        average_tensors([{"a": torch.ones(2)}, other])
    with pytest.raises(TransduceError, match="Nothing to average"):
        average_tensors([])
