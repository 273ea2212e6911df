"""Pipelines: a YAML of stages, each a script run as a process of its own; complete stages are skipped.

    name: quickstart
    stages:
      - name: dataset
        script: data_prep/movielens.py
        config: recipes/configs/movielens/quickstart.yaml   # optional, passed as --config
        args: {seed: 0, levels: [32, 32]}                    # optional, passed as --seed 0 --levels 32 32
      - name: sid_table
        script: recipes/train_sid_tokenizer.py
        inputs: {dataset: dataset}                           # argument -> an earlier stage, or `stage/subfolder`,
                                                             # or a list of them

A stage writes to `<outputs_root>/<pipeline>/<stage>`, passed to it as --output_dir.
"""

from recllm.pipeline.process import StageError, clean_environment
from recllm.pipeline.runner import StageResult, ensure_inputs, run_pipeline
from recllm.pipeline.spec import Pipeline, Stage, load_pipeline

__all__ = [
    "Pipeline",
    "Stage",
    "StageError",
    "StageResult",
    "clean_environment",
    "ensure_inputs",
    "load_pipeline",
    "run_pipeline",
]
