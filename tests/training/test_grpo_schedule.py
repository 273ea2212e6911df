from collections import Counter
from types import SimpleNamespace

import pytest

from recllm.training.grpo import prompts_per_step, reward_curve, schedule


class Rows:
    """As much of a data set as the schedule asks for."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def select(self, index) -> list[int]:
        chosen = [int(row) for row in index]
        assert all(0 <= row < self.count for row in chosen)
        return chosen


@pytest.mark.parametrize(("steps", "per_step"), [(10, 4), (40, 4), (100, 3), (25, 8), (2, 5), (19, 2)])
@pytest.mark.parametrize("rows", [500, 60, 7, 3])
def test_the_first_tenth_comes_again_at_the_end(steps, per_step, rows):
    order = schedule(Rows(rows), steps, per_step, seed=0)
    tenth = max(1, steps // 10) * per_step
    assert len(order) == steps * per_step, "one prompt a slot"
    assert Counter(order[:tenth]) == Counter(order[-tenth:]), "the same prompts, as often"
    if rows >= tenth:
        assert order[:tenth] == order[-tenth:] and len(set(order[:tenth])) == tenth


@pytest.mark.parametrize("rows", [60, 500])
def test_the_rest_lies_between_as_evenly_as_it_can(rows):
    order = schedule(Rows(rows), 100, 4, seed=0)
    first, middle = set(order[:40]), order[40:-40]
    assert not first & set(middle), "compared prompts are not trained on in between"
    counts = Counter(middle)
    assert len(counts) == min(rows - 40, len(middle)) and max(counts.values()) - min(counts.values()) <= 1


def test_one_step_and_the_seed():
    assert len(schedule(Rows(50), 1, 4, seed=0)) == 4
    one, again, other = (schedule(Rows(50), 20, 2, seed) for seed in (0, 0, 1))
    assert one == again != other
    assert one[:4] != sorted(one[:4]) or one[4:8] != sorted(one[4:8]), "in random order"


@pytest.mark.parametrize("steps", [0, -1])
def test_a_run_without_a_number_of_steps_is_refused(steps):
    """`max_steps` is -1 where nobody sets it."""
    with pytest.raises(ValueError, match="max_steps"):
        schedule(Rows(50), steps, 4, seed=0)


def arguments(batch: int, accumulate: int, world: int, generations: int) -> SimpleNamespace:
    return SimpleNamespace(
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        world_size=world,
        num_generations=generations,
    )


def test_prompts_of_a_step():
    assert prompts_per_step(arguments(8, 4, 1, 8)) == 4
    assert prompts_per_step(arguments(8, 4, 2, 8)) == 8, "over all processes"
    assert prompts_per_step(arguments(4, 2, 1, 8)) == 1
    with pytest.raises(ValueError, match="12 completions, which num_generations=8 does not divide"):
        prompts_per_step(arguments(4, 3, 1, 8))


def test_the_reward_curve_is_the_mean_of_both_ends():
    log = [{"reward": float(step)} for step in range(30)] + [{"train_runtime": 1.0}]
    assert reward_curve(log) == {"reward/first": 1.0, "reward/last": 28.0}
    assert reward_curve([{"loss": 1.0}, {"reward": 0.5}]) == {"reward/first": 0.5, "reward/last": 0.5}
    with pytest.raises(ValueError, match="logging_steps: 1"):
        reward_curve([{"loss": 1.0}])
