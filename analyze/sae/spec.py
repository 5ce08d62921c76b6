"""What sparse dictionary to learn: the spec, and the settings of the reports as their scripts ran them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from schemas.checks import check_number, check_whole
from schemas.command import Settings, setting
from schemas.errors import UsageError

Activation = Literal["topk", "batch_topk", "relu", "jumprelu", "abs_topk"]
Scope = Literal["pool", "cell", "crosscoder"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
EXPANSION = 4


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Shares of train, validation and test; refused if they are not three that sum to 1, with something to train on."""
    try:
        train, validation, test = (float(share) for share in fractions)
    except (TypeError, ValueError):
        train, validation, test = 0.0, 0.0, 0.0
    if not (train > 0 and validation >= 0 and test >= 0 and abs(train + validation + test - 1) <= 1e-9):
        raise UsageError(f"split fractions are {fractions!r}; give train, validation and test shares that sum to 1")
    return train, validation, test


@dataclass(frozen=True, kw_only=True)
class SAESpec(Settings):
    """What dictionary to learn, and how. What is not given is the preset's, or as its help says.

    With ``x`` a normalised row of width d, ``f >= 0`` its n codes and ``x_hat = W_dec f + b_dec``:

    =============  ============================================  ===================================================
    activation     codes                                         loss (mean over rows)
    =============  ============================================  ===================================================
    relu           ``max(pre, 0)``                               ``|x - x_hat|^2 + sparsity * sum_j f_j``
    topk           the k largest of ``max(pre, 0)``              ``|x - x_hat|^2``
    batch_topk     the k * rows largest of a whole batch;        ``|x - x_hat|^2``
                   outside training those above a threshold
                   that keeps k a row of training rows
    jumprelu       ``pre * [pre > threshold_j]``                 ``|x - x_hat|^2 + sparsity * sum_j [pre_j > thr_j]``
    abs_topk       the k largest ``|pre|`` with their sign       ``|x - x_hat|^2``
    =============  ============================================  ===================================================

    ``pre = W_enc (x - b_dec) + b_enc``. JumpReLU's threshold is learned through a rectangle of width ``bandwidth``
    around it (straight-through estimate). Decoder columns have unit norm after every step (of all sources together in a
    crosscoder), and Adam sees only the part of the gradient that turns them, so no penalty can be evaded by scale.

    References
    ----------
    relu: Bricken et al., *Towards Monosemanticity*, 2023. topk: Gao et al., *Scaling and evaluating sparse
    autoencoders*, 2024, section 2.3. batch_topk: Bussmann et al., *BatchTopK Sparse Autoencoders*, 2024. jumprelu:
    Rajamanoharan et al., *Jumping Ahead*, 2024, equations 9-12. Crosscoder: Lindsey et al., *Sparse Crosscoders*, 2024.
    """

    preset: Literal["gpt2", "llama", "pilot", "topk"] | None = setting(
        None, "Settings of a report; other flags override them."
    )
    activation: Activation = setting(None, "What makes codes sparse; by default topk.")
    features: int | None = setting(None, "Size of the dictionary; by default expansion times the width.")
    expansion: int = setting(
        EXPANSION, "Size of the dictionary as a multiple of the width, where --features is not given."
    )
    k: int = setting(
        None,
        "Codes kept for each row (topk, abs_topk) or on average (batch_topk); by default 16.",
        needs="activation=topk|abs_topk|batch_topk",
    )
    sparsity: float | None = setting(
        None,
        "Coefficient of the penalty; by default 0.1 for relu and 0.003 for jumprelu, where an active feature must"
        " explain that share of the squared norm to pay.",
        needs="activation=relu|jumprelu",
    )
    epochs: int = setting(25, "Passes over the training rows.")
    batch_size: int = setting(256, "Rows in a step; for --scope cell, examples.")
    learning_rate: float = setting(None, "Learning rate of Adam; by default 0.003.")
    schedule: bool = setting(
        None,
        "Warm up the learning rate (5%) and the penalty (10%), and let the rate fall to zero over the last 20%;"
        " by default on.",
    )
    normalize: Literal["cell", "pool", "none"] = setting(
        None,
        "Rows are centred and divided by their mean norm by cell or over the pool, by statistics of training rows; by"
        " default cell. Layers differ in norm by far, and a pool scaled as one reconstructs the largest alone. A"
        " crosscoder centres each cell but has one scale for each source.",
    )
    unit_norm: bool = setting(
        None,
        "Keep decoder columns at unit norm and start with encoder = decoder; without, start like two linear"
        " layers. By default on.",
    )
    pre_bias: bool = setting(None, "Subtract the decoder's bias from the input; by default on.")
    reconstruction: Literal["sum", "mean"] = setting(
        None,
        "Squared error summed over the row's numbers, or averaged, which weakens it by the width against the penalty;"
        " by default sum.",
    )
    penalty: Literal["sum", "mean"] = setting(
        None,
        "Penalty summed over features, or averaged, which weakens it by their number; by default sum.",
        needs="activation=relu|jumprelu",
    )
    revive: Literal["resample", "none"] = setting(
        None,
        "resample: point features that stopped firing at rows that are badly reconstructed (Bricken et al. 2023); not"
        " in the last quarter of training. By default so.",
    )
    encoder_scale: float = setting(0.1, "Norm of encoder rows at the start.", needs="unit_norm")
    revive_scale: float = setting(
        0.5,
        "Encoder norm of a revived feature, as a share of the mean norm of those that fire.",
        needs="revive=resample",
    )
    bandwidth: float = setting(
        0.2,
        "JumpReLU's straight-through rectangle, in units of the rows' mean norm.",
        needs="activation=jumprelu",
    )
    initial_threshold: float = setting(0.1, "JumpReLU's threshold at the start.", needs="activation=jumprelu")
    split: Literal["problem", "example", "none"] = setting(
        None,
        "What is kept on one side of the split; none trains on everything, as the reports did, holding out nothing. By"
        " default problem.",
    )
    fractions: tuple[float, float, float] = setting(
        None,
        "Shares of train, validation and test; by default 0.7,0.1,0.2.",
        metavar="TRAIN,VALIDATION,TEST",
        needs="split=problem|example",
    )
    seed: int = setting(0, "Seed of the split, the order of rows, the initial values and revivals.", least=0)
    buffer_bytes: int = setting(
        1 << 28,
        "Buffer in which rows are mixed; memory does not depend on the number of examples beyond this.",
    )

    def __post_init__(self) -> None:
        preset = dict(REPORTS.get(self.preset or "", {}))
        if self.activation not in (None, preset.get("activation")):  # another activation brings its own
            preset = {name: value for name, value in preset.items() if name not in ("sparsity", "k", "penalty")}
        if self.expansion != EXPANSION:
            if self.features is not None:
                raise UsageError("SAE features and expansion both say how large the dictionary is; give one of them")
            preset.pop("features", None)
        for name, value in {**USUAL, **preset}.items():
            if getattr(self, name) in (None, ()):
                object.__setattr__(self, name, value)
        if self.sparsity is None:
            object.__setattr__(self, "sparsity", {"relu": 0.1, "jumprelu": 0.003}.get(self.activation, 0.0))
        for name in ("schedule", "unit_norm", "pre_bias"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"SAE {name} is {getattr(self, name)!r}; it is True or False")
        for name in ("expansion", "k", "epochs", "batch_size", "buffer_bytes"):
            check_whole(f"SAE {name}", getattr(self, name), 1)
        if self.features is not None:
            check_whole("SAE features", self.features, 1)
        check_whole("SAE seed", self.seed, 0)
        for name in ("learning_rate", "encoder_scale", "revive_scale", "bandwidth"):
            check_number(f"SAE {name}", getattr(self, name), above=0)
        for name in ("sparsity", "initial_threshold"):
            check_number(f"SAE {name}", getattr(self, name), least=0)
        object.__setattr__(self, "fractions", check_fractions(self.fractions))
        super().__post_init__()

    def check_needs(self) -> None:
        """Pass over what another activation needs: from Python one set of settings may serve several."""


LEARNING = tuple(one.name for one in fields(SAESpec) if one.name not in ("split", "fractions", "seed", "buffer_bytes"))
"""Settings that say how a dictionary is learned, not how it is measured."""
USUAL: dict[str, Any] = {
    "activation": "topk",
    "k": 16,
    "learning_rate": 3e-3,
    "schedule": True,
    "normalize": "cell",
    "unit_norm": True,
    "pre_bias": True,
    "reconstruction": "sum",
    "penalty": "sum",
    "revive": "resample",
    "split": "problem",
    "fractions": (0.7, 0.1, 0.2),
}
"""What holds where neither a value nor a preset is given."""
_PLAIN: dict[str, Any] = {
    "normalize": "none",
    "unit_norm": False,
    "pre_bias": False,
    "schedule": False,
    "revive": "none",
    "reconstruction": "mean",
    "split": "none",
    "learning_rate": 1e-3,
}
REPORTS: dict[str, dict[str, Any]] = {
    "gpt2": {**_PLAIN, "activation": "relu", "features": 4096, "sparsity": 1e-3, "penalty": "mean"},
    "llama": {**_PLAIN, "activation": "relu", "features": 2048, "sparsity": 5e-4, "learning_rate": 3e-4},
    "pilot": {**_PLAIN, "activation": "relu", "features": 2048, "sparsity": 5e-4},
    "topk": {
        **_PLAIN, "activation": "abs_topk", "features": 512, "k": 150, "split": "example", "fractions": (0.8, 0.2, 0.0),
    },
}  # fmt: skip
"""The reports' settings as their scripts ran them, defects included: no normalisation, nothing held out."""

REPORT_POSITIONS = ("bot", "ct0", "ct1", "ct2", "ct3", "ct4")
"""The reports' six steps, which feed BOT as the first and five thoughts after it."""
REPORT_LAYERS: dict[str, tuple[int, ...]] = {
    "gpt2": (3, 7, 10),
    "llama": (11, 12, 13, 14, 16),
    "errors_llama": (13, 16),
}
"""Blocks behind the reports' ``hidden_states`` indices 4, 8, 11; 12 to 16; and 14, 16. LLaMA's last is the state after
the final norm, here layer 16, one past the last block; see :func:`analyze.sae.dictionary.with_final_state`."""
