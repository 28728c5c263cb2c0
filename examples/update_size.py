"""How large the update of a trained adapter is: rank and Frobenius norm of each weight's change, in float32.

    python examples/update_size.py lora/smollm2-135m-r16
    python examples/update_size.py 3f2a91 --results results

The change is that of the merged weight, so every method that merges has one, HiRA's among them, whose rank is not in
its config. A singular value counts where it is above float32's rounding of the weight itself.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from peftlab import RunStore, UserError
from peftlab.config.settings import validated
from peftlab.config.spec import RunSpec
from peftlab.modelling import merging, models


def updates(spec: RunSpec, folder: Path) -> Iterator[tuple[str, int, float, float]]:
    """Name, rank, norm, and norm as a share of the weight's, of each weight of two dimensions that changed."""
    exact = spec.model.model_copy(update={"dtype": "float32"})
    labels = spec.task.labels
    before = models.load(exact, models.kind_of(spec), labels=labels, seed=spec.seed).model.state_dict()
    for name, weight in merging.merged(spec, folder).state_dict().items():
        if weight.ndim != 2 or name not in before or torch.equal(weight, before[name]):
            continue
        change = (weight - before[name]).double()
        largest = torch.linalg.matrix_norm(before[name].double(), 2)
        rounding = max(weight.shape) * torch.finfo(torch.float32).eps * largest
        rank = int((torch.linalg.svdvals(change) > rounding).sum())
        norm = float(torch.linalg.matrix_norm(change))
        yield name, rank, norm, norm / float(torch.linalg.matrix_norm(before[name].double()))


def main(words: list[str]) -> None:
    """Print a table for each run that the reference means."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="a record, the beginning of a key, or an experiment")
    parser.add_argument("--results", default="results")
    arguments = parser.parse_args(words)
    store = RunStore(arguments.results)
    for record in store.find(arguments.run):
        spec = validated(RunSpec, record.spec, where=str(store.path_of(record)))
        print(record.stem)
        print(f"{'weight':60} {'rank':>6} {'norm':>10} {'share':>9}")
        for name, rank, norm, share in updates(spec, store.folder_of(record) / "adapter"):
            print(f"{name:60} {rank:6d} {norm:10.4g} {share:9.2%}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as problem:
        sys.exit(f"error: {problem}")
