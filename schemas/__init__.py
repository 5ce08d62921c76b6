"""The vocabulary of the lake: names, specs, rules and errors. Imports nothing else of this project."""

from schemas.answers import (
    answers_match,
    classify_outcome,
    equal_answers,
    extract_answer,
    is_number_token,
    read_gold_answer,
)
from schemas.commands import COMMANDS, filled
from schemas.errors import (
    CorruptLakeError,
    LakeError,
    MissingRunError,
    SchemaError,
    SpecMismatchError,
    UnwritableLakeError,
    UsageError,
)
from schemas.intervention import OPERATIONS, Intervention, check_positions
from schemas.spec import FORMAT_VERSION, RunSpec, canonical_json, device_kind, fingerprint
from schemas.spelling import nearest
from schemas.vocabulary import (
    DIMS,
    MODEL_VARIABLES,
    N_LATENT,
    RUN_VARIABLES,
    SEGMENTS,
    Places,
    Variable,
    latent_labels,
    position_coords,
    position_labels,
    position_offset,
    segment_of,
)

__all__ = [
    "COMMANDS",
    "DIMS",
    "FORMAT_VERSION",
    "MODEL_VARIABLES",
    "OPERATIONS",
    "N_LATENT",
    "RUN_VARIABLES",
    "SEGMENTS",
    "CorruptLakeError",
    "Intervention",
    "LakeError",
    "MissingRunError",
    "Places",
    "RunSpec",
    "SchemaError",
    "SpecMismatchError",
    "UnwritableLakeError",
    "UsageError",
    "Variable",
    "answers_match",
    "canonical_json",
    "check_positions",
    "classify_outcome",
    "device_kind",
    "equal_answers",
    "extract_answer",
    "filled",
    "fingerprint",
    "is_number_token",
    "latent_labels",
    "nearest",
    "position_coords",
    "position_labels",
    "position_offset",
    "read_gold_answer",
    "segment_of",
]
