"""Divergence of parents: a table by hand, and a twin that loads everything at once."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import recllm.merging.divergence as divergence_module
from recllm.merging.divergence import divergence, parents_apart, plain

sys.path.insert(0, str(Path(__file__).parent))
from sweeps import spectrum, write
from worlds import family

NORM, HEAD = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"


def folders(tmp_path, **parents) -> dict[str, Path]:
    made = {}
    for role, state in parents.items():
        made[role] = tmp_path / role
        made[role].mkdir()
        save_file({name: torch.tensor(value) for name, value in state.items()}, made[role] / "model.safetensors")
    return made


def test_the_figures_by_hand(tmp_path):
    made = folders(
        tmp_path,
        base={NORM: [1.0, 1.0, 1.0, 1.0], HEAD: [[0.0, 0.0]]},
        direct={NORM: [3.0, 0.0, 4.0, -1.0], HEAD: [[1.0, 0.0]]},
        thinking={NORM: [3.0, 2.0, 0.0, 1.0], HEAD: [[0.0, 1.0]]},
    )
    found = divergence(made)
    assert list(found) == ["all", "mlp", "norms"]
    norms = found["norms"]
    assert norms.parameters == 4
    assert (norms.direct_norm, norms.thinking_norm, norms.gap_norm) == pytest.approx((26**0.5, 14**0.5, 24**0.5))
    assert norms.relative_gap == pytest.approx(24**0.5 / ((26**0.5 + 14**0.5) / 2))
    assert norms.sigma == pytest.approx(8 / 14)
    assert norms.cosine == pytest.approx(8 / (26 * 14) ** 0.5)
    assert norms.sign_conflicts == pytest.approx(1 / 2)  # 3 and 3 agree, -1 and 1 do not, the others hold a zero
    # From the base: (2, -1, 3, -2) and (2, 1, -1, 0).
    assert (norms.direct_task, norms.thinking_task) == pytest.approx((18**0.5 / 2, 6**0.5 / 2))
    assert norms.task_cosine == pytest.approx((4 - 1 - 3) / (18 * 6) ** 0.5)
    assert norms.task_sign_conflicts == pytest.approx(2 / 3)
    assert (found["mlp"].cosine, found["mlp"].sigma, found["mlp"].direct_task) == (0, 1, 0)
    total = found["all"]
    assert (total.parameters, total.sigma) == (6, pytest.approx(10 / 16))
    assert total.gap_norm == pytest.approx(26**0.5)
    del made["base"]
    assert divergence(made)["norms"].task_cosine is None
    assert "divergence/all/task_cosine" not in plain(divergence(made))
    assert plain(found)["divergence/norms/sigma"] == pytest.approx(8 / 14)


def test_reading_by_pieces_is_reading_at_once(tmp_path, monkeypatch):
    made = family(tmp_path)
    monkeypatch.setattr(divergence_module, "_PIECE", 700)
    found = divergence(made)["all"]
    states = {role: load_file(folder / "model.safetensors") for role, folder in made.items()}
    base, direct, thinking = (
        torch.cat([states[role][name].double().ravel() for name in sorted(states[role])])
        for role in ("base", "direct", "thinking")
    )
    assert found.parameters == len(base)
    assert found.gap_norm == pytest.approx(float((thinking - direct).norm()))
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(direct, thinking, dim=0)))
    one, other = direct - base, thinking - base
    assert found.task_cosine == pytest.approx(float(torch.cosine_similarity(one, other, dim=0)))
    both = (one != 0) & (other != 0)
    assert found.task_sign_conflicts == pytest.approx(float((one.sign() != other.sign())[both].double().mean()))
    assert 0.4 < found.task_sign_conflicts < 0.6  # moved independently
    assert set(divergence(made)) == {"all", "attention", "mlp", "embeddings", "norms"}


def test_a_parent_beside_itself_is_not_apart(tmp_path):
    made = family(tmp_path)
    found = divergence({"direct": made["direct"], "thinking": made["direct"]})["all"]
    assert (found.gap_norm, found.sigma, found.sign_conflicts) == (0, 0, 0)
    assert found.cosine == pytest.approx(1)


def test_parents_that_do_not_fit(tmp_path):
    made = folders(tmp_path, direct={NORM: [1.0, 2.0]}, thinking={NORM: [1.0]}, base={HEAD: [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \[1\] in .*thinking"):
        divergence({role: made[role] for role in ("direct", "thinking")})
    with pytest.raises(ValueError, match=r"base\) has no tensor model\.norm\.weight"):
        divergence({"direct": made["direct"], "thinking": made["direct"], "base": made["base"]})
    with pytest.raises(ValueError, match="thinking is missing"):
        divergence({"direct": made["direct"]})


def test_only_the_parents_that_were_swept_are_compared(tmp_path, caplog):
    made = family(tmp_path)
    folder = write(tmp_path / "sweep", [], spectrum(questions=2), made)
    assert parents_apart(None) == {}
    assert parents_apart(folder) == divergence(made) and not caplog.text
    weights = made["thinking"] / "model.safetensors"
    state = load_file(weights)
    save_file({**state, NORM: state[NORM] * 2}, weights, {"format": "pt"})
    assert parents_apart(folder) == {}
    assert "thinking does not have the thinking parent that was swept (fingerprint " in caplog.text
    shutil.rmtree(made["direct"])
    assert parents_apart(folder) == {}
    assert "direct (direct) is gone" in caplog.text
