"""Conversations kept under the hash of their content, so that nothing is asked twice.

`<folder>/<key>.json` is one `Exchange`, written whole after every answer and every failure.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from pyarrow import fs
from pydantic import ValidationError

from prospect.errors import DataError
from prospect.files import open_filesystem, write_file
from prospect.llm.exchange import Exchange

E = TypeVar("E", bound=Exchange)
READERS = 16
"""Files read at the same time: on an object store each takes a round trip."""


class Cache(Generic[E]):
    """Conversations of one kind on any file system.

    Args:
        root: path or URL of the storage root.
        folder: where below it they lie.
        kind: class of the conversations.
    """

    def __init__(self, root: str, folder: str, kind: type[E]) -> None:
        self.filesystem, base = open_filesystem(root)
        self.folder = f"{base}/{folder}"
        self._kind = kind

    def recall(self, exchanges: Iterable[E]) -> list[E]:
        """Each conversation as it is kept, or as it is given.

        Raises:
            DataError: a file is damaged.
        """
        with ThreadPoolExecutor(READERS) as readers:
            return [*readers.map(lambda exchange: self.find(exchange.key) or exchange, exchanges)]

    def find(self, key: str) -> E | None:
        """The conversation with this key, if it is kept.

        Raises:
            DataError: the file is damaged.
        """
        text = self.read(f"{key}.json")
        if text is None:
            return None
        try:
            return self._kind.model_validate_json(text)
        except ValidationError as error:
            path = f"{self.folder}/{key}.json"
            raise DataError(f"{path} is not a conversation with a language model: delete it to ask again") from error

    def keep(self, exchange: E) -> None:
        self.write(f"{exchange.key}.json", exchange.model_dump_json(indent=1))

    def read(self, name: str) -> str | None:
        """The text of a file; None if there is none."""
        path = f"{self.folder}/{name}"
        if self.filesystem.get_file_info(path).type != fs.FileType.File:
            return None
        with self.filesystem.open_input_stream(path) as file:
            return file.read().decode()

    def write(self, name: str, text: str) -> None:
        write_file(self.filesystem, f"{self.folder}/{name}", text.encode())

    def names(self, folder: str) -> Sequence[str]:
        """Files in a folder of the cache, sorted, as `read` takes them."""
        selector = fs.FileSelector(f"{self.folder}/{folder}", allow_not_found=True)
        found = (info.base_name for info in self.filesystem.get_file_info(selector))
        return sorted(f"{folder}/{name}" for name in found if name.endswith(".json") and not name.startswith("."))
