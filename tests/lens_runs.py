"""A run whose last layer reads out as what was planted."""

import numpy as np
import xarray as xr
from synthetic import make_model, make_run, normalise


def planted_run(n_example: int = 20) -> tuple[xr.Dataset, xr.Dataset]:
    """The last layer's state at ct0 reads out as the first result, at ct1 as its operator."""
    model = make_model(hidden=64)
    model["unembedding"] = (("vocabulary", "hidden"), np.eye(40, 64, dtype="float32") * 9)
    model["final_norm_bias"] = ("hidden", np.zeros(64, dtype="float32"))
    model["final_norm_weight"] = ("hidden", np.ones(64, dtype="float32"))
    run = make_run(n_example=n_example, hidden=64, model=model)
    strings = model["token_string"].values.tolist()
    state = run["hidden_state"].values.copy()
    for i in range(n_example):
        for place, (name, step) in {"ct0": ("intermediate_result", 0), "ct1": ("operation", 0)}.items():
            value = run[name].values[i, step]
            token = strings.index(value) if name == "operation" else int(value)
            state[i, -1, run["position"].values.tolist().index(place)] = np.eye(64)[token] * 5
    run["hidden_state"] = run["hidden_state"].copy(data=state)
    run["final_state"] = run["final_state"].copy(data=normalise(state[:, -1], model).astype("float32"))
    return run, model
