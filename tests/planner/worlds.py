"""Small planner worlds made in code: cached tool answers, benches on them, episodes played by TRL's own tool loop."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np

from recllm.data.interactions import Sequences
from recllm.data.splits import Examples
from recllm.planner.bench import Bench
from recllm.planner.env import PlannerEnv
from recllm.planner.rewards import REWARDS
from recllm.tools.cache import DEPTH, ToolCache

ITEMS = 130
HISTORY = 6
END = "<|im_end|>"
DONE = "Done." + END
# The defaults of recipes/grpo_planner.py and of the methods.
WEIGHTS = {"quality": 1.0, "dense": 0.2, "cost": 0.15, "valid": 0.1, "invalid": 0.5, "redundant": 0.02}
# What a call costs on average: retrieve, rank (retrieve included), reason.
COSTS = (1_000_000, 3_000_000, 40_000_000)


def call(tool: str, arguments: str | None = None) -> str:
    """A call as the template writes it."""
    defaults = {"retrieve": '{"k": 10}', "rank": '{"m": 50, "n": 10}', "reason": '{"n": 10}'}
    return f'<tool_call>\n{{"name": "{tool}", "arguments": {arguments or defaults[tool]}}}\n</tool_call>'


def make_cache(items_PEK, targets_E, cost_PE=None, margin_PE=None, entropy_PE=None) -> ToolCache:
    """A cache from lists; by default costs grow from tool to tool and margins are spread over the ten digits."""
    items_PEK, targets_E = np.asarray(items_PEK, dtype=np.int32), np.asarray(targets_E, dtype=np.int32)
    examples = len(targets_E)
    if cost_PE is None:
        cost_PE = np.array(COSTS)[:, None] + np.arange(examples)
    if margin_PE is None:
        margin_PE = np.tile((np.arange(examples) * 7 % 10) / 10 + 0.05, (3, 1))
    edges_P9 = np.tile(np.arange(1, 10) / 10, (3, 1))
    margin_PE = np.asarray(margin_PE, np.float32)
    # By default the entropy says what the margin says.
    entropy_PE = 1 - margin_PE if entropy_PE is None else np.asarray(entropy_PE, np.float32)
    return ToolCache(items_PEK, margin_PE, np.asarray(cost_PE, np.int64), targets_E, edges_P9, entropy_PE)


def lists_with(rank_PE, targets_E) -> np.ndarray:
    """Lists of 50 that hold each target at the rank asked for (none from 50 on)."""
    rank_PE = np.asarray(rank_PE)
    items_PEK = np.zeros((*rank_PE.shape, DEPTH), dtype=np.int32)
    for e, target in enumerate(targets_E):
        others = np.setdiff1d(np.arange(ITEMS), [target])
        for p in range(3):
            found = np.roll(others, -37 * p if p == 2 else -e)[:DEPTH]
            found = found[::-1] if p == 1 else found
            place = rank_PE[p, e]
            items_PEK[p, e] = np.insert(found, place, target)[:DEPTH] if place < DEPTH else found
    return items_PEK


def planted(rank_PE, **columns) -> ToolCache:
    """A cache in which the target of example e stands at `rank_PE[p][e]` (0-based; 50 and beyond: absent)."""
    rank_PE = np.asarray(rank_PE)
    targets_E = np.arange(rank_PE.shape[1]) % ITEMS
    return make_cache(lists_with(rank_PE, targets_E), targets_E, **columns)


def random_cache(seed: int, examples: int = 60) -> ToolCache:
    """Tools that often hit and often differ, with short lists and costs and margins that vary."""
    rng = np.random.default_rng(seed)
    targets_E = rng.integers(0, ITEMS, examples)
    items_PEK = np.full((3, examples, DEPTH), -1, dtype=np.int32)
    for e, target in enumerate(targets_E):
        near = rng.permutation(ITEMS)
        if rng.random() < 0.6:  # the retriever finds it somewhere in its list
            near = np.insert(near[near != target], int(rng.integers(0, 25)), target)
        near = near[: DEPTH if rng.random() < 0.8 else 7]
        far = rng.permutation(ITEMS)[: int(rng.integers(0, DEPTH + 1))]
        if rng.random() < 0.4:
            far = far[far != target][: DEPTH - 1]
            far = np.insert(far, int(rng.integers(0, min(12, len(far) + 1))), target)
        for p, found in enumerate((near, rng.permutation(near), far)):
            items_PEK[p, e, : len(found)] = found
    cost_PE = np.sort(rng.integers(10**5, 10**8, (3, examples)), axis=0) + np.arange(3)[:, None]
    return make_cache(items_PEK, targets_E, cost_PE, rng.random((3, examples)))


def make_bench(cache: ToolCache, categories: list[list[str]] | None = None) -> Bench:
    """A bench whose every prompt differs: example e has its own user, with the cache's target as the last item."""
    histories = [[(e * 11 + 17 * i) % ITEMS for i in range(HISTORY)] + [int(t)] for e, t in enumerate(cache.targets_E)]
    rows = np.arange(len(cache))
    examples = Examples(rows, np.full(len(cache), HISTORY), Sequences.from_lists(histories))
    names = ["Drama", "Comedy", "War", "Noir"]
    return Bench(
        examples=examples,
        cache=cache,
        sid_texts=[f"<a_{item % 12}><b_{item // 12}>" for item in range(ITEMS)],
        categories=categories or [[names[item % 4]] for item in range(ITEMS)],
        popularity_N=np.linspace(0, 0.99, ITEMS),
        timed=False,
    )


def env_at(bench: Bench, row: int, calls: str | list = ()) -> PlannerEnv:
    """An environment after calls with the default arguments, `env_at(bench, 3, "retrieve rank")`."""
    env = PlannerEnv(bench)
    env.reset(row=row)
    for tool in calls.split() if isinstance(calls, str) else calls:
        getattr(env, tool)()
    return env


def tools_of(env: PlannerEnv) -> list:
    """The methods that TRL takes for tools."""
    members = inspect.getmembers(type(env), predicate=inspect.isfunction)
    return [getattr(env, name) for name, _ in members if name != "reset" and not name.startswith("_")]


def trl_episode(tokenizer, bench: Bench, row: int, turns: list[str], budget: int = 100_000) -> SimpleNamespace:
    """An episode whose turns are given, played by GRPOTrainer's own tool loop: what training would score.

    Returns env, completion (the messages), prompts (the token ids that each turn was generated from). Where the turns
    run out the model writes Done.
    """
    from trl import GRPOTrainer
    from trl.chat_template_utils import parse_response

    env = PlannerEnv(bench)
    env.reset(row=row)
    tools, script, seen = tools_of(env), [*turns, *[DONE] * 20], []

    def write(prompt_ids):
        seen.append(list(prompt_ids))
        return tokenizer(script[len(seen) - 1], add_special_tokens=False)["input_ids"]

    loop = SimpleNamespace(
        _sync_tool_dicts=[{tool.__name__: tool for tool in tools}],
        _async_tool_dicts=[{}],
        max_tool_calling_iterations=4,
        processing_class=tokenizer,
        _tokenizer=tokenizer,
        chat_template=None,
        chat_template_kwargs={},
        _is_vlm=False,
        use_vllm=False,
        vllm_mode=None,
        model=SimpleNamespace(config=SimpleNamespace(max_position_embeddings=10**6)),
        max_completion_length=budget,
        tools=tools,
        environment_factories={None: None},
        _env_tools={None: tools},
        _batch_environments=[None],
        _generate_single_turn=lambda ids_BT, *_, **__: ([write(ids) for ids in ids_BT], None),
    )
    loop._get_tool_suffix_ids = lambda messages: GRPOTrainer._get_tool_suffix_ids(loop, messages)
    prompt = bench.prompt(row)
    prompt_ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
    ids = write(prompt_ids)[:budget]
    completions = [[parse_response(tokenizer, ids, prefix=prompt_ids, tools=tools)]]
    GRPOTrainer._tool_call_loop(loop, [list(prompt)], [prompt_ids], [ids], completions, None, None, {})
    return SimpleNamespace(env=env, completion=completions[0], prompts=seen)


def terms(env: PlannerEnv, completion: list[dict]) -> dict[str, float]:
    """Every term of the reward, unweighted."""
    columns = {"environments": [env], "completions": [completion], "prompts": [[]], "row": [env.episode.row]}
    return {name: function(**columns)[0] for name, function in REWARDS.items()}


def reward(env: PlannerEnv, completion: list[dict]) -> float:
    """The sum with the default weights."""
    return sum(WEIGHTS[name] * value for name, value in terms(env, completion).items())
