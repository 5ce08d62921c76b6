"""``lake problems``."""

from dataclasses import dataclass
from pathlib import Path

from schemas import UsageError
from schemas.command import Command, Output, Settings, Shell, setting
from schemas.whole_files import check_outside


@dataclass(frozen=True, kw_only=True)
class ProblemSettings(Settings):
    """Which problems are written."""

    out: Path = setting(help="Folder for the files.", metavar="DIR")
    seed: int = setting(0, "Seed of the drawing.", least=0)
    pairs: int = setting(500, "Number of clean/corrupted pairs (stories have none).", least=1)
    graph: bool = setting(False, "Write the graph-search problems of small-graph instead, whose answers are words.")
    stories: int = setting(
        0, "Write this many stories in plain English instead, for models trained with --base.", least=0
    )
    largest: int | None = setting(
        None, "Largest result of a step of a story; by default two thousand.", least=1, needs="stories"
    )

    def __post_init__(self) -> None:
        """Refuse two kinds at once."""
        super().__post_init__()
        if self.graph and self.stories:
            raise UsageError("problems: --graph and --stories are two kinds of problems; ask for one")
        if self.stories and self.pairs != 500:
            raise UsageError("problems: --pairs is not for --stories, of which there are no pairs; leave it out")


def write(settings: ProblemSettings, shell: Shell) -> Output:
    """Write the held-out problems of the small models, of one kind or the other, or stories."""
    from extract.small_models.problems import (
        SPLIT_SIZES,
        make_hard,
        make_pairs,
        make_splits,
        write_pairs,
        write_problems,
    )

    folder = settings.out
    check_outside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if settings.stories:
        from extract.training.stories import write_stories

        write_stories(settings.stories, settings.seed, folder / "stories.jsonl", settings.largest)
        return Output(printed=[f"{folder / 'stories'}.jsonl: {settings.stories} problems"])
    if settings.graph:
        from extract.small_models.graph_problems import write_graph_problems

        files = write_graph_problems(folder, n_pair=settings.pairs, seed=settings.seed)
        return Output(printed=[f"{file}: {count}" for file, count in files.items()])
    held_out = {name: size for name, size in SPLIT_SIZES.items() if name != "train"}
    lines = []
    for name, problems in (make_splits(settings.seed, held_out) | {"hard": make_hard(seed=settings.seed)}).items():
        write_problems(problems, folder / f"{name}.jsonl")
        lines.append(f"{folder / name}.jsonl: {len(problems)} problems")
    write_pairs(make_pairs(settings.pairs, settings.seed), folder / "pairs.json")
    return Output(printed=[*lines, f"{folder / 'pairs'}.json: {settings.pairs} pairs"])


COMMAND = Command(
    name="problems",
    help="Write the story problems of the small models: validation, test, hard and pair files; or graphs; or stories.",
    settings=ProblemSettings,
    run=write,
    stopped="the same command writes all files again",
)
