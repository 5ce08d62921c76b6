"""Every analysis of a lake, and its report: what it says that it takes, and what it takes.

    python benchmarks/analyses.py LAKE [RUN]... [--only NAME,..] [--options ".."] [--out FILE.json]

Each is asked for its plan and then run, in a process of its own, on one thread: bytes of chunks that are read, seconds
of processor and clock, the largest memory. ``LAKE`` is one of ``sizes.py --keep``; results are stored in it. Rows are
added to those of FILE.json, and take the place of those of the same analysis and options in the table
``analyses-NAME`` of RESULTS.md, NAME that of the lake. Comparisons and the report are of two runs, the others of one.

processor    of the analysis, with storing and printing its result, of all threads; "told" is what ``--plan`` said.
before       of the processor, too: the start of the program and its libraries, some 3 s, and of what takes over a
             minute the trial from which that is said first.
GB           the largest memory of the process, the trial included.
MB read      by the analysis, without what the trial reads but for the model's read-out, which stays.
arithmetic   the operations that an analysis declares over the rate of a product of matrices in the same minute, by
             processor time: how much of it the formula needs. A dictionary declares whole products, of which its
             training takes those with active codes alone.

What takes more than 1.5 times its arithmetic, by samples of where the processor was: attention reads in .70 of them
(checksums, decompression, copies), correlate in .59, heads in .32, and in .32 adds up resamples and scores of each
example; attribution multiplies with the unembedding in .65 (512 states at a time take 1.06 times as long as a large
product, the 64 to 256 of the last places of answers 1.2 to 1.6 times) and reads in .16; depth in .69, and ranks and
adds up what comes of it in .25; similarity picks the pairs of problems of each draw in .37 and multiplies them in .38.
Two thirds of a fit of probes and transfer are products of states with few columns at a time, below the rate of large
ones. geometry at LLaMA-1B's sizes: .62 are components (first tokens of states and of a few of their axes, and
eigenvectors), .27 the shape of halves and of states shuffled component by component (.15 the shuffling alone), .1
rotations of every two places; its arithmetic is products alone: told has eigenvectors, rotations, shuffles and reading
as well, each timed by itself. errors and features multiply a few states at a time for
each place; traces search trees, and count for each token asked for how many outrank it; the report reads out states of
the problems that can be picked (.33 of it at GPT-2's sizes, .59 at LLaMA-1B's) and draws (.3 and .13). Others used
the machine meanwhile (load 4 to 8 at GPT-2's sizes, 2 to 9 at LLaMA-1B's), which adds to seconds of the processor.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results

ROOT = Path(__file__).parents[1]
LINES: dict[str, list[str]] = {
    "heads": [],
    "attention": [],
    "lens": [],
    "depth": [],
    "traces": [],
    "attribution": [],
    "correlate": [],
    "probes": [],
    "sae": [],
    "errors": [],
    "features": [],
    "geometry": [],
    "similarity": [],
    "stability": [],
    "transfer": [],
    "compare": [],
    "verdict": [],
    "report": [],
}
"""Analyses in an order in which what one leaves is there for the next, and their options."""
SEVERAL = {"similarity", "stability", "transfer", "compare", "report"}
"""Those that are asked of all runs; the others of the first, or of the first that keeps parts of the blocks."""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def child(words: list[str]) -> None:
    """Run a command and write what it took as the last line of standard error."""
    from analyze import running
    from lake import app
    from store import Lake, model_bytes

    read, readouts, model = {"chunks": 0}, {}, Lake.model

    def counting(system_call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            got = system_call(*arguments)
            read["chunks"] += got if isinstance(got, int) else len(got)
            return got

        return counted

    def noted_model(lake: Lake, name: str) -> Any:
        readouts[name] = model_bytes(lake, name)
        return model(lake, name)

    os.pread, os.preadv = counting(os.pread), counting(os.preadv)  # by which alone shards are read
    Lake.model = noted_model  # type: ignore[method-assign]
    analyse, start = running.analyse, {"seconds": time.perf_counter(), "cpu": time.process_time()}

    def noted(*arguments: Any) -> Any:  # from here on it is the analysis, which no trial is part of
        start.update(seconds=time.perf_counter(), cpu=time.process_time())
        read.update(chunks=0)  # the read-out stays from the trial
        yield from analyse(*arguments)

    running.analyse = noted  # type: ignore[assignment]
    app(args=words, standalone_mode=False)
    taken = {
        "seconds": time.perf_counter() - start["seconds"], "cpu": time.process_time() - start["cpu"],
        "before": start["cpu"], "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **read, "model": sum(readouts.values()),
    }  # fmt: skip
    print(json.dumps(taken), file=sys.stderr)


def measured(words: list[str], timeout: float) -> dict[str, Any]:
    """What a command took; or what it said where it failed."""
    command = [sys.executable, __file__, "--child", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {timeout:.0f} s"}
    lines = done.stderr.strip().splitlines() or [""]
    if done.returncode:
        return {"failed": lines[-1]}
    return {**json.loads(lines[-1]), "said": lines[:-1], "printed": done.stdout}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=Path)
    parser.add_argument(
        "runs", nargs="*", help="by default all for comparisons and the report, else the first that will do"
    )
    parser.add_argument("--only", default=",".join(LINES))
    parser.add_argument("--options", default="", help="added to every command, as '--limit 500'")
    parser.add_argument("--timeout", type=float, default=1200)
    parser.add_argument("--out", type=Path, default=Path("analyses.json"))
    given = parser.parse_args()
    from analyze.cost import product_rate  # not in the processes that are timed
    from store import open_lake

    lake = open_lake(given.lake)
    with_parts = [run for run in lake if "mlp_output" in lake[run]]
    rows = json.loads(given.out.read_text()) if given.out.exists() else []
    folder = str(given.out.absolute().with_suffix(".report"))
    for name in given.only.split(","):
        one = (with_parts if name == "attribution" else list(lake))[:1]
        runs = given.runs or (list(lake) if name in SEVERAL else one)
        words = [str(given.lake), *runs, *LINES[name], *given.options.split()]
        words = ["report", *words, "--out", folder] if name == "report" else ["analyze", name, *words]
        plan = measured([*words, "--plan", "--json"], given.timeout)
        told = json.loads(plan["printed"]) if "printed" in plan else {}
        if name == "report":  # says nothing of bytes and operations, and of its problems but how many can be picked
            told = {"": {**told, "n_example": told.get("n_problem", 0), "n_byte": 0, "operations": 0}}
        taken = measured(words, given.timeout)
        taken.pop("printed", None)
        row = {"analysis": name, "lake": given.lake.stem, "options": given.options, "rate": product_rate(),
               "plan": list(told.values()), "plan_cpu": plan.get("cpu"), **taken}  # fmt: skip
        rows.append(row)
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
        print(line(row), flush=True)
    last = {(row["analysis"], row["options"]): row for row in rows if "failed" not in row}
    shown = [table_row(row) for row in last.values()]
    stored = {str(lake[run]["hidden_state"].dtype) for run in lake}
    text = (
        f"States and attention are stored in {' and '.join(stored)}. "
        + __doc__.partition("\n\n")[2].partition("\n\n")[2]
    )
    title = f"Every analysis of the lake {given.lake.stem}: what it takes, and what it says beforehand"
    command = f"python benchmarks/analyses.py {given.lake.name} --only ANALYSIS --options '..'"
    results.keep(f"analyses-{given.lake.stem}", title, shown, text=text, command=command, by=["analysis", "options"])


def table_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of RESULTS.md."""
    told = row["plan"]
    seconds = sum(plan["seconds"] or 0 for plan in told)
    n_byte, operations = (sum(plan[key] for plan in told) for key in ("n_byte", "operations"))
    return {
        "analysis": row["analysis"],
        "options": row["options"],
        "examples": sum(plan["n_example"] for plan in told),
        "before s": row["before"],
        "processor s": row["cpu"],
        "told s": seconds or None,
        "arithmetic s": operations / row["rate"],
        "GB": row["memory"] / 1e9,
        "GB told": max(plan["memory"] for plan in told) / 1e9,
        "MB read": (row["chunks"] + row["model"]) / 1e6,
        "MB told": n_byte / 1e6,
    }


def line(row: dict[str, Any]) -> str:
    """A row in a few words."""
    if "failed" in row:
        return f"{row['analysis']}: {row['failed']}"
    told = row["plan"]
    seconds = sum(plan["seconds"] or 0 for plan in told)
    n_byte, operations = (sum(plan[key] for plan in told) for key in ("n_byte", "operations"))
    read = row["chunks"] + row["model"]
    told_memory = max((plan["memory"] for plan in told), default=0)
    return (
        f"{row['analysis']}: {row['cpu']:.1f} s of processor ({seconds:.1f} told, {seconds / row['cpu']:.2f}),"
        f" {row['seconds']:.1f} s by the clock, {row['before']:.1f} s before;"
        f" {row['memory'] / 1e9:.2f} GB ({told_memory / 1e9:.2f} told); {read / 1e6:.1f} MB read"
        f" ({n_byte / 1e6:.1f} told); arithmetic {operations / row['rate']:.1f} s"
    )


if __name__ == "__main__":
    main()
