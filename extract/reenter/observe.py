"""How the states of a changed run differ from those of the untouched one, and what they read."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from extract.model.reasoner import Reasoner
from extract.reenter.answers import divergence

OBSERVED = {
    "state_kl": "nat",
    "state_logprob_change": "nat",
    "state_flip": "1",
    "state_cosine": "1",
    "state_change": "1",
    "state_token": "",
}
"""What is measured of a state after the final norm, and its unit: divergence of the untouched read-out from this one;
change of the log probability of the untouched one's likeliest token; whether another token is likeliest; cosine of the
two states; norm of the difference over the norm of the untouched state; the likeliest token."""
COMPARED = {name: units for name, units in OBSERVED.items() if name != "state_token"}
"""Those that compare a state with the untouched one."""
SAME = (0.0, 0.0, 0.0, 1.0, 0.0)
"""The same of two equal states."""


def observe_states(
    reasoner: Reasoner, untouched: Sequence[Tensor], changed: Mapping[int, Tensor], source: Tensor
) -> np.ndarray:
    """Compare states place by place: (condition, measure, offset, example), measures in order of :data:`OBSERVED`.

    Parameters
    ----------
    untouched
        States ``(example, hidden)`` at each offset from ``bot``.
    changed
        States ``(row, hidden)`` at some offsets; those before are as they were. Rows are conditions times examples.
    source
        Example of each row.
    """
    n_example = len(untouched[0])
    n_condition = len(source) // n_example
    out = np.empty((n_condition, len(OBSERVED), len(untouched), n_example))
    out[:, :-1] = np.array(SAME)[None, :, None, None]
    for offset, old in enumerate(untouched):
        if offset not in changed:
            out[:, -1, offset] = reasoner.logits(old).argmax(-1).cpu().numpy()
    for offset, new in changed.items():
        measured = differences(reasoner, untouched[offset], new, source)
        out[:, :, offset] = (
            measured.cpu().double().numpy().reshape(len(OBSERVED), n_condition, n_example).swapaxes(0, 1)
        )
    return out


def differences(reasoner: Reasoner, old: Tensor, new: Tensor, source: Tensor) -> Tensor:
    """Measures ``(measure, row)`` of new states against the old ones of their examples."""
    base = torch.log_softmax(reasoner.logits(old).float(), dim=-1)
    best = base.argmax(-1)[source]
    now = torch.log_softmax(reasoner.logits(new).float(), dim=-1)
    rows = torch.arange(len(source), device=new.device)
    kl = divergence(base, now.view(-1, *base.shape)).flatten()
    before, after = old[source].float(), new.float()
    return torch.stack(
        [
            kl,
            now[rows, best] - base[source, best],
            (now.argmax(-1) != best).float(),
            torch.nn.functional.cosine_similarity(before, after, dim=-1),
            (after - before).norm(dim=-1) / before.norm(dim=-1),
            now.argmax(-1).float(),
        ]
    )
