"""Works of one side of a comparison, done and timed in a process of its own, in whatever environment that has.

The process reads one line of JSON for each work and answers with one; what libraries print goes to stderr.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any


def processor_seconds() -> float:
    """Of all threads of this process and of children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of a work by the clock and of processors, and its value."""
    begun, used = time.perf_counter(), processor_seconds()
    value = work()
    return {"clock": time.perf_counter() - begun, "processor": processor_seconds() - used, "value": value}


def serve(works: Mapping[str, Callable[..., Any]]) -> None:
    """Do works by name until there are no more lines.

    Each gives ``None``, or JSON values that go back with the times.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        wanted = json.loads(line)
        done = timed(partial(works[wanted["work"]], **wanted["arguments"]))
        answers.write(json.dumps(done) + "\n")
