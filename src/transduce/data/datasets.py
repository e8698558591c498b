"""Access to named data sets, one split at a time."""

from transduce.data.catalogue import Dataset, list_datasets
from transduce.data.download import Places
from transduce.data.pairs import Pairs
from transduce.errors import TransduceError, nearest

__all__ = ["Dataset", "find_dataset", "list_datasets", "load_split"]


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

    If a data set has only named test sets, "test" is the first of them. Raises MissingInputError if a file is missing
    and cannot be downloaded, DamagedFileError if it does not have the SHA-256 of the data set.
    """
    dataset = find_dataset(name)
    if split == "test" and split not in dataset.splits:
        split = next(other for other in dataset.splits if other.startswith("test"))
    if split not in dataset.splits:
        raise TransduceError(f"The data set {name} has no split {split!r}.{nearest(split, list(dataset.splits))}")
    return dataset.load(split, places)
