"""Dictionaries as the files SAELens loads: ``cfg.json`` and ``sae_weights.safetensors``.

Weights are those of the labelled dataset, already folded, so the files apply to stored activations without further
scaling: ``W_enc`` (d_in, d_sae), ``b_enc`` (d_sae,), ``W_dec`` (d_sae, d_in), ``b_dec`` (d_in,), float32, with
``b_dec`` subtracted from the input. ReLU is SAELens' architecture ``standard``, TopK is ``topk`` with ``k``, and
JumpReLU and BatchTopK (which uses a threshold outside training) are ``jumprelu`` with ``threshold`` (d_sae,).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyze.sae.spec import Activation
from schemas.errors import LakeError, UsageError
from schemas.whole_files import beside

CONFIG_NAME, WEIGHTS_NAME = "cfg.json", "sae_weights.safetensors"
_ARCHITECTURE = {
    "relu": "standard",
    "topk": "topk",
    "abs_topk": "abstopk",
    "batch_topk": "jumprelu",
    "jumprelu": "jumprelu",
}
_LAYOUT_VERSION = "6.0.0"  # the layout's first version of SAELens; older ones had other names for the same things

# What is read, by architecture and activation function. Version 6 has architectures alone; before, TopK was often a
# function of the architecture "standard".
_READ: dict[tuple[str, str | None], Activation] = {
    ("standard", None): "relu",
    ("standard", "relu"): "relu",
    ("standard", "topk"): "topk",
    ("topk", None): "topk",
    ("topk", "topk"): "topk",
    ("abstopk", None): "abs_topk",
    ("jumprelu", None): "jumprelu",
    ("jumprelu", "relu"): "jumprelu",
}
_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_RENAMED = {
    "activation_fn": "activation_fn_str",
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "hook_point_layer": "hook_layer",
}  # of SAELens 1 and 2
_FORWARD = frozenset(
    """architecture activation_fn_str activation_fn_kwargs k d_in d_sae apply_b_dec_to_input normalize_activations
    reshape_activations rescale_acts_by_decoder_norm finetuning_scaling_factor hook_name hook_head_index metadata
    """.split()  # noqa: SIM905
)
# Fields of any version's configs that say how a dictionary was trained or stored, and change nothing in its use.
_TRAINING = frozenset(
    """act_store_device adam_beta1 adam_beta2 autocast autocast_lm aux_loss_coefficient b_dec_init_method
    cached_activations_path checkpoint_path compile_llm compile_sae context_size dataset_path
    dataset_trust_remote_code dead_feature_threshold dead_feature_window decoder_heuristic_init
    decoder_heuristic_init_norm decoder_init_norm decoder_orthogonal_init device dtype eval_batch_size_prompts
    eval_every_n_wandb_logs exclude_special_tokens expansion_factor feature_sampling_window finetuning_method
    finetuning_tokens from_pretrained_path hook_eval hook_layer hook_point_eval init_encoder_as_decoder_transpose
    is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold jumprelu_sparsity_loss_mode jumprelu_ste_to_input
    jumprelu_tanh_scale l0_coefficient l0_warm_up_steps l1_coefficient l1_warm_up_steps llm_compilation_mode
    log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb lp_norm lr lr_decay_steps lr_end
    lr_scheduler_name lr_warm_up_steps model_class_name model_from_pretrained_kwargs model_kwargs model_name
    mse_loss_normalization n_batches_in_buffer n_checkpoints n_eval_batches n_restart_cycles neuronpedia_id noise_scale
    normalize_sae_decoder pre_act_loss_coefficient prepend_bos resume run_name sae_compilation_mode
    sae_lens_training_version sae_lens_version scale_sparsity_penalty_by_decoder_norm seed seqpos_slice
    store_batch_size store_batch_size_prompts streaming tokens_per_buffer train_batch_size train_batch_size_tokens
    training_tokens use_cached_activations use_ghost_grads use_sparse_activations verbose wandb_entity wandb_id
    wandb_log_frequency wandb_project
    """.split()  # noqa: SIM905
)


def save_sae(sae: xr.Dataset, folder: str | Path, *, metadata: Mapping[str, Any] | None = None) -> list[Path]:
    """Write a dictionary in SAELens' layout, one folder for each cell that has weights of its own.

    Parameters
    ----------
    sae : Dataset of :func:`analyze.sae.dictionary.train_sae`
    folder : path
        Made if absent. A grid, or a pool with statistics for each cell, writes ``layer-3_position-ct0`` and so on
        below it. A crosscoder reads its sources' vectors side by side, in the order that ``metadata.sources`` in
        ``cfg.json`` gives.
    metadata : mapping of plain values
        More fields for ``cfg.json``'s ``metadata``, such as the model's name.

    Returns
    -------
    list of Path
        The folders written; each loads with ``sae_lens.SAE.load_from_disk(folder)``.
    """
    from safetensors.numpy import save_file

    cell_dims = [d for d in sae["decoder_bias"].dims if d not in ("hidden", "source")]
    stacked = sae[["encoder", "encoder_bias", "decoder", "decoder_bias", "threshold", "n_hidden"]]
    written = []
    for index in np.ndindex(*(sae.sizes[d] for d in cell_dims)):
        one = stacked.isel({d: i for d, i in zip(cell_dims, index, strict=True) if d in stacked.dims})
        cell = {str(d): sae[d][i].item() for d, i in zip(cell_dims, index, strict=True)}
        target = Path(folder, "_".join(f"{d}-{v}" for d, v in cell.items())) if cell else Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        tensors = _tensors(one, sae.attrs["activation"])
        config = _config(sae, tensors, {"cell": cell, **_plain(metadata or {})})
        with beside(target / WEIGHTS_NAME) as weights, beside(target / CONFIG_NAME) as stated:
            save_file(tensors, weights)
            stated.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        written.append(target)
    return written


def load_sae(folder: str | Path) -> xr.Dataset:
    """A dictionary from SAELens' layout, whoever trained it, for :func:`analyze.sae.codes.sae_codes` and steering.

    Files of SAELens 1 to 6 are read, in any of the types float16, bfloat16, float32 and float64. What changes codes or
    reconstruction is either done (TopK of an earlier version, a scaling factor from fine-tuning, codes rescaled by the
    decoder's norm, a bias that the input keeps) or refused (tanh, input normalisation, a head's own outputs), and so is
    every field and tensor that is not known here.

    Parameters
    ----------
    folder : path
        With ``cfg.json`` and ``sae_weights.safetensors``.

    Returns
    -------
    Dataset
        ``encoder`` and ``decoder`` (feature, hidden), ``encoder_bias`` and ``threshold`` (feature), ``decoder_bias``
        (hidden), float32, for stored values as they are; the attribute ``hook_name`` where the file names its site.

    Raises
    ------
    UsageError
        If the folder lacks the files, they cannot be read, or something in them is not known; it lists what.
    """
    folder = Path(folder)
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"no dictionary in {folder}: {' and '.join(missing)} missing. A grid has one folder per cell.")
    config = _read_config(folder / CONFIG_NAME)
    tensors, problems = _read_tensors(folder / WEIGHTS_NAME)
    activation, k = _activation(config, problems)
    _check_config(config, activation, problems)
    scale = _scaling_factor(config, tensors, problems)
    _check_tensors(tensors, config, activation, k, problems)
    if problems:
        raise UsageError(f"dictionary {folder} is not read, as its codes would be wrong: {'; '.join(problems)}")

    w_enc, bias, w_dec, b_dec = (tensors[name].astype(np.float64) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    if config.get("rescale_acts_by_decoder_norm"):
        norm = np.linalg.norm(w_dec, axis=1)
        w_enc, bias, w_dec = w_enc * norm, bias * norm, w_dec / np.where(norm > 0, norm, 1)[:, None]
    if not config.get("apply_b_dec_to_input", True):
        bias = bias + b_dec @ w_enc
    if activation == "jumprelu" and config["metadata"].get("activation") == "batch_topk":
        activation = "batch_topk"  # as save_sae wrote it
    attrs = {"scope": "pool", "activation": activation, "k": k}
    values = {
        "encoder": (("feature", "hidden"), w_enc.T),
        "encoder_bias": ("feature", bias),
        "decoder": (("feature", "hidden"), w_dec * scale[:, None]),
        "decoder_bias": ("hidden", b_dec),
        "threshold": ("feature", tensors.get("threshold", np.zeros_like(bias))),
    }
    return xr.Dataset(
        {name: (dims, np.ascontiguousarray(value, dtype=np.float32)) for name, (dims, value) in values.items()}
        | {"n_hidden": ((), w_dec.shape[1])},
        coords={"feature": np.arange(len(bias))},
        attrs=attrs | ({"hook_name": config["hook_name"]} if config["hook_name"] else {}),
    )


def _read_config(path: Path) -> dict[str, Any]:
    """``cfg.json`` under the names of SAELens 3 to 5, with a hook name and a mapping ``metadata``."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"the dictionary's {path} cannot be read: {error}") from error
    if not isinstance(read, dict) or not isinstance(read.get("metadata") or {}, dict):
        raise UsageError(f"the dictionary's {path} is no JSON object with fields")
    config: dict[str, Any] = {_RENAMED.get(str(name), str(name)): value for name, value in read.items()}
    config["metadata"] = config.get("metadata") or {}
    config["hook_name"] = str(config.get("hook_name") or config["metadata"].get("hook_name") or "")
    return config


def _read_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Tensors by name, and a list of what is wrong with them: other types, numbers that are not finite."""
    from safetensors import SafetensorError, deserialize

    try:
        read = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        raise UsageError(f"the dictionary's {path} cannot be read: {error}; is the file complete?") from error
    tensors, problems = {}, []
    for name, part in read:
        if part["dtype"] == "BF16":  # the upper half of a float32
            value = (np.frombuffer(part["data"], "<u2").astype("<u4") << 16).view("<f4")
        elif part["dtype"] in _TYPES:
            value = np.frombuffer(part["data"], _TYPES[part["dtype"]])
        else:
            problems.append(f"{name} has type {part['dtype']}, known are BF16, {', '.join(_TYPES)}")
            continue
        tensors[name] = value.reshape(part["shape"])
        if not (np.abs(value) <= np.finfo(np.float32).max).all():
            problems.append(f"{name} has numbers that are not finite in float32")
    return tensors, problems


def _activation(config: Mapping[str, Any], problems: list[str]) -> tuple[Activation, int]:
    """Activation and k, of which versions before 6 name the first apart from the architecture."""
    architecture, function = config.get("architecture") or "standard", config.get("activation_fn_str")
    arguments = config.get("activation_fn_kwargs") or {}
    activation = _READ.get((architecture, function))
    if activation is None:
        also = f" with activation function {function!r}" if function else ""
        problems.append(
            f"architecture {architecture!r}{also} is not known; known are standard (relu or topk), topk, abstopk "
            "and jumprelu"
        )
        return "relu", 0
    if not isinstance(arguments, dict) or set(arguments) - {"k"}:
        problems.append(f"arguments {arguments} of the activation function are not known")
        return activation, 0
    given = [value for value in (config.get("k"), arguments.get("k")) if value is not None]
    if activation not in ("topk", "abs_topk"):
        if given:
            problems.append(f"k is {given[0]}, but {activation} keeps no fixed number of codes")
        return activation, 0
    if not given or any(type(value) is not int or value < 1 or value != given[0] for value in given):
        problems.append(f"k is {' and '.join(map(str, given)) or 'missing'}; {activation} keeps a whole number above 0")
        return activation, 0
    return activation, given[0]


def _check_config(config: Mapping[str, Any], activation: Activation, problems: list[str]) -> None:
    """Add what the config says of input and output that is not done here, and every field that is not known."""
    normalisation = config.get("normalize_activations")
    if normalisation not in (None, False, "none"):
        problems.append(f"it normalises its input ({normalisation}); fold that into its weights")
    if config.get("reshape_activations") not in (None, "none") or "hook_z" in config["hook_name"]:
        problems.append("it reads heads' outputs before their projection (hook_z), which no lake stores")
    if (config.get("hook_head_index", config["metadata"].get("hook_head_index"))) is not None:
        problems.append("it reads a single head (hook_head_index)")
    if config.get("rescale_acts_by_decoder_norm") and activation not in ("topk", "abs_topk"):
        problems.append(f"rescale_acts_by_decoder_norm is not known for {activation}")
    for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "finetuning_scaling_factor"):
        empty = name != "apply_b_dec_to_input" and config.get(name) is None  # null says neither
        if name in config and not empty and not isinstance(config[name], bool):
            problems.append(f"{name} is {config[name]!r}, neither true nor false")
    if unknown := sorted(set(config) - _FORWARD - _TRAINING):
        problems.append(f"fields that are not known: {', '.join(unknown)}")


def _scaling_factor(
    config: Mapping[str, Any], tensors: dict[str, NDArray[Any]], problems: list[str]
) -> NDArray[np.float64]:
    """What codes are multiplied with before they are decoded (feature,), taken out of the tensors."""
    factors = [tensors.pop(name) for name in ("scaling_factor", "finetuning_scaling_factor") if name in tensors]
    n_feature = len(tensors["W_dec"]) if "W_dec" in tensors and tensors["W_dec"].ndim else 1
    scale = np.ones(n_feature)
    for value in factors:
        if value.shape != scale.shape:
            problems.append(f"its scaling factor has shape {value.shape} instead of {scale.shape}")
        elif not np.allclose(value, 1):
            scale = scale * value
    asked = bool(config.get("finetuning_scaling_factor"))
    if asked and not factors:
        problems.append("finetuning_scaling_factor is true, but the scaling factor is missing")
    if len(factors) > 1 or (not asked and (scale != 1).any()):
        problems.append("it has a scaling factor that is not 1, but finetuning_scaling_factor is not true")
    return scale


def _check_tensors(
    tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any], activation: Activation, k: int, problems: list[str]
) -> None:
    """Add tensors that are missing, unexpected, or of other shapes than they and the config say."""
    first = tensors.get("W_enc", np.empty(()))
    d_in, d_sae = first.shape if first.ndim == 2 else (None, None)
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    if activation == "jumprelu":
        shapes["threshold"] = (d_sae,)
    if missing := sorted(shapes.keys() - tensors.keys()):
        problems.append(f"{', '.join(missing)} missing")
    if unexpected := sorted(tensors.keys() - shapes.keys()):
        problems.append(f"tensors that are not known: {', '.join(unexpected)}")
    for name in shapes.keys() & tensors.keys():
        if tensors[name].shape != shapes[name] or not tensors[name].size:
            problems.append(f"{name} has shape {tensors[name].shape}, W_enc {first.shape}")
    for name, size in (("d_in", d_in), ("d_sae", d_sae)):
        if config.get(name) not in (None, size):
            problems.append(f"{name} is {config[name]}, but W_enc has shape {first.shape}")
    if d_sae is not None and k > d_sae:
        problems.append(f"k is {k}, but it has {d_sae} features")


def _tensors(one: xr.Dataset, activation: str) -> dict[str, NDArray[np.float32]]:
    def joined(name: str) -> NDArray[np.float32]:
        value = one[name]
        if "source" in value.dims:  # side by side, without the padding of narrower sources
            pieces = [value.sel(source=s).isel(hidden=slice(int(one["n_hidden"].sel(source=s)))) for s in one["source"]]
            return np.concatenate([p.transpose(..., "hidden").values for p in pieces], axis=-1)
        return np.asarray(value.transpose(..., "hidden").values if "hidden" in value.dims else value.values)

    tensors = {
        "W_enc": joined("encoder").T,
        "b_enc": joined("encoder_bias"),
        "W_dec": joined("decoder"),
        "b_dec": joined("decoder_bias"),
    }
    if _ARCHITECTURE[activation] == "jumprelu":
        tensors["threshold"] = np.maximum(joined("threshold"), 0)
    bad = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if bad:
        raise LakeError(f"a dictionary with NaN or infinite values in {', '.join(bad)} is not saved; train it again")
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}


def _config(sae: xr.Dataset, tensors: Mapping[str, NDArray[np.float32]], metadata: dict[str, Any]) -> dict[str, Any]:
    architecture = _ARCHITECTURE[sae.attrs["activation"]]
    d_in, d_sae = tensors["W_enc"].shape
    if "source" in sae.dims:
        metadata["sources"] = [str(s) for s in sae["source"].values]
        metadata["source_width"] = sae["n_hidden"].values.tolist()
    config = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": _LAYOUT_VERSION, "activation": sae.attrs["activation"], **metadata},
    }
    if architecture in ("topk", "abstopk"):
        config["k"] = int(sae.attrs["k"])
    if architecture == "topk":
        config["rescale_acts_by_decoder_norm"] = False
    return config


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {str(k): v for k, v in metadata.items()}
