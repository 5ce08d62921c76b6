"""Activations as datasets of torch: the rows of the run, each once, whatever reads them; training goes on exactly."""

import math
import multiprocessing
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from small_runs import uncommit
from synthetic import make_model, make_run, write_run
from torch.utils.data import DataLoader

from schemas import CorruptLakeError, UsageError
from store import Lake, open_lake, torch_dataset

RUN = "made-up/problems"
N_EXAMPLE = 43


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A run in shards of 8 examples, the last of them short."""
    place = tmp_path_factory.mktemp("lakes") / "rows.lake"
    write_run(place, make_run(n_example=N_EXAMPLE, dtype="float16"), make_model(), shard_examples=8)
    return open_lake(place)


def rows_of(run: xr.Dataset, variable: str, dims: tuple[str, ...], **chosen: Any) -> dict[tuple[Any, ...], np.ndarray]:
    """Rows by their labels, taken one by one from the whole run: those that are not NaN, or no padding's."""
    values = (
        run[variable].sel({dim: list(labels) for dim, labels in chosen.items()}).transpose("example", *dims, ...).load()
    )
    labels = [values[dim].values.tolist() if dim in values.coords else range(values.sizes[dim]) for dim in
              ("example", *dims)]  # fmt: skip
    found = {}
    for index in np.ndindex(*map(len, labels)):
        row = values.values[index]
        if not np.isnan(row).all() and row.any():
            found[tuple(each[place] for each, place in zip(labels, index, strict=True))] = row
    return found


CASES = [
    ("hidden_state", ("layer", "position"), {}, {}),
    ("hidden_state", ("layer", "position"), {"layer": [0, 2], "position": ["ct4", "bot", "a0", "a1"]}, {}),
    ("hidden_state", ("position",), {"position": ["ct1", "ct2"]}, {"item": ("layer", "hidden")}),
    ("latent_embedding", ("latent",), {"example": [3, 9, 10, 11, 40]}, {}),
    ("final_state", ("position",), {}, {}),
    ("attention", ("layer", "head"), {"layer": [1], "position": ["ct1", "ct3"], "key_position": ["bot", "ct0"]}, {}),
    ("attention", ("layer", "head", "position"), {"position": ["ct1", "a1"]}, {"item": ("key_position",)}),
]


@pytest.mark.parametrize(
    ("variable", "dims", "chosen", "options", "buffer_bytes"),
    [*((*case, 200) for case in CASES), (*CASES[0], 2**27), (*CASES[5], 2**27)],
)
def test_every_row_comes_once_with_its_label(lake, variable, dims, chosen, options, buffer_bytes):
    expected = rows_of(lake.open(RUN, chunks=None), variable, dims, **chosen)
    dataset = torch_dataset(
        lake, RUN, variable, batch_size=16, numbered=True, buffer_bytes=buffer_bytes, **options, **chosen
    )
    found, orders = {}, []
    for _ in range(2):
        values, numbers = (torch.cat(each) for each in zip(*dataset, strict=True))
        labels = dataset.blocks.labels(numbers.numpy())
        keys = list(zip(*(labels[dim].tolist() for dim in ("example", *dims)), strict=True))
        assert len(keys) == len(set(keys)) == dataset.blocks.n_row
        found = dict(zip(keys, values, strict=True))
        assert found.keys() == expected.keys()
        for key, row in expected.items():
            np.testing.assert_array_equal(found[key].numpy(), row)
        orders.append(keys)
    assert values.dtype == torch.float32
    assert orders[0] != orders[1]
    rows = torch_dataset(lake, RUN, variable, style="map", buffer_bytes=buffer_bytes, stored=True, **options, **chosen)
    everything = rows[np.arange(len(rows))]
    assert everything.dtype == torch.float16
    torch.testing.assert_close(everything[numbers].float(), values, rtol=0, atol=0)
    torch.testing.assert_close(rows[-1], everything[len(rows) - 1], rtol=0, atol=0)


def test_without_shuffling_rows_are_in_the_runs_order(lake):
    dataset = torch_dataset(lake, RUN, "latent_embedding", latent=["ct2"], shuffle=False, batch_size=7)
    sizes = [len(batch) for batch in dataset]
    assert sizes == [7] * 6 + [1]
    dataset.set_epoch(0)
    expected = lake[RUN]["latent_embedding"].sel(latent="ct2").values
    np.testing.assert_array_equal(torch.cat(list(dataset)), expected)


def test_all_rows_are_mixed_where_they_fit_the_buffer(lake):
    dataset = torch_dataset(lake, RUN, "latent_embedding", batch_size=64, numbered=True)
    labels = [dataset.blocks.labels(rows.numpy())["example"] for _, rows in dataset]
    assert all(len(np.unique(each // 8)) > 3 for each in labels if len(each) == 64)


def drawn(batches: Any) -> list[list[int]]:
    return [rows.tolist() for _, rows in batches]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_share_the_rows_and_training_goes_on_where_it_stopped(lake):
    def loader(method: str) -> tuple[Any, DataLoader[Any]]:
        dataset = torch_dataset(lake, RUN, "hidden_state", batch_size=50, buffer_bytes=2000, numbered=True, seed=3)
        context = multiprocessing.get_context(method)
        return dataset, DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=context)

    dataset, loading = loader("fork")
    dataset.set_epoch(5)
    in_turn = zip_longest(*(dataset.order.batches(reader, 2) for reader in (0, 1)))
    whole = [rows.tolist() for pair in in_turn for rows in pair if rows is not None]
    assert sorted(sum(whole, [])) == list(range(dataset.blocks.n_row))
    assert drawn(loading) == whole
    for taken, method in ((1, "fork"), (len(whole) - 2, "fork"), (len(whole), "fork"), (6, "spawn")):
        dataset, loading = loader(method)
        dataset.load_state_dict({"epoch": 5, "batch": taken})
        assert drawn(loading) == whole[taken:]


def test_a_state_goes_on_in_one_process_and_in_a_worker_of_its_own(lake):
    def dataset(**options: Any) -> Any:
        return torch_dataset(lake, RUN, "hidden_state", batch_size=64, buffer_bytes=3000, numbered=True, **options)

    whole = drawn(dataset())
    stopped = dataset()
    given = iter(stopped)
    assert drawn(next(given) for _ in range(5)) == whole[:5]
    state = stopped.state_dict()
    assert (state["epoch"], state["batch"]) == (0, 5)
    going_on = dataset()
    going_on.load_state_dict(state)
    assert drawn(going_on) == whole[5:]
    assert going_on.state_dict()["epoch"] == 1
    with pytest.raises(UsageError, match="not of these batches"):
        dataset(seed=1).load_state_dict(state)


def test_processes_that_train_together_share_the_rows(lake):
    parts = [torch_dataset(lake, RUN, "hidden_state", share=(rank, 3), numbered=True) for rank in range(3)]
    rows = [row for part in parts for _, numbers in part for row in numbers.tolist()]
    assert sorted(rows) == list(range(parts[0].blocks.n_row))


def test_a_sampler_shuffles_rows_by_number_as_the_iterable_does(lake):
    rows = torch_dataset(lake, RUN, "hidden_state", style="map", buffer_bytes=3000)
    batches = rows.batches(64, seed=2)
    assert len(batches) == math.ceil(len(rows) / 64)
    loading = DataLoader(rows, batch_size=None, sampler=batches)
    iterable = torch_dataset(lake, RUN, "hidden_state", batch_size=64, buffer_bytes=3000, seed=2)
    for mine, theirs in zip(loading, iterable, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    usual = DataLoader(rows, batch_size=10, shuffle=True)
    assert sum(len(batch) for batch in usual) == len(rows)


def test_memory_for_blocks_is_bounded_whatever_is_asked_for(lake):
    blocks = torch_dataset(lake, RUN, "hidden_state", style="map", buffer_bytes=1000).blocks
    rows = np.random.default_rng(0).permutation(blocks.n_row)
    values = blocks.read(rows)
    assert len(blocks._slots) <= blocks.n_slot < 10
    np.testing.assert_array_equal(values[np.argsort(rows)], blocks.read(np.arange(blocks.n_row)))


def test_only_committed_examples_have_rows(tmp_path):
    write_run(tmp_path / "a.lake", make_run(n_example=N_EXAMPLE), make_model(), shard_examples=8)
    uncommit(tmp_path / "a.lake" / RUN, 2)
    lake = open_lake(tmp_path / "a.lake")
    rows = torch_dataset(lake, RUN, "latent_embedding", latent=["ct0"], style="map", numbered=True)
    values, numbers = rows[range(len(rows))]
    examples = rows.blocks.labels(numbers.numpy())["example"]
    assert examples.tolist() == [*range(16), *range(24, N_EXAMPLE)]
    np.testing.assert_array_equal(values, lake[RUN]["latent_embedding"].sel(latent="ct0").values)


def test_what_cannot_be_read_is_refused(lake):
    for variable, options, words in (
        ("hidden_states", {}, "did you mean 'hidden_state'"),
        ("correct", {}, "is no activation"),
        ("hidden_state", {"layer": [7]}, "has no layer 7; it has 0, 1, 2; did you mean 2"),
        ("hidden_state", {"position": "cto"}, "did you mean 'ct0'"),
        ("hidden_state", {"head": [0]}, "hidden_state has no head"),
        ("hidden_state", {"layer": []}, "empty selection"),
        ("hidden_state", {"item": ("example",)}, "no rows that span examples"),
        ("hidden_state", {"batch_size": 0}, "batch_size"),
        ("hidden_state", {"style": "mapp"}, "did you mean 'map'"),
        ("hidden_state", {"share": (2, 2)}, "rank, world size"),
    ):
        with pytest.raises(UsageError, match=words):
            torch_dataset(lake, RUN, variable, **options)
    with pytest.raises(IndexError, match="it has 0 to"):
        torch_dataset(lake, RUN, "hidden_state", style="map").blocks.read([10**6])


def test_damage_is_never_a_row(tmp_path):
    write_run(tmp_path / "a.lake", make_run(n_example=16, dtype="float16"), make_model(), shard_examples=8)
    rows = torch_dataset(open_lake(tmp_path / "a.lake"), RUN, "hidden_state", batch_size=1000, shuffle=False)
    (whole,) = rows
    file = tmp_path / "a.lake" / RUN / "hidden_state/c/1/0/0/0"
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)
    again = torch_dataset(open_lake(tmp_path / "a.lake"), RUN, "hidden_state", batch_size=1000, shuffle=False)
    with pytest.raises(CorruptLakeError, match="hidden_state/c/1/0/0/0 is not what was written"):
        next(iter(again))
    content[200] ^= 1
    file.write_bytes(content)
    torch.testing.assert_close(next(iter(again)), whole, rtol=0, atol=0)
