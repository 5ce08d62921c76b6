"""Differences, what is missing, and what comes from elsewhere, in words."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from analyze.page import Page, points
from analyze.tables import Frame
from schemas import filled

WORDS = {
    "accuracy": "accuracy",
    "number_share": "decodes to a number",
    "probe_auroc": "probe of correctness, AUROC",
    "step_probe": "probe of a step, R²",
    "error_auroc": "error prediction, AUROC",
    "importance": "importance",
    "attention": "attention of eot",
    "ablation_accuracy": "accuracy under ablation",
    "patch_clean": "clean answers after patching",
}


def shown_rows(rows: Frame, last: str) -> Frame:
    """Differences that are drawn, in words: those of the ``last`` layer, of the vectors fed in, and of the whole."""
    where, what = rows["where"], rows["what"]
    whole = what.isin(["accuracy", "error_auroc"]) | where.str.startswith(("mean, ct", "fed, "))
    shown = rows[(where.str.contains(last, regex=False) | whole) & (what != "step_probe")]
    cells = zip(shown["what"], shown["where"], strict=True)
    return shown.assign(what=[spoken(name, place.replace(f"{last}, ", "")) for name, place in cells], where="")


def spoken(what: str, where: str) -> str:
    """A difference in a few words."""
    words = where.split(", ")
    if what == "importance" and len(words) == 2:
        return f"importance of {words[1]} ({words[0]})"
    if what == "patch_clean" and len(words) == 2:
        return f"clean answers, first {words[1]} patched"
    return f"{WORDS.get(what, what)}{': ' if where else ''}{where}"


def listed_missing(lines: Sequence[str], location: object) -> str:
    """What is missing, by what it is rather than by run, each with the command that makes it for all of them."""
    runs_of: dict[tuple[str, str], dict[str, str]] = {}
    for line in lines:
        run, _, rest = line.partition(": ")
        what, _, command = rest.partition("; ")
        # The run it is computed from: patching is of the model's pairs.
        source = next((word for word in command.split() if word.startswith(run.partition("/")[0] + "/")), run)
        runs_of.setdefault((what, command.replace(source, "RUNS")), {})[run] = source
    return "; ".join(
        f"{what} of {', '.join(runs)} ({filled(command, location, dict.fromkeys(runs.values()))})"
        for (what, command), runs in runs_of.items()
    )


def taken_elsewhere(sources: Mapping[str, str]) -> str:
    """Measures that come from a run other than the one compared, with that result's name."""
    texts = []
    for what, source in sources.items():
        measure, _, run = what.rpartition(" of ")
        result = source.split()[0]
        if run.replace("/", ".") not in result:
            name = result.removeprefix("results/").partition("~")[0]
            texts.append(f"{measure} of {run.partition('/')[0]} ({name})")
    return "; ".join(texts)


def sentence(page: Page, data: xr.Dataset, rows: Frame, first: str, second: str) -> str:
    """How far two models' accuracies lie apart, and how many differences are sure."""
    text = ""
    for row in rows[rows["what"] == "accuracy"].head(1).to_dict("records"):
        row |= {end: points(row[end], unit=False) for end in ("low", "high")}
        p = float(data["accuracy_p"].sel(model=first, other_model=second)) if "accuracy_p" in data else np.nan
        text = page.text("paired" if row["paired"] else "unpaired", **row, p=p)
    sure = rows[rows["sure"] & (rows["what"] != "accuracy")]
    return text + page.text("sure", n_sure=len(sure), n=len(rows))
