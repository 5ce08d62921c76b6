"""What sparse dictionary to learn: the spec, and the settings of the reports as their scripts ran them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from schemas.checks import check_number, check_whole
from schemas.errors import UsageError

Activation = Literal["relu", "topk", "batch_topk", "jumprelu", "abs_topk"]
Scope = Literal["pool", "cell", "crosscoder"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "topk", "batch_topk", "jumprelu", "abs_topk")
SCOPES: tuple[Scope, ...] = ("pool", "cell", "crosscoder")


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Shares of train, validation and test; refused if they are not three that sum to 1, with something to train on."""
    try:
        train, validation, test = (float(share) for share in fractions)
    except (TypeError, ValueError):
        train, validation, test = 0.0, 0.0, 0.0
    if not (train > 0 and validation >= 0 and test >= 0 and abs(train + validation + test - 1) <= 1e-9):
        raise UsageError(f"split fractions are {fractions!r}; give train, validation and test shares that sum to 1")
    return train, validation, test


@dataclass(frozen=True, kw_only=True, slots=True)
class SAESpec:
    """What dictionary to learn, and how.

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

    activation: Activation = "topk"
    """Which codes; see above."""
    n_feature: int | None = None
    """Dictionary size n; ``None`` means ``expansion * hidden`` (of the widest source)."""
    expansion: int = 4
    """Dictionary size over input width where ``n_feature`` is not given."""
    k: int = 16
    """Codes kept per row (topk, abs_topk) or on average (batch_topk)."""
    sparsity: float | None = None
    """Coefficient of the penalty; ``None`` means 0.1 for relu and 0.003 for jumprelu, where an active feature must
    explain that share of the squared norm to pay."""
    epochs: int = 25
    """Passes over the training rows."""
    batch_size: int = 256
    """Rows in a step (examples, for a grid)."""
    learning_rate: float = 3e-3
    """Adam's."""
    schedule: bool = True
    """Warm up the learning rate (5%) and the penalty (10%), and let the rate fall to zero over the last 20%."""
    normalize: Literal["pool", "cell", "none"] = "cell"
    """Rows are centred and divided by their mean norm, for each cell or over the pool; statistics of training rows
    only. Layers differ in norm by far, and a pool scaled as one reconstructs the largest alone. A crosscoder centres
    each cell but has one scale for each source."""
    unit_norm: bool = True
    """Keep decoder columns at unit norm, starting from encoder = decoder; ``False`` starts as two linear layers do."""
    pre_bias: bool = True
    """Subtract the decoder's bias from the input."""
    reconstruction: Literal["sum", "mean"] = "sum"
    """Squared error summed over the row's numbers, or averaged (which weakens it by d against the penalty)."""
    penalty: Literal["sum", "mean"] = "sum"
    """Penalty summed over features, or averaged (which weakens it by n)."""
    revive: Literal["resample", "none"] = "resample"
    """Point features that stopped firing at rows that are badly reconstructed (Bricken et al. 2023); not in the last
    quarter of training."""
    encoder_scale: float = 0.1
    """Norm of encoder rows at the start."""
    revive_scale: float = 0.5
    """Encoder norm of a revived feature over the mean norm of the living."""
    bandwidth: float = 0.2
    """JumpReLU's straight-through rectangle, in units of the rows' mean norm."""
    initial_threshold: float = 0.1
    """JumpReLU's threshold at the start."""
    split: Literal["problem", "example", "none"] = "problem"
    """What is kept on one side of the split; ``none`` trains on everything, as the reports did, holding out nothing."""
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of train, validation and test."""
    seed: int = 0
    """Of the split, the order of rows, the initial values and revivals."""
    buffer_bytes: int = 1 << 25
    """Buffer in which rows are mixed; memory does not depend on the number of examples beyond this."""

    def __post_init__(self) -> None:
        for name in ("activation", "normalize", "reconstruction", "penalty", "revive", "split"):
            allowed = _CHOICES[name]
            if getattr(self, name) not in allowed:
                raise UsageError(f"SAE {name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        for name in ("schedule", "unit_norm", "pre_bias"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"SAE {name} is {getattr(self, name)!r}; it is True or False")
        if self.sparsity is None:
            object.__setattr__(self, "sparsity", {"relu": 0.1, "jumprelu": 0.003}.get(self.activation, 0.0))
        for name in ("expansion", "k", "epochs", "batch_size", "buffer_bytes"):
            check_whole(f"SAE {name}", getattr(self, name), 1)
        if self.n_feature is not None:
            check_whole("SAE n_feature", self.n_feature, 1)
        check_whole("SAE seed", self.seed, 0)
        for name in ("learning_rate", "encoder_scale", "revive_scale", "bandwidth"):
            check_number(f"SAE {name}", getattr(self, name), above=0)
        for name in ("sparsity", "initial_threshold"):
            check_number(f"SAE {name}", getattr(self, name), least=0)
        object.__setattr__(self, "fractions", check_fractions(self.fractions))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a stored result's spec."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SAESpec":
        """The spec that ``as_dict`` came from; other keys are ignored."""
        names = {f.name for f in fields(cls)}
        known: dict[str, Any] = {k: v for k, v in values.items() if k in names}
        return cls(**known)


_CHOICES: dict[str, tuple[str, ...]] = {
    "activation": ACTIVATIONS,
    "normalize": ("pool", "cell", "none"),
    "reconstruction": ("sum", "mean"),
    "penalty": ("sum", "mean"),
    "revive": ("resample", "none"),
    "split": ("problem", "example", "none"),
}

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
REPORT_SPECS: dict[str, SAESpec] = {
    "gpt2": SAESpec(activation="relu", n_feature=4096, sparsity=1e-3, penalty="mean", **_PLAIN),
    "llama": SAESpec(activation="relu", n_feature=2048, sparsity=5e-4, **{**_PLAIN, "learning_rate": 3e-4}),
    "pilot": SAESpec(activation="relu", n_feature=2048, sparsity=5e-4, **_PLAIN),
    "topk": SAESpec(
        activation="abs_topk", n_feature=512, k=150, **{**_PLAIN, "split": "example"}, fractions=(0.8, 0.2, 0.0)
    ),
}
"""The reports' settings as their scripts ran them, defects included: no normalisation, nothing held out."""


def report_spec(preset: str | None = None, **changes: Any) -> SAESpec:
    """The settings of a report, or the defaults for ``None``, with changes.

    A change of activation also brings that activation's own penalty, unless one is given.
    """
    if preset is not None and preset not in REPORT_SPECS:
        raise UsageError(f"SAE preset is {preset!r}; choose one of {', '.join(REPORT_SPECS)}")
    base = {} if preset is None else REPORT_SPECS[preset].as_dict()
    if "activation" in changes:
        base.pop("sparsity", None)
    return SAESpec.from_dict(base | changes)


REPORT_POSITIONS = ("bot", "ct0", "ct1", "ct2", "ct3", "ct4")
"""The reports' six steps, which feed BOT as the first and five thoughts after it."""
REPORT_LAYERS: dict[str, tuple[int, ...]] = {
    "gpt2": (3, 7, 10),
    "llama": (11, 12, 13, 14, 16),
    "errors_llama": (13, 16),
}
"""Blocks behind the reports' ``hidden_states`` indices 4, 8, 11; 12 to 16; and 14, 16. LLaMA's last is the state after
the final norm, here layer 16, one past the last block; see :func:`analyze.sae.dictionary.with_final_state`."""
