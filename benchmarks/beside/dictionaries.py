"""Sparse autoencoders under training: this project's and those of SAELens, dictionary_learning and sparsify.

    python dictionaries.py WHO FOLDER CASE

Each library is used as its own trainer uses it, in each of the ways that its authors name (``ways``): SAELens says of
sparse activations that they are worthwhile where k is small and numbers are float32 (TopKTrainingSAEConfig), and
sparsify's trainer takes signum with a rate of its own unless told to take Adam (TrainConfig.optimizer).
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH = 256
Case = dict[str, Any]


class Ours:
    """The trainer of this project.

    Parameters
    ----------
    case
        Activation, sizes and penalty; ``rate`` of Adam, ``way`` one of :func:`ways`, and ``seed``.
    train : (row, number)
        What it is trained on.
    """

    def __init__(self, case: Case, train: np.ndarray) -> None:
        from analyze.sae.spec import SAESpec
        from analyze.sae.train import Trainer

        names = {"activation": "activation", "k": "k", "sparsity": "sparsity", "rate": "learning_rate", "seed": "seed"}
        spec = SAESpec(schedule=False, **{theirs: case[ours] for ours, theirs in names.items()})
        self.case, self.trainer = case, Trainer(1, case["d"], case["n"], spec, case["steps"])

    def step(self, batch: np.ndarray) -> None:
        """Learn from a batch."""
        self.trainer.step(batch[None])

    def measures(self, held: np.ndarray) -> tuple[float, float]:
        """Objective on held-out rows, and codes of a row that are not zero."""
        weights = {name: value[0] for name, value in self.trainer.weights().items()}
        code = np.maximum((held - weights["b_dec"]) @ weights["w_enc"].T + weights["b_enc"], 0)
        loss, l0 = self.trainer.loss(held[None])
        return float(loss[0]) + self.case["sparsity"] * float(code.sum(-1).mean()), float(l0[0])


class SAELens:
    """SAELens' trainer."""

    def __init__(self, case: Case, train: np.ndarray) -> None:
        from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        common: Case = {"d_in": case["d"], "d_sae": case["n"]}
        self.sparsity = case["sparsity"]
        self.sae: Any
        if case["activation"] == "topk":
            if case["way"] == "sparse activations":  # on a processor they have no gradients where codes are rescaled
                common |= {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}
            self.sae = TopKTrainingSAE(TopKTrainingSAEConfig(**common, k=case["k"]))
        else:
            self.sae = StandardTrainingSAE(StandardTrainingSAEConfig(**common, l1_coefficient=self.sparsity))
        rate, steps = case["rate"], case["steps"]
        self.trainer = SAETrainer(SAETrainerConfig(steps * BATCH, BATCH, lr=rate, lr_end=rate), self.sae, iter(()))

    def step(self, batch: np.ndarray) -> None:
        """Learn from a batch."""
        self.trainer.step(torch.from_numpy(batch))
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def measures(self, held: np.ndarray) -> tuple[float, float]:
        """Objective on held-out rows, and codes of a row that are not zero."""
        rows = torch.from_numpy(held)
        code = self.sae.encode(rows)
        code = code.to_dense() if code.is_sparse else code
        price = (code * self.sae.W_dec.norm(dim=1)).sum(-1).mean() if self.sparsity else 0.0
        loss = (self.sae(rows) - rows).square().sum(-1).mean() + self.sparsity * price
        return float(loss), float((code != 0).sum(-1).float().mean())


class DictionaryLearning:
    """dictionary_learning's trainers."""

    def __init__(self, case: Case, train: np.ndarray) -> None:
        from dictionary_learning.trainers.standard import StandardTrainer
        from dictionary_learning.trainers.top_k import TopKTrainer

        common = {"steps": case["steps"], "activation_dim": case["d"], "dict_size": case["n"], "layer": 0}
        common |= {"lm_name": "-", "lr": case["rate"], "warmup_steps": 1, "device": "cpu", "seed": case["seed"]}
        self.trainer: Any
        if case["activation"] == "topk":
            self.trainer = TopKTrainer(**common, k=case["k"])
        else:
            self.trainer = StandardTrainer(**common, l1_penalty=case["sparsity"], sparsity_warmup_steps=None)
        self.sparsity, self.number = case["sparsity"], 0

    def step(self, batch: np.ndarray) -> None:
        """Learn from a batch."""
        self.trainer.update(self.number, torch.from_numpy(batch))
        self.number += 1

    @torch.no_grad()
    def measures(self, held: np.ndarray) -> tuple[float, float]:
        """Objective on held-out rows, and codes of a row that are not zero."""
        rows = torch.from_numpy(held)
        code = self.trainer.ae.encode(rows)
        loss = (self.trainer.ae(rows) - rows).square().sum(-1).mean() + self.sparsity * code.sum(-1).mean()
        return float(loss), float((code != 0).sum(-1).float().mean())


class Sparsify:
    """sparsify's coder by the steps of its trainer, which itself wants a language model to draw activations from."""

    def __init__(self, case: Case, train: np.ndarray) -> None:
        from schedulefree import ScheduleFreeWrapper
        from sparsify import SparseCoder, SparseCoderConfig
        from sparsify.sign_sgd import SignSGD

        self.coder = SparseCoder(case["d"], SparseCoderConfig(num_latents=case["n"], k=case["k"]), dtype=torch.float32)
        self.optimizer: Any
        if case["way"] == "signum":
            rate = 5e-3 / (case["n"] / 2**14) ** 0.5
            self.optimizer = ScheduleFreeWrapper(SignSGD(self.coder.parameters(), lr=rate), momentum=0.95)
            self.optimizer.train()
        else:
            self.optimizer = torch.optim.Adam(self.coder.parameters(), lr=case["rate"])
        self.averages = case["way"] == "signum"
        self.coder.b_dec.data = torch.from_numpy(train[:BATCH]).mean(0)

    def step(self, batch: np.ndarray) -> None:
        """Learn from a batch."""
        self.coder.set_decoder_norm_to_unit_norm()
        self.coder(torch.from_numpy(batch)).fvu.backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def measures(self, held: np.ndarray) -> tuple[float, float]:
        """Objective on held-out rows, and codes of a row that are not zero."""
        rows = torch.from_numpy(held)
        if self.averages:  # what it learned is the average of its steps
            self.optimizer.eval()
        output = self.coder(rows)
        if self.averages:
            self.optimizer.train()
        return float((output.sae_out - rows).square().sum(-1).mean()), float(
            (output.latent_acts > 0).sum(-1).float().mean()
        )


WHO: dict[str, Any] = {
    "this project": Ours,
    "SAELens": SAELens,
    "dictionary_learning": DictionaryLearning,
    "sparsify": Sparsify,
}


def ways(who: str, activation: str) -> tuple[str, ...]:
    """How a library is used; what is not Adam brings its own rate."""
    if activation == "topk":
        return {"SAELens": ("Adam", "sparse activations"), "sparsify": ("Adam", "signum")}.get(who, ("Adam",))
    return () if who == "sparsify" else ("Adam",)


def batches(train: np.ndarray) -> Iterator[np.ndarray]:
    """Batches without end, the same for everybody."""
    rng = np.random.default_rng(1)
    while True:
        yield train[rng.integers(0, len(train), BATCH)]


class Works:
    """Works of one library: a trainer for each way, rate and seed.

    Parameters
    ----------
    who
        One of ``WHO``.
    folder
        With ``train.npy`` and ``held.npy``.
    case
        As JSON.
    """

    def __init__(self, who: str, folder: str, case: str) -> None:
        self.kind, self.case = WHO[who], json.loads(case)
        self.train, self.held = (np.load(Path(folder, f"{part}.npy")) for part in ("train", "held"))
        self.trainers: dict[str, Any] = {}
        self.batches: dict[str, Iterator[np.ndarray]] = {}

    def begin(self, name: str, way: str, rate: float, seed: int) -> None:
        """A trainer of a name."""
        torch.manual_seed(seed)
        self.trainers[name] = self.kind(self.case | {"way": way, "rate": rate, "seed": seed}, self.train)
        self.batches[name] = batches(self.train)

    def go_on(self, name: str, steps: int) -> dict[str, float]:
        """Some steps: their seconds of processor, and objective and codes afterwards, which are not in the seconds."""
        trainer, seconds = self.trainers[name], 0.0
        for _ in range(steps):
            batch = next(self.batches[name])
            begun = time.process_time()
            trainer.step(batch)
            seconds += time.process_time() - begun
        loss, l0 = trainer.measures(self.held)
        return {"seconds": seconds, "loss": loss, "l0": l0}

    def end(self, name: str) -> None:
        """Forget a trainer."""
        del self.trainers[name], self.batches[name]


if __name__ == "__main__":
    from work import serve

    torch.set_num_threads(1)
    works = Works(*sys.argv[1:])
    serve({name: getattr(works, name) for name in ("begin", "go_on", "end")})
