"""A teacher from the one word that a config or a command line names it by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from recllm.teachers.protocol import Sampling, Teacher


def load_teacher(
    spec: str,
    sampling: Sampling | None = None,
    templates: Mapping[str, Callable[[Mapping[str, Any]], str]] | None = None,
    **options: Any,
) -> Teacher:
    """`template`, `local:FOLDER_OR_HUB_ID` or `endpoint:MODEL`.

    sampling is for the language models, templates for `template`; options go to the teacher: `version`, `batch`, or
    `base_url`, `api_key`, `concurrency`, `timeout` and `retries`.

    Raises:
        ValueError: the spec names no teacher.
    """
    kind, _, source = spec.partition(":")
    if spec == "template":
        from recllm.teachers.template import Template

        return Template(templates or {}, **options)
    if kind == "local" and source:
        from recllm.teachers.local import Local

        return Local.load(source, sampling, **options)
    if kind == "endpoint" and source:
        from recllm.teachers.endpoint import Endpoint

        return Endpoint(source, sampling, **options)
    raise ValueError(f"teacher {spec!r} is unknown; give template, local:FOLDER_OR_HUB_ID or endpoint:MODEL")
