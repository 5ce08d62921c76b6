"""The training kernel of sparse autoencoders: many dictionaries at once, gradients written out, torch on the CPU.

It imports torch, and is itself imported only when a dictionary is trained.

Shapes: g dictionaries of a grid (1 for a pool or a crosscoder), b rows of a batch, d numbers of a row, n features. With
decoder columns ``w`` (rows of ``W_dec``), a dictionary computes

    pre = W_enc (x - b_dec) + b_enc,   f = act(pre),   x_hat = sum_j f_j w_j + b_dec

and the loss is ``reconstruction + sparsity * penalty``; see :class:`analyze.sae.dictionary.SAESpec` for both. The
gradients of all four activations share one shape: with ``r = 2 (x_hat - x) / b`` and ``s`` the derivative of the
penalty in ``f``,

    dW_dec = f^T r,   dpre = (r W_dec^T + s) * [f > 0],   dW_enc = dpre^T (x - b_dec),   db_enc = sum dpre,
    db_dec = sum r - (sum dpre) W_enc

so the last needs no product of the size of the batch, and everything but ``pre`` is needed only where ``f`` is not
zero: when few features are active, products run over those alone (``torch.embedding_bag``, ``sampled_addmm`` and sparse
matrices).
"""

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from analyze.sae.kernels import csr, gradient_of, largest, rate_at, top_codes, turned, unit

if TYPE_CHECKING:
    from analyze.sae.dictionary import SAESpec

_MEASURED_ROWS = 512  # at a time, so that their codes stay small
_SPARSE_SHARE = 0.06  # below this share of active features, products over the active ones alone are faster (measured)


class Step(NamedTuple):
    """What one step measured on its batch, each (group,)."""

    loss: NDArray[np.float32]
    reconstruction: NDArray[np.float32]
    l0: NDArray[np.float32]
    dead_share: NDArray[np.float32]


class Trainer:
    """Dictionaries under training, on normalised rows.

    Parameters
    ----------
    n_group, width, n_feature : int
    spec : SAESpec
    n_step : int
        Planned number of steps: the learning rate warms up over the first 5% and falls linearly over the last 20%;
        the sparsity coefficient warms up over the first 10%; no feature is revived in the last 25%.
    """

    def __init__(self, n_group: int, width: int, n_feature: int, spec: "SAESpec", n_step: int) -> None:
        self.spec, self.n_step, self.n_done = spec, n_step, 0
        self.generator = torch.Generator().manual_seed(spec.seed)
        shape = (n_group, n_feature, width)
        if spec.unit_norm:
            self.w_dec = unit(torch.randn(shape, generator=self.generator))
            self.w_enc = self.w_dec.clone() * spec.encoder_scale
            self.b_enc = torch.zeros(n_group, n_feature)
            self.b_dec = torch.zeros(n_group, width)
        else:  # the initial values of two torch.nn.Linear layers
            uniform = torch.rand(shape, generator=self.generator) * 2 - 1
            self.w_enc = uniform / width**0.5
            self.w_dec = (torch.rand(shape, generator=self.generator) * 2 - 1) / n_feature**0.5
            self.b_enc = (torch.rand(n_group, n_feature, generator=self.generator) * 2 - 1) / width**0.5
            self.b_dec = (torch.rand(n_group, width, generator=self.generator) * 2 - 1) / n_feature**0.5
        threshold = spec.initial_threshold if spec.activation == "jumprelu" else 0.0
        self.threshold = torch.full((n_group, n_feature), threshold)
        self.parameters = {"w_enc": self.w_enc, "w_dec": self.w_dec, "b_enc": self.b_enc, "b_dec": self.b_dec}
        if spec.activation == "jumprelu":
            self.parameters["threshold"] = self.threshold
        self.optimizer = torch.optim.Adam(list(self.parameters.values()), lr=spec.learning_rate, fused=True)
        # Written into at every step: to ask the system for so much memory anew takes several times as long.
        self.w_enc.grad, self.w_dec.grad = torch.zeros(shape), torch.zeros(shape)
        self._scratch = torch.empty(shape) if spec.unit_norm else torch.empty(0)
        self.batch_threshold = torch.zeros(n_group)  # of batch_topk in use, see calibrate
        self.since_fired = torch.zeros(n_group, n_feature, dtype=torch.int32)  # steps
        self.n_revived = 0

    @torch.no_grad()
    def step(self, batch: NDArray[np.float32]) -> Step:
        """Learn from one batch (group, row, width); NaN rows are no rows."""
        x = torch.from_numpy(np.ascontiguousarray(batch))
        weight = None
        if bool(torch.isnan(x.sum())) and bool(torch.isnan(x).any()):  # a sum is quick, and NaN where a row is
            missing = torch.isnan(x).any(-1)
            x = torch.where(missing[..., None], torch.zeros(()), x)
            weight = (~missing).float()
        share = self.n_done / max(self.n_step, 1)
        penalty = (self.spec.sparsity or 0.0) * (min(1.0, share / 0.1) if self.spec.schedule else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.learning_rate * rate_at(share, self.n_step, self.spec.schedule)

        n_row = torch.full((x.shape[0],), float(x.shape[1])) if weight is None else weight.sum(1).clamp(min=1)
        reconstruction, extra, active, residual = self._gradients(x, weight, n_row, penalty)
        if self.spec.unit_norm:  # only the part of the gradient that turns a column is used
            grad = gradient_of(self.w_dec)
            along = torch.mul(grad, self.w_dec, out=self._scratch).sum(-1, keepdim=True)
            grad.addcmul_(along, self.w_dec, value=-1)
        self.optimizer.step()
        if self.spec.unit_norm:
            self.w_dec /= self.w_dec.norm(dim=-1, keepdim=True).clamp(min=1e-8)
        if self.spec.activation == "jumprelu":
            self.threshold.clamp_(min=0)

        self.since_fired += 1
        self.since_fired.masked_fill_(active > 0, 0)
        self.n_done += 1
        window = self._window()
        dead = self.since_fired >= window
        if self.spec.revive == "resample" and self.n_done % window == 0 and self.n_done <= 0.75 * self.n_step:
            self._revive(dead, x, residual)
        return Step(
            (reconstruction + extra).numpy(),
            reconstruction.numpy(),
            (active.sum(-1) / n_row).numpy(),
            dead.float().mean(-1).numpy(),
        )

    @torch.no_grad()
    def calibrate(self, rows: NDArray[np.float32]) -> None:
        """Set the threshold with which batch_topk keeps k codes a row, on average over rows (group, row, width).

        For other activations nothing is done. A running mean over the batches' own thresholds would lag behind the
        weights, and several times as many codes would pass.
        """
        if self.spec.activation != "batch_topk":
            return
        for g, group in enumerate(rows):
            known = torch.from_numpy(group[~np.isnan(group).any(-1)])
            largest = torch.zeros(self.spec.k * len(known) + 1)
            for piece in torch.split(known, _MEASURED_ROWS):
                codes = self._pre_of(g, piece).relu().flatten()
                largest = torch.cat([largest, codes]).topk(len(largest)).values
            # between the last code that is kept and the first that is not
            self.batch_threshold[g] = largest[-2:].mean()

    @torch.no_grad()
    def loss(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Reconstruction loss and L0 (group,) on a batch, as in use (a threshold instead of a batch's top)."""
        squared, active, n_row = torch.zeros(3, len(batch))
        for x in torch.split(torch.from_numpy(np.ascontiguousarray(batch)), _MEASURED_ROWS, dim=1):
            there = ~torch.isnan(x).any(-1, keepdim=True)
            x = torch.where(there, x, torch.zeros(()))
            pre = self._pre(x)
            if self.spec.activation == "batch_topk":
                f = pre * (pre > self.batch_threshold[:, None, None])
            elif self.spec.activation in ("topk", "abs_topk"):
                f = top_codes(pre, self.spec.k, self.spec.activation == "abs_topk")
            else:
                floor = self.threshold[:, None] if self.spec.activation == "jumprelu" else torch.zeros(())
                f = pre * (pre > floor)
            squared += ((torch.matmul(f, self.w_dec) + self.b_dec[:, None] - x) * there).square().sum((1, 2))
            active += ((f != 0) * there).sum((1, 2))
            n_row += there.sum((1, 2))
        n_row = n_row.clamp(min=1)
        scale = batch.shape[-1] if self.spec.reconstruction == "mean" else 1
        return (squared / n_row / scale).numpy(), (active / n_row).numpy()

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Weights (group, ...), still for normalised rows; the threshold is that of use."""
        threshold = self.threshold
        if self.spec.activation == "batch_topk":
            threshold = self.batch_threshold[:, None].expand(self.b_enc.shape)
        return {
            "w_enc": self.w_enc.numpy(),
            "b_enc": self.b_enc.numpy(),
            "w_dec": self.w_dec.numpy(),
            "b_dec": self.b_dec.numpy(),
            "threshold": threshold.contiguous().numpy(),
        }

    def _pre_of(self, group: int, x: torch.Tensor) -> torch.Tensor:
        """Pre-activations (b, n) of one group's rows (b, d)."""
        inside = x - self.b_dec[group] if self.spec.pre_bias else x
        return torch.addmm(self.b_enc[group], inside, self.w_enc[group].T)

    def _pre(self, x: torch.Tensor) -> torch.Tensor:
        """Pre-activations (g, b, n)."""
        if len(x) == 1:  # a plain product is faster than a batched one of one
            return self._pre_of(0, x[0])[None]
        inside = x - self.b_dec[:, None] if self.spec.pre_bias else x
        return torch.baddbmm(self.b_enc[:, None], inside, self.w_enc.transpose(1, 2))

    def _gradients(
        self, x: torch.Tensor, weight: torch.Tensor | None, n_row: torch.Tensor, penalty: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Set every gradient; reconstruction loss and penalty (g,), firings (g, n), residual (g, b, d)."""
        spec = self.spec
        pre = self._pre(x)
        if weight is not None:
            pre = torch.where(weight[..., None] > 0, pre, -torch.inf)
        n_group, n_batch, n_feature = pre.shape
        near = None  # where JumpReLU's straight-through estimate sees the threshold
        if spec.activation in ("topk", "abs_topk"):
            size = pre.abs() if spec.activation == "abs_topk" else pre
            if weight is not None and spec.activation == "abs_topk":
                size = torch.where(weight[..., None] > 0, size, -torch.inf)
            column = largest(size, spec.k)
            value = pre.gather(2, column)
            if weight is not None:
                value = torch.where(torch.isinf(value), torch.zeros(()), value)
            if spec.activation == "topk":
                value = value.relu()
            if spec.k <= _SPARSE_SHARE * n_feature:
                start = torch.arange(0, value.numel() + 1, spec.k)
                feature = column + torch.arange(0, n_group * n_feature, n_feature)[:, None, None]
                return self._sparse(x, weight, n_row, penalty, start, feature.reshape(-1), value.reshape(-1), None)
            f = torch.zeros(pre.shape).scatter_(2, column, value)
        elif spec.activation == "batch_topk":
            flat = pre.relu().reshape(n_group, -1)
            keep = (n_row * spec.k).long().clamp(max=flat.shape[1])
            smallest = torch.stack([v.topk(int(k), sorted=False).values.min() for v, k in zip(flat, keep, strict=True)])
            f = torch.where(pre >= smallest[:, None, None].clamp(min=1e-12), pre, torch.zeros(()))
        else:
            floor = self.threshold[:, None] if spec.activation == "jumprelu" else torch.zeros(())
            f = pre.relu()
            if spec.activation == "jumprelu":
                f *= pre > floor
                near = (((pre - floor).abs() < spec.bandwidth / 2) & (pre > 0)).float()

        if spec.activation == "topk":
            return self._dense(x, weight, n_row, penalty, f, f.sign(), near)
        on = f.sign().abs_()  # as floats: comparisons and products with truth values take several times as long
        seen = on if near is None else torch.maximum(on, near)
        if float(seen.sum()) <= _SPARSE_SHARE * f.numel():
            group, row, column = seen.nonzero(as_tuple=True)
            start = torch.searchsorted(group * n_batch + row, torch.arange(n_group * n_batch + 1))
            value, close = f[group, row, column], None if near is None else near[group, row, column]
            return self._sparse(x, weight, n_row, penalty, start, group * n_feature + column, value, close)
        return self._dense(x, weight, n_row, penalty, f, on, near)

    def _dense(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        n_row: torch.Tensor,
        penalty: float,
        f: torch.Tensor,
        on: torch.Tensor,
        near: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """From codes ``f`` (g, b, n), and where they are not zero: ``on``, 1 or 0."""
        spec = self.spec
        residual = torch.baddbmm(self.b_dec[:, None], f, self.w_dec) - x
        loss, out = self._error(residual, weight, n_row)
        df = torch.matmul(out, self.w_dec.transpose(1, 2))
        if near is not None:
            slope = df * self.threshold[:, None] + self._price(n_row, penalty)[:, None, None]
            self.threshold.grad = -(slope * near).sum(1) / spec.bandwidth
        if spec.activation == "relu":
            df += self._price(n_row, penalty)[:, None, None]
        dpre = df.mul_(on)
        inside = x - self.b_dec[:, None] if spec.pre_bias else x
        torch.bmm(f.transpose(1, 2), out, out=gradient_of(self.w_dec))
        torch.bmm(dpre.transpose(1, 2), inside, out=gradient_of(self.w_enc))
        self._biases(dpre.sum(1), out.sum(1))
        active = on.sum(1)
        extra = self._penalty(f.sum((1, 2)) if spec.activation == "relu" else active.sum(1), n_row, penalty)
        return loss, extra, active, residual

    def _sparse(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        n_row: torch.Tensor,
        penalty: float,
        start: torch.Tensor,
        feature: torch.Tensor,
        value: torch.Tensor,
        near: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """As ``_dense`` from entries, row after row, the others being zero.

        ``start`` is where each of the g * b rows begins, ``feature`` one of the g * n of all groups.
        """
        spec = self.spec
        n_group, n_batch, width = x.shape
        n_feature = self.b_enc.shape[1]
        table = self.w_dec.reshape(-1, width)
        x_hat = torch.nn.functional.embedding_bag(feature, table, start[:-1], mode="sum", per_sample_weights=value)
        residual = x_hat.reshape(x.shape) + self.b_dec[:, None] - x
        loss, out = self._error(residual, weight, n_row)
        flat = out.reshape(-1, width)
        entries = csr(start, feature, value, (n_group * n_batch, n_group * n_feature))
        df = torch.sparse.sampled_addmm(entries, flat, table.T, beta=0).values()
        on = value != 0
        if near is not None:
            threshold = self.threshold.reshape(-1)[feature]
            price = self._price(n_row, penalty)[feature // n_feature]
            slope = (df * threshold + price) * near
            grad = torch.zeros(n_group * n_feature).index_add_(0, feature, -slope / spec.bandwidth)
            self.threshold.grad = grad.reshape(self.threshold.shape)
        if spec.activation == "relu":
            df += self._price(n_row, penalty)[feature // n_feature]
        dpre = df * on
        inside = (x - self.b_dec[:, None] if spec.pre_bias else x).reshape(-1, width)
        by_feature = turned(entries)
        for weights, values, rows in ((self.w_dec, value, flat), (self.w_enc, dpre, inside)):
            grad = gradient_of(weights).view(-1, width)
            torch.addmm(grad, by_feature(values), rows, beta=0, out=grad)
        db = torch.zeros(n_group * n_feature).index_add_(0, feature, dpre).reshape(self.b_enc.shape)
        self._biases(db, out.sum(1))
        active = torch.zeros(n_group * n_feature).index_add_(0, feature, on.float()).reshape(self.b_enc.shape)
        amount = active.sum(1)
        if spec.activation == "relu":
            amount = torch.zeros(n_group).index_add_(0, feature // n_feature, value)
        extra = self._penalty(amount, n_row, penalty)
        return loss, extra, active, residual

    def _error(
        self, residual: torch.Tensor, weight: torch.Tensor | None, n_row: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruction loss (g,) and its derivative in the reconstruction (g, b, d)."""
        if weight is not None:
            residual *= weight[..., None]
        count = n_row * (residual.shape[-1] if self.spec.reconstruction == "mean" else 1)
        return residual.square().sum((1, 2)) / count, residual * (2 / count)[:, None, None]

    def _price(self, n_row: torch.Tensor, penalty: float) -> torch.Tensor:
        """Of a unit of an active code (L1), or of one more active code (L0), in the loss of a batch (g,)."""
        return penalty / n_row / (self.b_enc.shape[1] if self.spec.penalty == "mean" else 1)

    def _penalty(self, amount: torch.Tensor, n_row: torch.Tensor, penalty: float) -> torch.Tensor:
        """Of the sum of a batch's codes (relu), or of their number (jumprelu)."""
        return amount * self._price(n_row, penalty if self.spec.activation in ("relu", "jumprelu") else 0.0)

    def _biases(self, db_enc: torch.Tensor, out: torch.Tensor) -> None:
        self.b_enc.grad = db_enc
        if self.spec.pre_bias:
            out = out - torch.matmul(db_enc[:, None], self.w_enc)[:, 0]
        self.b_dec.grad = out

    def _window(self) -> int:
        """Steps without firing after which a feature is dead; revival is tried as often."""
        return max(50, min(self.n_step // 10, 500))

    def _revive(self, dead: torch.Tensor, x: torch.Tensor, residual: torch.Tensor) -> None:
        """Point dead features at what the dictionary fails to reconstruct.

        After Bricken et al. 2023 ("Towards Monosemanticity", neuron resampling): different rows are drawn with
        probability proportional to the squared error, the decoder column becomes the row's residual (unit norm), the
        encoder row the same direction at ``revive_scale`` times the mean norm of the living, the bias 0; Adam's moments
        restart. The residuals' common part is the bias's to learn and is taken off first: features that shared it would
        all fire together and overshoot. At most one feature for four rows of the batch is revived at a time.
        """
        for g in range(len(dead)):
            index = dead[g].nonzero()[:, 0]
            missed = residual[g].mean(0) - residual[g]
            error = missed.square().sum(-1)
            index = index[: min(max(1, x.shape[1] // 4), int((error > 0).sum()))]
            if not len(index):
                continue
            row = torch.multinomial(error, len(index), replacement=False, generator=self.generator)
            direction = unit(missed[row])
            alive = self.w_enc[g][~dead[g]].norm(dim=-1)
            norm = float(alive.mean()) if len(alive) else 1.0
            self.w_dec[g, index] = direction if self.spec.unit_norm else direction * self.w_dec[g].norm(dim=-1).mean()
            self.w_enc[g, index] = direction * norm * self.spec.revive_scale
            self.b_enc[g, index] = 0
            self.threshold[g, index] = self.spec.initial_threshold
            self.since_fired[g, index] = 0
            self.n_revived += len(index)
            for name in set(self.parameters) - {"b_dec"}:
                state: dict[str, Any] = self.optimizer.state.get(self.parameters[name], {})
                for moment in ("exp_avg", "exp_avg_sq"):
                    if moment in state:
                        state[moment][g, index] = 0


with warnings.catch_warnings():  # said once per process: the CSR layout is in beta; only products with it are used here
    warnings.simplefilter("ignore")
    csr(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))
