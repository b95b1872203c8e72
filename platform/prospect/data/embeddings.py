"""The embedding store: one file of embeddings a video (docs/architecture.md#embedding-store).

    ROOT/VIDEO.safetensors   `frames` float16 [T, I, D]; header: `StoredVideo` without sizes and file
    ROOT/manifest.parquet    one row a video, for tools; the files' headers decide
    ROOT/quarantine.json     videos that could not be embedded, each with its reason
    ROOT/decoder.json        videos of an earlier decoder that were found to decode alike

`VIDEO` is the video id, percent-encoded or shortened (`stored_names`). A file appears under its name only when it is
complete.
"""

import hashlib
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from prospect.data.stored_names import SUFFIX, hashed_name, id_of, plain_name
from prospect.errors import DataError, FingerprintError
from prospect.files import open_filesystem, write_file

MANIFEST = "manifest.parquet"
QUARANTINE = "quarantine.json"
DECODER = "decoder.json"

FIRST_DECODER = 1
"""Version of the decoder of files whose header names none."""

ABANDONED_S = 3600
"""Age from which a temporary file counts as left by a job that died."""


@dataclass(frozen=True)
class StoredVideo:
    """One row of the manifest."""

    video_id: str
    num_frames: int
    """T."""
    tokens: int
    """I."""
    dim: int
    """D."""
    fps: float
    source_hash: str
    """SHA-256 of the video file that the embedding was made from."""
    fingerprint: str
    """Hash of encoder, weights, resize and sampling."""
    content_hash: str
    """SHA-256 of the embedding's values in C order, little-endian; empty in files of early versions."""
    decoder: int
    """Version of the decoder that gave its pictures."""
    file: str
    """Name inside the store."""


_COLUMN_TYPES: dict[object, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64()}


class EmbeddingStore:
    """Embeddings of many videos, all of one fingerprint.

    Args:
        root: a local folder or a URL of any pyarrow or fsspec file system (`s3://bucket/embeddings`). The first
            `write` creates it.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        self._fs, self._path = open_filesystem(self.root)

    def write(
        self,
        video_id: str,
        frames: np.ndarray,
        *,
        fps: float,
        source_hash: str,
        fingerprint: str,
        decoder: int = FIRST_DECODER,
    ) -> StoredVideo:
        """Store `frames` [T, I, D], replacing an embedding of the same video atomically.

        Args:
            video_id: any text.
            frames: the embedding.
            fps: frames a second.
            source_hash: see `StoredVideo`, as all below.
            fingerprint: must be that of the store.
            decoder: version of the decoder.

        Raises:
            DataError: the shape is not [T, I, D] or empty, or a value is not finite.
            FingerprintError: the store holds embeddings of another fingerprint.
        """
        if frames.ndim != 3 or 0 in frames.shape:
            raise DataError(f"embedding of {video_id!r} has shape {list(frames.shape)}, expected [T, I, D]")
        with np.errstate(over="ignore"):
            frames = np.ascontiguousarray(frames, np.float16)
        if not np.isfinite(frames).all():
            raise DataError(f"embedding of {video_id!r} holds values that are not finite in float16")
        if self._any is not None:
            self.require(fingerprint)
        content_hash = hashlib.sha256(frames.data).hexdigest()
        header = {"video_id": video_id, "fps": repr(fps), "source_hash": source_hash, "fingerprint": fingerprint}
        header |= {"content_hash": content_hash, "decoder": str(decoder)}
        name = self._free_name(video_id)
        self._put(name, _serialised(frames, header))
        self.__dict__.pop("_any", None)
        T, tokens, dim = frames.shape
        return StoredVideo(video_id, T, tokens, dim, fps, source_hash, fingerprint, content_hash, decoder, name)

    def read(self, video_id: str, start: int | None = None, stop: int | None = None) -> np.ndarray:
        """Read frames [start, stop), and nothing else of the file, as float16 [stop - start, I, D].

        Raises:
            DataError: the store lacks the video, or the span reaches outside [0, T].
        """
        with self._open(video_id) as (file, stored, offset):
            start, stop = 0 if start is None else start, stored.num_frames if stop is None else stop
            if not 0 <= start <= stop <= stored.num_frames:
                raise DataError(
                    f"frames [{start}, {stop}) of {video_id!r} must lie within the {stored.num_frames} frames of its "
                    f"embedding in {self.root}"
                )
            row = stored.tokens * stored.dim * np.dtype(np.float16).itemsize
            data = file.read_at((stop - start) * row, offset + start * row)
        return np.frombuffer(bytearray(data), np.float16).reshape(stop - start, stored.tokens, stored.dim)

    def stored(self, video_id: str) -> StoredVideo:
        """Read the description of one video; raises DataError if the store lacks it."""
        with self._open(video_id) as (_, stored, _):
            return stored

    def num_frames(self, video_id: str) -> int:
        """T of one video; raises DataError if the store lacks it."""
        return self.stored(video_id).num_frames

    def has(self, video_id: str, source_hash: str, fingerprint: str) -> bool:
        """Whether the store holds the embedding of this very file by this very encoder."""
        try:
            stored = self.stored(video_id)
        except DataError:
            return False
        return (stored.source_hash, stored.fingerprint) == (source_hash, fingerprint)

    def video_ids(self) -> list[str]:
        """All stored videos, sorted; empty for a store that does not exist."""
        infos = self._fs.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
        names = [info.base_name for info in infos if info.is_file and info.base_name.endswith(SUFFIX)]
        return sorted(filter(None, (id_of(name) or self._id_inside(name) for name in names)))

    @property
    def fingerprint(self) -> str:
        """The fingerprint of every embedding here; raises DataError if there is none."""
        return self._first().fingerprint

    @property
    def dim(self) -> int:
        """D; raises DataError on an empty store."""
        return self._first().dim

    @property
    def tokens_per_frame(self) -> int:
        """I; raises DataError on an empty store."""
        return self._first().tokens

    def require(self, fingerprint: str, equivalent_to: Collection[str] = ()) -> None:
        """Refuse a store of another fingerprint.

        Args:
            fingerprint: the expected one.
            equivalent_to: others that are declared equivalent (`vision.equivalent_to`).

        Raises:
            FingerprintError: the store has another fingerprint; the message names both.
            DataError: the store is empty.
        """
        if self.fingerprint not in {fingerprint, *equivalent_to}:
            raise FingerprintError(
                f"embeddings in {self.root} have fingerprint {self.fingerprint}, expected {fingerprint}; use the "
                f"encoder settings that they were made with, or another folder, or declare them equivalent with "
                f"vision.equivalent_to=[{self.fingerprint}]",
                field="fingerprint",
            )

    def commit(self) -> list[StoredVideo]:
        """Write the manifest from the files' headers and return its rows.

        Raises:
            FingerprintError: two jobs with different settings wrote here at the same time.
        """
        rows = [self.stored(video_id) for video_id in self.video_ids()]
        for row in rows:
            self.require(row.fingerprint)
        schema = pa.schema([(field.name, _COLUMN_TYPES[field.type]) for field in fields(StoredVideo)])
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema), sink)
        self._put(MANIFEST, sink.getvalue().to_pybytes())
        return rows

    def finish(self, sources: Mapping[str, str], reasons: Mapping[str, str]) -> list[StoredVideo]:
        """End a job: update the quarantine list, delete abandoned temporary files and write the manifest.

        Args:
            sources: video id -> path, for all videos of the job; entries of other videos stay.
            reasons: video id -> why it could not be embedded.
        """
        before = self.quarantined()
        entries = {video_id: entry for video_id, entry in before.items() if video_id not in sources}
        entries |= {video_id: {"path": sources[video_id], "reason": reason} for video_id, reason in reasons.items()}
        if entries != before:
            self.write_quarantine(entries)
        self._sweep()
        return self.commit()

    def _sweep(self) -> None:
        """Delete abandoned temporary files."""
        for info in self._fs.get_file_info(fs.FileSelector(self._path, allow_not_found=True)):
            abandoned = info.mtime_ns is not None and time.time() - info.mtime_ns / 1e9 > ABANDONED_S
            if info.is_file and info.base_name.endswith(".partial") and abandoned:
                self._fs.delete_file(info.path)

    def quarantined(self) -> dict[str, dict[str, str]]:
        """Read the videos that could not be embedded: id -> {`path`, `reason`}."""
        try:
            with self._fs.open_input_file(f"{self._path}/{QUARANTINE}") as file:
                return dict(json.loads(file.read()))
        except FileNotFoundError:
            return {}

    def write_quarantine(self, entries: Mapping[str, Mapping[str, str]]) -> None:
        """Replace the list of videos that could not be embedded."""
        self._put(QUARANTINE, json.dumps(entries, indent=2, sort_keys=True, ensure_ascii=False).encode())

    def note_alike(self, video_ids: Collection[str], decoder: int) -> None:
        """Note that this decoder gives the same pictures of these videos as the one that their headers name."""
        if not set(video_ids) <= (before := self.alike(decoder)):
            noted = {"decoder": decoder, "alike": sorted(before | set(video_ids))}
            self._put(DECODER, json.dumps(noted, indent=2, ensure_ascii=False).encode())

    def alike(self, decoder: int) -> set[str]:
        """Read the videos that `note_alike` noted for this decoder."""
        try:
            with self._fs.open_input_file(f"{self._path}/{DECODER}") as file:
                noted = json.loads(file.read())
        except FileNotFoundError:
            return set()
        return set(noted["alike"]) if noted["decoder"] == decoder else set()

    def unchecked(self, decoder: int) -> list[str]:
        """List videos of an earlier decoder that were not compared with this one, as the manifest has them."""
        try:
            with self._fs.open_input_file(f"{self._path}/{MANIFEST}") as file:
                rows = pq.read_table(file).to_pylist()
        except FileNotFoundError:
            return []
        earlier = {row["video_id"] for row in rows if row.get("decoder", FIRST_DECODER) < decoder}
        return sorted(earlier - self.alike(decoder))

    def _put(self, name: str, data: bytes | Iterable[bytes]) -> None:
        write_file(self._fs, f"{self._path}/{name}", data)

    @contextmanager
    def _open(self, video_id: str) -> Iterator[tuple[pa.NativeFile, StoredVideo, int]]:
        """Open a video's file and read its header; a file of an id that differs by case alone is passed over."""
        for name in filter(None, (plain_name(video_id), hashed_name(video_id))):
            try:
                file = self._fs.open_input_file(f"{self._path}/{name}")
            except FileNotFoundError:
                continue
            with file:
                stored, offset = _read_header(file, f"{self.root}/{name}")
                if stored.video_id == video_id:
                    yield file, stored, offset
                    return
        raise DataError(f"video {video_id!r} has no embedding in {self.root}; run jobs/embed.py for it")

    def _free_name(self, video_id: str) -> str:
        """Choose the name to write under: where case does not count, a plain one may be another video's."""
        plain = plain_name(video_id)
        if plain is None or self._id_inside(plain) not in (None, video_id):
            return hashed_name(video_id)
        return plain

    def _id_inside(self, name: str) -> str | None:
        """Read the video id in a file's header; None if the file is missing or damaged."""
        path = f"{self._path}/{name}"
        try:
            with self._fs.open_input_file(path) as file:
                return _read_header(file, path)[0].video_id
        except (FileNotFoundError, DataError):
            return None

    @cached_property
    def _any(self) -> StoredVideo | None:
        """Any readable video, or None; it stands for all, since a store never mixes fingerprints.

        Damaged files are passed over, so that writing their videos again repairs them.
        """
        for video_id in self.video_ids():
            try:
                return self.stored(video_id)
            except DataError:
                continue
        return None

    def _first(self) -> StoredVideo:
        if self._any is None:
            self.__dict__.pop("_any")
            raise DataError(f"no embeddings in {self.root}; run jobs/embed.py first")
        return self._any


def _serialised(frames: np.ndarray, metadata: Mapping[str, str]) -> tuple[bytes, bytes]:
    """Build a safetensors file in two parts; the library's `save` orders metadata differently in every process."""
    tensor = {"dtype": "F16", "shape": frames.shape, "data_offsets": [0, frames.nbytes]}
    header = json.dumps({"__metadata__": metadata, "frames": tensor}, sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header, frames.tobytes()


def _read_header(file: pa.NativeFile, name: str) -> tuple[StoredVideo, int]:
    """Read an open file's description and the byte at which its frames begin."""
    try:
        length = int.from_bytes(file.read_at(8, 0), "little")
        header = json.loads(file.read_at(length, 8))
        meta, tensor = header["__metadata__"], header["frames"]
        T, tokens, dim = tensor["shape"]
        video = StoredVideo(
            meta["video_id"],
            T,
            tokens,
            dim,
            float(meta["fps"]),
            meta["source_hash"],
            meta["fingerprint"],
            meta.get("content_hash", ""),
            int(meta.get("decoder", FIRST_DECODER)),
            name.rsplit("/", 1)[-1],
        )
        if tensor["dtype"] != "F16" or file.size() != 8 + length + tensor["data_offsets"][1]:
            raise ValueError("its size or type is not what its header says")
        return video, 8 + length + tensor["data_offsets"][0]
    except (ValueError, KeyError, TypeError, OverflowError, OSError) as error:
        raise DataError(f"embedding file {name} is damaged ({error}); delete it and embed the video again") from error
