# SPDX-License-Identifier: Apache-2.0
"""Shared steps of all commands: read recipes, import functions, print errors.

Imports nothing heavy at the top; see :mod:`hftune.cli`.
"""

import gc
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftune.core.console import is_main_process, say
from hftune.core.errors import HftuneError, RecipeError

if TYPE_CHECKING:
    from hftune.recipe.recipe import Recipe

INTERRUPTED = 130
#: Makes PyTorch ask Linux for pages of 2 MiB; PyTorch reads the variable at import. A tensor of
#: tens of megabytes, such as the gradient of an embedding, is mapped again in every step, and with
#: pages of 4 KiB the mapping takes longer than the computation.
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
HEAD_START = 10.0  # seconds; a process needs a few to end


def load(path: Path, overrides: list[str] | None, *, resume: bool = False) -> "Recipe":
    """Return the recipe in a file or run folder, with overrides laid over it."""
    prepare_libraries()  # the first use of a recipe's schema imports torch and transformers
    from hftune.recipe.recipe import Recipe

    if resume and overrides:
        raise HftuneError(
            "--resume takes the recipe as it was", hint="leave out " + " ".join(overrides)
        )
    if (path / "recipe.yaml").is_file():
        path = path / "recipe.yaml"
    loaded = Recipe.load(path, overrides or ())
    if loaded.data.path is None:
        raise RecipeError(
            [f"{path}: data.path: missing"],
            hint="a run on rows handed over in Python goes on there: "
            "hftune.train(hftune.load(RUN).recipe, train_dataset=..., resume=True)",
        )
    return loaded


def named_columns(pairs: Iterable[str]) -> dict[str, str]:
    """Parse the values of ``--column``, each ``ROLE=COLUMN``, into role -> column.

    Example:
        >>> named_columns(["text=body", "label=team"])
        {'text': 'body', 'label': 'team'}
    """
    columns = {}
    for pair in pairs:
        role, _, column = pair.partition("=")
        if not (role and column):
            raise HftuneError(f"--column: {pair!r}: expected ROLE=COLUMN, as in label=team")
        columns[role] = column
    return columns


def numbers(text: str | None, option: str) -> list[float] | None:
    """Parse an option that holds numbers with commas between them; None stays None.

    Example:
        >>> numbers("0.7,0.3", "--weights")
        [0.7, 0.3]
    """
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise HftuneError(
            f"{option}: {text!r}: expected numbers with commas between, as in 0.7,0.3"
        ) from None


def show(answer: object) -> None:
    """Print a text as it is, and anything else as JSON.

    Example:
        >>> show("ready")
        ready
        >>> show(["lora", "full"])
        [
          "lora",
          "full"
        ]
    """
    if not isinstance(answer, str):
        import dataclasses
        import json

        answer = json.dumps(answer, default=dataclasses.asdict, indent=2, ensure_ascii=False)
    print(answer)


def say_next(*command: str | Path) -> None:
    """Print the command that a user runs next."""
    say("next:  " + shlex.join(["hftune", *map(str, command)]))


def verb(name: str) -> Callable[..., Any]:
    """Import the function of a command, together with torch and transformers."""
    prepare_libraries()
    with _kept_for_good():
        from importlib import import_module

        import transformers
        from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
        from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]

        function = getattr(import_module(f"hftune.commands.{name}"), name)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # and with them those of the Hub's client
    if has_bars() and not HF_HUB_DISABLE_PROGRESS_BARS:
        enable_progress_bars()
    return function  # type: ignore[no-any-return]


@contextmanager
def _kept_for_good() -> Iterator[None]:
    """Exclude all objects that are created inside from garbage collection for good.

    Modules live until the process ends. Scanning those of torch and transformers again and again
    takes one second at start and half a second in each full collection.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def prepare_libraries() -> None:
    """Silence messages of libraries, and set the environment variables that they read at import."""
    for key, value in LARGE_PAGES.items():
        os.environ.setdefault(key, value)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not has_bars():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # warnings of C++ code, once a process
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # gives memory back at once
    warnings.filterwarnings("ignore", module=r"(torch|transformers|peft|accelerate|datasets)\.")
    for chatty in ("torch.distributed", "bitsandbytes"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def has_bars() -> bool:
    """Tell whether downloads and uploads show progress bars here."""
    return sys.stderr.isatty() and is_main_process()


def said_of_precision(
    mixed_precision: str | None, accelerate: str | None, resume: bool
) -> list[str]:
    """Check ``--mixed-precision`` and return the recipe overrides that set it.

    Example:
        >>> said_of_precision("bf16", "single_gpu", resume=False)
        ['training.bf16=true', 'training.fp16=false']
    """
    from hftune.cli.accelerate import PRECISIONS, precision_overrides

    if mixed_precision is None:
        return []
    if mixed_precision not in PRECISIONS:
        raise HftuneError(
            f"--mixed-precision: no {mixed_precision!r}", hint=f"known: {', '.join(PRECISIONS)}"
        )
    if accelerate is None:
        field = (
            "" if mixed_precision == "fp8" else ", or training.bf16 or training.fp16 in the recipe"
        )
        raise HftuneError(
            "--mixed-precision: it goes with --accelerate",
            hint=f"--accelerate single_gpu{field}",
        )
    if resume and mixed_precision != "fp8":
        raise HftuneError(
            "--resume takes the precision as it was", hint="leave out --mixed-precision"
        )
    return precision_overrides(mixed_precision)


def launch(
    config: str, arguments: list[str], mixed_precision: str | None, num_processes: int | None
) -> None:
    """Run ``hftune train`` under ``accelerate launch``, and exit with its code."""
    from hftune.cli import accelerate as launcher

    options = launcher.launch_options(
        config, arguments, mixed_precision=mixed_precision, num_processes=num_processes
    )
    prepare_libraries()
    sys.exit(launcher.launch(options))


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print errors that a user can act on without a traceback, and exit with their code."""
    try:
        yield
    except HftuneError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(HEAD_START)  # the first process says the same, and its end ends this one
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
