"""A lake of two runs with results, and a server of it at work in a thread."""

import http.client
import json
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import uvicorn
import xarray as xr
from synthetic import make_model, make_run, write_run

from analyze.heads.analysis import head_analysis
from analyze.sae.dictionary import SAESpec, select_cells, train_sae
from analyze.serve.answers import Answers
from analyze.serve.app import application
from analyze.serve.listen import listening
from store import open_lake

N = 2000
RUN, FEW = "made-up/problems", "another/few"


def reentry(run: xr.Dataset) -> xr.Dataset:
    """A re-entry of two conditions, the second of which changes the answers of problems with odd numbers."""
    answer = run["predicted_answer"].values
    predicted = np.stack([answer, np.where(run["example"].values % 2, answer + 1, answer)])
    logprob = np.stack([np.zeros(len(answer)), -run["example"].values.astype(float)])
    return xr.Dataset(
        {
            "predicted_answer": (("condition", "example"), predicted),
            "answer_logprob": (("condition", "answer", "example"), logprob[:, None]),
            "accuracy": ("condition", [1.0, 0.5]),
        },
        coords={
            "condition": ["untouched", "zero ct1"],
            "operation": ("condition", ["", "zero"]),
            "group": ("condition", ["", "ct1"]),
            "example": run["example"].values,
        },
    )


def make_lake(place: Path) -> Path:
    """A run of 2,000 problems and one of 12, head scores, a dictionary and a re-entry."""
    model = make_model()
    run = make_run(name=RUN, n_example=N, n_answer=1, model=model)
    few = make_run(name=FEW, model=model, seed=3)
    write_run(place, run, model, shard_examples=500)
    write_run(place, few, model)
    opened = open_lake(place)
    first = run.isel(example=slice(0, 40))
    sae = train_sae(select_cells(first), SAESpec(features=12, epochs=2, batch_size=64, k=3), n_top=4)
    opened.write_result("sae", sae, runs=[RUN], spec={})
    opened.write_result(
        "heads", head_analysis(first["attention"], n_resample=5).compute(), runs=[RUN], spec={"convention": "thoughts"}
    )
    opened.write_result(
        "corrupt", reentry(run), runs=[RUN], spec={}, command=["lake", "reenter", "corrupt", "PATH", RUN]
    )
    return place


class Served:
    """A server at work in a thread."""

    def __init__(self, lake: Path, token: str = "") -> None:
        self.answers = Answers(lake)
        socket = listening("127.0.0.1", 0)
        self.port = socket.getsockname()[1]
        config = uvicorn.Config(application(self.answers, token=token), log_level="error", lifespan="off", ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [socket]})
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
        """Status, headers and content; the path is sent as it is given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host="host" in headers)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def get(self, question: str, **values: Any) -> Any:
        status, _, content = self.ask(f"/api/{question}?{urlencode(values)}")
        assert status == 200, content
        return json.loads(content)
