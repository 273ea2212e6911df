"""RQ-VAE: residual quantisation in the latent space of an autoencoder, learned together with it.

    z = E(x),  r_0 = z,  c_j = argmin_k |r_{j-1} - e_{j,k}|^2,  r_j = r_{j-1} - e_{j,c_j},  x' = D(sum_j e_{j,c_j})
    loss = |x - x'|^2 + sum_j |sg[r_{j-1}] - e_{j,c_j}|^2 + beta |r_{j-1} - sg[e_{j,c_j}]|^2

(RQ-VAE, arXiv 2203.01941, eq. 7 and 8; TIGER, arXiv 2305.05065, section 3.1.) The decoder's gradient reaches the
encoder straight through the quantisation. The squared norms are means over the axes, of vectors that were centred and
scaled to unit variance. Codebooks start at the centroids of residual k-means over the first latents.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from recllm.device import device_here
from recllm.sid.rqkmeans import ResidualKMeans, as_tensor
from recllm.sid.rqvae_fit import fit_network
from recllm.sid.rqvae_network import Quantised

RQVAE_FILE = "rqvae.safetensors"
_BLOCK_ROWS = 16384


@dataclass
class RQVAE:
    """An RQ-VAE behind the `Quantizer` protocol; its latents are the encoder's outputs.

    `widths` are the encoder's hidden layers, mirrored in the decoder. Training takes AdamW at `lr` over batches of
    `batch_size` for at most `epochs`, and ends where mse / (1 - collision rate), measured over all vectors every
    `check_every` epochs, was not better in `patience` measurements; the best network is kept. Codes that nothing
    used between two measurements move to residuals of random vectors. `sinkhorn`, where above 0, is the epsilon of
    the last level's assignment while training (.003 in LC-Rec and GLASS); `encode` takes the nearest code always.
    `device`: the accelerator, where there is one, unless named. The same seed, vectors and device give the same
    codes (same library versions and thread count).
    """

    level_sizes: tuple[int, ...]
    widths: tuple[int, ...] = (512, 256, 128, 64)
    latent: int = 32
    beta: float = 0.25
    sinkhorn: float = 0.0
    epochs: int = 300
    batch_size: int = 256
    lr: float = 1e-3
    check_every: int = 5
    patience: int = 10
    seed: int = 0
    device: str | None = None
    network: Quantised | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.level_sizes = tuple(int(size) for size in self.level_sizes)
        self.widths = tuple(int(width) for width in self.widths)
        if not self.level_sizes or min(self.level_sizes) < 1:
            raise ValueError(f"level_sizes must be positive numbers of codes, got {list(self.level_sizes)}")
        if min((self.latent, self.batch_size, self.epochs, self.check_every, self.patience, *self.widths)) < 1:
            raise ValueError("widths, latent, batch_size, epochs, check_every and patience must be at least 1")

    @property
    def centroids(self) -> list[np.ndarray]:
        """The codebooks, float32 (codes, latent) for each level; raises RuntimeError before `fit`."""
        return [entries_KD.detach().cpu().numpy().copy() for entries_KD in self._fitted().codebooks]

    def fit(self, vectors_ND: np.ndarray | torch.Tensor) -> RQVAE:
        """Train on vectors (items, width); shows a progress line.

        Raises:
            ValueError: the vectors are empty or not finite. FloatingPointError: the loss is not finite.
        """
        device = torch.device(self.device) if self.device else device_here()
        vectors_ND = as_tensor(vectors_ND).to(device)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            network = Quantised(vectors_ND.shape[1], self.widths, self.latent, self.level_sizes)
        self.network = network.to(device)
        with torch.no_grad():
            network.mean_D.copy_(vectors_ND.mean(0))
            network.scale.copy_((vectors_ND - network.mean_D).square().mean().sqrt().clamp_min(1e-12))
            start = ResidualKMeans(self.level_sizes, seed=self.seed).fit(network.encode(vectors_ND))
            for entries_KD, centroids_KD in zip(network.codebooks, start.centroids, strict=True):
                entries_KD.copy_(torch.from_numpy(centroids_KD))
        fit_network(self.network, vectors_ND, self, generator)
        return self

    @torch.no_grad()
    def latents(self, vectors_ND: np.ndarray | torch.Tensor) -> np.ndarray:
        """The encoder's outputs, float32 (items, latent)."""
        network = self._fitted()
        blocks = as_tensor(vectors_ND).split(_BLOCK_ROWS)
        return torch.cat([network.encode(block.to(network.mean_D.device)).cpu() for block in blocks]).numpy()

    @torch.no_grad()
    def encode(self, vectors_ND: np.ndarray | torch.Tensor) -> np.ndarray:
        """int32 codes (items, levels): the nearest entry of each level's residual."""
        network = self._fitted()
        blocks = torch.from_numpy(self.latents(vectors_ND)).to(network.mean_D.device).split(_BLOCK_ROWS)
        codes_NL = torch.cat([network.quantise(block, self.beta)[0] for block in blocks])
        return codes_NL.to(torch.int32).cpu().numpy()

    @torch.no_grad()
    def decode(self, codes_NL: np.ndarray) -> np.ndarray:
        """Item vectors float32 (items, width) that the codes (items, levels) stand for."""
        network = self._fitted()
        codes = torch.from_numpy(np.asarray(codes_NL, dtype=np.int64)).to(network.mean_D.device)
        return network.decode(codes).cpu().numpy()

    def save(self, folder: str | Path) -> None:
        """Write the network and its settings into `folder` as safetensors."""
        from safetensors.torch import save_file

        tensors = {name: value.detach().cpu().contiguous() for name, value in self._fitted().state_dict().items()}
        settings = {name: value for name, value in vars(self).items() if name not in ("network", "device")}
        save_file(tensors, Path(folder) / RQVAE_FILE, metadata={"settings": json.dumps(settings)})

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> RQVAE:
        """Read what `save` wrote; FileNotFoundError where there is none, ValueError where it is something else."""
        from safetensors import safe_open

        path = Path(folder) / RQVAE_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: make the table with train_sid_tokenizer.py --quantizer rqvae")
        with safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {}).get("settings", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if "level_sizes" not in settings or "mean_D" not in tensors:
            raise ValueError(f"{path} holds no RQ-VAE with its settings; make it again")
        self = cls(**settings, device=device)
        self.network = Quantised(len(tensors["mean_D"]), self.widths, self.latent, self.level_sizes)
        self.network.load_state_dict(tensors)
        self.network.to(torch.device(device) if device else device_here())
        return self

    def _fitted(self) -> Quantised:
        if self.network is None:
            raise RuntimeError("RQVAE has no network yet: call fit first")
        return self.network
