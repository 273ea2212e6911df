from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from recllm import assets
from recllm.decoding.trie import SidTrie
from recllm.sid.initial_rows import initial_rows, title_tokens
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import check_table, extend, load_base, locate_model, save_extended, sid_token_ids

TITLES = ["Star Wars", "Star Trek", "Emma", "Star Wars Emma"]
TABLE = SidTable(np.array([[0, 0], [0, 1], [1, 0], [1, 2]]), (3, 4))


def small_tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TITLES * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|pad|>")


def small_model(rows: int, tied: bool = True, dtype: torch.dtype = torch.float32) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=tied,
        eos_token_id=0,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config).to(dtype).eval()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return small_tokenizer()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_base_rows_keep_every_bit_and_ties_hold(
    tokenizer: PreTrainedTokenizerFast, tied: bool, dtype: torch.dtype
) -> None:
    base = len(tokenizer)
    model = small_model(base, tied, dtype)
    inputs, outputs = model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()
    tokens = tokenizer("Star Trek Emma", return_tensors="pt")
    before = model(**tokens).logits
    extension = extend(model, tokenizer, TABLE, TITLES)
    assert extension.changed and extension.rows_before == base
    assert extension.rows_after % 64 == 0 and 0 <= extension.rows_after - len(tokenizer) < 64
    assert model.config.vocab_size == extension.rows_after == model.get_input_embeddings().weight.shape[0]
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert model.get_input_embeddings().weight.dtype == dtype
    assert torch.equal(model.get_input_embeddings().weight[:base], inputs)
    assert torch.equal(model.get_output_embeddings().weight[:base], outputs)
    assert torch.equal(model(**tokens).logits[..., :base], before)


@pytest.mark.parametrize("tied", [True, False])
def test_mean_rows_by_hand(tokenizer: PreTrainedTokenizerFast, tied: bool) -> None:
    model = small_model(400, tied)
    weights = [
        model.get_input_embeddings().weight.detach().clone(),
        model.get_output_embeddings().weight.detach().clone(),
    ]
    base = len(tokenizer)
    ids = [tokenizer(title)["input_ids"] for title in TITLES]
    extension = extend(model, tokenizer, TABLE, TITLES)
    carriers = {(0, 0): [0, 1], (0, 1): [2, 3], (1, 0): [0, 2], (1, 1): [1], (1, 2): [3]}
    after = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    for old, new in zip(weights, after, strict=True):
        mean_row = old[:base].mean(0)
        for level, size in enumerate(TABLE.level_sizes):
            for code in range(size):
                items = carriers.get((level, code))
                expected = old[[token for item in items for token in ids[item]]].mean(0) if items else mean_row
                row = new[extension.token_ids[level][code]]
                assert torch.allclose(row, expected, atol=1e-6), (level, code)
        assert torch.equal(new[len(tokenizer) : 400], old[len(tokenizer) : 400]), "the base's own padding stays"
        assert torch.allclose(new[400:], mean_row.expand(len(new) - 400, -1), atol=1e-6)


def test_noise_has_the_spread_of_the_base_rows(tokenizer: PreTrainedTokenizerFast) -> None:
    table = SidTable(np.arange(1000)[:, None], (1000,))
    model = small_model(len(tokenizer))
    old = model.get_input_embeddings().weight.detach().clone()
    extension = extend(model, tokenizer, table, init="noise", seed=3)
    rows = model.get_input_embeddings().weight.detach()[extension.token_ids[0]]
    assert torch.allclose(rows.std(0), old.std(0), rtol=0.15)
    assert torch.allclose(rows.mean(0), old.mean(0), atol=0.2 * float(old.std()))
    again, other = small_model(len(old)), small_model(len(old))
    extend(again, small_tokenizer(), table, init="noise", seed=3)
    extend(other, small_tokenizer(), table, init="noise", seed=4)
    assert torch.equal(again.get_input_embeddings().weight[extension.token_ids[0]], rows)
    assert not torch.equal(other.get_input_embeddings().weight[extension.token_ids[0]], rows)


def themed(seed: int = 0) -> tuple[SidTable, list[str], np.ndarray]:
    """300 items of six themes: titles of the theme's words, vectors near the theme's own, codes by theme and shade."""
    rng = np.random.default_rng(seed)
    words = [[f"{a}{b}" for b in "klmno"] for a in ("ba", "ce", "di", "fo", "gu", "hy")]
    centres = rng.normal(size=(6, 20))
    themes = rng.permutation(np.arange(300) % 6)
    titles = [" ".join(rng.choice(words[theme], size=3)) for theme in themes]
    vectors = (centres[themes] + 0.3 * rng.normal(size=(300, 20))).astype(np.float32)
    order = np.array([int((themes[:item] == theme).sum()) for item, theme in enumerate(themes)])
    return SidTable(np.stack([themes, order % 8, order // 8], axis=1), (8, 8, 7)), titles, vectors


@pytest.mark.parametrize("tied", [True, False])
def test_centroid_rows_lie_towards_their_items_titles_at_a_base_rows_distance(
    tokenizer: PreTrainedTokenizerFast, tied: bool
) -> None:
    table, titles, vectors = themed()
    base = len(tokenizer)
    model = small_model(base, tied)
    old = [model.get_input_embeddings().weight.detach().clone(), model.get_output_embeddings().weight.detach().clone()]
    ids = [tokenizer(title)["input_ids"] for title in titles]
    extension = extend(model, tokenizer, table, titles, "centroid", vectors_ND=vectors)
    after = [model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()]
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    for before, new in zip(old, after, strict=True):
        assert torch.equal(new[:base], before)
        away = before - before.mean(0)
        rows = new[np.concatenate(extension.token_ids)] - before.mean(0)
        usual = away.norm(dim=1).median()
        carried = np.concatenate([np.isin(np.arange(k), table.codes_NL[:, j]) for j, k in enumerate((8, 8, 7))])
        assert torch.allclose(rows[carried].norm(dim=1), usual.expand(int(carried.sum())), rtol=1e-4)
        assert (rows[~carried].norm(dim=1) > 0.3 * usual).all(), "a code that no item carries is no mean row"
        titles_ND = torch.stack([away[item].mean(0) for item in ids])
        themes_TD = torch.stack([titles_ND[table.codes_NL[:, 0] == theme].mean(0) for theme in range(6)])
        themes_TD = themes_TD - themes_TD.mean(0)
        alike_TT = torch.nn.functional.cosine_similarity(rows[:6, None], themes_TD[None], dim=2)
        assert (alike_TT.argmax(1) == torch.arange(6)).all(), "each theme's row is nearest to its own titles"
        assert alike_TT.diagonal().min() > 0.8


def test_centroid_rows_are_a_function_of_their_input_and_a_second_call_changes_nothing() -> None:
    table, titles, vectors = themed(1)
    made = []
    for scale in (1.0, 7.0):
        words = small_tokenizer()
        model = small_model(len(words))
        extension = extend(model, words, table, titles, "centroid", vectors_ND=scale * vectors + scale)
        made.append(model.get_input_embeddings().weight.detach().clone())
        again = extend(model, words, table, titles, "centroid", vectors_ND=-vectors)
        assert not again.changed and torch.equal(model.get_input_embeddings().weight, made[-1])
        assert len(made[-1]) == extension.rows_after and extension.rows_after % 64 == 0
    assert torch.allclose(made[0], made[1], atol=1e-5), "units and origin of the item vectors do not matter"


def test_the_map_is_the_ridge_regression_on_titled_items(monkeypatch: pytest.MonkeyPatch) -> None:
    table, titles, vectors = themed(2)
    titles[3] = titles[50] = ""
    words, rows = small_tokenizer(), torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
    tokens = title_tokens(words, titles)
    monkeypatch.setattr("recllm.sid.initial_rows._BLOCK_ITEMS", 37)
    found, mean = initial_rows(rows, table, "centroid", 0, tokens, vectors)
    titled = [item for item in range(300) if titles[item]]
    target = np.stack([rows[words(titles[item])["input_ids"]].mean(0).double().numpy() for item in titled])
    source = vectors[titled].astype(np.float64) - vectors[titled].mean(0)
    penalty = 0.1 * np.square(source).sum() / 20
    fit = Ridge(penalty).fit(source, target)
    for level, code in ((0, 2), (1, 5), (2, 1)):
        place = vectors[table.codes_NL[:, level] == code].mean(0) - vectors.mean(0)
        row = (found[[0, 8, 16][level] + code] - mean).double().numpy()
        expected = fit.coef_ @ place
        assert row @ expected / np.linalg.norm(row) / np.linalg.norm(expected) == pytest.approx(1, abs=1e-4)


def test_centroid_needs_titles_and_vectors(tokenizer: PreTrainedTokenizerFast) -> None:
    base, vectors = len(tokenizer), np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match="one vector an item: got none for 4"):
        extend(small_model(base), tokenizer, TABLE, TITLES, "centroid")
    with pytest.raises(ValueError, match="one vector an item: got 3 for 4"):
        extend(small_model(base), tokenizer, TABLE, TITLES, "centroid", vectors_ND=vectors[:3])
    with pytest.raises(ValueError, match="got 0 titles"):
        extend(small_model(base), tokenizer, TABLE, (), "centroid", vectors_ND=vectors)
    with pytest.raises(ValueError, match="all titles are empty"):
        extend(small_model(base), tokenizer, TABLE, [""] * 4, "centroid", vectors_ND=vectors)
    assert len(tokenizer) == base


def test_sid_tokens_are_regular_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    extension = extend(small_model(len(tokenizer)), tokenizer, TABLE, TITLES)
    text = f"next: {TABLE.text(3)} or{TABLE.text(0)}."
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert not set(TABLE.tokens()) & set(tokenizer.all_special_tokens)
    flat = np.concatenate(extension.token_ids).tolist()
    assert [token for token in ids if token in flat] == [
        int(extension.token_ids[level][code]) for item in (3, 0) for level, code in enumerate(TABLE.sid(item))
    ]
    trie = SidTrie.from_table(TABLE, tokenizer)
    assert [trie.item(trie.walk(tokenizer(TABLE.text(item))["input_ids"])) for item in range(4)] == [0, 1, 2, 3]


def test_a_second_time_changes_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    model = small_model(len(tokenizer))
    first = extend(model, tokenizer, TABLE, TITLES)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    second = extend(model, tokenizer, TABLE, TITLES)
    assert not second.changed and second.rows_before == second.rows_after == first.rows_after
    assert all(np.array_equal(a, b) for a, b in zip(first.token_ids, second.token_ids, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    other = SidTable(TABLE.codes_NL[::-1], TABLE.level_sizes)
    with pytest.raises(ValueError, match="already speaks SID table"):
        extend(model, tokenizer, other, TITLES)


def test_saved_and_loaded_it_is_the_same_model_with_its_table(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = small_model(len(tokenizer))
    with pytest.raises(ValueError, match="not extended"):
        save_extended(tmp_path, model, tokenizer, TABLE)
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="speaks no SIDs"):
        check_table(tmp_path / "base", TABLE)
    extend(model, tokenizer, TABLE, TITLES)
    save_extended(tmp_path / "new", model, tokenizer, TABLE)
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "sid_table"} <= {
        path.name for path in (tmp_path / "new").iterdir()
    }
    again, words = load_base(str(tmp_path / "new"))
    assert SidTable.load(tmp_path / "new" / "sid_table") == TABLE
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert words(TABLE.text(1))["input_ids"] == tokenizer(TABLE.text(1))["input_ids"]
    assert words.decode(words(TABLE.text(1))["input_ids"], skip_special_tokens=True) == TABLE.text(1)
    assert not extend(again, words, TABLE, TITLES).changed
    check_table(tmp_path / "new", TABLE)
    with pytest.raises(ValueError, match="was built on SID table"):
        check_table(tmp_path / "new", SidTable(TABLE.codes_NL[::-1], TABLE.level_sizes))


def test_what_does_not_fit_is_refused_before_anything_changes(tokenizer: PreTrainedTokenizerFast) -> None:
    model = small_model(len(tokenizer))
    base = len(tokenizer)
    with pytest.raises(ValueError, match="init must be"):
        extend(model, tokenizer, TABLE, TITLES, init="zero")
    with pytest.raises(ValueError, match="got 1 titles for 4 items"):
        extend(model, tokenizer, TABLE, TITLES[:1])
    with pytest.raises(ValueError, match="only 64 embedding rows"):
        extend(small_model(64), tokenizer, TABLE, TITLES)
    with pytest.raises(ValueError, match=r"no token <a_0>"):
        sid_token_ids(tokenizer, TABLE)
    assert len(tokenizer) == base
    tokenizer.add_tokens(["<b_2>"])
    with pytest.raises(ValueError, match=r"already has 1 of the sid tokens \(<b_2>"):
        extend(small_model(400), tokenizer, TABLE, TITLES)


def test_untitled_items_leave_the_mean_row(tokenizer: PreTrainedTokenizerFast) -> None:
    model = small_model(len(tokenizer))
    mean_row = model.get_input_embeddings().weight.detach().mean(0)
    extension = extend(model, tokenizer, TABLE, ["", "", "", ""])
    rows = model.get_input_embeddings().weight.detach()[np.concatenate(extension.token_ids)]
    assert torch.allclose(rows, mean_row.expand_as(rows), atol=1e-6)


def test_models_are_found_by_folder_or_asset_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate_model(str(tmp_path)) == tmp_path
    monkeypatch.setattr(assets, "fetch", lambda name: tmp_path / name)
    assert locate_model("smollm2-135m-instruct") == tmp_path / "smollm2-135m-instruct"
    for name in ("no-such-model", "../up/and/away", "a/b/c", "", "/nowhere"):
        with pytest.raises(ValueError, match="no folder, no asset"):
            locate_model(name)


def test_auto_classes_read_the_result(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = small_model(len(tokenizer), tied=False)
    extend(model, tokenizer, TABLE, TITLES)
    save_extended(tmp_path, model, tokenizer, TABLE)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.sid_table_hash == TABLE.hash
    assert torch.equal(again.get_output_embeddings().weight, model.get_output_embeddings().weight)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(tokenizer)
