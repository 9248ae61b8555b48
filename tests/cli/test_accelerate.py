# SPDX-License-Identifier: Apache-2.0
"""Shipped configs pass Accelerate's own parser; the options say what was asked."""

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from typer.testing import CliRunner

from hftune.cli import app
from hftune.cli.accelerate import launch, launch_options, precision_overrides
from hftune.core.errors import HftuneError, RunError
from hftune.core.shipped import accelerate_config, shipped_folder

CONFIGS = sorted(shipped_folder("accelerate_configs").glob("*.yaml"))
SECTIONS = {"fsdp_config": "fsdp_", "deepspeed_config": "", "fp8_config": "fp8_"}
ENTRANCE = ["--config_file", "{path}", "-m", "hftune", "train", "r.yaml"]


def known_options() -> dict[str, argparse.Action]:
    """What ``accelerate launch`` takes: option name -> its action."""
    return {action.dest: action for action in launch_command_parser()._actions}


def problems(path: Path) -> list[str]:
    """Return what Accelerate does not know, or would rather not see, in a config."""
    try:
        config = load_config_from_file(str(path))
    except (ValueError, TypeError) as error:
        return [str(error)]
    options = known_options()
    found = []
    for section, prefix in SECTIONS.items():
        for key in getattr(config, section):
            name = key if key.startswith(prefix) else prefix + key
            if name not in options:
                found.append(f"{section}.{key}: unknown")
            elif "deprecated" in str(options[name].help).lower():
                found.append(f"{section}.{key}: deprecated")
    arguments = [item.format(path=path) for item in ENTRANCE]
    args = launch_command_parser().parse_args(arguments)
    args, _, _ = _validate_launch_command(args)
    if args.use_fsdp:
        found += complaints(config.fsdp_config)
    return found


#: Key of a config -> field of Accelerate's plugin, where the names differ.
PLUGIN_FIELDS = {
    "version": "fsdp_version",
    "offload_params": "cpu_offload",
    "transformer_layer_cls_to_wrap": "transformer_cls_names_to_wrap",
}


def complaints(settings: dict[str, Any]) -> list[str]:
    """Build Accelerate's plugin and return what it warns of, such as fields of FSDP1."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    names = {key: key.removeprefix("fsdp_") for key in settings}
    fields = {PLUGIN_FIELDS.get(names[key], names[key]): value for key, value in settings.items()}
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("accelerate.utils.dataclasses")
    logger.addHandler(handler)
    try:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as warned:
            patch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "")  # the plugin sets it
            FullyShardedDataParallelPlugin(**fields)
    except (ValueError, TypeError) as error:
        return [str(error)]
    finally:
        logger.removeHandler(handler)
    return [r.getMessage() for r in records] + [str(w.message) for w in warned]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key(path: Path) -> None:
    assert problems(path) == []
    first = path.read_text().split("compute_environment")[0]
    assert first.startswith("# ")  # when to take it
    if path.stem in ("fsdp2", "fsdp2_qlora", "deepspeed_zero2", "deepspeed_zero3", "multi_node"):
        assert "Take it when" in first
        assert "Not " in first


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("num_machines: 1", "number_of_machines: 1", "unknown keys"),
        ("fsdp_version: 2", "fsdp_version: 2\n  fsdp_reshard: true", "fsdp_reshard: unknown"),
        (
            "fsdp_version: 2",
            "fsdp_version: 2\n  fsdp_use_orig_params: true",
            "use_orig_params is obsolete",
        ),
        ("FULL_STATE_DICT", "LOCAL_STATE_DICT", "does not support LOCAL_STATE_DICT"),
        ("distributed_type: FSDP", "distributed_type: FSDP3", "FSDP3"),
    ],
)
def test_a_broken_config_is_seen(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = accelerate_config("fsdp2").read_text()
    assert old in text
    broken = tmp_path / "broken.yaml"
    broken.write_text(text.replace(old, new))
    assert any(says in problem for problem in problems(broken)), problems(broken)


def parsed(options: list[str]) -> argparse.Namespace:
    """What Accelerate makes of the options."""
    args: Any = launch_command_parser().parse_args(options)
    args, _, _ = _validate_launch_command(args)
    return args  # type: ignore[no-any-return]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs, as far as the launcher can see."""
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
def test_the_flags_reach_accelerate() -> None:
    options = launch_options(
        "fsdp2", ["r.yaml", "method.r=4"], mixed_precision="fp16", num_processes=8
    )
    args = parsed(options)
    assert (args.mixed_precision, args.num_processes, args.use_fsdp) == ("fp16", 8, True)
    assert args.training_script_args == ["train", "r.yaml", "method.r=4"]
    assert (args.fsdp_version, args.fsdp_state_dict_type) == (2, "FULL_STATE_DICT")
    plain = parsed(launch_options("single_gpu", ["r.yaml"]))
    assert plain.mixed_precision == "bf16"


def test_the_recipe_says_the_same_precision() -> None:
    assert precision_overrides("bf16") == ["training.bf16=true", "training.fp16=false"]
    assert precision_overrides("fp16") == ["training.bf16=false", "training.fp16=true"]
    assert precision_overrides("no") == ["training.bf16=false", "training.fp16=false"]
    assert precision_overrides("fp8") == precision_overrides(None) == []


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        ("deepspeed_zero2", {}, "deepspeed is not installed\npip install deepspeed"),
        ("fsdp2", {"mixed_precision": "fp8"}, "torchao, which is not installed\npip install"),
        ("multi_node", {}, "several machines need the address .*\n.*--machine_rank RANK"),
        ("cpu", {"num_processes": 2}, "cpu.yaml runs one process\n--accelerate multi_cpu"),
        ("single_gpu", {"num_processes": 2}, "runs one process\n--accelerate multi_gpu"),
        ("multi_cpu", {"num_processes": 1}, "is for two or more\n--accelerate cpu"),
        ("multi_gpu", {"num_processes": 1}, "is for two or more\n--accelerate single_gpu"),
        ("cpu", {"mixed_precision": "fp16"}, "fp16 needs a GPU, and cpu.yaml runs on a CPU"),
        ("multi_cpu", {"mixed_precision": "fp8"}, "fp8 needs a GPU, and multi_cpu.yaml runs"),
    ],
)
@pytest.mark.usefixtures("two_gpus")
def test_what_cannot_be_launched(config: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(HftuneError, match=says):
        launch_options(config, ["r.yaml"], **options)


@pytest.mark.parametrize("config", ["single_gpu", "multi_gpu", "fsdp2"])
def test_a_config_for_gpus_needs_one(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    with pytest.raises(HftuneError, match=f"{config}.yaml is for GPUs, and this machine has none"):
        launch_options(config, ["r.yaml"])
    assert parsed(launch_options("multi_cpu", ["r.yaml"])).num_processes == 2


ENDS = """
import os, sys, time
rank, how = int(os.environ.get("RANK", "0")), sys.argv[1]
if how == "2":
    sys.exit(2)
if how == "killed" and rank == int(os.environ.get("WORLD_SIZE", "1")) - 1:
    os.kill(os.getpid(), 9)
time.sleep(0 if how == "well" else 60)
"""


@pytest.mark.parametrize(("config", "last"), [("cpu", 0), ("multi_cpu", 1)])
def test_the_launcher_ends_as_its_processes_do(
    config: str,
    last: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "ends.py").write_text(ENDS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = str(accelerate_config(config))
    options = ["--config_file", path, "--main_process_port", "0", "-m", "ends"]
    assert launch([*options, "well"]) == 0
    assert launch([*options, "2"]) == 2
    with pytest.raises(RunError, match=f"process {last} was ended by SIGKILL\nthe memory"):
        launch([*options, "killed"])
    assert capfd.readouterr().err == ""  # no traceback of the launcher
    assert not caplog.records


@pytest.mark.parametrize("text", ["- a list\n", "a: [1\n"])
def test_a_file_that_is_no_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(HftuneError, match=r"own\.yaml: not"):
        launch_options(str(tmp_path / "own.yaml"), [])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--mixed-precision", "bf61", "--accelerate", "cpu"], "--mixed-precision: no 'bf61'"),
        (["--mixed-precision", "bf16"], "--mixed-precision: it goes with --accelerate"),
        (["--num-processes", "2"], "--num-processes: Accelerate starts them"),
        (["--resume", "--mixed-precision", "bf16", "--accelerate", "cpu"], "as it was"),
    ],
)
def test_flags_that_mean_nothing(tmp_path: Path, options: list[str], says: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("task: text-classification\nmodel: demo:minilm\ndata: demo:docstrings\n")
    result = CliRunner().invoke(app, ["train", str(recipe), *options])
    assert isinstance(result.exception, HftuneError)
    assert says in str(result.exception)


def test_help_lists_the_configs() -> None:
    parameter = next(p for p in parameters("train") if p.name == "accelerate")
    for path in CONFIGS:
        assert path.stem in str(parameter.help), path.stem


def parameters(command: str) -> list[Any]:
    """The options of a command, as typer has them."""
    import typer

    return list(typer.main.get_command(app).commands[command].params)  # type: ignore[attr-defined]
