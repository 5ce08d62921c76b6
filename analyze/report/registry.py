"""Every experiment of the page, in order; each is found by its name and number of report."""

from collections.abc import Callable, Sequence

from analyze.attention import section as attending
from analyze.compare import section as comparing
from analyze.effects import ablation_section as ablating
from analyze.effects import cutting_section as cutting
from analyze.effects import patching_section as patching
from analyze.heads import section as heading
from analyze.lens import section as reading
from analyze.probes import section as probing
from analyze.report.content import Context, Experiment, Section
from schemas import COMMANDS


def _of(report: str, slug: str, title: str, make: Callable[[Context], Section | None], *kinds: str) -> Experiment:
    """An experiment from the kinds of result it needs, each with the options its command takes for it."""
    words = [kind.partition(" ") for kind in kinds]
    return Experiment(
        slug=slug,
        title=title,
        report=report,
        commands=[f"{COMMANDS[kind]} {options}".strip() for kind, _, options in words],
        make=make,
        on_pairs="patch" in kinds,
        on_several="compare" in kinds,
    )


CHAPTERS: Sequence[tuple[str, str, str, Sequence[Experiment]]] = (
    (
        "report-000",
        "Position decoding and position ablation",
        "Report 000 asked which positions decode to numbers, and whether those are the ones the answer needs.",
        (
            _of("000", "number-decoding", "Number decoding by position", reading.number_decoding, "lens"),
            _of("000", "chain-results", "Which position holds which step", reading.chain_results, "lens"),
            _of("000", "position-ablation", "Position ablation", ablating.position_ablation, "ablate"),
        ),
    ),
    (
        "report-001",
        "Probes, sparse autoencoders and token ablation",
        "Report 001 asked what can be read off the thoughts, whether errors can be foreseen from them, and "
        "which thoughts the answer needs.",
        (
            _of(
                "001",
                "linear-probes",
                "Linear probes for correctness",
                probing.linear_probes,
                "probes --target correct",
            ),
            _of(
                "001",
                "step-probes",
                "Linear probes for each step",
                probing.step_probes,
                "probes --target intermediate_result",
                "probes --target operation",
            ),
            _of(
                "001",
                "sparse-autoencoders",
                "Sparse autoencoders",
                probing.sparse_autoencoders,
                "sae",
            ),
            _of("001", "error-prediction", "SAE error prediction", probing.error_prediction, "errors"),
            _of(
                "001",
                "token-ablation",
                "Token ablation and token importance",
                ablating.token_ablation,
                "corrupt",
            ),
            _of("", "integrated-gradients", "Integrated gradients", ablating.gradients, "gradients"),
        ),
    ),
    (
        "report-002",
        "Activation patching",
        "Report 002 put thoughts of a clean problem into a corrupted one, and counted how many it takes "
        "until the clean answer wins.",
        (
            _of("002", "single-patching", "Activation patching, one position", patching.single_patching, "patch"),
            _of("002", "several-patching", "Activation patching, first N thoughts", patching.several_patching, "patch"),
            _of("002", "subset-patching", "Positional patching, chosen subsets", patching.subset_patching, "patch"),
        ),
    ),
    (
        "report-003",
        "Attention and importance",
        "Report 003 asked whether the thoughts that the answer attends to are the ones that matter.",
        (
            _of(
                "003",
                "answer-attention",
                "Attention of the answer to the thoughts",
                attending.answer_attention,
                "attention",
            ),
            _of(
                "003",
                "attention-importance",
                "Attention against importance",
                attending.attention_and_importance,
                "corrupt",
                "correlate",
            ),
        ),
    ),
    (
        "report-004",
        "Critical heads",
        "Report 004 scored every attention head by what it does among the thoughts, compared the models, "
        "and cut heads and edges.",
        (
            _of("004", "critical-heads", "Critical heads", heading.critical_heads, "heads"),
            _of("004", "hubs", "Hub positions", heading.hubs, "heads"),
            _of("004", "flow-and-skip", "Sequential flow and skip connections", heading.flow_and_skip, "heads"),
            _of("004", "types-and-layers", "Types and layers of the top heads", heading.types_and_layers, "heads"),
            _of("004", "head-ablation", "Critical head ablation", cutting.head_ablation, "heads", "ablate_heads"),
            _of(
                "004",
                "edge-ablation",
                "Hub and attention pattern ablation",
                cutting.edge_ablation,
                "edges",
            ),
            _of("", "steering", "Steering", ablating.steering, "steer"),
        ),
    ),
    (
        "comparison",
        "Models side by side",
        "Everything the lake knows of each model, laid side by side, with the uncertainty of the differences.",
        (
            _of("004", "model-comparison", "Model comparison in seven panels", comparing.seven_panels, "compare"),
            _of("", "differences", "Differences between models", comparing.differences, "compare"),
            _of("", "twins", "A model beside its decodable twin", comparing.twins, "compare"),
        ),
    ),
)

EXPERIMENTS: Sequence[Experiment] = tuple(experiment for *_, experiments in CHAPTERS for experiment in experiments)
