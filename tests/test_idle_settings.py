"""A setting that would do nothing beside the others is refused, by the command line and from Python."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from called import run_lake

from analyze.errors.spec import ErrorSpec
from analyze.heads.command import HeadSettings
from analyze.probes.command import ProbeSettings
from analyze.sae.command import SAESettings
from analyze.sae.spec import SAESpec
from analyze.transfer.command import TransferSettings
from extract.reenter.ablation.command import AblateSettings, CorruptSettings
from extract.reenter.sites import EVERY, site_layers
from extract.reenter.target import Target
from extract.training.command import TrainCommandSettings
from schemas import UsageError
from schemas.flags import flags
from schemas.registry import commands

IDLE = {
    "reenter ablate PATH --temperature 0.2": "--temperature does nothing without --sample",
    "reenter subspace PATH --subspaces pca,leace --das-steps 9": "--das-steps does nothing without --subspaces das",
    "reenter attribute PATH --edges 9": "--edges does nothing without --graph",
    "verify PATH --device cuda": "--device does nothing without --recompute",
    "verify PATH --recompute -1": "--recompute is -1; it must be at least 0",
    "top PATH RUN --head L0H0 --top 100000": "--top is 100,000; it must be at most 10,000",
    "reenter gradients PATH --steps 1000000": "--steps is 1,000,000; it must be at most 10,000",
    "reenter subspace PATH --das-rows 1000000": "--das-rows is 1,000,000; it must be at most 100,000",
    "show PATH --csv DIR": "--csv does nothing without RESULT",
    "analyze sae PATH --bandwidth 0.1": "--bandwidth does nothing without --activation jumprelu",
    "analyze sae PATH --activation relu --k 3": "--k does nothing without --activation topk or abs_topk or batch_topk",
    "analyze sae PATH --split none --fractions 0.8,0.1,0.1": "--fractions does nothing without --split problem or",
    "analyze sae PATH --features 9 --expansion 2": "both say how large",
    "analyze transfer PATH --kind sae,tuned --target operation": "--target does nothing without --kind probe or",
    "analyze errors PATH --reports --penalties 1,2": "--penalties is 1.0,2.0, and --reports says 1.0;",
    "reenter patch PATH --preset reports --sites latent_embedding": "and --preset reports says hidden_state;",
    "analyze probes PATH --csv DIR --plan": "--csv does nothing with --plan",
}


@pytest.mark.parametrize("words", IDLE)
def test_the_command_line_says_what_does_nothing(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_lake(*words.replace("PATH", str(tmp_path)).replace("DIR", str(tmp_path / "csv")).split())
    said = capsys.readouterr().err
    assert code == 2
    assert said.count("\n") == 1
    assert IDLE[words] in said
    assert not list(tmp_path.iterdir())


def test_what_does_something_is_taken() -> None:
    AblateSettings(sample=2, temperature=0.2)
    assert CorruptSettings(preset="reports", site="hidden_state").hold
    assert ProbeSettings(reports=True, per_class=30).per_class == 30
    assert ErrorSpec(reports=True, scale="none", seed=3).seed == 3
    TransferSettings(kind=("probe", "sae"), selection="accuracy")
    assert SAESettings(preset="gpt2", activation="relu").sparsity == 1e-3
    assert (SAESettings(preset="gpt2", expansion=8).features, SAESettings(preset="topk", activation="relu").k) == (
        None,
        16,
    )
    SAESettings(activation="jumprelu", bandwidth=0.3, sparsity=0.1)
    assert SAESpec(activation="relu", k=3).k == 3  # one set of settings for several activations


def test_what_an_older_version_stored_is_read() -> None:
    assert AblateSettings.of_spec({"temperature": 0.2, "sample": 0, "layers": [1]}).layers == (1,)
    assert HeadSettings.of_spec({"resamples": 1, "seed": 2**70}).resamples == 1  # which would be refused today
    with pytest.raises(UsageError, match="does nothing without"):
        AblateSettings(temperature=0.2)


def test_settings_of_another_way_of_training_are_refused() -> None:
    base: dict[str, Any] = {"base": "b", "data": ("d",), "out": Path("x"), "steps": 1}
    for wrong, message in (
        ({"protocol": "direct", "thoughts": 3}, "--thoughts does nothing with --protocol direct"),
        ({"protocol": "coconut", "teacher_weight": 2.0}, "--teacher-weight does nothing with --protocol coconut"),
        ({"curriculum": 0.3}, "--curriculum does nothing with --protocol codi, but with coconut"),
        ({"warmup": 2.0}, "--warmup is 2.0; it must be a share"),
        ({"clip": 0.0}, "--clip is 0.0"),
        ({"distillation_weight": -1.0}, "it must be at least 0"),
    ):
        with pytest.raises(UsageError, match=message):
            TrainCommandSettings(**base | wrong)
    TrainCommandSettings(**base, last_step=True, twins=("pause", "direct"))


@pytest.mark.parametrize(
    ("value", "message"), [({"seed": 2**63}, "must be below 2\\^63"), ({"resamples": 1}, "it must be at least 2")]
)
def test_numbers_that_nothing_can_come_of_are_refused(value: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HeadSettings(**value)
    with pytest.raises(UsageError, match="--resamples is 1; an interval lies between two"):
        ErrorSpec(resamples=1)


def test_no_layer_is_called_by_a_number_below_0() -> None:
    """-1 is how all layers at once are stored."""
    target = cast(Target, SimpleNamespace(layers=[0, 1], run="one/problems", reasoner=SimpleNamespace(n_layer=2)))
    assert site_layers(target, "hidden_state", None) == [0, 1, EVERY]
    with pytest.raises(UsageError, match="layer -1 is not there; one/problems has layers 0 to 1"):
        site_layers(target, "hidden_state", [EVERY])


def test_numbers_are_as_a_human_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("--limit 1_0", "--layers 0,1_0", "--max-examples 1_0"):
        assert run_lake("analyze", "probes", "none.lake", *words.split()) == 2
        assert "1_0" in capsys.readouterr().err
    assert SAESettings(fractions=(0.8, 0.1, 0.1)).fractions == (0.8, 0.1, 0.1)


def test_every_need_is_a_setting_of_its_command_and_a_word_of_it() -> None:
    for command in commands():
        known = {flag.name: flag for flag in flags(command.settings)}
        for flag in known.values():
            name, _, words = flag.needs.partition("=")
            assert not name or name in known, flag.name
            assert not words or set(words.split("|")) <= set(known[name].words), flag.name
