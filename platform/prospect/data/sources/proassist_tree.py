"""ProAssist's released tree: `processed_data/<dataset>/` with generated_dialogs/, prepared/, frames/ and features/."""

from collections.abc import Iterator
from dataclasses import dataclass

from prospect.data.sources import proassist_generated, proassist_prepared
from prospect.data.sources.base import Reader, SourceFile
from prospect.data.sources.files import is_file, is_folder, list_files, list_folders
from prospect.data.sources.settings import DataSettings
from prospect.errors import ConfigError, DataError

DATASETS = ("assembly101", "ego4d", "egoexolearn", "epickitchens", "holoassist", "wtag")
"""The six, as the tree names their folders."""

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Tree:
    """The tree as a source: a folder's name is the data set of all its records."""

    patterns: tuple[str, ...] = ("generated_dialogs/*.json", "prepared/*.jsonl")

    def files(self, settings: DataSettings) -> list[SourceFile]:
        """The dialogue files of the wanted data sets, by data set and split.

        Raises:
            ConfigError: an unknown data set, or a `data.prepared` that names no kind and size.
            DataError: the tree, a wanted data set or its dialogue files are missing.
        """
        if not is_folder(settings.path):
            raise DataError(f"data.path: {settings.path} does not exist", field="data.path")
        found = {dataset: list(_files(settings, dataset)) for dataset in datasets_of(settings)}
        empty = [dataset for dataset, files in found.items() if not files]
        if empty and (settings.datasets or len(empty) == len(found)):
            raise _nothing(settings, empty[0])
        return [file for files in found.values() for file in files]


def datasets_of(settings: DataSettings) -> tuple[str, ...]:
    """The wanted data sets, or all of the tree.

    Raises:
        ConfigError: one is neither in the tree nor one of the six.
        DataError: one of the six is not in this tree, or the tree has none.
    """
    present = [name for name in list_folders(settings.path) if any(map(is_folder, _places(settings.path, name)))]
    for name in settings.datasets:
        if name in present:
            continue
        if name in DATASETS:
            raise DataError(
                f"data.datasets: {settings.path} holds no folder {name!r} with dialogues", field="data.datasets"
            )
        known = ", ".join(sorted({*DATASETS, *present}))
        raise ConfigError(f"data.datasets: {name!r} must be one of {known}", field="data.datasets")
    if not present:
        raise DataError(f"data.path: {settings.path} holds no <dataset>/generated_dialogs", field="data.path")
    return tuple(dict.fromkeys(settings.datasets)) or tuple(present)


def _places(path: str, dataset: str) -> tuple[str, str]:
    return f"{path}/{dataset}/generated_dialogs", f"{path}/{dataset}/prepared"


def _names(settings: DataSettings) -> list[str]:
    if not settings.prepared:
        return [f"{split}{settings.suffix}.json" for split in _SPLITS]
    kind, size, rest = settings.prepared.partition("_")
    if not (size and rest):
        example = f"{settings.prepared!r} is not a kind and size, such as dialog-klg_L4096_I1"
        raise ConfigError(f"data.prepared: {example}", field="data.prepared")
    return [f"{kind}_{split}_{rest}.jsonl" for split in _SPLITS]


def _folder(settings: DataSettings, dataset: str) -> tuple[str, Reader]:
    generated, prepared = _places(settings.path, dataset)
    return (prepared, proassist_prepared.READER) if settings.prepared else (generated, proassist_generated.READER)


def _files(settings: DataSettings, dataset: str) -> Iterator[SourceFile]:
    folder, reader = _folder(settings, dataset)
    for name in _names(settings):
        if is_file(f"{folder}/{name}"):
            yield SourceFile(reader, f"{folder}/{name}", dataset)


def _nothing(settings: DataSettings, dataset: str) -> DataError:
    folder, reader = _folder(settings, dataset)
    there = ", ".join(url.rsplit("/", 1)[-1] for url in list_files(folder, *reader.patterns)) or "nothing of the kind"
    field = "data.prepared" if settings.prepared else "data.suffix"
    return DataError(f"{field}: {folder} holds none of {', '.join(_names(settings))}, but {there}", field=field)


READER = Tree()
