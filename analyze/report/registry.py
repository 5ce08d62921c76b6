"""Every experiment of the page, in order; each is found by its name and number of report."""

from collections.abc import Callable, Sequence

from analyze.report import ablation_sections as ablating
from analyze.report import attention_sections as attending
from analyze.report import compare_sections as comparing
from analyze.report import cutting_sections as cutting
from analyze.report import head_sections as heading
from analyze.report import lens_sections as reading
from analyze.report import patching_sections as patching
from analyze.report import probe_sections as probing
from analyze.report.content import Context, Experiment, Section


def _of(report: str, slug: str, title: str, make: Callable[[Context], Section | None], *commands: str) -> Experiment:
    return Experiment(slug=slug, title=title, report=report, commands=commands, make=make)


COMPARE = "lake analyze compare PATH RUN RUN"
LENS, HEADS, ATTENTION = "lake analyze lens PATH", "lake analyze heads PATH", "lake analyze attention PATH"
ABLATE = "lake reenter ablate PATH"
PATCH = "lake reenter patch PATH MODEL/PAIRS"

CHAPTERS: Sequence[tuple[str, str, str, Sequence[Experiment]]] = (
    (
        "report-000",
        "Position decoding and position ablation",
        "Report 000 asked which positions decode to numbers, and whether those are the ones the answer needs.",
        (
            _of("000", "number-decoding", "Number decoding by position", reading.number_decoding, LENS),
            _of("000", "chain-results", "Which position holds which step", reading.chain_results, LENS),
            _of(
                "000", "position-ablation", "Position ablation", ablating.position_ablation, "lake reenter ablate PATH"
            ),
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
                "lake analyze probes PATH --target correct",
            ),
            _of(
                "001",
                "step-probes",
                "Linear probes for each step",
                probing.step_probes,
                "lake analyze probes PATH --target intermediate_result",
                "lake analyze probes PATH --target operation",
            ),
            _of(
                "001",
                "sparse-autoencoders",
                "Sparse autoencoders",
                probing.sparse_autoencoders,
                "lake analyze sae PATH",
            ),
            _of(
                "001", "error-prediction", "SAE error prediction", probing.error_prediction, "lake analyze errors PATH"
            ),
            _of(
                "001",
                "token-ablation",
                "Token ablation and token importance",
                ablating.token_ablation,
                "lake reenter corrupt PATH",
            ),
            _of("", "integrated-gradients", "Integrated gradients", ablating.gradients, "lake reenter gradients PATH"),
        ),
    ),
    (
        "report-002",
        "Activation patching",
        "Report 002 put thoughts of a clean problem into a corrupted one, and counted how many it takes "
        "until the clean answer wins.",
        (
            _of("002", "single-patching", "Activation patching, one position", patching.single_patching, PATCH),
            _of("002", "several-patching", "Activation patching, first N thoughts", patching.several_patching, PATCH),
            _of("002", "subset-patching", "Positional patching, chosen subsets", patching.subset_patching, PATCH),
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
                ATTENTION,
            ),
            _of(
                "003",
                "attention-importance",
                "Attention against importance",
                attending.attention_and_importance,
                "lake reenter corrupt PATH",
                "lake analyze correlate PATH --importance corrupt:importance",
            ),
        ),
    ),
    (
        "report-004",
        "Critical heads",
        "Report 004 scored every attention head by what it does among the thoughts, compared the models, "
        "and cut heads and edges.",
        (
            _of("004", "critical-heads", "Critical heads", heading.critical_heads, HEADS),
            _of("004", "hubs", "Hub positions", heading.hubs, HEADS),
            _of("004", "flow-and-skip", "Sequential flow and skip connections", heading.flow_and_skip, HEADS),
            _of("004", "types-and-layers", "Types and layers of the top heads", heading.types_and_layers, HEADS),
            _of("004", "head-ablation", "Critical head ablation", cutting.head_ablation, "lake reenter heads PATH"),
            _of(
                "004",
                "edge-ablation",
                "Hub and attention pattern ablation",
                cutting.edge_ablation,
                "lake reenter edges PATH",
            ),
            _of("", "steering", "Steering", ablating.steering, "lake reenter steer PATH"),
        ),
    ),
    (
        "comparison",
        "Models side by side",
        "Everything the lake knows of each model, laid side by side, with the uncertainty of the differences.",
        (
            _of("004", "model-comparison", "Model comparison in seven panels", comparing.seven_panels, COMPARE),
            _of("", "differences", "Differences between models", comparing.differences, COMPARE),
            _of("", "twins", "A model beside its decodable twin", comparing.twins, COMPARE),
        ),
    ),
)

EXPERIMENTS: Sequence[Experiment] = tuple(experiment for *_, experiments in CHAPTERS for experiment in experiments)
