"""Everything offline: analyses of a lake that need neither the model nor a GPU. Names are imported when first used."""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "ErrorSpec": "analyze.errors",
    "SAESpec": "analyze.sae",
    "activation_of": "analyze.sae",
    "answer_attention": "analyze.correlate",
    "attention_importance": "analyze.correlate",
    "attention_shares": "analyze.attention",
    "attention_summary": "analyze.attention",
    "failure_importance": "analyze.correlate",
    "fit_tuned_lens": "analyze.tuned_lens",
    "head_analysis": "analyze.heads",
    "head_scores": "analyze.heads",
    "head_summary": "analyze.heads",
    "head_table": "analyze.heads",
    "importance_of": "analyze.correlate",
    "lake_tables": "analyze.query",
    "lens_difference": "analyze.lens",
    "lens_summary": "analyze.lens",
    "lens_tests": "analyze.lens",
    "lens_tokens": "analyze.lens",
    "linear_probes": "analyze.probes",
    "load_sae": "analyze.sae",
    "logit_lens": "analyze.lens",
    "logits": "analyze.readout",
    "predict_errors": "analyze.errors",
    "query_lake": "analyze.query",
    "reentry_importance": "analyze.correlate",
    "result_tables": "analyze.tables",
    "sae_codes": "analyze.sae",
    "sae_metrics": "analyze.sae",
    "sae_reconstruction": "analyze.sae",
    "sae_summary": "analyze.sae",
    "save_sae": "analyze.sae",
    "select_cells": "analyze.sae",
    "summarise_probes": "analyze.probes",
    "summary_of_analysis": "analyze.heads",
    "top_of_column": "analyze.top",
    "top_of_feature": "analyze.top",
    "top_of_head": "analyze.top",
    "train_sae": "analyze.sae",
}

__all__ = sorted(_PUBLIC)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """Import a public name from the module it lives in."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'analyze' has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
