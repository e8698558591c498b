"""Run folders as a stranger could send them: changed anywhere, with every hash made right again.

A change is a JSON object, so that one that was once a fault can be kept (`runs/hostile_runs.jsonl`):
{"file": NAME, "at": [KEY, ...], "set": VALUE} or {..., "delete": true} changes what a document says, header and
metadata of tensor files included; {"file": NAME, "is": KIND} puts something else in the place of the file, see KINDS.
"""

import hashlib
import json
import os
import random
import shutil
import socket
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tomli_w

Change = dict[str, Any]

NO_DIGEST = "0" * 64
TEXTS = ("config.toml", "tokenizer.json")
VICTIM = b"nobody may change this\n"


def documents_of(run: Path) -> list[str]:
    """The names of the files that say something, the newest checkpoint among them."""
    newest = max((run / "checkpoints").iterdir()).name
    return ["run.json", *TEXTS, "model.safetensors", f"checkpoints/{newest}"]


def outside_of(run: Path) -> Path:
    """The folder beside the run, made with files in it, that a run may lead to and nobody may change."""
    outside = run.with_name("outside")
    (outside / "folder").mkdir(parents=True)
    for name in ("victim", "folder/.x.tmp", *(f"folder/step-{step:08}.safetensors" for step in range(1, 8))):
        (outside / name).write_bytes(VICTIM)
    return outside


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as it:
            it.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(300_000_000)


def _outside(path: Path) -> Path:
    run = next(folder for folder in path.parents if (folder.with_name("outside")).exists())
    return run.with_name("outside")


KINDS: dict[str, Callable[[Path], object]] = {
    "a link to a file": lambda path: path.symlink_to(_outside(path) / "victim"),
    "a link to a folder": lambda path: path.symlink_to(_outside(path) / "folder"),
    "a hard link": lambda path: path.hardlink_to(_outside(path) / "victim"),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a pipe": _fifo,
    "a socket": _socket,
    "a folder": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "of 300 MB without a byte": _sparse,
    "of bytes that are no text": lambda path: path.write_bytes(b"\xff\xfe\0" * 99),
    "deep JSON": lambda path: path.write_bytes(b"[" * 100_000),
    "deep TOML": lambda path: path.write_bytes(b"a = " + b"[" * 50_000),
    "TOML of many dots": lambda path: path.write_bytes(b"a." * 20_000 + b"a = 1"),
    "a number of 5,000 digits": lambda path: path.write_bytes(b"[training]\nsteps = " + b"9" * 5_000),
    "a key of 200 kB": lambda path: path.write_bytes(b"[model]\n" + b"k" * 200_000 + b" = 1"),
    "many values": lambda path: path.write_bytes(b"[" + b"{}," * 2_500_000 + b"{}]"),
}


def change_run(run: Path, changes: Sequence[Change]) -> None:
    """Makes the changes, then all hashes right that were not changed themselves."""
    names = documents_of(run)
    put = {change["file"]: KINDS[change["is"]] for change in changes if "is" in change}
    documents = {name: _read(run / name) for name in names}
    for change in changes:
        if "at" in change:
            documents[change["file"]] = _changed(documents[change["file"]], change["at"], change)
    for name in TEXTS:
        if name in put:
            _replace(run / name, put.pop(name))
        elif any(change["file"] == name for change in changes):
            _write(run / name, documents[name])
    record = documents.pop("run.json")
    files = record.get("files") if isinstance(record, dict) else None
    for name in TEXTS:
        if _is_small_file(run / name) and isinstance(files, dict) and not _touches(changes, "run.json", "files"):
            files[name] = [hashlib.sha256((run / name).read_bytes()).hexdigest()]
    for name in names[3:]:
        _belong(documents[name], record, [change for change in changes if change["file"] == name])
        _write(run / name, documents[name])
    _write(run / "run.json", record)
    for name, kind in put.items():
        folder = (run / name).parent
        if folder.is_dir() and not folder.is_symlink():  # it may have been replaced, too
            _replace(run / name, kind)


def _is_small_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 100_000_000


def _touches(changes: Sequence[Change], name: str, key: str) -> bool:
    """Whether a document was changed there, or as a whole."""
    return any(
        change["file"] == name and ("is" in change or key in change["at"] or not change["at"]) for change in changes
    )


def _belong(header: Any, record: Any, changes: Sequence[Change]) -> None:
    """Lets a tensor file say that it belongs to this tokenizer and this run, unless it was to say something else."""
    try:
        for key, value in (("tokenizer", record["files"]["tokenizer.json"][0]), ("run", record.get("id"))):
            if isinstance(value, str) and not any(key in change.get("at", ()) for change in changes):
                header["__metadata__"][key] = value
    except (LookupError, TypeError, AttributeError):
        pass


def _replace(path: Path, put: Callable[[Path], object]) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    put(path)


def _changed(document: Any, at: Sequence[Any], change: Change) -> Any:
    """The document with the change at a place; without one, where the place is not there."""
    if not at:
        return change.get("set")
    inner = document
    for key in at[:-1]:
        try:
            inner = inner[key]
        except (LookupError, TypeError):
            return document
    try:
        if "delete" in change:
            del inner[at[-1]]
        else:
            inner[at[-1]] = change["set"]
    except (LookupError, TypeError, AttributeError):
        pass
    return document


def _read(path: Path) -> Any:
    if path.suffix == ".toml":
        return tomllib.loads(path.read_text())
    if path.suffix == ".json":
        return json.loads(path.read_bytes())
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    for key in ("metadata", "state", "manifest"):
        if key in header["__metadata__"]:
            header["__metadata__"][key] = json.loads(header["__metadata__"][key])
    return header


def _write(path: Path, document: Any) -> None:
    if path.suffix == ".toml":
        path.write_bytes(_toml(document))
    elif path.name == "run.json":
        path.write_bytes(_stamped(document, lambda it: json.dumps(it, indent=2).encode() + b"\n"))
    elif path.suffix == ".json":
        if isinstance(document, dict) and "content" in document:
            document["sha256"] = hashlib.sha256(_compact(document["content"])).hexdigest()
        path.write_bytes(_compact(document))
    else:
        _write_tensors(path, document)


def _toml(document: Any) -> bytes:
    try:
        return tomli_w.dumps(document).encode()
    except (TypeError, AttributeError, ValueError):  # what TOML cannot say
        return repr(document).encode(errors="replace")


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")


def _stamped(document: Any, layout: Callable[[Any], bytes]) -> bytes:
    if not isinstance(document, dict):
        return layout(document)
    digest = hashlib.sha256(layout(document | {"sha256": NO_DIGEST})).hexdigest()
    return layout(document | {"sha256": digest})


def _write_tensors(path: Path, header: Any) -> None:
    old = path.read_bytes()
    data = old[8 + int.from_bytes(old[:8], "little") :]
    if isinstance(header, dict) and isinstance(metadata := header.get("__metadata__"), dict):
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
        header = {"__metadata__": {"sha256": NO_DIGEST} | texts | {"sha256": NO_DIGEST}} | header
        header["__metadata__"] = {"sha256": NO_DIGEST} | texts | {"sha256": NO_DIGEST}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    content = len(text).to_bytes(8, "little") + text + data
    at = 8 + len(b'{"__metadata__":{"sha256":"')
    digest = hashlib.sha256(content[:at] + NO_DIGEST.encode() + content[at + 64 :]).hexdigest()
    path.write_bytes(content[:at] + digest.encode() + content[at + 64 :])


# Random changes

ODD = [
    None, True, 0, -1, 1, 7, 255, 2**31, 2**62, 2**63, 2**70, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "x", "a\nb", "\x1b[31m\x9b", "\ud800", "\U0010f000", "../x", "/dev/zero", "9" * 5_000, "k" * 2_000, [], [None],
    [0, 0],
    [2**40, 2**40], [[]], {}, {"a": 1}, {"*": [1]},
]  # fmt: skip


def random_changes(run: Path, generator: random.Random) -> list[Change]:
    """One to three changes, drawn from all places of all documents, or of what stands in the place of files."""
    return [_random_change(run, generator) for _ in range(generator.choice([1, 1, 1, 2, 3]))]


def _random_change(run: Path, generator: random.Random) -> Change:
    names = documents_of(run)
    if generator.random() < 0.1:
        kinds = sorted(KINDS.keys() - {"of 300 MB without a byte", "many values"})  # which take half a second
        others = ["metrics.jsonl", "run.lock", "checkpoints", "score.json"]
        return {"file": generator.choice([*names, *others]), "is": generator.choice(kinds)}
    name = generator.choice(names)
    document = _read(run / name)
    place = _random_place(document, generator)
    if generator.random() < 0.15:
        return {"file": name, "at": place, "delete": True}
    if generator.random() < 0.2:  # a value of another place
        other = _read(run / generator.choice(names))
        return {"file": name, "at": place, "set": _value_at(other, _random_place(other, generator))}
    return {"file": name, "at": place, "set": generator.choice(ODD)}


def _random_place(document: Any, generator: random.Random) -> list[Any]:
    """Keys that lead to a value: shallow ones as often as all those deep within."""
    place: list[Any] = []
    while isinstance(document, dict | list) and document and (not place or generator.random() < 0.85):
        keys = list(document) if isinstance(document, dict) else range(len(document))
        place.append(generator.choice(keys))
        document = document[place[-1]]
    return place


def _value_at(document: Any, place: Sequence[Any]) -> Any:
    for key in place:
        document = document[key]
    return document


def kept_changes(path: Path) -> Iterator[list[Change]]:
    """The changes that were kept, one list to a line."""
    for line in path.read_text().split("\n")[:-1]:
        yield json.loads(line)
