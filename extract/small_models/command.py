"""``lake problems``."""

from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path
from tempfile import TemporaryDirectory

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
    """Write the problems that are asked for; no file that holds something else is written over.

    Raises
    ------
    UsageError
        If there is one; nothing is written then.
    """
    folder = settings.out
    check_outside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as beside:
        counts = _written(settings, Path(beside))
        for name in counts:
            if (folder / name).exists() and not cmp(folder / name, Path(beside, name), shallow=False):
                raise UsageError(
                    f"{folder / name} is there and holds something else, as of another seed or changed by hand; name"
                    " another --out, or remove it"
                )
        for name in counts:
            Path(beside, name).replace(folder / name)
    return Output(printed=[f"{folder / name}: {count}" for name, count in counts.items()])


def _written(settings: ProblemSettings, folder: Path) -> dict[str, str]:
    """Write the held-out problems of the small models, of one kind or the other, or stories: names and counts."""
    from extract.small_models.problems import (
        SPLIT_SIZES,
        make_hard,
        make_pairs,
        make_splits,
        write_pairs,
        write_problems,
    )

    if settings.stories:
        from extract.training.stories import write_stories

        write_stories(settings.stories, settings.seed, folder / "stories.jsonl", settings.largest)
        return {"stories.jsonl": f"{settings.stories} problems"}
    if settings.graph:
        from extract.small_models.graph_problems import write_graph_problems

        files = write_graph_problems(folder, n_pair=settings.pairs, seed=settings.seed)
        return {Path(file).name: str(count) for file, count in files.items()}
    held_out = {name: size for name, size in SPLIT_SIZES.items() if name != "train"}
    counts = {}
    for name, problems in (make_splits(settings.seed, held_out) | {"hard": make_hard(seed=settings.seed)}).items():
        write_problems(problems, folder / f"{name}.jsonl")
        counts[f"{name}.jsonl"] = f"{len(problems)} problems"
    write_pairs(make_pairs(settings.pairs, settings.seed), folder / "pairs.json")
    return {**counts, "pairs.json": f"{settings.pairs} pairs"}


COMMAND = Command(
    name="problems",
    help="Write the story problems of the small models: validation, test, hard and pair files; or graphs; or stories.",
    settings=ProblemSettings,
    run=write,
    stopped="the same command writes all files again",
)
