"""What a run shows: the progress line, the table of samples, the curves and what reaches a tracker.

One run of a tiny recommender with everything attached feeds most tests; its twin has nothing attached.
"""

import io
import logging
import random
import runpy
from collections import defaultdict, deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback, TrainerControl, TrainerState

from recllm.data.splits import load_split
from recllm.metrics.timing import duration
from recllm.recommender.prompts import prompt_examples, prompt_rows
from recllm.recommender.rewards import MONITORS, TERMS, Reward
from recllm.training.display import progress as display
from recllm.training.display.curves import CURVES_FILE, Curves, draw_curves, panels, plot_curves, promotions, smooth
from recllm.training.display.progress import Progress, show_progress
from recllm.training.display.samples import chat_text, cut, ending, sample_table, visible
from recllm.training.recommender import build_recommender_trainer
from recllm.training.safety.reward_guard import guard_rewards
from recllm.training.validation import NDCG, RECALL, ValidationNDCG

_FILE = Path(__file__).parents[2] / "evaluation" / "recommender_worlds.py"
worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="recommender_worlds"))
TABLE = worlds.make_table()

pytestmark = pytest.mark.usefixtures("one_thread")


def random_states() -> list:
    kind, keys, *rest = np.random.get_state()
    return [torch.random.get_rng_state().tolist(), kind, keys.tolist(), rest, random.getstate()]


def make_trainer(root: Path, folder: Path, watch: ValidationNDCG, **changes):
    from trl import GRPOConfig, ModelConfig

    settings = {
        **{"per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 5, "learning_rate": 3e-3},
        **{"bf16": False, "gradient_checkpointing": False, "logging_steps": 1, "report_to": "none", "use_cpu": True},
        **{"save_strategy": "steps", "save_steps": 2, **changes},
    }
    args = GRPOConfig(output_dir=str(folder), **settings)
    args.sample_steps = 2
    rows = prompt_rows(prompt_examples(load_split(root / "dataset"), "all"), TABLE)
    model_args = ModelConfig(model_name_or_path=str(root / "model"))
    return build_recommender_trainer(rows, TABLE, args, model_args, {"exact": 1.0, "prefix": 0.5}, watches=[watch])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(trainer, watch, what was shown, folder, weights of the twin without any of it)."""
    pytest.importorskip("tensorboard")
    root = tmp_path_factory.mktemp("display")
    worlds.write_dataset(root / "dataset")
    TABLE.save(root / "sid_table")
    worlds.save_model(root / "model", TABLE, template="stream")

    def watch():
        return ValidationNDCG(root / "dataset", root / "sid_table", steps=2, users=10, at_start=True)

    twin = make_trainer(root, root / "twin", watch(), save_strategy="no")
    twin.train()
    weights = {name: weight.detach().clone() for name, weight in twin.model.named_parameters()}
    watched = watch()
    trainer = make_trainer(root, root / "run", watched, report_to="tensorboard")
    guard_rewards(trainer)
    draw_curves(trainer)
    console = Console(file=io.StringIO(), width=200)
    assert show_progress(trainer, console) is not None
    trainer.train()
    return SimpleNamespace(
        trainer=trainer, watch=watched, shown=console.file.getvalue(), folder=root / "run", twin=weights
    )


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("step ") and "/" in line.split("|")[0]]


def test_a_run_with_a_display_trains_bit_for_bit_like_one_without(run):
    for name, weight in run.trainer.model.named_parameters():
        assert torch.equal(weight, run.twin[name]), name


def test_transformers_own_bars_are_gone_and_the_line_has_the_numbers(run):
    kinds = {type(callback) for callback in run.trainer.callback_handler.callbacks}
    assert not kinds & {ProgressCallback, PrinterCallback} and Progress in kinds
    found = lines(run.shown)
    assert [line.split(" |")[0] for line in found] == ["step 1/5", "step 5/5"], "within 30 s: the first and the last"
    logged = {e["step"]: e["reward"] for e in run.trainer.state.log_history if "reward" in e}
    checks = {check["step"]: check[NDCG] for check in run.watch.history}
    assert f"reward {logged[1]:.4f}" in found[0] and f"NDCG {checks[0]:.4f}" in found[0]
    assert f"reward {logged[5]:.4f}" in found[1] and f"NDCG {checks[4]:.4f}" in found[1]
    assert "left" not in found[0] + found[1] and "cost" not in run.shown and "loss" not in run.shown
    assert "train_runtime" not in run.shown and "{" not in run.shown


def test_the_table_comes_every_so_many_steps_with_the_last_batch(run):
    assert run.shown.count("completions, some of them") == 2
    last = run.shown[run.shown.index("step 4: 8 completions") :]
    for head in ("prompt ends", "valid", "exact", "prefix", "total", "advantage"):
        assert head in last
    answers = [TABLE.text(item) for item in range(len(TABLE))]
    rows = [line for line in last.splitlines() if line.count("│") > 5]
    drawn = [next(cell.strip() for cell in row.split("│") if cell.strip() in answers) for row in rows]
    assert len(drawn) == 6 and all(row.count(" yes ") == 1 for row in rows)


def test_a_tracker_gets_reward_parts_and_validation(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (run.folder / "runs").iterdir()
    held = EventAccumulator(str(events)).Reload()
    read = {tag: [(event.step, event.value) for event in held.Scalars(tag)] for tag in held.Tags()["scalars"]}
    history = run.trainer.state.log_history
    assert all("loss" in entry for entry in history if "reward" in entry), "a check hands out nothing but its own"
    for key in ("reward", "rewards/exact/mean", "rewards/prefix/mean", "loss", "grad_norm", "group_hit_rate"):
        wanted = [(entry["step"], entry[key]) for entry in history if key in entry]
        assert [step for step, _ in wanted] == [1, 2, 3, 4, 5], "a check takes no log of the step's own away"
        assert read[f"train/{key}"] == [(step, pytest.approx(value, rel=1e-5)) for step, value in wanted]
    for key in (NDCG, RECALL):
        wanted = [(check["step"], check[key]) for check in run.watch.history]
        assert [step for step, _ in wanted] == [0, 2, 4, 5]
        assert read[f"train/{key}"] == [(step, pytest.approx(value, rel=1e-5)) for step, value in wanted]
        assert [(entry["step"], entry[key]) for entry in history if key in entry] == wanted


# The line by itself.


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(display.time, "monotonic", lambda: self.now)


def make_line(live=False, **options):
    console = Console(file=io.StringIO(), width=30 if live else 200, force_terminal=live)
    return Progress(console, live, **options), console.file


def play(shown, clock, steps, durations, logs=lambda step: {}, start=0, history=()):
    """Drive the callback as a trainer does, one log a step."""
    state = TrainerState(max_steps=steps, global_step=start, log_history=list(history))
    control = TrainerControl(should_log=True)
    shown.on_train_begin(None, state, control)
    for duration_ in durations:
        clock.now += duration_
        state.global_step += 1
        shown.on_step_end(None, state, control)
        shown.on_log(None, state, control, logs={"loss": 1.0, **logs(state.global_step)})
    return state


def test_a_plain_line_at_most_every_half_minute_and_the_planners_keys(monkeypatch):
    shown, file = make_line()
    logs = {"reward": 0.5, "rewards/quality/mean": 0.125, "rewards/cost/mean": -0.0625, "kl": None}
    play(shown, Clock(monkeypatch), 40, [4.0] * 40, lambda step: logs)
    found = file.getvalue().splitlines()
    assert [int(line.split("/")[0].removeprefix("step ")) for line in found] == [1, 9, 17, 25, 33, 40]
    assert found[0] == "step 1/40 | reward 0.5000 | NDCG 0.1250 | cost 0.0625"
    assert found[1] == "step 9/40 | reward 0.5000 | NDCG 0.1250 | cost 0.0625 | 2 min left"
    assert found[-1] == "step 40/40 | reward 0.5000 | NDCG 0.1250 | cost 0.0625"


def test_without_a_reward_the_loss_is_shown_and_validation_is_the_ndcg(monkeypatch):
    shown, file = make_line()
    state = play(shown, Clock(monkeypatch), 3, [1.0, 1.0], lambda step: {NDCG: 0.25} if step == 1 else {})
    assert shown.line(state) == "step 2/3 | loss 1.0000 | NDCG 0.2500 | 1 s left"
    assert len(file.getvalue().splitlines()) == 1
    shown.on_train_end(None, state, None)  # stopped early: the last step is told all the same
    assert file.getvalue().splitlines()[-1].startswith("step 2/3")


def test_time_left_is_of_this_process_and_survives_a_slow_first_step(monkeypatch):
    shown, _ = make_line()
    history = [{"step": 500, NDCG: 0.75, "reward": 0.5, "loss": 0.0}]
    state = play(shown, Clock(monkeypatch), 600, [900.0, *[2.0] * 9], start=500, history=history)
    assert shown.seconds_left(state) == pytest.approx(2 * 90)
    assert "NDCG 0.7500" in shown.line(state), "a resumed run knows what was measured before"
    state = play(shown, Clock(monkeypatch), 100, [50.0, *[2.0] * 9, 4000.0, *[2.0] * 9])
    assert shown.seconds_left(state) == pytest.approx(80 * (18 * 2 + 40) / 19), "a stall counts for 20 steps"
    # A generation every fourth step is no outlier: a median would leave it out.
    state = play(shown, Clock(monkeypatch), 100, [50.0, *[1.0, 1.0, 1.0, 9.0] * 10])
    assert shown.seconds_left(state) == pytest.approx(59 * 3)
    state = play(shown, Clock(monkeypatch), 100, [50.0])
    assert shown.seconds_left(state) is None
    assert [duration(s) for s in (45.4, 125, 5999, 6000, 3 * 3600 + 300)] == [
        "45 s", "2 min", "1 h 40 min", "1 h 40 min", "3 h 05 min",
    ]  # fmt: skip


def test_a_live_line_is_taken_down_when_training_raises(monkeypatch):
    shown, file = make_line(live=True)

    def train():
        play(shown, Clock(monkeypatch), 3, [1.0], lambda step: {"reward": 0.5})
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        shown.around(train)
    text = file.getvalue()
    assert "\x1b[1A" not in text, "one line: the cursor never goes up"
    assert shown._bar is None and "step 1/3 | reward" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is back"


def test_other_processes_show_nothing(run):
    removed = []
    other = SimpleNamespace(remove_callback=removed.append, is_world_process_zero=lambda: False)
    other.callback_handler = SimpleNamespace(callbacks=[])
    assert show_progress(other) is None and removed == [ProgressCallback, PrinterCallback]


# The table by itself.


def fake_trainer(completions, parts, prompts=None, functions=(), seed=0):
    count = len(completions)
    size = {"maxlen": count}
    logs = {"prompt": deque(prompts or ["p"] * count, **size), "completion": deque(completions, **size)}
    logs["rewards"] = defaultdict(deque, {name: deque(values, **size) for name, values in parts.items()})
    logs["advantages"] = deque([0.5] * count, **size)
    return SimpleNamespace(
        _logs=logs, reward_func_names=list(parts), reward_weights=torch.tensor([1.0, 0.5][: len(parts)]),
        reward_funcs=list(functions), args=SimpleNamespace(seed=seed),
    )  # fmt: skip


def shown_table(trainer, step=3, **options) -> str:
    console = Console(file=io.StringIO(), width=200, **options)
    console.print(sample_table(trainer, step, console.encoding))
    return console.file.getvalue()


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.count("│") > 4]


def test_best_worst_and_drawn_rows_with_their_totals():
    values = [float(i) for i in range(40)]
    trainer = fake_trainer([f"c{i}" for i in range(40)], {"a": values, "b": [1.0, float("nan")] * 20})
    before = random_states()
    rows = cells(shown_table(trainer))
    assert random_states() == before
    assert [row[1] for row in rows[:2] + rows[-2:]] == ["c39", "c38", "c1", "c0"] and len(rows) == 6
    assert rows[0][2:] == ["-", "39.000", "-", "39.000", "0.500"] and rows[1][2:] == [
        "-", "38.000", "1.000", "38.500", "0.500",
    ]  # fmt: skip
    assert rows == cells(shown_table(trainer)), "the same step shows the same rows"
    assert {row[1] for row in cells(shown_table(trainer, step=4))} != {row[1] for row in rows}
    assert [row[1] for row in cells(shown_table(fake_trainer(["x", "y"], {"a": [0.0, 1.0]})))] == ["y", "x"]
    nothing = fake_trainer(["x"], {"a": [float("nan")]})
    assert cells(shown_table(nothing)) == [["p", "x", "-", "-", "-", "0.500"]]


def test_a_narrow_console_gets_the_parts_in_one_column():
    parts = {f"part_{i}": [float(i), -1.0] for i in range(9)}
    trainer = fake_trainer(["good", "bad"], parts)
    trainer.reward_weights = torch.ones(9)
    console = Console(file=io.StringIO(), width=80)
    console.print(sample_table(trainer, 3, console.encoding, console.width))
    text = console.file.getvalue()
    assert "advantage" in text and all(f"part_{i}  {i:.3f}" in text for i in range(9))
    assert " 36.000 " in text and " -9.000 " in text and max(map(len, text.splitlines())) <= 80


def test_valid_is_a_reward_of_that_name_or_whether_the_sid_is_an_items():
    rows = cells(shown_table(fake_trainer(["x", "y"], {"valid": [0.0, 1.0]})))
    assert [row[2] for row in rows] == ["yes", "no"]
    reward = Reward("exact", TERMS["exact"], TABLE)
    said = [TABLE.text(3), TABLE.text(3) + "!", [{"role": "assistant", "content": TABLE.text(4)}]]
    rows = cells(shown_table(fake_trainer(said, {"exact": [3.0, 2.0, 1.0]}, functions=[reward])))
    assert [row[2] for row in rows] == ["yes", "no", "yes"]
    assert MONITORS, "monitors are parts, too"


def test_completions_can_do_nothing_to_a_terminal():
    evil = "[bold red]x[/bold red] [/] :smile: \x1b[2J\x1b]0;title\x07 a\rb\nc\u202egnp\u200b\x9b31m\ud800 \u2028"
    for options in ({"force_terminal": True, "color_system": "truecolor"}, {}):
        text = shown_table(fake_trainer([evil], {"a": [1.0]}, prompts=["[/red]\x1b[H"]), **options)
        assert "[bold red]x[/bold red] [/] :smile:" in text and "[/red]\\x1b[H" in text
        assert "\\x1b[2J\\x1b]0;title\\x07 a\\rb\\nc\\u202egnp\\u200b\\x9b31m\\ud800 \\u2028" in text
        assert not set("\x07\r\u202e\u200b\x9b\ud800\u2028") & set(text)
        assert "\x1b[2J" not in text and "\x1b]0" not in text and "\x1b[H" not in text
    text.encode("utf-8")
    assert visible("na\u00efve \u65e5 \U0001f600", "ascii") == "na\\xefve \\u65e5 \\U0001f600"


def test_an_ascii_console_gets_ascii():
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=raw, width=120)
    console.print(sample_table(fake_trainer(["\u65e5"], {"a": [1.0]}), 1, console.encoding))
    raw.flush()
    assert b"\\u65e5" in raw.buffer.getvalue()


def test_long_ones_are_cut_in_the_middle_and_chats_with_calls_are_readable():
    long = "start " + "x" * 1000 + " end"
    assert cut(long, 60).startswith("start x") and cut(long, 60).endswith("xx end") and len(cut(long, 60)) == 60
    assert " ... " in cut(long, 60) and cut("short", 60) == "short"
    assert ending(long, 10) == "...xxx end" and ending("abc", 10) == "abc"
    chat = [
        {"role": "assistant", "content": "Let me see.", "tool_calls": [
            {"type": "function", "function": {"name": "retrieve", "arguments": {"k": 10, "mode": "a"}}}]},
        {"role": "tool", "name": "retrieve", "content": "1. " + "item " * 50},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "rank", "arguments": "{bad"}}]},
        {"role": "tool", "content": ""},
        {"role": "assistant", "content": "Done."},
    ]  # fmt: skip
    text = chat_text(chat)
    assert text.startswith('Let me see. -> retrieve(k=10, mode="a") <- 1. item item') and text.endswith("Done.")
    assert "-> rank({bad) <- " in text and len(text) < 160
    assert chat_text([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]) == (
        "[image] what?"
    )


# The curves.

matplotlib_image = pytest.importorskip("matplotlib.image")


def colours(path) -> int:
    image = (matplotlib_image.imread(path)[..., :3] * 255).astype(int)
    return int((np.ptp(image, axis=-1) > 40).sum())


def test_the_run_left_a_picture_of_the_panels_that_have_data(run):
    titles = plot_curves(run.trainer.state.log_history, run.folder / "again.png")
    assert titles == [
        "reward", "parts of the reward", "quality", "loss", "gradient before clipping", "entropy",
        "length of completions",
    ]  # fmt: skip
    assert (run.folder / CURVES_FILE).read_bytes() == (run.folder / "again.png").read_bytes()
    assert colours(run.folder / CURVES_FILE) > 1000 and not list(run.folder.glob(".curves*"))


def test_a_history_without_numbers_draws_nothing_and_gaps_stay_gaps(tmp_path):
    path = tmp_path / "c.png"
    assert plot_curves([], path) == [] and plot_curves([{"step": 1, "loss": float("nan")}], path) == []
    assert not path.exists()
    history = [{"step": step, "loss": float("nan") if step == 3 else 1.0, "reward": None} for step in range(1, 60)]
    history += [{"step": 59, "loss": 2.0}, {"loss": 5.0}, {"step": 60, "train_loss": 1.0}]
    assert plot_curves(history, path) == ["loss"] and colours(path) > 100
    assert plot_curves([{"step": 1, "reward": 0.5}], path) == ["reward"], "one point, too"
    assert np.allclose(smooth([1.0] * 9 + [float("nan")] + [1.0] * 30), 1.0)
    assert smooth([0.0, 1.0] * 20)[5:-5].std() < 0.2 < np.std([0.0, 1.0] * 20)


def test_costs_are_drawn_with_their_sign_turned():
    from recllm.training.display.curves import curves

    history = [{"step": 1, "rewards/cost/mean": -0.25, "rewards/quality/mean": 0.5}]
    by_title = {panel.title: curves(history, panel) for panel in panels(history)}
    assert by_title["cost of the tools called"] == {"cost": ([1], [0.25])}
    assert by_title["parts of the reward"] == {"cost": ([1], [-0.25]), "quality": ([1], [0.5])}
    assert by_title["quality"] == {"NDCG@10 of the episodes": ([1], [0.5])}


def test_a_drawing_that_fails_is_told_and_stops_nothing(tmp_path, caplog):
    state = TrainerState(global_step=7, log_history=[{"step": 1, "loss": 1.0}], is_world_process_zero=True)
    args = SimpleNamespace(output_dir=str(tmp_path / "gone" / "away"))
    with caplog.at_level(logging.WARNING):
        Curves().on_save(args, state, None)
    assert "step 7: curves.png was not drawn" in caplog.text
    args.output_dir, state.is_world_process_zero = str(tmp_path), False
    Curves().on_train_end(args, state, None)
    assert list(tmp_path.iterdir()) == [], "the main process draws"


def test_a_curriculum_has_a_panel_and_lines_where_its_stages_begin(tmp_path):
    stages = [0, 0, 1, 1, 1, 2]
    history = [
        {"step": step, "reward": 0.5, "curriculum_stage": float(stage), f"stage_reward/{stage}": 0.1 * step}
        for step, stage in enumerate(stages, start=1)
    ]
    assert promotions(history) == [3, 6]
    # A resumed run's history holds a step twice, and most histories hold no curriculum.
    assert promotions(history + history[2:4]) == [3, 6]
    assert promotions([{"step": 1, "reward": 0.5}]) == []
    drawn = plot_curves(history, tmp_path / "curves.png")
    assert "reward by stage of the curriculum" in drawn and (tmp_path / "curves.png").stat().st_size > 0
