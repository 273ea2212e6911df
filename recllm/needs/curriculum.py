"""The curriculum of GRPO on needs: which stage and which visit every prompt is about (methods 3.3).

A run goes through stages (need, category, service). It is promoted when the moving average of the stage's rewards
reaches a threshold, or at a cap of rounds; a round is one draw of completions. Within a stage visits come from the head
to the tail, by falling typicality, and a share of the prompts repeats what earlier stages asked. Which prompts a round
gets thus depends on the rewards before it, so they are chosen when the round comes.

Nothing is remembered but numbers: choices follow from the seed and from what `state_dict` holds, which is JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from recllm.needs.schema import STAGES

# Sub-streams of the seed.
_LAYOUT, _REPLAY = 0, 1


class Pick(NamedTuple):
    """A prompt: the stage that it asks for and the place of its event among those the curriculum was given."""

    stage: str
    event: int


class Promotion(NamedTuple):
    """The round (from 0) from which `stage` was on, whether by the threshold (else the cap), and the average reward."""

    stage: str
    round: int
    by_threshold: bool
    mean: float


@dataclass(frozen=True)
class Plan:
    """How a run of `rounds` rounds with `prompts` prompts each goes through `stages`.

    thresholds: stage -> average reward that promotes from it; the last stage has none. window: rounds of the moving
    average. cap: rounds of a stage at most, the last aside. replay: share of prompts from earlier stages.
    joint: all stages from the start, in equal shares and random order (the ablation without a curriculum).

    Raises:
        ValueError: stages out of order, shares or counts out of range, or caps that leave the last stage no round.
    """

    rounds: int
    prompts: int
    stages: tuple[str, ...] = tuple(STAGES)
    thresholds: Mapping[str, float] = field(default_factory=lambda: {"need": 0.8, "category": 0.6})
    window: int = 10
    cap: int = 40
    replay: float = 0.2
    joint: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.stages or self.stages != tuple(stage for stage in STAGES if stage in self.stages):
            raise ValueError(f"stages {self.stages} must be some of {', '.join(STAGES)}, each once and in this order")
        if min(self.rounds, self.prompts, self.window, self.cap) < 1 or not 0 <= self.replay < 1:
            raise ValueError(
                f"rounds={self.rounds}, prompts={self.prompts}, window={self.window} and cap={self.cap} must be at "
                f"least 1, and replay={self.replay} at least 0 and below 1"
            )
        if not self.joint and (len(self.stages) - 1) * self.cap >= self.rounds:
            raise ValueError(
                f"{self.rounds} rounds are over before stage {self.stages[-1]!r} must begin, with cap={self.cap} for "
                f"each stage before it: lower the cap, or train for more steps"
            )


@dataclass
class Curriculum:
    """The state machine: `pick` a round's prompts, then `observe` their rewards.

    typicality_E: typicality of the events that prompts may be about, at least one; higher is nearer the head.
    """

    plan: Plan
    typicality_E: np.ndarray
    promotions: list[Promotion] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.typicality_E = np.asarray(self.typicality_E, dtype=np.float64)
        if self.typicality_E.ndim != 1 or not len(self.typicality_E) or np.isnan(self.typicality_E).any():
            raise ValueError("a curriculum needs the typicality of at least one event, a number for each")
        self._round, self._began, self._stage = 0, 0, 0
        # Prompts of the stage that is on (or of all stages where they are joint), of each stage, and of replays.
        self._own, self._replayed = 0, 0
        self._asked = [0] * len(self.plan.stages)
        self._starts = [0] * len(self.plan.stages)
        self._recent: list[float] = []
        self._layouts: dict[int, np.ndarray] = {}

    @property
    def stage(self) -> str:
        """The stage that is on; where all are, the last."""
        return self.plan.stages[-1 if self.plan.joint else self._stage]

    @property
    def round(self) -> int:
        """How many rounds have been picked."""
        return self._round

    def pick(self) -> list[Pick]:
        """The prompts of the next round."""
        picks = [self._joint() if self.plan.joint else self._next(slot) for slot in range(self.plan.prompts)]
        self._round += 1
        return picks

    def observe(self, rewards: Sequence[tuple[str, float]]) -> Promotion | None:
        """Take in the (stage, reward) of every completion of the round, and be promoted where that is due."""
        own = [reward for stage, reward in rewards if stage == self.stage]
        if self.plan.joint or self._stage + 1 == len(self.plan.stages):
            return None
        if own:
            self._recent = [*self._recent, float(np.mean(own))][-self.plan.window :]
        mean = float(np.mean(self._recent)) if self._recent else 0.0
        full = len(self._recent) == self.plan.window
        reached = full and mean >= self.plan.thresholds.get(self.stage, math.inf)
        if not reached and self._round - self._began < self.plan.cap:
            return None
        self._stage += 1
        self._began, self._own, self._replayed, self._recent = self._round, 0, 0, []
        self._starts[self._stage] = self._round
        self.promotions.append(Promotion(self.stage, self._round, reached, mean))
        return self.promotions[-1]

    def _next(self, slot: int) -> Pick:
        # As many replays as make the share exact, as soon as one is due; the first stage has nothing to replay.
        due = math.floor(self.plan.replay * (self._own + self._replayed + 1) + 1e-9)
        if self._stage and self._replayed < due:
            self._replayed += 1
            rng = np.random.default_rng([self.plan.seed, _REPLAY, self._round, slot])
            stage = int(rng.integers(self._stage))
            layout = self._layout(stage)
            return Pick(self.plan.stages[stage], int(layout[rng.integers(min(self._asked[stage], len(layout)))]))
        self._own += 1
        return self._take(self._stage)

    def _joint(self) -> Pick:
        self._own += 1
        return self._take((self._own - 1) % len(self.plan.stages))

    def _take(self, stage: int) -> Pick:
        layout = self._layout(stage)
        event = int(layout[self._asked[stage] % len(layout)])
        self._asked[stage] += 1
        return Pick(self.plan.stages[stage], event)

    def _layout(self, stage: int) -> np.ndarray:
        """Events of a stage in the order in which it asks: a random choice, so many as it has prompts for until its
        cap or the end of the run, from head to tail."""
        if stage not in self._layouts:
            rng, plan = np.random.default_rng([self.plan.seed, _LAYOUT, stage]), self.plan
            left = plan.rounds - self._starts[stage]
            rounds = left if plan.joint or stage + 1 == len(plan.stages) else min(plan.cap, left)
            share = 1 / len(plan.stages) if plan.joint else 1 - plan.replay if stage else 1.0
            size = max(1, min(len(self.typicality_E), math.ceil(rounds * plan.prompts * share)))
            chosen = rng.permutation(len(self.typicality_E))[:size]
            order = np.argsort(-self.typicality_E[chosen], kind="stable")
            self._layouts[stage] = chosen if plan.joint else chosen[order]
        return self._layouts[stage]

    def state_dict(self) -> dict[str, Any]:
        """All that the next choices depend on, beside the plan and the events; JSON."""
        counts = {name: getattr(self, f"_{name}") for name in ("round", "began", "stage", "own", "replayed")}
        lists = {name: list(getattr(self, f"_{name}")) for name in ("asked", "starts", "recent")}
        return {**counts, **lists, "promotions": [list(promotion) for promotion in self.promotions]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken; ValueError where it is of other stages."""
        if len(state["asked"]) != len(self.plan.stages):
            raise ValueError(f"the state is of {len(state['asked'])} stages, this curriculum has {self.plan.stages}")
        for name in ("round", "began", "stage", "own", "replayed"):
            setattr(self, f"_{name}", int(state[name]))
        self._asked, self._starts = list(map(int, state["asked"])), list(map(int, state["starts"]))
        self._recent = list(map(float, state["recent"]))
        self.promotions = [Promotion(str(s), int(r), bool(b), float(m)) for s, r, b, m in state["promotions"]]
        self._layouts = {}
