"""The peers' side of quantizers.py, run by a Python of its own that has faiss-cpu and k-means-constrained.

Run:   python benchmarks/quantizers_peer.py faiss|constrained VECTORS.npy OUT_FOLDER SETTINGS_JSON
Reads the vectors, times the fit alone and writes codes.npy, one centroids file a level and peer.json.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np


def residual_kmeans(vectors_ND: np.ndarray, settings: dict) -> tuple[np.ndarray, list[np.ndarray], float]:
    """faiss.Kmeans level by level; one search more a level finds the codes and the residual."""
    import faiss

    faiss.omp_set_num_threads(settings["threads"])
    began = time.perf_counter()
    residual_ND, codes, centroids = vectors_ND.copy(), [], []
    for level, size in enumerate(settings["levels"]):
        # Every vector is clustered on both sides: faiss would draw a sample from many vectors.
        means = faiss.Kmeans(
            vectors_ND.shape[1], size, niter=settings["iterations"], seed=settings["seed"] + level,
            min_points_per_centroid=1, max_points_per_centroid=len(vectors_ND),
        )  # fmt: skip
        means.train(residual_ND)
        _, nearest_N1 = means.index.search(residual_ND, 1)
        residual_ND -= means.centroids[nearest_N1[:, 0]]
        codes.append(nearest_N1[:, 0])
        centroids.append(means.centroids)
    return np.stack(codes, axis=1), centroids, time.perf_counter() - began


def balanced_kmeans(vectors_ND: np.ndarray, settings: dict) -> tuple[np.ndarray, list[np.ndarray], float]:
    """k-means-constrained with sizes of floor and ceil, one start, its own stopping rule."""
    from k_means_constrained import KMeansConstrained

    size, items = settings["levels"][0], len(vectors_ND)
    began = time.perf_counter()
    means = KMeansConstrained(
        size, size_min=items // size, size_max=-(-items // size), n_init=1, random_state=settings["seed"],
        n_jobs=1,  # its jobs are starts, of which there is one
    ).fit(vectors_ND)  # fmt: skip
    seconds = time.perf_counter() - began
    return means.labels_[:, None], [means.cluster_centers_], seconds


def main(kind: str, vectors: str, out: str, settings: str) -> None:
    run = {"faiss": residual_kmeans, "constrained": balanced_kmeans}[kind]
    codes_NL, centroids, seconds = run(np.load(vectors, allow_pickle=False), json.loads(settings))
    np.save(Path(out) / "codes.npy", codes_NL.astype(np.int32), allow_pickle=False)
    for level, centroids_KD in enumerate(centroids):
        np.save(Path(out) / f"centroids_{level}.npy", centroids_KD.astype(np.float32), allow_pickle=False)
    versions = {name: version(name) for name in ("faiss-cpu", "k-means-constrained", "ortools", "numpy")}
    (Path(out) / "peer.json").write_text(json.dumps({"seconds": seconds, "versions": versions}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:5])
