from pathlib import Path

import numpy as np
import pytest
import torch

from recllm.sid.quantizer import level_report
from recllm.sid.rqvae import RQVAE
from recllm.sid.rqvae_fit import measure, revive
from recllm.sid.rqvae_network import Quantised, sinkhorn_codes, squared_distances


def vectors(seed: int = 0, items: int = 300, width: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(3, width))
    return (3.0 + rng.normal(size=(items, 3)) @ basis + 0.05 * rng.normal(size=(items, width))).astype(np.float32)


def small(**changes) -> RQVAE:
    settings = {"widths": (16, 8), "latent": 4, "epochs": 40, "batch_size": 64, "lr": 3e-3, "device": "cpu"}
    return RQVAE((8, 6), **(settings | changes))


@pytest.fixture(scope="module")
def fitted() -> RQVAE:
    return small().fit(vectors())


def network() -> Quantised:
    torch.manual_seed(0)
    made = Quantised(12, (16, 8), 4, (8, 6))
    with torch.no_grad():
        for entries in made.codebooks:
            entries.normal_()
    return made


def test_the_reconstructions_gradient_reaches_the_encoder_straight_through() -> None:
    made = network()
    rows = torch.from_numpy(vectors())
    latents = made.encode(rows).detach().requires_grad_()
    codes, quantised, _ = made.quantise(latents, beta=0.0)
    seen = torch.randn(4)
    (quantised * seen).sum().backward()
    assert torch.equal(latents.grad, seen.expand_as(latents)), "as if the quantisation were the identity"
    entries = sum(book[codes[:, level]] for level, book in enumerate(made.codebooks))
    assert torch.allclose(quantised, entries, atol=1e-6)
    made.zero_grad()
    made.loss(rows, beta=0.0, epsilon=0.0)[0].backward()
    assert all(part.grad.abs().sum() > 0 for part in made.encoder.parameters())


def test_the_codebook_loss_pulls_entries_and_the_commitment_pulls_latents() -> None:
    made = network()
    latents = torch.randn(50, 4, requires_grad=True)
    made.quantise(latents, beta=0.0)[2].backward()
    assert latents.grad is None or not latents.grad.any()
    assert all(book.grad.abs().sum() > 0 for book in made.codebooks)
    codes, _, loss = made.quantise(latents, beta=0.25)
    books = [book.detach() for book in made.codebooks]
    first = latents.detach() - books[0][codes[:, 0]]
    second = first - books[1][codes[:, 1]]
    assert loss.item() == pytest.approx(1.25 * float(first.square().mean() + second.square().mean()), rel=1e-5)
    loss.backward()
    # The step against the gradient is towards the entries: the residual of both levels, times 2 beta / elements.
    assert torch.allclose(latents.grad, 0.25 * 2 / 200 * (first + second), atol=1e-6)


def test_training_lowers_the_error_and_uses_the_codes(fitted: RQVAE) -> None:
    rows = vectors()
    codes = fitted.encode(rows)
    assert codes.dtype == np.int32 and codes.shape == (300, 2)
    error = np.square(fitted.decode(codes) - rows).sum(1).mean()
    assert error < 0.4 * np.square(rows - rows.mean(0)).sum(1).mean()
    report = level_report(codes, (8, 6), fitted.latents(rows), fitted.centroids)
    assert report["a/utilisation"] == 1.0 and report["b/utilisation"] == 1.0
    assert report["a/mse"] > report["b/mse"]
    mse, collisions = measure(fitted.network, torch.from_numpy(rows))
    assert mse == pytest.approx(error, rel=1e-4) and collisions == pytest.approx(report["b/collision_rate"])


def test_codes_are_the_nearest_entries_of_the_residual(fitted: RQVAE) -> None:
    rows = vectors()
    codes, residual = fitted.encode(rows), fitted.latents(rows).astype(np.float64)
    for level, entries in enumerate(fitted.centroids):
        distances = np.square(residual[:, None] - entries[None]).sum(2)
        assert np.allclose(distances[np.arange(300), codes[:, level]], distances.min(1), atol=1e-5)
        residual -= entries[codes[:, level]]


def test_dead_codes_are_revived_on_residuals_and_the_others_stay() -> None:
    made = network()
    rows = torch.from_numpy(vectors())
    with torch.no_grad():
        made.codebooks[0][2:] = 1e3
    used = [torch.tensor([5, 4, 0, 0, 0, 0, 0, 0]), torch.ones(6, dtype=torch.long)]
    before = [book.detach().clone() for book in made.codebooks]
    assert revive(made, rows, used, torch.Generator().manual_seed(0)) == 6
    assert torch.equal(made.codebooks[0][:2], before[0][:2]) and torch.equal(made.codebooks[1], before[1])
    with torch.no_grad():
        latents = made.encode(rows)
        apart = (made.codebooks[0][2:, None] - latents).norm(dim=2).min(1).values
        assert (apart < 1e-5).all(), "they lie on latents"
        codes = made.quantise(latents, 0.0)[0]
    assert len(torch.unique(codes[:, 0])) > 2


def test_sinkhorn_uses_the_codes_equally_and_prefers_near_ones() -> None:
    rng = torch.Generator().manual_seed(0)
    rows, entries = torch.randn(512, 3, generator=rng) * 0.1, torch.randn(8, 3, generator=rng)
    distances = squared_distances(rows, entries)
    nearest, even = distances.argmin(1), sinkhorn_codes(distances, 0.01)
    loads = torch.bincount(even, minlength=8)
    assert torch.bincount(nearest, minlength=8).max() > 200 and loads.min() >= 50 and loads.max() <= 80
    shuffled = even[torch.randperm(512, generator=rng)]
    cost = distances[torch.arange(512), even].sum()
    assert cost < 0.98 * distances[torch.arange(512), shuffled].sum()
    assert torch.bincount(sinkhorn_codes(distances, 0.003), minlength=8).max() <= 85


def test_sinkhorn_on_the_last_level_only() -> None:
    made = network()
    with torch.no_grad():
        plain, even = (made.quantise(torch.randn(64, 4) * 0.01, 0.25, epsilon)[0] for epsilon in (0.0, 0.003))
    assert len(torch.unique(plain[:, 1])) < 6 and len(torch.unique(even[:, 1])) == 6
    assert len(torch.unique(even[:, 0])) < 8


def test_the_seed_decides_and_the_caller_keeps_the_random_state() -> None:
    rows, state = vectors(1), torch.get_rng_state()
    one, same, other = (small(epochs=6, seed=seed).fit(rows) for seed in (1, 1, 2))
    assert np.array_equal(one.encode(rows), same.encode(rows))
    assert all(np.array_equal(a, b) for a, b in zip(one.centroids, same.centroids, strict=True))
    assert not np.array_equal(one.encode(rows), other.encode(rows))
    assert torch.equal(state, torch.get_rng_state())


def test_it_ends_early_and_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([(4.0, 0.0), (2.0, 0.6), (3.0, 0.0), (3.0, 0.1), (3.0, 0.1)])
    states = []

    def fake(made: Quantised, rows: torch.Tensor) -> tuple[float, float]:
        states.append(made.codebooks[0].detach().clone())
        return next(scores)

    monkeypatch.setattr("recllm.sid.rqvae_fit.measure", fake)
    quantizer = small(epochs=100, check_every=1, patience=2).fit(vectors())
    assert len(states) == 5, "the third is the best, two more are waited for"
    assert np.array_equal(quantizer.centroids[0], states[2].numpy())


def test_saved_and_loaded_it_gives_the_same_codes(fitted: RQVAE, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="quantizer rqvae"):
        RQVAE.load(tmp_path)
    fitted.save(tmp_path)
    again = RQVAE.load(tmp_path, device="cpu")
    assert np.array_equal(again.encode(vectors(5)), fitted.encode(vectors(5)))
    assert again.widths == (16, 8) and again.beta == fitted.beta and again.level_sizes == (8, 6)


def test_bad_input_is_refused() -> None:
    with pytest.raises(RuntimeError, match="fit"):
        small().encode(np.zeros((3, 12)))
    with pytest.raises(ValueError, match="item 1 is not finite"):
        small().fit(np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match="level_sizes"):
        RQVAE((0,))
    with pytest.raises(ValueError, match="at least 1"):
        small(epochs=0)
    with pytest.raises(FloatingPointError, match="learning rate"):
        small(lr=1e12).fit(vectors())
