"""Compares weighted kNN with scikit-learn's brute force, on the same cores, in one process.

    python -m benchmarks.knn [--bank=50000] [--queries=10000] [--dimensions=512] [--k=200]

The features are random. scikit-learn runs twice: with cosine distance, the direct form, and with Euclidean distance of
unit vectors, for which it has a fused routine. "peak" is the peak memory of the process so far, so the implementation
with the least memory runs first.
"""

import argparse
import resource
import time

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from bt_jax.evals import knn

TEMPERATURE, CLASSES = 0.1, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("bank", 50_000), ("queries", 10_000), ("dimensions", 512), ("k", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    bank, queries = (rng.standard_normal((n, args.dimensions), np.float32) for n in (args.bank, args.queries))
    labels = rng.integers(0, CLASSES, args.bank)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries)]

    def ours(queries=queries):
        lists = {"ks": (args.k,), "temperatures": (TEMPERATURE,)}
        return knn.predict(bank, labels, queries, **lists, num_classes=CLASSES)[0, 0]

    def theirs(metric, weights, bank, queries):
        return (
            KNeighborsClassifier(args.k, algorithm="brute", metric=metric, weights=weights)
            .fit(bank, labels)
            .predict(queries)
        )

    ours(queries[: knn.CHUNK])  # compiles
    implementations = {
        "bt_jax": ours,
        "scikit-learn, unit vectors": lambda: theirs(
            "euclidean", lambda d: np.exp((1 - d**2 / 2) / TEMPERATURE), *unit
        ),
        "scikit-learn, cosine": lambda: theirs("cosine", lambda d: np.exp((1 - d) / TEMPERATURE), bank, queries),
    }
    print("| implementation | share of bt_jax's time | peak | same classes |\n|---|---|---|---|")
    first, expected = None, None
    for name, implementation in implementations.items():
        started = time.perf_counter()
        classes = implementation()
        seconds = time.perf_counter() - started
        first, expected = first or seconds, classes if expected is None else expected
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"| {name} | {seconds / first:.2f} | {peak:.2f} GB | {(classes == expected).mean():.2%} |", flush=True)


if __name__ == "__main__":
    main()
