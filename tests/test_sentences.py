"""What every section says of results of each kind: as they are, ties, nulls and single problems."""

import re
import tarfile
from pathlib import Path
from typing import ClassVar

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr

from analyze.context import Context
from analyze.page import write_section
from analyze.report.sections import sections
from store import open_lake

ARCHIVE = Path(__file__).parent / "data" / "sections.tar.xz"
"""Of :mod:`make_sections`."""
KINDS = ("as they are", "ties", "nulls", "single")
WRONG = re.compile(r"\bnan\b|\bNone\b|\binf\b|[{}]|n/a\b.*n/a|\b0 of 0\b|\b1 (heads|problems|thoughts)\b")
"""What no sentence may say."""


def changed(data: xr.Dataset, kind: str) -> xr.Dataset:
    """A result whose figures are all the same, or nothing, or which is of one problem."""
    if kind == "single" and "example" in data.dims:
        data = data.isel(example=[0])
    out = {}
    for name, values in data.data_vars.items():
        word = str(name)
        if kind == "single" and (word == "n" or word.startswith("n_")) and values.dtype.kind in "if":
            out[name] = xr.ones_like(values)
        elif values.dtype.kind == "f" and kind in ("ties", "nulls"):
            p_like = "p" in word.split("_")
            value = 0.5 if kind == "ties" else float(p_like)
            out[name] = values.copy(data=np.where(np.isnan(values.values), np.nan, value))
        elif values.dtype.kind == "b" and kind == "nulls" and word != "correct":
            out[name] = xr.zeros_like(values)
    return data.assign(out)


class Changed(Context):
    """A lake whose results are all changed in one way; each is read once for all of them."""

    kind = "as they are"
    read: ClassVar[dict[str, xr.Dataset]] = {}

    def open(self, result):
        """A result as it is changed."""
        if result.name not in self._opened:
            if result.name not in self.read:
                self.read[result.name] = self.lake.open_result(result.name)
            self._opened[result.name] = changed(self.read[result.name], self.kind)
        return self._opened[result.name]


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sections")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="fully_trusted")  # the project's own: looking at each path doubles the time
    return open_lake(folder / "sections.lake")


@pytest.fixture(scope="module", params=KINDS)
def pages(lake, request):
    """Sections as they are written, by slug."""
    context = Changed(lake, lake.runs())
    context.kind = request.param
    with mpl.rc_context({"figure.constrained_layout.use": False}):
        written = {section.slug: write_section(section, context) for section in sections()}
    return request.param, {slug: page for slug, page in written.items() if page is not None}


def said(page) -> list[str]:
    """Everything a section says in words."""
    return [page.headline, page.method, page.opening, *page.caveats, *page.notes, *(text for _, text in page.lines)]


def test_sentences_say_nothing_that_is_not_there(pages):
    kind, shown = pages
    assert len(shown) > 25
    wrong = [f"{slug}: {text}" for slug, page in shown.items() for text in said(page) if WRONG.search(text)]
    assert not wrong, kind


EXPECTED = {
    "nulls": {
        "number-decoding": "no thought in most problems",
        "chain-results": "step 1 read nowhere",
        "step-probes": "step 1 read nowhere",
        "token-ablation": "no thought alone turns more than a tenth",
        "single-patching": "no position is shown to bring the clean answer",
        "subset-patching": "no set is shown to bring the clean answer",
        "head-ablation": "none of 8 heads is shown to cost answers alone",
        "edge-ablation": "not distinguishable from untouched",
        "steering": "no strength is shown to help",
        "integrated-gradients": "no thought's attribution is distinguishable from 0",
        "attribution-patching": "no thought's score is distinguishable from 0",
        "attention-importance": "no correlation",
        "hubs": "no thought exceeds an even spread",
        "thought-graph": "no direct edge",
        "traces": "not distinguishable (p = 1.00) from",
        "features": "none of 64 features fires",
        "feature-effects": "none of 62 features is shown to move the answer",
        "shared-features": "no feature of the crosscoder fires",
        "fed-thoughts": "no thought names a result",
        "thoughts-spared": "can go before accuracy is shown to fall from 0.0%",
        "crossing": "none of 28 places shows a difference between the two donors",
        "transfer": "above chance in 0 of 2 places",
        "transplants": "single thoughts that differ: none",
        "similarity": "0 of 8 positions more than shuffled problems are",
        "error-prediction": "none distinguishable from chance; sparse codes not distinguishable from raw activations",
        "attribution": "ct0: no part is shown to add to 0.0",
    },
    "ties": {
        "number-decoding": "no thought in most problems",  # half of them are no majority
        "steering": "no strength is shown to help",
        "single-patching": "and as many with",
        "subset-patching": "as many with",
        "answer-attention": "not distinguishable from",
        "critical-heads": "not distinguishable from",
        "twins": "none of 9 of what is used",
        "traces": "not distinguishable (p = 0.50) from",
        "similarity": "0 of 8 positions more than shuffled problems are",
        "error-prediction": "none distinguishable from chance",
        "attribution": "not distinguishable from attention 0, MLP 0, attention 1, MLP 1 and bias of the norm",
    },
    "single": {
        "head-ablation": "n 1; smallest change that could be shown: none",
        "steering": "n 1; smallest change that could be shown: none",
    },
}


def test_nulls_ties_and_single_problems_are_told_as_such(pages):
    kind, shown = pages
    for slug, text in EXPECTED.get(kind, {}).items():
        assert any(text in line for _, line in shown[slug].lines), (slug, shown[slug].lines)
    if kind in ("ties", "nulls"):  # nothing is seen in one model and not in the other
        assert not any("not seen" in line for page in shown.values() for _, line in page.lines)


def test_tables_of_two_sections_have_two_captions():
    """Whoever hears the page finds a table by its caption."""
    tables = [table for section in sections() for table in section.texts.get("tables", {}).values()]
    captions = [table["caption"] for table in tables if isinstance(table, dict) and "caption" in table]
    assert len(captions) > 50
    assert sorted(set(captions)) == sorted(captions)
