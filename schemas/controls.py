"""Controls: which model is that of which other, and of what kind."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from schemas.errors import UsageError
from schemas.spelling import nearest

CONTROLS = {
    "decodable": "thoughts can be read and are not used",
    "multipass-pause": "computes as often, and nothing is handed on where thoughts are fed",
    "pause": "one learned vector is fed at every thought",
    "direct": "answers at once",
    "cot": "writes its steps",
}
"""Kinds of controls, as names of models end in them, and what each is."""


class Control(NamedTuple):
    """Whose control a model is, and of which of :data:`CONTROLS`."""

    of: str
    kind: str


def control_by_name(model: str) -> Control | None:
    """What a model's name says: ``small-gpt2-pause`` is the pause control of ``small-gpt2``."""
    for kind in CONTROLS:
        if model.endswith(f"-{kind}"):
            return Control(model.removesuffix(f"-{kind}"), kind)
    return None


def settings_of(control: Control | None) -> dict[str, str]:
    """``control_of`` and ``control`` as a checkpoint's settings state them; empty for a model that is no control."""
    return {} if control is None else {"control_of": control.of, "control": control.kind}


def kind_of_protocol(protocol: str) -> str:
    """Kind of control that a model of this protocol is: ``decodable`` if the protocol is no control's own."""
    return next((kind for kind in CONTROLS if protocol == kind or protocol.endswith(f"-{kind}")), "decodable")


def stated_control(stated: Mapping[str, Any], protocol: str, source: str) -> Control | None:
    """What a checkpoint's settings, or a model's attributes, say; ``None`` where they do not.

    ``control_of`` is the model whose control it is, ``control`` the kind, by default what follows from the protocol.

    Raises
    ------
    UsageError
        If either is no such text.
    """
    if stated.get("control_of") is None:
        return None
    of, kind = stated["control_of"], stated.get("control", kind_of_protocol(protocol))
    if not isinstance(of, str) or not of:
        raise UsageError(f"{source}: control_of is {of!r}; it must be the name of a model")
    if kind not in CONTROLS:
        raise UsageError(f"{source}: control is {kind!r}, not one of {', '.join(CONTROLS)}{nearest(kind, CONTROLS)}")
    return Control(of, kind)


def control_among(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Control]:
    """Which models are controls, by what they say themselves, else by their names.

    Parameters
    ----------
    models
        Attributes of each model, by its name. A model stated by the name of its checkpoint is found by that, too.
    """
    by_checkpoint = {str(attributes.get("checkpoint", "")): name for name, attributes in reversed(list(models.items()))}
    controls = {}
    for name, attributes in models.items():
        control = stated_control(attributes, str(attributes.get("protocol", "")), name) or control_by_name(name)
        if control is not None:
            of = control.of if control.of in models else by_checkpoint.get(control.of, control.of)
            if of != name:
                controls[name] = control._replace(of=of)
    return controls
