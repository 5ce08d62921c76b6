"""SAELens' own training loop over ``torch_dataset``: its trainer asks the lake for batches, and goes on exactly.

    .venv-peers/bin/python -m pip install xarray dask
    PYTHONPATH=. .venv-peers/bin/python benchmarks/saelens_loop.py LAKE [--run MODEL/DATASET] [--steps N]

Twice the same steps: at once, and stopped in the middle, with a new dataset that loads the first one's state. Both
must end in the same weights. What share of the time goes into reading is printed, too.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch.utils.data import DataLoader

from store import open_lake, torch_dataset

BATCH = 1024


class Batches(Iterator[torch.Tensor]):
    """Batches of epoch after epoch; ``seconds``: of the processor, spent in reading them."""

    def __init__(self, dataset: Any, workers: int = 0) -> None:
        self.dataset, self.workers, self.seconds = dataset, workers, 0.0
        self.batches = self._all()

    def _all(self) -> Iterator[torch.Tensor]:
        while True:
            yield from DataLoader(self.dataset, batch_size=None, num_workers=self.workers)

    def __next__(self) -> torch.Tensor:
        begin = time.process_time()
        batch = next(self.batches)
        self.seconds += time.process_time() - begin
        return batch


def trainer(d_in: int, steps: int, width: int, batches: Batches) -> "SAETrainer[Any, Any]":
    """SAELens' trainer of a TopK autoencoder, from the same weights each time."""
    torch.manual_seed(0)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=width, k=32))
    config = SAETrainerConfig(
        total_training_samples=steps * BATCH, train_batch_size_samples=BATCH, lr=1e-3, lr_end=1e-3
    )
    return SAETrainer(config, sae, batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake")
    parser.add_argument("--run", default="gpt2/gsm8k")
    parser.add_argument("--layer", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lake = open_lake(arguments.lake)

    def dataset() -> Any:
        positions = [label for label in lake.layout(arguments.run).positions if label.startswith("ct")]
        chosen = {"layer": arguments.layer, "position": positions}
        return torch_dataset(lake, arguments.run, "hidden_state", batch_size=BATCH, drop_last=True, **chosen)

    batches = Batches(dataset(), arguments.workers)
    d_in = lake.layout(arguments.run).hidden
    whole = trainer(d_in, arguments.steps, arguments.width, batches)
    begin = time.process_time()
    whole.fit()
    seconds = time.process_time() - begin
    share = batches.seconds / seconds
    print(f"{arguments.steps} steps of {BATCH} rows: {seconds:.1f} s of processor, {share:.1%} of them reading")

    first = trainer(d_in, arguments.steps, arguments.width, Batches(dataset()))
    half = arguments.steps // 2
    for _ in range(half):
        first.step(next(first.data_provider))
        first.n_training_steps += 1
    second = dataset()
    second.load_state_dict(first.data_provider.dataset.state_dict())
    first.data_provider = Batches(second)
    first.fit()
    same = all(torch.equal(a, b) for a, b in zip(whole.sae.parameters(), first.sae.parameters(), strict=True))
    print("stopped in the middle and gone on with: " + ("the same weights" if same else "OTHER WEIGHTS"))
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    main()
