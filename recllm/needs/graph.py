"""Retrieval over a graph of users, contexts and venues, after PIGEON's spatiotemporal encoder (ACL 2025 Findings).

LightGCN-type propagation, without weights of its own: e_i^{k+1} = sum_j w_ij / sqrt(d_i d_j) e_j^k over the fitted
visits, the mean of all layers being the node's vector; a venue's score is (e_u + e_c) . e_v, fitted by BPR against
sampled venues. Differs from the paper: a context is an hour bin with weekend, and the same with scene and weather,
both of which add up; the records that it retrieves for a prompt are not used, its scores rank the venues. A user who
has no fitted visit gets the vectors that propagate from the visits before the request.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from recllm.backbones.fit import FitReport, fit
from recllm.data.checkins import Visits
from recllm.needs.answers import Askable
from recllm.needs.counting import Cells

# Levels of `Cells` that are nodes: the hour bin with the weekend, and that with scene and weather.
_LEVELS = (2, 3)


@dataclass(frozen=True)
class GraphOptions:
    """How the graph is fitted."""

    width: int = 64
    layers: int = 2
    epochs: int = 100
    patience: int = 15
    lr: float = 1e-2
    weight_decay: float = 0.0
    batch_size: int = 1024
    negatives: int = 4
    seed: int = 0


class Propagation(torch.nn.Module):
    """Vectors of N nodes; `edges_2X` leads between them in both directions, `weight_X` is how often."""

    def __init__(self, nodes: int, edges_2X: np.ndarray, weight_X: np.ndarray, options: GraphOptions):
        super().__init__()
        self.layers = options.layers
        generator = torch.Generator().manual_seed(options.seed)
        start_ND = torch.randn(nodes, options.width, generator=generator) * 0.1
        degree_N = np.bincount(edges_2X[0], weight_X, nodes)
        # A node without edges has nothing that could be learnt of it.
        start_ND[torch.from_numpy(degree_N == 0)] = 0
        self.node_ND = torch.nn.Parameter(start_ND)
        scale_X = weight_X / np.sqrt(degree_N[edges_2X[0]] * degree_N[edges_2X[1]])
        shape = (nodes, nodes)
        values_X = torch.from_numpy(scale_X.astype(np.float32))
        graph = torch.sparse_coo_tensor(
            torch.from_numpy(edges_2X), values_X, shape, check_invariants=True, is_coalesced=False
        ).coalesce()
        self.register_buffer("graph", graph, persistent=False)

    def forward(self) -> list[torch.Tensor]:
        """The vectors of every layer, the first being the parameters."""
        layers = [self.node_ND]
        for _ in range(self.layers):
            layers.append(torch.sparse.mm(self.graph, layers[-1]))
        return layers


@dataclass(frozen=True, eq=False)
class VenueGraph:
    """The graph of a data set's fitted visits. Nodes are users, then the contexts of each level, then venues."""

    visits: Visits
    askable: Askable
    cells: Cells
    options: GraphOptions = GraphOptions()

    @cached_property
    def _column_M(self) -> np.ndarray:
        return self.askable.columns(self.visits.sequences.items_M)

    @cached_property
    def _firsts(self) -> np.ndarray:
        """The first node of each kind, and the number of nodes."""
        sizes = [len(self.visits.sequences), *(len(self.cells.parents[level]) for level in _LEVELS), len(self.askable)]
        return np.concatenate([[0], np.cumsum(sizes)])

    def _nodes(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """User, context nodes `B2` and venue of some visits; the venue means nothing where it is not askable."""
        context_B2 = np.stack([self.cells.cells_LM[level][rows] for level in _LEVELS], 1) + self._firsts[1:3]
        return self.visits.sequences.user_M[rows], context_B2, self._column_M[rows] + self._firsts[3]

    @cached_property
    def _fitted(self) -> np.ndarray:
        rows = self.visits.rows("fit")
        return rows[self._column_M[rows] >= 0]

    @cached_property
    def model(self) -> Propagation:
        """The network, as it is before `fit` and after."""
        user_F, context_F2, venue_F = self._nodes(self._fitted)
        near_X = np.concatenate([user_F, *context_F2.T])
        pairs, weight_X = np.unique(np.stack([near_X, np.tile(venue_F, 3)]), axis=1, return_counts=True)
        edges_2X = np.concatenate([pairs, pairs[::-1]], 1)
        return Propagation(int(self._firsts[-1]), edges_2X, np.tile(weight_X, 2).astype(np.float64), self.options)

    def fit(self, measure) -> FitReport:
        """Fit on the fold "fit" and keep the epoch with the highest `measure(scorer)`, taken on validation."""
        rng, options = np.random.default_rng(self.options.seed), self.options

        def batches(_: int) -> Iterator[tuple[torch.Tensor, ...]]:
            order = rng.permutation(self._fitted)
            for at in range(0, len(order), options.batch_size):
                user_B, context_B2, venue_B = self._nodes(order[at : at + options.batch_size])
                other_BK = rng.integers(self._firsts[3], self._firsts[4], (len(user_B), options.negatives))
                yield tuple(map(torch.from_numpy, (user_B, context_B2, venue_B, other_BK)))

        def loss(user_B, context_B2, venue_B, other_BK) -> torch.Tensor:
            layers_LND = torch.stack(self.model())
            node_ND = layers_LND.mean(0)
            asked_BD = node_ND[user_B] + node_ND[context_B2].sum(1)
            margin_BK = (asked_BD[:, None] * (node_ND[venue_B][:, None] - node_ND[other_BK])).sum(-1)
            return -torch.nn.functional.logsigmoid(margin_BK).mean()

        return fit(
            self.model,
            batches,
            loss,
            lambda: measure(self.scorer()),
            epochs=options.epochs,
            lr=options.lr,
            weight_decay=options.weight_decay,
            patience=options.patience,
            label="graph",
            optimizer="adam",
            rngs=[rng],
        )

    @torch.no_grad()
    def scorer(self) -> GraphScorer:
        """Scores with the vectors as they are now."""
        layers_LND = torch.stack(self.model()).numpy()
        return GraphScorer(self, layers_LND)


@dataclass(frozen=True, eq=False)
class GraphScorer:
    """Scores of venues, each row's summing to one (softmax of the products)."""

    graph: VenueGraph
    layers_LND: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Scores `BC` for some rows."""
        node_ND, first = self._node_ND, self.graph._firsts[3]
        user_B, context_B2, _ = self.graph._nodes(rows)
        user_BD = node_ND[user_B].copy()
        for place in np.flatnonzero(~self._known_U[user_B]):
            user_BD[place] = self._from_history(int(rows[place]))
        logit_BC = (user_BD + node_ND[context_B2].sum(1)) @ node_ND[first:].T
        share_BC = np.exp(logit_BC - logit_BC.max(1, keepdims=True))
        return share_BC / share_BC.sum(1, keepdims=True)

    def _from_history(self, row: int) -> np.ndarray:
        """What a user without a vector of its own gets from the venues visited before: the propagation's sum."""
        column_T = self.graph._column_M[self.graph.visits.history(row)]
        column_X, weight_X = np.unique(column_T[column_T >= 0], return_counts=True)
        if not len(column_X):
            return np.zeros(self.layers_LND.shape[2], dtype=np.float32)
        venue_X = column_X + self.graph._firsts[3]
        scale_X = weight_X / np.sqrt(weight_X.sum() * np.maximum(self._degree_N[venue_X], 1))
        # Layer 0 has nothing of the user, and the last layer's venues lead no further.
        return (scale_X @ self.layers_LND[:-1, venue_X].sum(0)).astype(np.float32) / len(self.layers_LND)

    @cached_property
    def _node_ND(self) -> np.ndarray:
        return self.layers_LND.mean(0)

    @cached_property
    def _known_U(self) -> np.ndarray:
        sequences = self.graph.visits.sequences
        return np.bincount(sequences.user_M[self.graph._fitted], minlength=len(sequences)) > 0

    @cached_property
    def _degree_N(self) -> np.ndarray:
        _, _, venue_F = self.graph._nodes(self.graph._fitted)
        return np.bincount(venue_F, minlength=int(self.graph._firsts[-1])) * 3.0
