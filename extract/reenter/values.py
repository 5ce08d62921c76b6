"""Values that go into a model: states, donors, means, spreads, directions and subspaces, read column by column."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix

import numpy as np
import xarray as xr

from extract.model.reasoner import Reasoner
from extract.reenter.armed import Inside
from extract.reenter.batches import by_length
from schemas import OPERATIONS, Intervention, UsageError, latent_labels
from schemas.problem_sums import problem_of

CACHE_BYTES = 256 * 2**20


@dataclass(slots=True)
class StoredValues:
    """Values of a run that go back into the model: states, donors, means, spreads, read column by column.

    Parameters
    ----------
    run
        Dataset of the run.
    reasoner
        Model the values belong to.
    directions
        Named vectors, with dim ``hidden`` and any of ``layer``, ``position``, ``example``: directions that are added
        and values that are written.
    subspaces
        Named subspaces: ``basis(rank, hidden)``, linearly independent rows that span it, ``mean(hidden)`` and, where
        the projection onto it is oblique, ``dual(rank, hidden)``, which reads the coordinates; each with any of
        ``layer``, ``position``, ``example``. Without a dual the basis is orthonormal.
    """

    run: xr.Dataset
    reasoner: Reasoner
    directions: Mapping[str, xr.DataArray] = field(default_factory=dict)
    subspaces: Mapping[str, xr.Dataset] = field(default_factory=dict)
    fed: int = 0
    """Positions fed to compute values that the lake does not hold."""
    _columns: dict[tuple[object, ...], np.ndarray] = field(default_factory=dict)
    _computed: dict[tuple[str, int, str], np.ndarray] = field(default_factory=dict)
    _placed: dict[tuple[str, str, int, str], tuple[object, xr.DataArray]] = field(default_factory=dict)
    """What named arrays have at a layer and a position, and what they were taken from."""
    _at: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that run and model belong together."""
        sizes = {"layer": self.reasoner.n_layer, "hidden": self.reasoner.hidden, "latent": self.reasoner.n_latent}
        for dim, size in sizes.items():
            if self.run.sizes.get(dim, size) != size:
                raise UsageError(
                    f"run {self.run.attrs.get('run', '')} has {self.run.sizes[dim]} {dim}s, model"
                    f" {self.reasoner.name} {size}: a donor of another model"
                )
        self._at = {int(label): index for index, label in enumerate(self.run["example"].values)}

    def rows(self, examples: Iterable[int]) -> np.ndarray:
        """Rows ``(example,)`` of examples in the run."""
        examples = list(examples)
        if missing := [example for example in examples if int(example) not in self._at]:
            raise UsageError(f"example {missing[0]} is not in run {self.run.attrs.get('run', '')}")
        return np.array([self._at[int(example)] for example in examples], dtype=np.int64)

    def column(self, site: str, layer: int, position: str, keys: tuple[str, ...] = ()) -> np.ndarray:
        """Stored values of one place for every example of the run, float32; NaN of one that is missing or infinite.

        ``(example, hidden)``, ``(example, head, head_size)``, or ``(example, head, key)`` for attention.
        """
        if self._is_computed(site):
            if (site, layer, position) not in self._computed:
                self._compute([(site, layer, position)])
            return self._computed[site, layer, position]
        key = (site, layer, position, keys)
        if key not in self._columns:
            selection: dict[str, object] = {"position": position}
            name = site
            if site == "latent_embedding":
                selection = {"latent": position}
            else:
                selection["layer"] = layer
            if keys:
                selection["key_position"] = list(keys)
            for dim, wanted in selection.items():
                labels = self.run[name].indexes[dim]
                for label in wanted if isinstance(wanted, list) else [wanted]:
                    if label not in labels:
                        raise UsageError(
                            f"run {self.run.attrs.get('run', '')} stores no {name} at {dim} {label}; it has"
                            f" {labels[0]} to {labels[-1]}"
                        )
            values = self.run[name].sel(selection).transpose("example", ...).values.astype(np.float32)
            values[np.isinf(values).reshape(len(values), -1).any(1)] = np.nan  # what overflowed is no value to go by
            while self._columns and sum(column.nbytes for column in self._columns.values()) > CACHE_BYTES:
                self._columns.pop(next(iter(self._columns)))
            self._columns[key] = values
        return self._columns[key]

    def _is_computed(self, site: str) -> bool:
        """Whether values of a site are computed from the questions, as the lake does not hold them."""
        return site not in self.run.data_vars

    def prepare(self, interventions: Iterable[Intervention], batch: int = 32) -> None:
        """Compute in one pass over the run what these need and the lake does not hold, such as outputs of heads."""
        places = {
            (intervention.site, layer, position)
            for intervention in interventions
            if self._is_computed(intervention.site) and reads_run(intervention)
            for layer in intervention.layers
            for position in intervention.positions
        }
        if missing := sorted(places - self._computed.keys()):
            self._compute(missing, batch)

    def _compute(self, places: Sequence[tuple[str, int, str]], batch: int = 32) -> None:
        reasoner = self.reasoner
        offsets = {position: reasoner.places.offset(position) for _, _, position in places}
        for site, _, position in places:
            if not 0 <= offsets[position] < reasoner.places.n_middle:
                first, last = reasoner.places.middle[0], reasoner.places.middle[-1]
                raise UsageError(f"values of {site} go in from {first} to {last} only, not at {position}")
        prompts = reasoner.prompts(self.run["question"].values)
        sites = sorted({site for site, _, _ in places})
        computed = {
            place: np.empty((len(prompts), *reasoner.part_shape(place[0])), dtype=np.float32) for place in places
        }
        for rows in by_length(prompts, batch):
            thinking = reasoner.think(
                [prompts[index] for index in rows], stored_dtype="float32", max_new_tokens=1, parts=sites
            )
            self.fed += sum(reasoner.places.needed(len(prompts[index]), 1) for index in rows)
            for site, layer, position in places:
                computed[site, layer, position][rows] = thinking.parts[site][:, layer, offsets[position]]
        self._computed.update(computed)

    def donors(self, rows: np.ndarray, donor: str, seed: int = 0) -> np.ndarray:
        """Row of each row's donor.

        Raises
        ------
        UsageError
            If an example has no twin, or no other problem (of that outcome) is in the run.
        """
        if donor == "stored":
            return rows
        key = ("donors", donor, seed, rows.tobytes())  # every changed place of every batch asks for the same
        if key not in self._columns:
            self._columns[key] = self._chosen(rows, donor, seed)
        return self._columns[key]

    def _chosen(self, rows: np.ndarray, donor: str, seed: int) -> np.ndarray:
        """Row of another problem's example, or of the other half of a pair, for each row."""
        problem = problem_of(self.run)
        if donor in ("other", "correct", "wrong"):
            gives = self._giving(donor)
            chosen = []
            for row in rows:
                candidates = np.flatnonzero((problem != problem[row]) & gives)
                if not len(candidates):
                    which = "" if donor == "other" else f" with a {donor} answer"
                    raise UsageError(f"there is no other problem{which} in the run to resample from")
                chosen.append(np.random.default_rng([seed, int(row)]).choice(candidates))
            return np.array(chosen, dtype=np.int64)
        if donor == "alike":
            return self._alike(rows, problem, seed)
        pair = np.asarray(self.run["pair"].values) if "pair" in self.run.variables else np.full(len(problem), -1)
        partner: dict[int, list[int]] = {}
        for index, number in enumerate(pair.tolist()):
            if number >= 0:
                partner.setdefault(number, []).append(index)
        chosen = []
        for row in rows:
            others = [index for index in partner.get(int(pair[row]), []) if index != row]
            if len(others) != 1:
                raise UsageError(
                    f"example {int(self.run['example'].values[row])} is not half of a pair; a twin as donor needs a run"
                    " over clean/corrupted pairs"
                )
            chosen.append(others[0])
        return np.array(chosen, dtype=np.int64)

    def _alike(self, rows: np.ndarray, problem: np.ndarray, seed: int) -> np.ndarray:
        """Row of another problem whose operators are most like the row's: as many, and the longest common beginning."""
        operators, gives, chosen = self.operators(), self._giving("other"), []
        numbers = {own: number for number, own in enumerate(sorted(set(operators)))}
        kinds, kind = list(numbers), np.array([numbers[own] for own in operators])
        # Of each kind of problem the rows that may give to it, those most alike first.
        levels: dict[tuple[str, ...], list[np.ndarray]] = {}
        for own in {operators[row] for row in rows}:
            likeness = np.array([(len(other) == len(own)) * 1000 + len(commonprefix([other, own])) for other in kinds])
            levels[own] = [np.flatnonzero(gives & (likeness[kind] == level)) for level in np.unique(likeness)[::-1]]
        for row in rows:
            others = (level[problem[level] != problem[row]] for level in levels[operators[row]])
            most = next((alike for alike in others if len(alike)), None)
            if most is None:
                raise UsageError("there is no other problem in the run to take the value of")
            chosen.append(np.random.default_rng([seed, int(row), 71]).choice(most))
        return np.array(chosen, dtype=np.int64)

    def operators(self) -> list[tuple[str, ...]]:
        """Operators of every example's steps, in order; where steps have none, as many empty ones as there are steps.

        Raises
        ------
        UsageError
            If the run does not say which steps its problems take.
        """
        if "operation" in self.run.variables:
            names = self.run["operation"].transpose("example", "step").values.astype(str).tolist()
            if any(map(any, names)):
                return [tuple(filter(None, steps)) for steps in names]
        if "n_operation" in self.run.variables:
            return [("",) * int(n) for n in self.run["n_operation"].values]
        raise UsageError("the run does not say which steps its problems take, so that none is known to be like another")

    def _giving(self, donor: str) -> np.ndarray:
        """Examples ``(example,)`` that may give their values to those of other problems."""
        gives = np.ones(self.run.sizes["example"], dtype=bool)
        if donor != "other":
            gives = np.asarray(self.run["correct"].values, dtype=bool) == (donor == "correct")
        elif "variant" in self.run.coords and "clean" in self.run["variant"].values:
            gives = np.asarray(self.run["variant"].values) == "clean"  # of pairs, the clean halves, as the twin does
        return gives

    def mean(self, site: str, layer: int, position: str, average: str, keys: tuple[str, ...] = ()) -> np.ndarray:
        """Mean of a place over the run's examples, or over all thoughts of all examples (``run``)."""
        key = ("mean", site, layer, position, average, keys)
        if key not in self._columns:
            if average == "run":
                positions = latent_labels(self.reasoner.n_latent)
                means = [self.mean(site, layer, position, "position", keys) for position in positions]
                value = np.asarray(np.mean(means, axis=0, dtype=np.float64))
            else:
                values = self.column(site, layer, position, keys)
                if average in ("correct", "wrong"):
                    chosen = np.asarray(self.run["correct"].values) == (average == "correct")
                    if not chosen.any():
                        raise UsageError(f"no example of the run was answered {average}; there is no mean of them")
                    values = values[chosen]
                present = ~np.isnan(values).reshape(len(values), -1).any(1)
                if not present.any():
                    raise UsageError(f"no example of the run has a {site} at {position}")
                value = np.asarray(values[present].mean(0, dtype=np.float64))
            self._columns[key] = value.astype(np.float32)
        return self._columns[key]

    def spread(self, site: str, layer: int, position: str) -> np.ndarray:
        """Standard deviation of every component of a place over the run's examples."""
        key = ("spread", site, layer, position)
        if key not in self._columns:
            values = self.column(site, layer, position)
            present = ~np.isnan(values).reshape(len(values), -1).any(1)
            self._columns[key] = values[present].std(0, dtype=np.float64).astype(np.float32)
        return self._columns[key]

    def stored(self, rows: np.ndarray, site: str, layer: int, position: str, keys: tuple[str, ...] = ()) -> np.ndarray:
        """Stored values of rows at a place; all must exist."""
        values: np.ndarray = self.column(site, layer, position, keys)[rows]
        missing = np.isnan(values).reshape(len(values), -1).any(1)
        if missing.any():
            example = int(self.run["example"].values[rows[missing.argmax()]])
            raise UsageError(f"example {example} has no {site} at {position} in the run to put in, or no finite one")
        return values

    def direction(self, name: str, rows: np.ndarray, layer: int, position: str) -> np.ndarray:
        """Named direction or value ``(row, hidden)`` at a place."""
        if name not in self.directions:
            raise UsageError(f"direction {name!r} was never computed; there are {', '.join(self.directions) or 'none'}")
        vector = self._of_rows(self.at_place(self.directions[name], f"direction {name!r}", layer, position), rows)
        return np.broadcast_to(vector, (len(rows), self.reasoner.hidden))

    def subspace(self, name: str, rows: np.ndarray, layer: int, position: str) -> tuple[Inside, np.ndarray]:
        """Named subspace at a place, and the mean ``(row, hidden)`` that stands for nothing in it."""
        if name not in self.subspaces:
            raise UsageError(f"subspace {name!r} was never computed; there are {', '.join(self.subspaces) or 'none'}")
        factors = self.subspaces[name]
        basis, dual, mean = (
            self._of_rows(self.at_place(factors, f"subspace {name!r}", layer, position, key), rows)
            for key in ("basis", "dual" if "dual" in factors else "basis", "mean")
        )
        return Inside(name, basis, dual), np.broadcast_to(mean, (len(rows), self.reasoner.hidden))

    def at_place(
        self, named: xr.DataArray | xr.Dataset, what: str, layer: int, position: str, key: str = ""
    ) -> xr.DataArray:
        """An array (``key`` of a dataset) at a layer and a position, where it has its own for each.

        Raises
        ------
        UsageError
            If it has none there, or is not as wide as the model. It is called ``what``.
        """
        place = what, key, layer, position
        if place in self._placed and self._placed[place][0] is named:
            return self._placed[place][1]
        array = named[key] if isinstance(named, xr.Dataset) else named
        for dim, label in (("layer", layer), ("position", position)):
            if dim in array.dims:
                if label not in array.indexes[dim]:
                    raise UsageError(f"{what} was not computed at {dim} {label}")
                array = array.sel({dim: label})
        if array.sizes.get("hidden") != self.reasoner.hidden:
            raise UsageError(
                f"{what} has {array.sizes.get('hidden')} components, model {self.reasoner.name} {self.reasoner.hidden}"
            )
        self._placed[place] = named, array
        return array

    def _of_rows(self, array: xr.DataArray, rows: np.ndarray) -> np.ndarray:
        """Values of rows where an array has its own for every example, float32."""
        if "example" in array.dims:
            array = array.sel(example=self.run["example"].values[rows]).transpose("example", ..., "hidden")
        return np.asarray(array.values, dtype=np.float32)


def reads_run(intervention: Intervention) -> bool:
    """Whether an intervention takes values of its site from the run."""
    operation = intervention.operation
    if "donor" in OPERATIONS[operation].takes:
        return intervention.donor != "forward"
    return operation in ("mean", "resample", "noise", "shuffle")
