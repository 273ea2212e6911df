"""Every file of accelerate_configs/ is read by accelerate's own launcher and asks for what its name says."""

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "accelerate_configs"
KINDS = {"cpu": "NO", "ddp": "MULTI_GPU", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED", "fsdp2": "FSDP"}


def launch_arguments(name, *options):
    """What `accelerate launch --config_file NAME` works with, the file's values filled in."""
    line = ["--config_file", str(FOLDER / f"{name}.yaml"), *options, "script.py", "--seed", "1"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(line))
    return arguments


def test_the_folder_holds_exactly_these():
    assert {path.stem for path in FOLDER.iterdir()} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_the_file_has_the_right_kind_and_its_command_in_the_header(name):
    path = FOLDER / f"{name}.yaml"
    config = load_config_from_file(str(path))  # unknown keys raise here
    assert config.distributed_type == KINDS[name]
    assert config.use_cpu == (name == "cpu")
    assert config.mixed_precision == ("no" if name == "cpu" else "bf16")
    header = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8")).group()
    assert f"accelerate launch --config_file accelerate_configs/{name}.yaml" in header


def test_cpu_starts_one_process_that_sees_no_gpu():
    arguments = launch_arguments("cpu")
    assert arguments.num_processes == 1
    _, environment = prepare_simple_launcher_cmd_env(arguments)
    assert environment["ACCELERATE_USE_CPU"].lower() in ("1", "true")
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3", "fsdp2"])
def test_a_forgotten_process_count_is_an_error(name):
    with pytest.raises(ValueError, match="num_processes"):
        launch_arguments(name)
    assert launch_arguments(name, "--num_processes", "4").num_processes == 4


def test_ddp_is_plain_multi_gpu():
    arguments = launch_arguments("ddp", "--num_processes", "2")
    assert (arguments.multi_gpu, arguments.use_fsdp, arguments.use_deepspeed) == (True, False, False)
    assert prepare_multi_gpu_env(arguments)["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_fsdp2_reaches_the_plugin_as_version_2():
    environment = prepare_multi_gpu_env(launch_arguments("fsdp2", "--num_processes", "2"))
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_RESHARD_AFTER_FORWARD"] == "true"
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"


@pytest.mark.parametrize(("name", "stage"), [("zero2", "2"), ("zero3", "3")])
def test_zero_reaches_deepspeed_with_its_stage(name, stage):
    arguments = launch_arguments(name, "--num_processes", "2")
    # Filled in by `launch_command`, which goes on to start processes.
    fields = load_config_from_file(arguments.config_file).deepspeed_config
    arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)
    _, environment = prepare_deepspeed_cmd_env(arguments)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
    if name == "zero3":
        assert environment["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"].lower() == "true"
