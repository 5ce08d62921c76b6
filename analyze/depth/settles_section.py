"""Section of when what is read stops changing."""

import numpy as np

from analyze.page import Page, Section
from analyze.tables import ENDS


def readout_settles(page: Page) -> None:
    """Where answer and results can be read, and when the read-out stops changing."""
    for result in page.results("depth_readout"):
        final = result.data.sel(stratum="all").isel(layer=-1)
        whats = [what for what in final["what"].values if not str(what).startswith("other")]
        shown = final[["first_share", "log_rank"]].sel(what=whats).transpose("what", "position")
        page.percent_map("readout_first", result, shown["first_share"])
        ranks = np.exp(shown["log_rank"])
        page.map("readout_rank", result, ranks, high=float(np.nanmax(ranks)), text="{:.0f}")
        n, answer = final.sizes["position"], float(final["answer_found"])
        page.say(result, "settled", position=float(final["settled_position"]), n=n, answer=answer)
        names = [f"{name}{end}" for name in ("log_rank", "first_share") for end in ENDS]
        frame = result.data[names].to_dataframe().reset_index()
        frame = frame[np.isfinite(frame["log_rank"])]
        page.add("readout_settles", result, frame.assign(rank=np.exp(frame["log_rank"])))


SECTIONS = (Section(slug="readout-settles", write=readout_settles, order=11, needs=("depth_readout",)),)
