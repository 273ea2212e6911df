"""What a proposer may say: one axis changed, and why. Its reply is untrusted text that becomes this or a refusal."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

from recllm.tuning.spaces.axes import Axis
from recllm.tuning.spaces.space import Space
from recllm.tuning.study.plain import line

MOST_WORDS = 240  # characters of each of the three texts
MOST_REPLY = 20_000
_MOST_LISTED = 32
_TEXTS = ("hypothesis", "expected_effect", "risk")
_FIELDS = ("hypothesis", "changed_dimension", "value", "expected_effect", "risk")

Reason = Literal[
    "not_json", "wrong_fields", "unknown_dimension", "masked_dimension", "illegal_value", "no_change", "tried"
]


@dataclass(frozen=True)
class Proposal:
    """One hypothesis and the one axis that it changes.

    Args:
        hypothesis: why the change should help. expected_effect: on the validation metric. risk: what may go wrong.
        changed_dimension: an axis of the space that matters under the configuration that is changed.
        value: a legal one of that axis, other than the present one.
    """

    hypothesis: str
    changed_dimension: str
    value: Any
    expected_effect: str
    risk: str

    def row(self) -> dict[str, Any]:
        """As plain JSON values, in the order in which a model says them."""
        return asdict(self)


@dataclass(frozen=True)
class Refusal:
    """Why a reply is no proposal: a reason to count by, and words for who wrote it."""

    reason: Reason
    words: str


def open_axes(space: Space, config: Mapping[str, Any], masked: Collection[str] = ()) -> list[Axis]:
    """The axes that a proposal may change: those that matter under `config` and are not masked.

    Where all that matter are masked, none is.
    """
    active = [axis for axis in space.axes if axis.name in config]
    return [axis for axis in active if axis.name not in masked] or active


def proposal_schema(
    space: Space,
    config: Mapping[str, Any],
    masked: Collection[str] = (),
    taken: Mapping[str, Collection[Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    """JSON Schema of the proposals that are legal now: one branch an open axis.

    The present value of an axis is left out, and so are those of `taken` (axis -> values that lead to a configuration
    that was tried) where its values can be listed. No branch is left where that leaves nothing.
    """
    text = {"type": "string", "minLength": 1, "maxLength": MOST_WORDS}
    branches = []
    for axis in open_axes(space, config, masked):
        value = {key: told for key, told in axis.schema().items() if key not in ("default", "description")}
        if listed := listed_values(axis):
            closed = (config[axis.name], *taken.get(axis.name, ()))
            value = {"enum": [other for other in listed if other not in closed]}
        if value.get("enum") == []:
            continue
        said = {"changed_dimension": {"const": axis.name}, "value": value}
        properties = {name: said.get(name, text) for name in _FIELDS}
        branches.append(
            {"type": "object", "properties": properties, "required": list(_FIELDS), "additionalProperties": False}
        )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "anyOf": branches}


def listed_values(axis: Axis) -> tuple[Any, ...]:
    """All values of an axis, those of a short range of integers too; empty for other ranges."""
    if axis.values or axis.kind != "int" or axis.high - axis.low > _MOST_LISTED:
        return axis.values
    return tuple(range(int(axis.low), int(axis.high) + 1))


def read_proposal(
    reply: str, space: Space, config: Mapping[str, Any], masked: Collection[str] = (), tried: Collection[str] = ()
) -> tuple[Proposal, dict[str, Any]] | Refusal:
    """The proposal in a reply and the configuration that it makes of `config`, or why there is none.

    Text around the first JSON object, such as a thought or a fence, is passed over; nothing in a reply is run. `tried`
    holds keys of configurations that a trial was run with.
    """
    if not isinstance(reply, str) or len(reply) > MOST_REPLY:
        return Refusal("not_json", f"a reply is text of at most {MOST_REPLY} characters")
    found = first_object(reply)
    if found is None:
        return Refusal("not_json", f"reply with one JSON object that has {', '.join(_FIELDS)}")
    if set(found) != set(_FIELDS):
        missing, more = [name for name in _FIELDS if name not in found], [name for name in found if name not in _FIELDS]
        told = f"{missing[0]} is missing" if missing else f"{str(more[0])[:60]!r} is not asked for"
        return Refusal("wrong_fields", f"{told}; the fields are {', '.join(_FIELDS)}")
    for name in _TEXTS:
        if not isinstance(found[name], str) or not found[name].strip() or len(found[name]) > MOST_WORDS:
            return Refusal("wrong_fields", f"{name} is text of 1 to {MOST_WORDS} characters")
    plain = {name: line(found[name], MOST_WORDS) for name in _TEXTS}
    if empty := [name for name, text in plain.items() if not text]:
        return Refusal("wrong_fields", f"{empty[0]} has no readable text")
    return _legal(Proposal(**{**found, **plain}), space, config, masked, tried)


def _legal(
    proposal: Proposal, space: Space, config: Mapping[str, Any], masked: Collection[str], tried: Collection[str]
) -> tuple[Proposal, dict[str, Any]] | Refusal:
    name = proposal.changed_dimension
    try:
        changed = space.change(config, name, proposal.value)
    except ValueError as error:
        known = isinstance(name, str) and name in config
        return Refusal("illegal_value" if known else "unknown_dimension", str(error))
    if name not in (open_ := [axis.name for axis in open_axes(space, config, masked)]):
        return Refusal("masked_dimension", f"{name} was tried often of late; choose one of {', '.join(open_)}")
    if changed[name] == config[name]:
        return Refusal("no_change", f"{name} is {json.dumps(changed[name])} already; choose another value")
    if space.key(changed) in tried:
        return Refusal("tried", f"{name} = {json.dumps(changed[name])} was tried from here; choose something else")
    # The value as the recipe's type, as in the configuration.
    return Proposal(proposal.hypothesis, name, changed[name], proposal.expected_effect, proposal.risk), changed


def first_object(reply: str) -> dict[str, Any] | None:
    """The first JSON object in a text."""
    decoder, start = json.JSONDecoder(), reply.find("{")
    for _ in range(50):
        if start < 0:
            return None
        try:
            found, _ = decoder.raw_decode(reply, start)
        except (ValueError, RecursionError):
            start = reply.find("{", start + 1)
            continue
        return found if isinstance(found, dict) else None
    return None
