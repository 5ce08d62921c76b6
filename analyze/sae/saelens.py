"""Dictionaries of SAELens 1 to 6, ``cfg.json`` and ``sae_weights.safetensors``: :class:`analyze.sae.loaded.Loaded`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyze.sae.loaded import DESCRIBED, Loaded, read_safetensors
from analyze.sae.spec import Activation
from schemas.errors import UsageError
from schemas.json_values import read_json

CONFIG_NAME, WEIGHTS_NAME = "cfg.json", "sae_weights.safetensors"

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


def read_saelens(folder: Path) -> Loaded:
    """A dictionary of SAELens; what is not known of it is among its problems."""
    config = _read_config(folder / CONFIG_NAME)
    tensors, problems = read_safetensors(folder / WEIGHTS_NAME)
    activation, k = _activation(config, problems)
    _check_config(config, activation, problems)
    scale = _scaling_factor(config, tensors, problems)
    if activation == "jumprelu" and config["metadata"].get("activation") == "batch_topk":
        activation = "batch_topk"  # as save_sae wrote it
    return Loaded(
        tensors, activation, k, problems, hook=config["hook_name"],
        subtracts=bool(config.get("apply_b_dec_to_input", True)), scale=scale,
        by_norm=bool(config.get("rescale_acts_by_decoder_norm")),
        sizes={name: config.get(name) for name in ("d_in", "d_sae")},
    )  # fmt: skip


def _read_config(path: Path) -> dict[str, Any]:
    """``cfg.json`` under the names of SAELens 3 to 5, with a hook name and a mapping ``metadata``."""
    read = read_json(path, DESCRIBED)
    if not isinstance(read.get("metadata") or {}, dict):
        raise UsageError(f"the dictionary's {path} has metadata that are no JSON object with fields")
    config: dict[str, Any] = {_RENAMED.get(str(name), str(name)): value for name, value in read.items()}
    config["metadata"] = config.get("metadata") or {}
    config["hook_name"] = str(config.get("hook_name") or config["metadata"].get("hook_name") or "")
    return config


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
