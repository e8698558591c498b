"""Named data sets by name: one split of them, or all written out."""

from pathlib import Path

from transduce.data.catalogue import Dataset, as_text, list_datasets
from transduce.data.download import Places
from transduce.data.pairs import Pairs
from transduce.errors import RunFolderError, TransduceError, nearest
from transduce.files.atomic import write_atomically
from transduce.files.content import read_bytes, sha256_of
from transduce.files.system_errors import explained_write_errors

__all__ = ["Dataset", "export", "find_dataset", "list_datasets", "load_split"]


def find_dataset(name: str) -> Dataset:
    """The data set of this name. Raises TransduceError, with the nearest name, if there is none."""
    datasets = {dataset.name: dataset for dataset in list_datasets()}
    if name not in datasets:
        raise TransduceError(f"There is no data set {name!r}.{nearest(name, list(datasets))}")
    return datasets[name]


def load_split(
    name: str,
    split: str,
    places: Places = Places(),  # noqa: B008 - frozen
) -> Pairs:
    """The pairs of one split: "train", "valid", "test", or a named test set such as "test2016".

    Where a set has only named test sets, "test" is the first of them. Raises MissingInputError where a file is not
    there and cannot be fetched, DamagedFileError where its bytes are not the ones of the set.
    """
    dataset = find_dataset(name)
    if split == "test" and split not in dataset.splits:
        split = next(other for other in dataset.splits if other.startswith("test"))
    if split not in dataset.splits:
        raise TransduceError(f"The data set {name} has no split {split!r}.{nearest(split, list(dataset.splits))}")
    return dataset.load(split, places)


def export(
    name: str,
    folder: str | Path,
    places: Places = Places(),  # noqa: B008 - frozen
) -> list[Path]:
    """Writes every split as two parallel text files, and a README.md with origin, licence, counts and SHA-256.

    The files are named SPLIT.SUFFIX, e.g. `train.en` and `train.de`. Returns what was written. Raises RunFolderError,
    with nothing written, if one of them is there already and is not of an earlier export of the same set.
    """
    dataset, folder = find_dataset(name), Path(folder)
    _refuse_other_files(dataset, folder)
    with explained_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    contents, rows = {}, []
    for split in dataset.splits:
        pairs = dataset.load(split, places)
        for suffix, lines in ((dataset.source_suffix, pairs.src), (dataset.target_suffix, pairs.tgt)):
            content = as_text(lines)
            contents[folder / f"{split}.{suffix}"] = content
            rows.append(f"| `{split}.{suffix}` | {len(lines):,} | `{sha256_of(content)}` |")
    # First the README.md: it says whose the others are, should we be stopped between them.
    contents = {folder / "README.md": _readme(dataset, rows).encode()} | contents
    for path, content in contents.items():
        write_atomically(path, content)
    return list(contents)


def _refuse_other_files(dataset: Dataset, folder: Path) -> None:
    """Raises RunFolderError if something that was not exported from `dataset` would be replaced."""
    readme = folder / "README.md"
    if readme.is_file() and read_bytes(readme).startswith(f"{_title(dataset)}\n".encode()):
        return
    suffixes = (dataset.source_suffix, dataset.target_suffix)
    names = ["README.md", *(f"{split}.{suffix}" for split in dataset.splits for suffix in suffixes)]
    if there := next((name for name in names if (folder / name).exists()), None):
        raise RunFolderError(f"{folder} holds another {there} than that of {dataset.name}. Choose another folder.")


def _title(dataset: Dataset) -> str:
    return f"# {dataset.name}"


def _readme(dataset: Dataset, rows: list[str]) -> str:
    return "\n".join(
        [
            _title(dataset),
            "",
            dataset.description,
            "",
            f"* Home: {dataset.home}",
            f"* Licence: {dataset.licence}",
            "",
            "Parallel text in UTF-8: line k of one file of a split belongs to line k of the other.",
            "",
            "| file | lines | SHA-256 |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
