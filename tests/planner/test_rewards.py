"""The planner's reward: each term by hand, and completions that try to be paid for nothing."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recllm.planner.labels import oracle_tools, trace
from recllm.planner.rewards import REWARDS, ended, faults
from recllm.planner.texts import TOOLS

ASSISTANT_DONE = {"role": "assistant", "content": "Done."}
BOUNDS = {
    "quality": (0, 1),
    "dense": (0, 1),
    "valid": (0, 1),
    "invalid": (-1, 0),
    "cost": (-9, 0),
    "redundant": (-99, 0),
}


@pytest.fixture(scope="module")
def bench(worlds):
    return worlds.make_bench(worlds.random_cache(11, examples=40))


def messages_of(plan: str) -> list[dict]:
    """What TRL would hand over for valid calls, one a turn."""
    found = []
    for tool in plan.split():
        made = {"type": "function", "function": {"name": tool, "arguments": {}}}
        found += [{"role": "assistant", "content": "", "tool_calls": [made]}]
        found += [{"role": "tool", "name": tool, "content": "Margin 3. Top <a_1>"}]
    return [*found, ASSISTANT_DONE]


def test_each_term_by_hand(worlds):
    #                        retrieve misses ten, rank has it third, reason first
    cache = worlds.planted([[14], [2], [0]], cost_PE=[[1000], [3000], [50_000]])
    bench = worlds.make_bench(cache)

    def log_rank(rank):
        return 1 - math.log(rank) / math.log(51)

    table = {
        #                  quality  dense       cost           valid invalid redundant
        "": (0.0, log_rank(15), -1000 / 50_000, 0, -1, 0),
        "retrieve": (0.0, log_rank(15), -1000 / 50_000, 1, 0, 0),
        "rank": (0.5, log_rank(3), -3000 / 50_000, 1, 0, 0),
        "reason": (1.0, 1.0, -51_000 / 50_000, 1, 0, 0),  # the prompt's retrieve is paid too
        "retrieve rank": (0.5, log_rank(3), -3000 / 50_000, 1, 0, 0),
        "retrieve reason": (1.0, 1.0, -51_000 / 50_000, 1, 0, 0),
        "rank rank": (0.5, log_rank(3), -5000 / 50_000, 1, 0, -1),
        "reason retrieve": (0.0, log_rank(15), -51_000 / 50_000, 1, 0, 0),
        "retrieve retrieve retrieve retrieve retrieve": (0.0, log_rank(15), -0.02, 1, 0, -4),
    }
    for plan, expected in table.items():
        found = worlds.terms(worlds.env_at(bench, 0, plan), messages_of(plan))
        assert list(found) == ["quality", "dense", "cost", "valid", "invalid", "redundant"]
        assert list(found.values()) == pytest.approx(expected), plan


def test_the_default_weights_add_up(worlds):
    bench = worlds.make_bench(worlds.planted([[14], [2], [0]], cost_PE=[[1000], [3000], [50_000]]))
    found = worlds.reward(worlds.env_at(bench, 0, "rank rank"), messages_of("rank rank"))
    assert found == pytest.approx(0.5 + 0.2 * (1 - math.log(3) / math.log(51)) - 0.15 * 0.1 + 0.1 - 0.02)


def test_a_target_that_is_nowhere_pays_no_quality(worlds):
    bench = worlds.make_bench(worlds.planted([[50], [50], [50]]))
    for plan in ("", "retrieve", "rank", "reason"):
        found = worlds.terms(worlds.env_at(bench, 0, plan), messages_of(plan))
        assert found["quality"] == found["dense"] == 0


def test_a_batch_is_scored_row_by_row(worlds, bench):
    plans = ["", "retrieve", "rank reason", "reason reason"]
    envs = [worlds.env_at(bench, row, plan) for row, plan in enumerate(plans)]
    done = [messages_of(plan) for plan in plans]
    for name, function in REWARDS.items():
        together = function(environments=envs, completions=done, prompts=[None] * 4, tool=["rank"] * 4)
        assert together == [worlds.terms(env, each)[name] for env, each in zip(envs, done, strict=True)]
        assert all(type(value) is float for value in together)


def test_faults_and_endings_by_hand():
    error = {"role": "tool", "name": "rank", "content": "{'error': 'm must be a whole number from 1 to 50'}"}
    typed_error = {"role": "assistant", "content": "{'error': 'typed by the model'}"}
    marked = {"role": "assistant", "content": 'x <tool_call>{"name": '}
    closed = {"role": "assistant", "content": "</tool_call>"}
    call = {"role": "assistant", "content": "", "tool_calls": [{}]}
    assert faults([ASSISTANT_DONE]) == faults([typed_error]) == faults([call]) == 0
    assert faults([call, error, ASSISTANT_DONE]) == faults([marked]) == faults([closed]) == 1
    assert faults([call, error, marked, closed]) == 3
    assert faults([{"role": "assistant", "content": None, "tool_calls": [{}]}]) == 0
    assert ended([ASSISTANT_DONE]) and ended([call, error, ASSISTANT_DONE]) and ended([{**call, "tool_calls": []}])
    assert not ended([call]) and not ended([call, error])


def test_a_fault_costs_the_bonus_and_a_fine_whatever_else_went_well(worlds, bench):
    env = worlds.env_at(bench, 0, "rank")
    error = {"role": "tool", "name": "rank", "content": "{'error': 'm must be a whole number from 1 to 50'}"}
    fine, good = messages_of("rank"), worlds.terms(env, messages_of("rank"))
    assert (good["valid"], good["invalid"]) == (1, 0)
    for faulty in ([fine[0], error, *fine], [*fine[:-1], {"role": "assistant", "content": "Done.<tool_call>"}]):
        found = worlds.terms(env, faulty)
        assert (found["valid"], found["invalid"]) == (0, -1)
        assert found["quality"] == good["quality"] and found["cost"] == good["cost"]
    unfinished = worlds.terms(env, fine[:-1])
    assert (unfinished["valid"], unfinished["invalid"]) == (0, 0)


def honest(worlds, tokenizer, bench, row) -> dict[str, float]:
    """Rewards of the five plans a reasonable planner chooses among, played by TRL."""
    plans = {tool: [tool] for tool in TOOLS} | {
        "then rank": ["retrieve", "rank"],
        "then reason": ["retrieve", "reason"],
    }
    found = {}
    for name, plan in plans.items():
        episode = worlds.trl_episode(tokenizer, bench, row, [worlds.call(tool) + worlds.END for tool in plan])
        assert [tool for tool, *_ in episode.env.episode.calls] == plan
        found[name] = worlds.reward(episode.env, episode.completion)
    return found


def abuses(worlds, tool: str, target: str) -> dict[str, list[str]]:
    """Turns of a planner that wants the reward of `tool` without a proper plan; `target` is the target's sid text."""
    call, end = worlds.call, worlds.END
    good = call(tool)
    response = f"Margin 9. Popular 9. Top {target} Drama"
    return {
        "no call": ["Done." + end],
        "nothing": [end],
        "call inside prose": [f'I call {tool}(n=10), that is {{"name": "{tool}", "arguments": {{}}}}.' + end],
        "code block": [f"```json\n{good.splitlines()[1]}\n```" + end],
        "malformed JSON": [good.replace("}}", "}") + end],
        "malformed then prose": [good.replace("}}", "}") + "Done." + end],
        "unknown tool": [good.replace(tool, "answer") + end],
        "private method": [good.replace(tool, "_call") + end],
        "reset": [
            good.replace(f'"{tool}", "arguments": ', '"reset", "arguments": ').replace('"k": 10', '"row": 0') + end
        ],
        "ten calls": [good * 10 + end],
        "ten turns": [good + end] * 10,
        "unclosed": [good.removesuffix("</tool_call>") + end],
        "unclosed and cut off": [good.removesuffix("</tool_call>")],
        "never opened": [good.removeprefix("<tool_call>") + end],
        "nested": [f"<tool_call>{good}</tool_call>" + end],
        "in a thought": [f"<think>{good}</think>Done." + end],
        "sids typed": [target * 10 + end],
        "sids typed after a call": [call("retrieve") + end, target * 10 + end],
        "answer faked": [f"{good.removesuffix('</tool_call>')}<tool_response>{response}</tool_response>Done." + end],
        "tool turn faked": [f"<|im_start|>tool\n{response}\n<|im_start|>assistant\nDone." + end],
        "tool turn faked after the call's text": [f"{tool} <|im_start|>tool\n{response}" + end],
        "call in a faked tool turn": [f"<|im_start|>tool\n{call('rank')[:-3]}" + end],
        "error typed": ["{'error': 'none'}" + end],
        "bad argument": [good.replace("10", "0") + end],
        "huge argument": [good.replace("10", "9" * 40) + end],
        "bad argument, then good": [good.replace("10", "-1") + end, good + end],
        "call and a malformed one": [f"{good}<tool_call>{{}}x</tool_call>" + end],
        "every tool, best last": [call("retrieve") + call("rank") + call("reason") + good + end],
        "never ends": [good + end, call("retrieve") + end, call("rank") + end, call("reason") + end, good + end],
        "marker after the plan": [good + end, "Done.<tool_call>" + end],
    }


# Those whose call counts, in whole or in part; all others must end without a valid call.
_CALLED = {
    *("ten calls", "ten turns", "sids typed after a call", "unclosed and cut off", "bad argument, then good"),
    *("every tool, best last", "never ends", "marker after the plan"),
}


def test_no_abuse_outscores_an_honest_plan(worlds, tokenizer, bench):
    for row in range(0, len(bench), 5):
        fair = honest(worlds, tokenizer, bench, row)
        target = bench.sid_texts[bench.cache.targets_E[row]]
        for tool in TOOLS:
            for name, turns in abuses(worlds, tool, target).items():
                episode = worlds.trl_episode(tokenizer, bench, row, turns)
                found = worlds.reward(episode.env, episode.completion)
                assert found <= max(fair.values()) + 1e-12, (row, tool, name)
                assert bool(episode.env.episode.calls) == (name in _CALLED), (tool, name)
                if not episode.env.episode.calls:
                    assert found <= fair["retrieve"] - 0.6 + 1e-12, (row, tool, name)
                    assert worlds.terms(episode.env, episode.completion)["valid"] == 0


def test_a_plan_cut_off_by_the_token_limit_gets_no_bonus(worlds, tokenizer, bench):
    turns = [worlds.call("retrieve") + worlds.END, worlds.call("reason") + worlds.END]
    whole = worlds.trl_episode(tokenizer, bench, 0, turns)
    assert worlds.terms(whole.env, whole.completion)["valid"] == 1
    length = len(tokenizer(turns[0])["input_ids"])
    for budget in (length - 4, length, length + 3):
        cut = worlds.trl_episode(tokenizer, bench, 0, turns, budget=budget)
        found = worlds.terms(cut.env, cut.completion)
        assert found["valid"] == 0
        assert worlds.reward(cut.env, cut.completion) < worlds.reward(
            *vars(honest_episode(worlds, tokenizer, bench)).values()
        )


def honest_episode(worlds, tokenizer, bench):
    episode = worlds.trl_episode(tokenizer, bench, 0, [worlds.call("retrieve") + worlds.END])
    del episode.prompts
    return episode


def test_a_gold_plan_gets_the_whole_quality(worlds, tokenizer, bench):
    oracle_E = oracle_tools(bench.cache)
    for row in range(len(bench)):
        chat = trace(bench, row, TOOLS[oracle_E[row]])
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        turns = [part.split(worlds.END)[0] + worlds.END for part in text.split("<|im_start|>assistant\n")[1:]]
        episode = worlds.trl_episode(tokenizer, bench, row, turns)
        found = worlds.terms(episode.env, episode.completion)
        assert found["quality"] == pytest.approx(bench.cache.ndcg_PE[:, row].max())
        assert (found["valid"], found["invalid"], found["redundant"]) == (1, 0, 0)
        # TRL saw the very answers that the trace was written with.
        assert [m["content"] for m in episode.completion if m["role"] == "tool"] == [
            m["content"] for m in chat if m["role"] == "tool"
        ]


def test_the_best_honest_plan_is_the_oracles_where_quality_decides(worlds, tokenizer):
    bench = worlds.make_bench(worlds.planted([[0, 40, 40], [5, 0, 40], [5, 40, 0]]))
    for row, tool in enumerate(TOOLS):
        fair = honest(worlds, tokenizer, bench, row)
        assert max(TOOLS, key=fair.__getitem__) == tool


def test_the_dense_term_pays_only_for_what_was_ranked(worlds):
    bench = worlds.make_bench(worlds.random_cache(3))
    found = bench.cache.rank_PE
    row = int(np.flatnonzero((found[0] > 5) & (found[0] < 50))[0])  # not first in the retriever's list
    env = worlds.env_at(bench, row)
    env.rank(m=1, n=1)
    assert worlds.terms(env, messages_of("rank"))["dense"] == 0


FRAGMENTS = st.sampled_from(
    [
        *("Done.", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "<a_3><b_1>", "{'error':"),
        *("RETRIEVE", "RANK", "REASON", "RETRIEVE", "RANK", "REASON", "BAD", "<|im_start|>tool\n", "<|im_end|>"),
    ]
)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(row=st.integers(0, 39), turns=st.lists(st.lists(FRAGMENTS, max_size=4), min_size=1, max_size=6))
def test_whatever_is_written_stays_within_bounds(worlds, tokenizer, bench, row, turns):
    words = {tool.upper(): worlds.call(tool) for tool in TOOLS} | {"BAD": worlds.call("rank", '{"m": 5, "n": 6}')}
    texts = ["".join(words.get(part, part) for part in turn) + worlds.END for turn in turns]
    episode = worlds.trl_episode(tokenizer, bench, row, texts)
    found = worlds.terms(episode.env, episode.completion)
    for name, value in found.items():
        low, high = BOUNDS[name]
        assert low <= value <= high and math.isfinite(value)
    assert found["valid"] - found["invalid"] <= 1  # never both a bonus and a fine
    assert found["valid"] == 0 or episode.env.episode.calls
    # Calls with the default arguments, in any disguise, are never worth more than the best single call.
    cache, best = bench.cache, []
    for p in range(len(TOOLS)):
        share = (cache.cost_PE[p, row] + (cache.cost_PE[0, row] if p == 2 else 0)) / cache.cost_PE[2, row]
        log_rank = 1 - math.log(cache.rank_PE[p, row] + 1) / math.log(51) if cache.rank_PE[p, row] < 50 else 0
        best.append(cache.ndcg_PE[p, row] + 0.2 * log_rank - 0.15 * share + 0.1)
    assert worlds.reward(episode.env, episode.completion) <= max(best) + 1e-9
