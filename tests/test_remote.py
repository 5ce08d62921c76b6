"""Lakes on an S3-compatible store, and analyses in other processes, one of which is killed."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread, current_thread

import numpy as np
import pytest
import xarray as xr
from called import run_lake
from small_runs import prepared_run, tree, write_questions
from zarr.abc.store import Store
from zarr.core.sync import sync

import store.write
from analyze.cluster import compute_on
from extract.run.extract import extract
from extract.run.plan import plan
from schemas import CorruptLakeError, LakeError, MissingRunError, SpecMismatchError, UsageError
from store import RunLayout, create_run, open_lake, verify
from store.claim import lake_lock
from store.files import read_bytes, set_bytes
from store.location import open_store

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "toy.jsonl", 8)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """URL of an empty bucket on an S3 server of its own."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([BIN / "moto_server", "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    settings = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        for _ in range(600):
            try:
                request = urllib.request.Request(f"{address}/lakes", method="PUT")  # noqa: S310
                urllib.request.urlopen(request, timeout=5).close()  # noqa: S310
                break
            except OSError:
                time.sleep(0.1)
        yield "s3://lakes"
    server.terminate()
    server.wait()


def test_extraction_to_and_analysis_from_an_object_store(bucket: str, data: Path, tmp_path: Path) -> None:
    place, local = f"{bucket}/deep/toy.lake", tmp_path / "toy.lake"
    prepared = prepared_run(place, data, shard_examples=4)
    assert plan(prepared, place).free_bytes is None
    done = extract(prepared, place, part=(1, 2))
    assert done.shards_written == [1]
    assert open_lake(place)["toy/toy"]["example"].values.tolist() == [4, 5, 6, 7]
    assert extract(prepared, place).shards_written == [0]
    extract(prepared_run(local, data, shard_examples=4), local)
    xr.testing.assert_identical(open_lake(place)["toy/toy"].load(), open_lake(local)["toy/toy"].load())
    xr.testing.assert_identical(open_lake(place).model("toy"), open_lake(local).model("toy"))
    assert run_lake("analyze", "heads", place, "--resamples", "20") == 0
    assert run_lake("analyze", "heads", str(local), "--resamples", "20") == 0
    xr.testing.assert_identical(open_lake(place).result("heads"), open_lake(local).result("heads"))
    found = verify(place)
    assert (found.damage, found.files) == ([], len(tree(local)))
    with pytest.raises(SpecMismatchError, match="max_new_tokens"):
        prepared_run(place, data, shard_examples=4, max_new_tokens=5)
    with pytest.raises(MissingRunError, match="it has toy/toy"):
        open_lake(place)["toy/other"]


@pytest.mark.parametrize("where", ["bucket", "folder"])
def test_of_two_who_make_a_run_otherwise_at_once_one_is_told(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The second has seen that there is no such run before the first writes it."""
    place = f"{bucket}/at-once.lake" if where == "bucket" else tmp_path / "at-once.lake"
    layout = RunLayout(
        n_example=4, n_layer=1, n_head=1, hidden=8, n_latent=2, longest_question=3, n_answer=2, capture="latent",
        dtype="float16",
    )  # fmt: skip
    told: list[str] = []
    has_looked = Event()

    def make(dtype: str) -> None:
        columns = {"example": (("example",), np.arange(4)), "problem": (("example",), np.arange(4))}
        try:
            create_run(place, "m/d", layout, identity={"spec": {"dtype": dtype}}, columns=columns)
        except SpecMismatchError as error:
            told.append(str(error))

    second = Thread(target=make, args=("float32",))
    lock, write = store.write.lake_lock, store.write.write_files

    def at_the_lock(*arguments: object) -> AbstractContextManager[None]:
        if current_thread() is second:
            has_looked.set()
        return lock(*arguments)

    def written(target: Store, group: str, *arguments: object) -> None:
        if group == "m/d/record":
            second.start()
            assert has_looked.wait(60)
            if where == "bucket":  # nothing there makes it wait
                second.join()
        write(target, group, *arguments)

    monkeypatch.setattr(store.write, "lake_lock", at_the_lock)
    monkeypatch.setattr(store.write, "write_files", written)
    make("float16")
    second.join()
    assert len(told) == 1
    assert ("from something else" if where == "bucket" else "spec.dtype float16 there") in told[0]
    assert open_lake(place).attributes("m/d")["spec"]["dtype"] == "float16"
    assert open_lake(place).open("m/d", uncommitted=True)["problem"].values.tolist() == [0, 1, 2, 3]
    assert not read_bytes(open_store(place), "m/d/claim")


def test_a_claim_that_is_shared_outlives_one_who_is_stopped(bucket: str) -> None:
    place = f"{bucket}/shared.lake"
    with pytest.raises(KeyboardInterrupt), lake_lock(place, "m/d", "one"):
        raise KeyboardInterrupt
    with lake_lock(place, "m/d", "two"):  # nobody shared that claim, and it is gone
        with pytest.raises(KeyboardInterrupt), lake_lock(place, "m/d", "two"):
            raise KeyboardInterrupt
        with pytest.raises(SpecMismatchError, match="from something else"), lake_lock(place, "m/d", "three"):
            pass
    assert read_bytes(open_store(place), "m/d/claim") is None


def read_what_lies_at(place: str, key: str, example: slice | int) -> None:
    """Read the variable that a key of the run belongs to, or all of them where it belongs to none."""
    run = open_lake(place)["toy/toy"]
    run[[name for name in run if f"/{name}/" in key] or list(run)].isel(example=example).load()


def test_what_is_damaged_on_an_object_store_is_an_error(bucket: str, data: Path) -> None:
    place = f"{bucket}/hurt.lake"
    extract(prepared_run(place, data, shard_examples=4, capture="full"), place)
    store = open_store(place, read_only=False)
    expected = open_lake(place).open("toy/toy", chunks=None).load()  # a request a variable, not one for each chunk
    first, second = (f"toy/toy/hidden_state/c/{shard}/0/0/0" for shard in range(2))
    cuts = {
        first: (None, read_bytes(store, second), b"\0" * 10**5),
        "toy/toy/attention/c/1/0/0/0/0": (None, b""),
        "toy/toy/token/c/1/0": (None, read_bytes(store, "toy/toy/token/c/0/0")),
        "toy/toy/committed/c/1": (None, b"\0" * 8),
        "toy/toy/question/c/0": (None,),
        "toy/toy/hidden_state/zarr.json": (None,),
    }
    for key, others in cuts.items():
        whole = read_bytes(store, key)
        assert whole is not None
        for other in others:
            if other is None:
                sync(store.delete(key))
            else:
                set_bytes(store, key, other)
            example = 6 if "/c/1" in key else 1
            for one in (slice(None), example) if key == first else (example,):
                with pytest.raises(CorruptLakeError, match=f"{place}/{key} .* --rebuild"):
                    read_what_lies_at(place, key, one)
            set_bytes(store, key, whole)
    cell = open_lake(place)["toy/toy"]["hidden_state"].sel(layer=1, position="ct2")
    np.testing.assert_array_equal(cell, expected["hidden_state"].sel(layer=1, position="ct2"))
    xr.testing.assert_identical(open_lake(place).open("toy/toy", chunks=None).load(), expected)


class Web(SimpleHTTPRequestHandler):
    """Files, parts of them, and lists of folders; without ``ranges`` no parts, with ``page`` a sign-in page for all."""

    ranges, page = True, False

    def do_GET(self) -> None:
        """Answer."""
        asked, file = self.headers.get("Range"), Path(self.translate_path(self.path))
        if self.page or not (self.ranges and asked and file.is_file()):
            content = b"<!doctype html><title>Sign in</title>"
            return self.answer(200, content) if self.page else super().do_GET()
        first, last = asked.removeprefix("bytes=").split("-")
        content = file.read_bytes()
        part = slice(int(first), int(last) + 1) if first else slice(-int(last), None)
        return self.answer(206, content[part], f"bytes {part.start % len(content)}-/{len(content)}")

    def answer(self, status: int, content: bytes, part: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_lake_on_a_web_server(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = tmp_path / "toy.lake"
    extract(prepared_run(local, data, shard_examples=4), local)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Web, directory=str(tmp_path))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}/toy.lake"
        lake = open_lake(place)
        assert (lake.runs(), lake.models()) == (["toy/toy"], ["toy"])
        xr.testing.assert_identical(lake["toy/toy"].load(), open_lake(local)["toy/toy"].load())
        assert run_lake("info", place) == 0
        assert (verify(place).damage, verify(place).files) == ([], len(tree(local)))
        with monkeypatch.context() as patch:
            patch.setattr(Web, "list_directory", lambda self, path: self.send_error(404))
            with pytest.raises(LakeError, match="toy.lake does not list what lies there"):
                open_lake(place).runs()
            assert open_lake(place)["toy/toy"].sizes["example"] == 8
        Web.ranges = False
        with pytest.raises(LakeError, match=r"bytes of it, [\d,]+ came: its server does not answer range requests"):
            open_lake(place)["toy/toy"]["hidden_state"].isel(layer=0).load()
        Web.page = True
        with pytest.raises(UsageError, match="a web page came instead of zarr.json"):
            open_lake(place)
        server.shutdown()


def test_no_lake_at_a_url(bucket: str) -> None:
    with pytest.raises(UsageError, match="is no lake"):
        open_lake(f"{bucket}/nothing.lake")
    with pytest.raises(UsageError, match="cannot be opened"):
        open_lake("nosuchscheme://x/y.lake")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list["subprocess.Popen[bytes]"]]]:
    """Address of a scheduler with two workers, started anew: forked servers of dask wait for threads left behind."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    common = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    words = ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    started = [subprocess.Popen([BIN / "dask", *words], **common)]  # type: ignore[call-overload]
    for _ in range(2):
        words = ["worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny"]
        started.append(subprocess.Popen([BIN / "dask", *words], **common))  # type: ignore[call-overload]
    yield address, started[1:]
    for process in started:
        process.kill()
        process.wait()


def test_an_analysis_outlives_one_of_its_workers(
    cluster: tuple[str, list["subprocess.Popen[bytes]"]], tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, workers = cluster
    monkeypatch.chdir(tmp_path)
    extract(prepared_run("toy.lake", data, shard_examples=1), "toy.lake")
    here = open_lake("toy.lake")
    states = here["toy/toy"]["hidden_state"]
    expected = states.astype("float32").mean("example").load()

    def take_time(block: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        return block

    with compute_on(address):
        from distributed import get_client

        client = get_client()
        client.wait_for_workers(2, timeout=60)
        lazy = states.astype("float32")
        lazy = lazy.copy(data=lazy.data.map_blocks(take_time))
        future = client.compute(lazy.mean("example").data)
        late = time.monotonic() + 60
        while future.status == "pending" and not any(client.processing().values()) and time.monotonic() < late:
            time.sleep(0.02)
        workers[0].kill()
        np.testing.assert_allclose(future.result(timeout=120), expected.values, rtol=1e-6)
        assert len(client.scheduler_info()["workers"]) == 1
        assert os.getpid() not in client.run(os.getpid).values()
    assert run_lake("analyze", "heads", "toy.lake", "--resamples", "20", "--scheduler", address) == 0
    there = here.result("heads").load()
    assert run_lake("analyze", "heads", "toy.lake", "--resamples", "20") == 0
    xr.testing.assert_allclose(there, here.result("heads"))


def test_where_analyses_cannot_compute(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give one of them"), compute_on("tcp://127.0.0.1:1", 2):
        pass
    with pytest.raises(UsageError, match="at least 1"), compute_on(workers=0):
        pass


def test_a_command_that_spoke_to_an_object_store_leaves_no_interpreter_to_its_threads() -> None:
    code = (
        "import atexit, obstore, sys, lake\n"
        "class Late:\n    def __del__(self): print('taken down')\n"
        "late, sys.argv = Late(), ['lake', *sys.argv[1:]]\n"
        "atexit.register(print, 'at exit')\n"
        "lake.main()\n"
    )
    for words, status in (["--version"], 0), (["info", "none.lake"], 2):
        ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert ended.returncode == status
        assert ("lake format" in ended.stdout) == (status == 0)
        assert "at exit" in ended.stdout
        assert "taken down" not in ended.stdout
