"""The groups of a lake and their sealed documents: what is there, of which model and run, and how it is read."""

import os
from typing import Any, NoReturn

import numpy as np
from zarr.abc.store import Store

from schemas import MODEL_VARIABLES, CorruptLakeError, LakeError, UsageError
from store.check import check_format
from store.files import RECORD, RESULTS, is_ours, join, names_below, read_bytes, unseal
from store.guard import Guard
from store.labels import missing
from store.layout import RunLayout
from store.location import local_path, open_store, place_of
from store.mend import foreign_weights, has_other_model, of_another_place
from store.record import DamagedFile, RunRecord


class Groups:
    """The runs and models of a lake, damaged ones too.

    Parameters
    ----------
    location
        Folder or URL.
    stored
        Hand out floats in the type they are stored in, see :func:`store.open_lake`.

    Raises
    ------
    UsageError
        If no lake lies there, or one of a newer format.
    CorruptLakeError
        If the lake's own document is damaged.
    """

    def __init__(self, location: str | os.PathLike[str], *, stored: bool = False) -> None:
        self.location = location
        self.stored = stored
        self.place = place_of(location)
        self.folder = local_path(self.place)
        if self.folder is not None and not self.folder.is_dir():
            raise UsageError(f"there is no lake at {location}; make one with lake extract")
        self._opened: tuple[int, Store] | None = None
        check_format(location, self.store)
        attributes = self._document("", "lake")
        if attributes is None or attributes.get("kind") != "lake":
            raise UsageError(f"{location} is no lake (no zarr.json that says so); make one with lake extract")

    def __getstate__(self) -> dict[str, Any]:
        """What it was made of; no connection."""
        return {**self.__dict__, "_opened": None, "_models": {}, "_handed": {}}

    @property
    def store(self) -> Store:
        """The lake's files, opened by this process: connections do not outlive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), open_store(self.place)
        return self._opened[1]

    def children(self, path: str) -> list[str]:
        """Names of what lies directly below a place, in order.

        Raises
        ------
        LakeError
            If a document is there that the place does not list, as on a web server that lists nothing.
        """
        names = names_below(self.store, path)
        if self.folder is None and "zarr.json" not in names and self._has(join(path, "zarr.json")):
            raise LakeError(
                f"{join(str(self.location), path)} does not list what lies there, so that what the lake holds is not"
                " known: name a run, let the server list its folders, or copy the lake to this machine"
            )
        return [name for name in names if name != "zarr.json"]

    def _has(self, key: str) -> bool:
        return read_bytes(self.store, key) is not None

    def _kind(self, path: str) -> str | None:
        """Kind of a group, also where a run's or model's document is damaged or lost; ``None`` of what is no lake's."""
        content = read_bytes(self.store, f"{path}/zarr.json")
        attributes = unseal(content or b"")
        kind = "run" if "/" in path else "model"
        if attributes is not None and attributes.get("kind") == kind:
            return kind
        if kind == "model":
            return kind if content is not None and self._has(f"{path}/unembedding/zarr.json") else None
        whole = content is not None or any(name == "c" for name in self.children(f"{path}/committed"))
        return kind if whole and self._has(f"{path}/{RECORD}/zarr.json") else None

    def _document(self, path: str, kind: str) -> dict[str, Any] | None:
        """Attributes of a group's document; ``None`` if there is none."""
        content = read_bytes(self.store, join(path, "zarr.json"))
        attributes = unseal(content or b"")
        if attributes is None and content is not None:
            if self.folder is None and content.lstrip()[:1] == b"<":
                where = f"{self.location}: a web page came instead of {join(path, 'zarr.json')}"
                raise UsageError(f"{where}; look at the address, and whether one has to sign in there")
            if not path and not is_ours(content):
                return None
            self._fail(path, kind, "does not agree with its own seal")
        return attributes

    def _fail(self, path: str, kind: str, problem: str) -> NoReturn:
        """Raise :class:`CorruptLakeError` of a group's document."""
        if kind == "lake":
            where = join(str(self.folder or self.location), "zarr.json")
            command = f"any lake extract of a run of this lake, with --lake {self.location} --rebuild static"
            raise CorruptLakeError(f"{where} {problem}; mend it with: {command}")
        group = path.removesuffix(f"/{RECORD}") if kind == "run" else path
        key = join(path.removeprefix(group).strip("/"), "zarr.json")
        raise Guard(self.place, group, kind, {}).error(DamagedFile(key, None, problem))

    def models(self) -> list[str]:
        """Names of the models."""
        return [name for name in self.children("") if name != RESULTS and self._kind(name) == "model"]

    def runs(self) -> list[str]:
        """Names of the runs, ``MODEL/DATASET``, damaged ones too."""
        models = (name for name in self.children("") if name != RESULTS)
        names = (f"{model}/{name}" for model in models for name in self.children(model) if name not in MODEL_VARIABLES)
        return [run for run in names if self._kind(run) == "run"]

    def attributes(self, run: str) -> dict[str, Any]:
        """Attributes of a run: spec, layout, fingerprints, provenance.

        Raises
        ------
        MissingRunError
            If the run is not in the lake.
        CorruptLakeError
            If the run's document or its record is damaged, or they are of two runs.
        """
        return self._run(run)[0]

    def _run(self, run: str) -> tuple[dict[str, Any], Guard]:
        """Attributes of a run, and what reads its files."""
        attributes = self._document(run, "run")
        if attributes is None and self._kind(run) == "run":
            self._fail(run, "run", "is not there")
        moved = attributes and of_another_place(run, attributes)
        if attributes is None or attributes.get("kind") != "run" or (moved and run not in self.runs()):
            raise missing(self.location, "run", run, self.runs())
        if moved:
            raise CorruptLakeError(f"{self.location}: {moved}")
        record = self._document(f"{run}/{RECORD}", "run")
        if record is None:
            self._fail(f"{run}/{RECORD}", "run", "is not there")
        if (record.get("kind"), record.get("fingerprint")) != ("record", attributes["fingerprint"]):
            self._fail(run, "run", f"is of another run than {RECORD}/zarr.json")
        digests = {key.removeprefix("../"): digest for key, digest in record["files"].items() if key.startswith("../")}
        layout = RunLayout.from_json(attributes["layout"])
        known = RunRecord(layout, checksums="crc32c/zarr.json" in record["files"])
        return attributes, Guard(self.place, run, "run", digests, known, attributes["fingerprint"])

    def model_attributes(self, name: str) -> dict[str, Any]:
        """Attributes of a model: sizes, special tokens, checkpoint, fingerprints.

        Raises
        ------
        MissingRunError
            If the model is not in the lake.
        """
        attributes = self._document(name, "model")
        if attributes is None and self._has(f"{name}/unembedding/zarr.json"):
            self._fail(name, "model", "is not there")
        if attributes is None or attributes.get("kind") != "model":
            raise missing(self.location, "model", name, self.models())
        for run in (f"{name}/{child}" for child in self.children(name)):
            made_with = unseal(read_bytes(self.store, f"{run}/zarr.json") or b"") or {}
            if has_other_model(made_with, attributes):
                raise CorruptLakeError(f"{self.location}: {foreign_weights(run)}")
        return attributes

    def layout(self, run: str) -> RunLayout:
        """Axes of a run."""
        return RunLayout.from_json(self.attributes(run)["layout"])

    def committed(self, run: str) -> np.ndarray:
        """Which shards of a run are committed: (shard,) bool."""
        return self._run(run)[1].committed()
