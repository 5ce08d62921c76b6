"""``lake reenter depth``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from extract.reenter.settings import DrawnSettings
from extract.reenter.tables import drawn_cells, p_text
from schemas.command import Experiment, Printed, Table, later, setting
from schemas.wording import interval_text, or_dash


@dataclass(frozen=True, kw_only=True)
class DepthSettings(DrawnSettings):
    """After how many thoughts, and of which kind, the answer is asked for."""

    beyond: int = setting(2, "How many times the trained number of thoughts to go beyond it.", least=0)
    series: tuple[Literal["own", "repeat", "pause"], ...] = setting(
        ("own", "repeat", "pause"),
        "What the thoughts are: the model's own; its own up to the trained number, and in place of the rest the last"
        " one again (repeat) or a vector that says nothing (pause).",
    )
    markers: tuple[Literal["kept", "none"], ...] = setting(
        ("kept", "none"), "With the tokens around the thoughts, and without."
    )
    seed: int = setting(0, "Seed of draws and intervals.", least=0)


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Accuracy and gain of each thought by series and markers; how many it takes by difficulty; draws."""
    n_latent = int(result.attrs["n_latent"])
    printed: list[Printed] = [_accuracy(result), _needed(result)]
    if "sample_correct_mean" in result:
        printed.append(_samples(result))
    if "own" in result["series"].values and "kept" in result["marker"].values:
        own = result.sel(stratum="all", series="own", marker="kept")
        line = own.isel(n_thought=n_latent)
        printed.append(
            f"with its {n_latent} thoughts: {float(line['accuracy']):.3f} of {int(line['n'])} are right after them,"
            f" {float(own['accuracy'].isel(n_thought=0)):.3f} without any"
        )
    return printed


def _accuracy(result: Any) -> Table:
    rows = []
    for marker in result["marker"].values:
        for series in result["series"].values:
            for n_thought in result["n_thought"].values:
                line = result.sel(stratum="all", series=series, marker=marker, n_thought=n_thought)
                if float(line["accuracy"]) != float(line["accuracy"]):
                    continue
                rows.append(
                    [
                        str(marker), str(series), int(n_thought), int(line["n"]),
                        interval_text(line, "accuracy"), or_dash(line['logprob_mean'], ".2f"),
                        or_dash(line["gain"], "+.3f"), or_dash(line["gain_logprob"], "+.2f"),
                        p_text(line["gain_p_holm"]),
                    ]
                )  # fmt: skip
    columns = [
        "markers", "series", "thoughts", "n", "accuracy 95%", "log p", "gain", "gain in log p", "p Holm",
    ]  # fmt: skip
    return Table(title="", columns=columns, rows=rows, labels=3)


def _needed(result: Any) -> Table:
    """From which thought on problems are right."""
    rows = []
    for marker in result["marker"].values:
        for series in result["series"].values:
            for stratum in result["stratum"].values:
                line = result.sel(stratum=stratum, series=series, marker=marker)
                rows.append([str(marker), str(series), str(stratum), int(line["n"]), *_when(line)])
    columns = ["markers", "series", "operations", "n", "first right 95%", "right from 95%", "enough"]
    caption = (
        "first right: fewest thoughts after which a problem is right, median of those that ever are; right from: those"
        " from which on it is right up to the trained number; enough: from there on accuracy is not significantly below"
        " that after the trained number"
    )
    return Table(title="thoughts needed", columns=columns, rows=rows, caption=caption, labels=3)


def _when(line: Any) -> list[str]:
    medians = [interval_text(line, f"{name}_median", "", "g", "g", none="never") for name in ("first", "stable")]
    return [*medians, or_dash(line["n_enough"], ".0f")]


def _samples(result: Any) -> Table:
    names = ["sample_correct", "sample_top", "sample_second", "sample_entropy", "sample_alive"]
    part = result.sel(stratum="all")
    rows = [
        [int(n), *(drawn_cells(part.sel(n_thought=n), name)[0] for name in names)] for n in result["n_thought"].values
    ]
    columns = ["thoughts", *(f"{name} 95%" for name in ("right", "most frequent", "second", "entropy", "second alive"))]
    caption = (
        f"shares of {int(result.attrs['n_sample'])} answers drawn for each problem, intervals over problems; second"
        " alive: problems whose second answer is at least half as frequent as the first"
    )
    return Table(title="drawn answers", columns=columns, rows=rows, caption=caption, labels=1)


COMMAND = Experiment(
    name="depth",
    help="Ask for the answer after each number of thoughts, from none to beyond those trained for.",
    settings=DepthSettings,
    run=later("extract.reenter.depth.experiment:think_to_depth"),
    results={"depth": tables},
)
