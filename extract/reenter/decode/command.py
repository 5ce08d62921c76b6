"""``lake reenter decode``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.command import NOTHING_KEPT, Experiment, Printed, Settings, Table, setting
from schemas.errors import UsageError
from schemas.wording import interval_text, or_dash

if TYPE_CHECKING:
    import xarray as xr

    from extract.reenter.target import Target

SHOWN = 3
"""Examples whose texts are printed."""


@dataclass(frozen=True, kw_only=True)
class DecodeSettings(Settings):
    """What the decoder is, and how much it may write."""

    decoder: str | None = setting(
        None,
        "Folder of a decoder that --train made, or its DIR for the run's own; or, of a checkpoint's own decoder, the"
        " model that it began as, for its config: a folder or hub id, by default the base of the model itself.",
        metavar="PATH_OR_ID",
    )
    train: str | None = setting(
        None,
        "Train a decoder first, of the run's thoughts and the written steps of 85% of its problems, keep it in"
        " DIR/MODEL/DATASET, and ask it of the others.",
        metavar="DIR",
    )
    positions: tuple[str, ...] | None = setting(
        None, "Thoughts that are written out, by where they are fed; by default all.", metavar="ct0,ct1.."
    )
    max_new_tokens: int | None = setting(
        None,
        "Longest step, end token included; by default 24 or, of a decoder that --train made, the longest it learned.",
        least=1,
    )
    steps: int = setting(4000, "Steps of the training, of 128 thoughts each.", least=1, needs="train")
    width: int = setting(64, "Width of the decoder that is trained, a multiple of four.", least=4, needs="train")
    seed: int = setting(
        0, "Of the other problem whose steps are looked for as a control; of the training and its split.", least=0
    )

    def __post_init__(self) -> None:
        """Refuse two decoders at once."""
        super().__post_init__()
        if self.train is not None and self.decoder is not None:
            raise UsageError("decode: --train makes a decoder and --decoder names one; leave one of them out")
        if self.width % 4:
            raise UsageError(f"--width is {self.width}; it must be a multiple of four, the number of heads")


def run(target: "Target", settings: DecodeSettings) -> "xr.Dataset":
    """What SIM-CoT's decoder writes of each thought, and how often that is a step of the problem."""
    from extract.reenter.decode.experiment import decode

    if target.rule != "default":
        raise UsageError(f"--rule {target.rule} says how answers are read, and a decoder writes none; leave it out")
    return decode(target, settings)


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """How often each step's result is written of each thought, beside the controls; some texts."""
    attrs, controls = result.attrs, {"any_control": "of another"}
    if "shuffled_share" in result:
        controls["any_shuffled"] = "shuffled"
    rows = []
    for position in result["position"].values:
        place = result.sel(position=position)
        row = [str(position), str(int(place["n"])), or_dash(place["ended"].mean(), ".3f")]
        row += [interval_text(place, "any_share")]
        row += [f"{float(place[f'{name}_share']):.3f}" for name in controls]
        shares = zip(place["result_share"].values, place["above_controls"].values, strict=True)
        rows.append(
            [*row, *("-" if share != share else f"{share:.3f}{'*' if above else ' '}" for share, above in shares)]
        )
    steps = [f"step {int(step)}" for step in result["step"].values]
    asked = "step" in result["text"].dims
    caption = (
        "share of problems for which the decoder writes the result of any of their steps (of a sentence its last word),"
        " of a step of another problem, and of each step of their own; *: the interval lies above"
    )
    texts = [row for example in result["example"].values[:SHOWN] for row in text_rows(result.sel(example=example))]
    note: list[Printed] = []
    if asked:
        caption += " those of another problem's and of a decoder that was trained on shuffled thoughts (shuffled)"
        note = [
            f"decoder trained on {attrs['n_trained']} problems of {attrs['trained_on']}, asked for each step of each"
            f" thought of {len(result['example'])} examples of other problems ({attrs['left_out']} examples of problems"
            " that it was trained on are left out). A trained decoder shows what can be read in a thought; reenter"
            " ablate and patch show whether the answer uses it"
        ]
    else:
        caption += " that of another problem's"
    columns = ["fed at", "n", "ended", "a step 95%", *controls.values(), *steps]
    of_texts = ["example", *(["its own"] if asked else []), *map(str, result["position"].values)]
    return [
        Table(title="", columns=columns, rows=rows, labels=1, caption=caption),
        *note,
        Table(title="", columns=of_texts, rows=texts),
    ]


def text_rows(one: Any) -> list[list[str]]:
    """What is written of an example's thoughts; asked for steps, a row for each that it has, with its own."""
    example, text = str(int(one["example"])), one["text"]
    if "step" not in text.dims:
        return [[example, *map(repr, text.values)]]
    steps = zip(one["step"].values, one["stated"].values, strict=True)
    return [[f"{example} step {step}", own, *map(repr, text.sel(step=step).values)] for step, own in steps if own]


COMMAND = Experiment(
    name="decode",
    help="What a decoder, a SIM-CoT checkpoint's own or one trained here, writes of each thought, beside the steps.",
    settings=DecodeSettings,
    run=run,
    results={"decode": tables},
    stopped=NOTHING_KEPT,
)
