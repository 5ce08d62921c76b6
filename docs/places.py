"""The picture of where a thought is read and where it acts: python docs/places.py writes docs/places.svg."""

from pathlib import Path

import matplotlib as mpl

from analyze.drawing import STYLE, figure
from analyze.places import draw_places
from analyze.report.svg import draw

if __name__ == "__main__":
    with mpl.rc_context({**STYLE, "figure.facecolor": "white", "savefig.facecolor": "white"}):
        picture, ax = figure(width=7.2, height=1.9)
        draw_places(ax, [f"ct{index}" for index in range(6)])
        vector, _ = draw(picture, "places")
    Path(__file__).with_name("places.svg").write_text(vector, encoding="utf-8")
