"""GRPO for the needs model on TRL's own trainer: what is drawn, what the curriculum made of it, and that it resumes."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from recllm.data.catalog import Catalog
from recllm.data.checkins import Visits
from recllm.needs.constrain import State
from recllm.needs.curriculum import Curriculum, Plan
from recllm.needs.patterns import Patterns
from recllm.needs.rewards import NeedReward
from recllm.needs.schema import STAGES, ServiceNames, read_answer
from recllm.needs.vocabulary import NeedsVocabulary
from recllm.needs.worlds import WorldOptions, make_world, write_world
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import extend, save_extended
from recllm.training.equip import equip
from recllm.training.needs import NeedsTask, StageReward, build_needs_trainer, gains, graded_values, rounds_of
from recllm.training.needs_rollout import STEPS_FILE, NeedsRollout, draw_answers, places
from recllm.training.save import newest_checkpoint
from recllm.training.tiny_lm import build_model, train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
_FILES = (ROOT / "tests" / "needs" / "need_worlds.py", ROOT / "tests" / "evaluation" / "recommender_worlds.py")
write_patterns, SETTINGS = (
    runpy.run_path(str(path), run_name=path.stem)[name]
    for path, name in zip(_FILES, ("write_patterns", "GRPO_SETTINGS"), strict=True)
)
BUDGET = 4

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A city, its patterns, and a model at random weights that speaks its vocabulary."""
    root = tmp_path_factory.mktemp("inputs")
    write_world(root / "dataset", make_world(WorldOptions(users=16, visits=9, venues=120)))
    write_patterns(root / "patterns", root / "dataset")
    visits, catalog = Visits.load(root / "dataset"), Catalog.load(root / "dataset")
    vocabulary = NeedsVocabulary.of(visits, catalog, Patterns.load(root / "patterns", visits))
    cells = np.random.default_rng(0).permutation(12 * 12)[:120]
    table = SidTable(np.stack(np.unravel_index(cells, (12, 12)), axis=1), (12, 12))
    spoken = [*vocabulary.types, *vocabulary.categories]
    texts = [json.dumps({"need": word, "need_type": word, "category": word, "services": [word]}) for word in spoken]
    tokenizer = train_tokenizer([*texts, "Now: Monday 9h. Recent: none. Need, category, services?"], 360)
    tokenizer.chat_template = (ROOT / "recllm" / "training" / "lean_chat.jinja").read_text()
    model = build_model(tokenizer, 16, 1, 2, 512, seed=0)
    extend(model, tokenizer, table, init="noise", seed=0)
    save_extended(root / "model", model, tokenizer, table)
    vocabulary.save(root / "model")
    return root


def load_task(inputs, stages=tuple(STAGES), **changes) -> NeedsTask:
    return NeedsTask.load(str(inputs / "model"), inputs / "dataset", inputs / "patterns", stages, **changes)


def make_trainer(inputs, folder, stages=tuple(STAGES), plan=None, **changes):
    from trl import GRPOConfig, ModelConfig

    task = load_task(inputs, stages)
    args = GRPOConfig(output_dir=str(folder), **{**SETTINGS, **changes})
    known = {"window": 1, "cap": 1, "thresholds": {}, **(plan or {})}
    model_args = ModelConfig(model_name_or_path=str(inputs / "model"))
    return build_needs_trainer(task, args, model_args, task.judge("tfidf"), BUDGET, **known)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / STEPS_FILE).read_text().splitlines()]


def test_answers_are_of_the_stage_that_is_on_and_forced_tokens_teach_nothing(inputs, tmp_path):
    trainer = make_trainer(inputs, tmp_path, max_steps=3)
    calls, inner, rewarded = [], trainer.rollout_func, []
    trainer.rollout_func = lambda prompts, trainer: calls.append(inner(prompts, trainer)) or calls[-1]
    judged = trainer.reward_funcs[0]

    def watched(**columns):
        values = judged(**columns)
        rewarded.append((columns["stage"], columns["target"], values))
        return values

    trainer.reward_funcs[0] = watched
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    tokenizer, task = trainer.processing_class, load_task(inputs)
    names = ServiceNames(task.table)
    assert [found["stage"][0] for found in calls] == ["need", "category", "service"]
    for found, (stages, targets, values), line in zip(calls, rewarded, lines(tmp_path), strict=True):
        assert (stages, targets) == (found["stage"], found["target"])
        assert line["stages"] == found["stage"][::4] and line["rows"] == found["row"][::4]
        assert line["typicality"] == found["typicality"][::4] and line["stage"] == found["stage"][0]
        assert all(0 <= value <= 1.1 for value in values), "what the grammar lets through is never outside"
        for i, ids in enumerate(found["completion_ids"]):
            reading = read_answer(tokenizer.decode(ids, skip_special_tokens=True), found["stage"][i], names)
            assert reading.problem is None
            grammar = inner.grammars[found["stage"][i]]
            assert found["env_mask"][i] == grammar.drawn(ids) and ids[-1] == tokenizer.eos_token_id
            assert 0 < sum(found["env_mask"][i]) < len(ids) == len(found["logprobs"][i])
            need, kind = task.patterns.events.row(found["row"][i])[1:3]
            chat = task.ask(found["row"][i], found["stage"][i], need, kind)
            ask = tokenizer.apply_chat_template([chat], add_generation_prompt=True, return_dict=False)[0]
            assert found["prompt_ids"][i] == ask and found["need"][i] == need
        assert len({tuple(ids) for ids in found["completion_ids"][:4]}) > 1, "members of a group differ"
    stuck = [name for name, weight in trainer.model.named_parameters() if torch.equal(weight, before[name])]
    assert stuck == []
    logged = [entry for entry in trainer.state.log_history if "curriculum_stage" in entry]
    assert [entry["curriculum_stage"] for entry in logged] == [0, 1, 2]
    for entry, (stages, _, values) in zip(logged, rewarded, strict=True):
        assert entry[f"stage_reward/{stages[0]}"] == pytest.approx(np.mean(values), abs=1e-6)
        assert entry["rewards/reward/mean"] == entry["reward"], "curves call it by the reward's name"
        assert entry["terms/format/mean"] == 1.0
        assert ("terms/service/mean" in entry) == (stages[0] == "service")


def test_what_is_drawn_follows_the_model_over_the_open_tokens(inputs, tmp_path):
    """The first token of many needs after one prompt against its probability among those that may begin a need."""
    trainer = make_trainer(inputs, tmp_path, max_steps=3)
    grammar, tokenizer = trainer.rollout_func.grammars["need"], trainer.processing_class
    prompt = tokenizer("Now: Monday 9h.")["input_ids"]
    state, forced = State(), []
    while len(grammar.allowed(state)) == 1:
        forced.append(int(grammar.allowed(state)))
        state = grammar.step(state, forced[-1])
    model = trainer.model.eval()
    torch.manual_seed(0)
    drawn = draw_answers(model, [prompt] * 3000, [grammar] * 3000, temperature=0.5)
    assert all(ids[: len(forced)] == forced for ids in drawn)
    with torch.no_grad():
        logits_V = model(torch.tensor([[*prompt, *forced]])).logits[0, -1].float() / 0.5
    open_A = grammar.allowed(state)
    share_A = logits_V[open_A].softmax(-1)
    first = torch.bincount(torch.tensor([ids[len(forced)] for ids in drawn]), minlength=len(logits_V))[open_A] / 3000
    assert int((first > 0).sum()) > 20
    top_A = share_A.topk(10).indices
    assert torch.allclose(first[top_A], share_A[top_A], atol=float(4 * (share_A.max() / 3000).sqrt()))


def test_rows_of_different_stages_are_drawn_together(inputs, tmp_path):
    trainer = make_trainer(inputs, tmp_path, max_steps=3)
    grammars, tokenizer = trainer.rollout_func.grammars, trainer.processing_class
    prompts = [tokenizer(text)["input_ids"] for text in ("Now: Monday", "Now: Tuesday 9h. Recent: none")] * 3
    stages = [*STAGES, *STAGES]
    drawn = draw_answers(trainer.model.eval(), prompts, [grammars[stage] for stage in stages])
    for ids, stage in zip(drawn, stages, strict=True):
        assert grammars[stage].walk(ids).part == len(grammars[stage].parts)


class Killed(RuntimeError):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


# The second: one draw serves two steps, and the kill falls between them. The third: the rewards that the checkpoint
# was written behind promote by themselves.
@pytest.mark.parametrize(
    ("changes", "plan"),
    [
        ({}, {"cap": 2, "window": 2}),
        ({"steps_per_generation": 2}, {"cap": 1}),
        ({}, {"cap": 3, "window": 3, "thresholds": {"need": 0.0, "category": 0.0}, "replay": 0.5}),
    ],
    ids=["cap", "one draw for two steps", "threshold"],
)
def test_killed_and_resumed_it_asks_what_the_uninterrupted_run_asked(inputs, tmp_path, changes, plan):
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, **changes}

    def trainer_in(name):
        trainer = make_trainer(inputs, tmp_path / name, plan=plan, **settings)
        equip(trainer)
        return trainer

    whole = trainer_in("whole")
    whole.train()
    killed = trainer_in("killed")
    killed.add_callback(KillAt(5))
    with pytest.raises(Killed):
        killed.train()
    assert newest_checkpoint(tmp_path / "killed").endswith("checkpoint-3")
    resumed = trainer_in("killed")
    resumed.train(resume_from_checkpoint=newest_checkpoint(tmp_path / "killed"))

    expected = lines(tmp_path / "whole")
    assert lines(tmp_path / "killed") == expected
    assert len(expected) == rounds_of(whole.args)
    assert [line["round"] for line in expected] == list(range(len(expected)))
    promotions = whole.rollout_func.curriculum.promotions
    assert len(promotions) == 2 and resumed.rollout_func.curriculum.promotions == promotions
    assert {stage for line in expected for stage in line["stages"]} == set(STAGES)
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_round_is_judged_by_all_its_rewards_and_none_is_left_to_the_last(inputs, tmp_path):
    """The record's stages follow from the logged rewards: a promotion is due where their mean reaches the threshold."""
    plan = {"cap": 2, "window": 1, "thresholds": {"need": 0.35, "category": 2.0}}
    trainer = make_trainer(inputs, tmp_path, plan=plan, max_steps=6)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    by_hand = Curriculum(
        Plan(6, 2, window=1, cap=2, thresholds=plan["thresholds"]), trainer.rollout_func.curriculum.typicality_E
    )
    for entry, line in zip(logged, lines(tmp_path), strict=True):
        picks = by_hand.pick()
        assert [pick.stage for pick in picks] == line["stages"]
        by_hand.observe(
            [(stage, entry[f"stage_reward/{stage}"]) for stage in STAGES if f"stage_reward/{stage}" in entry]
        )
    assert by_hand.promotions[: len(trainer.rollout_func.curriculum.promotions)]


def test_the_second_model_of_a_pipeline_is_told_the_need(inputs, tmp_path):
    trainer = make_trainer(inputs, tmp_path, stages=("category", "service"), max_steps=2)
    trainer.train()
    assert [line["stages"][0] for line in lines(tmp_path)] == ["category", "service"]
    shown = [messages[0]["content"] for messages in trainer._logs["prompt"]]
    assert len(shown) == 8 and all("Need: " in text and "). Categor" in text for text in shown)


def test_greedy_answers_are_graded_by_the_judge_in_the_last_stage(inputs, tmp_path):
    trainer, task = make_trainer(inputs, tmp_path, max_steps=3), load_task(inputs)
    graded = task.graded(10)
    assert graded.height == 10 and set(graded["row"]) <= set(task.visits.rows("validation"))
    reward = NeedReward("reward", trainer.processing_class, task.asking.names, task.judge("tfidf"))
    grammar = trainer.rollout_func.grammars["service"]
    values = graded_values(trainer.model, grammar, task, graded, reward)
    assert values["format"] == [1.0] * 10 and values["outside"] == [0.0] * 10
    assert values == graded_values(trainer.model, grammar, task, graded, reward)
    better = {name: [1.0 if v is not None else None for v in row] for name, row in values.items()}
    found = gains(values, better)
    assert found["validation/gain_reward"] == pytest.approx(1 - np.mean(values["reward"]))
    assert found["validation/graded_targets"] == 10


def test_without_the_semantic_term_a_judge_pays_for_none(inputs):
    task = load_task(inputs)
    assert task.judge("tfidf", semantic=False).semantic is False
    with pytest.raises(ValueError, match="encoder"):
        task.judge("bert")


def test_rewards_that_do_not_apply_promote_nobody(inputs, tmp_path):
    task = load_task(inputs)
    rollout = NeedsRollout(Curriculum(Plan(3, 2, cap=1), np.zeros(4)), None, {}, {}, tmp_path / STEPS_FILE)
    judge = SimpleNamespace(values=lambda ids, *_: {"reward": [None, 0.5], **{name: [None, 0.5] for name in _terms()}})
    logged = {}
    StageReward(judge, rollout)(
        completion_ids=[[1], [2]], stage=["need", "need"], need=["", "x"], target=[0, 0], log_metric=logged.__setitem__
    )
    assert rollout.state_dict()["told"] == [["need", 0.5]]
    assert logged["stage_reward/need"] == 0.5 and "stage_reward/service" not in logged
    assert task.events.height > 0


def _terms():
    from recllm.needs.rewards import TERMS

    return TERMS


def test_places_are_numbered_prompts():
    assert places(3)["prompt"] == [[{"role": "user", "content": str(place)}] for place in range(3)]


def test_a_model_of_another_city_is_refused(inputs, tmp_path):
    write_world(tmp_path / "hill", make_world(WorldOptions(users=16, visits=9, venues=120, city="hill")))
    write_patterns(tmp_path / "patterns", tmp_path / "hill")
    with pytest.raises(ValueError, match="data set"):
        NeedsTask.load(str(inputs / "model"), tmp_path / "hill", tmp_path / "patterns", ["need"])


@pytest.mark.parametrize(
    ("changes", "told"), [({"top_k": 5}, "top_k"), ({"max_steps": 2}, "lower the cap"), ({"max_steps": 0}, "max_steps")]
)
def test_settings_that_train_on_something_else_are_refused(inputs, tmp_path, changes, told):
    with pytest.raises(ValueError, match=told):
        make_trainer(inputs, tmp_path, **changes)
