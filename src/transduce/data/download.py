"""Files of known SHA-256, from a local folder, a cache, or the network.

Wherever they come from, their bytes have that hash, or an error says what to do.
"""

import http.client
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import BinaryIO

from transduce.data.compression import decompressed
from transduce.errors import DamagedFileError, DataError, MissingInputError
from transduce.files.atomic import write_atomically
from transduce.files.content import sha256_of, sha256_of_file
from transduce.files.system_errors import explained_write_errors

DEFAULT_CACHE = Path("~/.cache/transduce")
_TIMEOUT_SECONDS, _MOST_SECONDS = 30.0, 600.0  # without a byte; for a file


def open_url(url: str) -> BinaryIO:
    """A stream of the bytes at `url`; the default of every `open_url` argument here."""
    return urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS)


def _refuse_url(url: str) -> BinaryIO:
    raise MissingInputError(f"{url} is not available offline.")


@dataclass(frozen=True)
class Places:
    """Where the files of named data sets come from: a local folder, a cache, and the network.

    `root` holds `multi30k/train.en` and the like; without it they are downloaded into `cache`.
    """

    root: str | Path | None = None
    cache: str | Path = DEFAULT_CACHE
    open_url: Callable[[str], BinaryIO] = open_url

    def offline(self) -> "Places":
        """The same places without the network: a missing file is not downloaded."""
        return replace(self, open_url=_refuse_url)


@dataclass(frozen=True)
class DataFile:
    """One file of a data set: its path below a root folder, the hash of its content, its public address."""

    path: str
    sha256: str  # of the unpacked content
    url: str | None = None  # may lead to a compressed file; None where no public copy has these bytes
    advice: str = ""  # how to get it if it cannot be downloaded
    most_bytes: int = 100_000_000  # of its content: no more is downloaded or unpacked


def locate(file: DataFile, places: Places) -> Path:
    """The path of a copy of `file` with the right SHA-256, downloaded into the cache if necessary."""
    if places.root is not None and (path := Path(places.root) / file.path).is_file():
        if (digest := sha256_of_file(path)) != file.sha256:
            raise DamagedFileError(
                f"{path}: its SHA-256 is {digest}, but this data set has {file.sha256}. "
                "Download it again, or use it as a file of your own."
            )
        return path
    path = Path(places.cache).expanduser() / file.path
    if path.is_file() and sha256_of_file(path) == file.sha256:
        return path
    content = _download(file, places)
    with explained_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path


def _download(file: DataFile, places: Places) -> bytes:
    sub_folder = Path(file.path).parent.name
    by_hand = f"Put it by hand at ROOT/{file.path}, unpacked, and set TRANSDUCE_DATA to ROOT."
    if file.url is None:
        where = "TRANSDUCE_DATA is not set" if places.root is None else f"not in {places.root}"
        raise MissingInputError(
            f"{file.path}: {where}, and it cannot be fetched: {file.advice} "
            f"Put the files into ROOT/{sub_folder} and set TRANSDUCE_DATA to ROOT."
        )
    outcome: Future[bytes] = Future()
    # In a thread, since a server that sends a byte now and then can make each call last for days, that of opening, too.
    Thread(target=_fetch, args=(file.url, file.most_bytes, places, outcome), daemon=True).start()
    try:
        content = outcome.result(_MOST_SECONDS)
    except (OSError, http.client.HTTPException) as error:  # URLError, HTTPError and TimeoutError are OSErrors
        reason = " ".join(str(error).split()) or f"not done in {_MOST_SECONDS:.0f} seconds"
        raise MissingInputError(f"{file.url}: download failed ({reason}). {by_hand}") from None
    except DataError as error:
        raise DamagedFileError(f"{error} {by_hand}") from None
    if (digest := sha256_of(content)) != file.sha256:
        raise DamagedFileError(
            f"{file.url}: the SHA-256 of the download is {digest}, but {file.sha256} was expected: "
            f"the file has changed, or was altered on the way. {by_hand}"
        )
    return content


def _fetch(url: str, most_bytes: int, places: Places, outcome: "Future[bytes]") -> None:
    """Give `outcome` the content at `url`, decompressed, or what went wrong."""
    try:
        with places.open_url(url) as stream:
            # Hardly any file grows by compression, but empty compressed streams may follow without an end.
            outcome.set_result(decompressed([stream.read(2 * most_bytes)], url, most=most_bytes))
    except Exception as error:
        outcome.set_exception(error)
