"""Runs recipes/merge_sweep.py as often as it is asked, each time in a fork of its own that has the imports already.

The first argument is a model to warm up with. A line of JSON on standard input starts a run, {"argv": [...], "log":
file}, or waits for one, {"wait": pid}. The answer is the fork's pid, or its exit status, negative where a signal ended
it.
"""

import json
import os
import runpy
import sys
import traceback
from pathlib import Path

import recllm.merging.sweep  # noqa: F401  what takes seconds
from recllm.training.arguments import parse

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "merge_sweep.py"


def run(argv: list[str], log: str) -> int:
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        scope = runpy.run_path(str(RECIPE))
        scope["main"](*parse(scope["Arguments"], argv=argv))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    sys.stdout.flush()
    return 0


def warm_up(model: str) -> None:
    """What a fork need not do again: imports, and what transformers compiles when it loads its first model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(model)
    AutoTokenizer.from_pretrained(model)
    words = [f"--{name}=x" for name in ("direct", "thinking", "output_dir", "grid", "evaluator")]
    parse(runpy.run_path(str(RECIPE))["Arguments"], argv=words)


def main(model: str) -> None:
    warm_up(model)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                os._exit(run(asked["argv"], asked["log"]))
        print(json.dumps(answer), flush=True)
    os._exit(0)  # nothing to tidy up, and torch takes its time


if __name__ == "__main__":
    main(sys.argv[1])
