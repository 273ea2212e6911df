"""Greedy episodes of a real (tiny) model, and of one whose words are given."""

import numpy as np
import pytest
import torch

from recllm.planner.env import MAX_CALLS, answer_items
from recllm.planner.rollout import play
from recllm.training.tiny_lm import build_model

WIDTH, LAYERS, HEADS = 32, 2, 2


@pytest.fixture(scope="module")
def bench(worlds):
    return worlds.make_bench(worlds.random_cache(21, examples=24))


@pytest.fixture(scope="module")
def model(tokenizer):
    return build_model(tokenizer, WIDTH, LAYERS, HEADS, max_length=2048, seed=3).eval()


class Speaker:
    """Stands in for `model.generate`: writes `say(row, turn)`, and keeps the token ids that each turn was given."""

    def __init__(self, tokenizer, bench, say):
        self.tokenizer, self.say, self.heard = tokenizer, say, {}
        self.rows = {bench.prompt(row)[0]["content"]: row for row in range(len(bench))}
        assert len(self.rows) == len(bench)

    def __call__(self, input_ids, attention_mask, max_new_tokens, do_sample):
        assert not do_sample
        written = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            assert mask.tolist() == sorted(mask.tolist())  # padded on the left
            prompt = ids[mask.bool()].tolist()
            text = self.tokenizer.decode(prompt)
            row = self.rows[text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]]
            heard = self.heard.setdefault(row, [])
            heard.append(prompt)
            words = self.say(row, len(heard) - 1)
            written.append(self.tokenizer(words, add_special_tokens=False)["input_ids"][:max_new_tokens])
        longest = max(map(len, written))
        pad = self.tokenizer.pad_token_id
        new_BT = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in written])
        return torch.cat([input_ids, new_BT], dim=1)


@pytest.fixture
def speaking(model, tokenizer, bench, monkeypatch):
    """speaking(say) -> the model that says so, and its Speaker."""

    def make(say):
        speaker = Speaker(tokenizer, bench, say)
        monkeypatch.setattr(model, "generate", speaker)
        return model, speaker

    return make


def outcome(rollout):
    episode = rollout.env.episode
    calls = [(tool, items.tolist(), *rest) for tool, items, *rest in episode.calls]
    return episode.row, calls, episode.invalid, episode.redundant, rollout.messages, rollout.own_cost, rollout.faults


def test_greedy_play_is_deterministic_and_independent_of_the_batch(model, tokenizer, bench):
    rows = np.array([3, 1, 20, 1, 15])
    first = [outcome(each) for each in play(model, tokenizer, bench, rows, max_turn_tokens=6)]
    assert [each[0] for each in first] == rows.tolist()
    assert first[1] == first[3]  # the same row twice
    for batch_size in (1, 2):
        again = play(model, tokenizer, bench, rows, max_turn_tokens=6, batch_size=batch_size)
        assert [outcome(each) for each in again] == first
    texts = [each[4][-1]["content"] for each in first]
    assert all(texts) and not model.training


def test_episodes_of_different_lengths_stay_apart(worlds, tokenizer, bench, speaking):
    plans = ["", "retrieve", "rank", "reason", "rank reason", "reason rank reason", "retrieve rank reason retrieve"]

    def plan_of(row):
        return plans[row % len(plans)].split()

    def say(row, turn):
        plan = plan_of(row)
        return (worlds.call(plan[turn]) if turn < len(plan) else "Done.") + worlds.END

    results = {}
    for batch_size in (1, 5, 256):
        model, _ = speaking(say)
        rows = np.arange(len(bench))[::-1]
        played = play(model, tokenizer, bench, rows, batch_size=batch_size)
        for row, rollout in zip(rows, played, strict=True):
            alone = worlds.env_at(bench, int(row), plan_of(row))
            assert [tool for tool, *_ in rollout.env.episode.calls] == plan_of(row)
            assert answer_items(rollout.env).tolist() == answer_items(alone).tolist()
            assert rollout.env.episode.redundant == alone.episode.redundant
            assert rollout.faults == 0 and rollout.messages[-1] == {"role": "assistant", "content": "Done."}
        results[batch_size] = [outcome(each) for each in played]
    assert results[1] == results[5] == results[256]


def test_the_planners_own_cost_by_hand(worlds, tokenizer, bench, speaking):
    plans = {0: [], 1: ["rank"], 2: ["rank", "reason"]}
    model, speaker = speaking(
        lambda row, turn: (worlds.call(plans[row][turn]) if turn < len(plans[row]) else "Done.") + worlds.END
    )
    played = play(model, tokenizer, bench, np.array([0, 1, 2]))
    head = WIDTH * model.config.vocab_size
    per_layer = 4 * WIDTH**2 + 3 * WIDTH * 3 * WIDTH + 2 * WIDTH + 2 * WIDTH // HEADS
    body = LAYERS * per_layer + WIDTH

    def tokens(text):
        return len(tokenizer(text)["input_ids"])

    def attention(start, count):  # a token at place p looks at p + 1 tokens
        return 4 * LAYERS * WIDTH * sum(place + 1 for place in range(start, start + count))

    for row, rollout in enumerate(played):
        done, cost, read = tokens("Done.<|im_end|>"), 0, 0
        for turn, prompt in enumerate(speaker.heard[row]):
            calls = plans[row]
            wrote = tokens(worlds.call(calls[turn]) + "<|im_end|>") if turn < len(calls) else done
            new = len(prompt) - read
            cost += 2 * body * new + 2 * head + attention(read, new)  # the head is evaluated once a turn's input
            cost += 2 * (body + head) * wrote + 4 * LAYERS * WIDTH * (wrote * len(prompt) + wrote * (wrote + 1) // 2)
            read = len(prompt) + wrote
        assert rollout.own_cost == cost
    assert played[0].own_cost < played[1].own_cost < played[2].own_cost


def test_a_turn_that_is_cut_off_pays_for_what_it_wrote(worlds, tokenizer, bench, speaking):
    costs = []
    for limit in (4, 5):
        model, _ = speaking(lambda row, turn: "Done. " * 40)
        (rollout,) = play(model, tokenizer, bench, np.array([0]), max_turn_tokens=limit)
        assert len(tokenizer(rollout.messages[-1]["content"])["input_ids"]) == limit
        costs.append(rollout.own_cost)
    prompt = len(tokenizer.apply_chat_template(bench.prompt(0), add_generation_prompt=True, tokenize=True)["input_ids"])
    parameters = sum(p.numel() for p in model.parameters())  # tied: the table is the head
    assert costs[1] - costs[0] == 2 * parameters + 4 * LAYERS * WIDTH * (prompt + 5)


def test_faults_are_counted(worlds, tokenizer, bench, speaking):
    good, bad_argument, unknown = worlds.call("rank"), worlds.call("rank", '{"m": 0}'), worlds.call("shell", "{}")
    scripts = {
        0: (["Done."], 0, ""),
        1: ([good], 0, "rank"),
        2: ([bad_argument, good], 1, "rank"),
        3: ([unknown], 1, ""),
        4: (["<tool_call>{"], 1, ""),
        5: ([bad_argument + unknown, "</tool_call>", good], 3, ""),  # a turn without a call ends the episode
        6: ([worlds.call("reset", '{"row": 0}')], 1, ""),
        7: ([worlds.call("rank", '{"depth": 3}'), worlds.call("_call", "{}")], 2, ""),
        8: ([good] * 9, 0, "rank"),
    }
    model, _ = speaking(
        lambda row, turn: (scripts[row][0][turn] if turn < len(scripts[row][0]) else "Done.") + worlds.END
    )
    played = play(model, tokenizer, bench, np.array(sorted(scripts)))
    for rollout, (_, faults, tool) in zip(played, scripts.values(), strict=True):
        assert (rollout.faults, rollout.env.episode.tool or "") == (faults, tool), rollout.messages
    assert len(played[8].env.episode.calls) == MAX_CALLS
    assert sum(message["role"] == "assistant" for message in played[8].messages) == MAX_CALLS + 1
    assert played[8].env.episode.redundant == MAX_CALLS - 1 + 1  # three repeats, and one beyond the limit


@pytest.mark.parametrize(
    "plan", ["rank", "reason rank", "retrieve rank reason", "rank+reason", "bad rank", "rank rank"]
)
def test_every_turn_reads_the_tokens_that_training_reads(worlds, tokenizer, bench, speaking, plan):
    def words(step):
        calls = [worlds.call("rank", '{"m": 0}') if tool == "bad" else worlds.call(tool) for tool in step.split("+")]
        return "".join(calls) + worlds.END

    turns = [words(step) for step in plan.split()]
    for row in range(0, len(bench), 5):
        model, speaker = speaking(lambda row, turn: turns[turn] if turn < len(turns) else worlds.DONE)
        (rollout,) = play(model, tokenizer, bench, np.array([row]))
        trained = worlds.trl_episode(tokenizer, bench, row, turns)
        assert speaker.heard[row] == trained.prompts and len(trained.prompts) == len(turns) + 1
        spoken = [m for m in rollout.messages if m["role"] == "tool"]
        assert spoken == [m for m in trained.completion if m["role"] == "tool"]
