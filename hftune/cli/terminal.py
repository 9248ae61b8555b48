# SPDX-License-Identifier: Apache-2.0
"""What the verbs of the command line share: recipes read, functions found, errors printed.

Imports nothing heavy at the top, as :mod:`hftune.cli`.
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
from typing import Any

from hftune.core.console import is_main_process, say
from hftune.core.errors import HftuneError, RecipeError

INTERRUPTED = 130
#: Has PyTorch ask Linux for pages of 2 MiB; it looks as it is imported. A tensor of tens of
#: megabytes, such as the gradient of an embedding, is mapped anew in every step, and in pages of
#: 4 KiB that takes longer than to compute with it.
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
HEAD_START = 10.0  # seconds; a process takes some to end


def load(path: Path, overrides: list[str] | None, *, resume: bool = False) -> Any:
    """Return the recipe in a file or run folder, with overrides laid over it."""
    prepare_libraries()  # where its fields are read for the first time, libraries are imported
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
    """Return role -> column of ``--column ROLE=COLUMN``."""
    columns = {}
    for pair in pairs:
        role, _, column = pair.partition("=")
        if not (role and column):
            raise HftuneError(f"--column: {pair!r}: expected ROLE=COLUMN, as in label=team")
        columns[role] = column
    return columns


def numbers(text: str | None, option: str) -> list[float] | None:
    """Return the numbers of an option that are written with commas between them."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise HftuneError(
            f"{option}: {text!r}: expected numbers with commas between, as in 0.7,0.3"
        ) from None


def show(answer: Any) -> None:
    """Print text, or records as JSON."""
    if not isinstance(answer, str):
        import dataclasses
        import json

        answer = json.dumps(answer, default=dataclasses.asdict, indent=2, ensure_ascii=False)
    print(answer)


def say_next(*command: str | Path) -> None:
    """Print the command to type next."""
    say("next:  " + shlex.join(["hftune", *map(str, command)]))


def verb(name: str) -> Callable[..., Any]:
    """Import a verb's function; from here on it costs what torch costs."""
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
    """Spare the garbage collector what is made meanwhile, now and later.

    Modules stay until the end. To look through those of torch and transformers again and again
    takes a second of the start, and half a second of each full collection.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def prepare_libraries() -> None:
    """Keep what libraries say at import and at work out of hftune's own words.

    What else they read from the environment as they are imported is said here, too.
    """
    for key, value in LARGE_PAGES.items():
        os.environ.setdefault(key, value)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not has_bars():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what C++ warns of, once a process
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # gives memory back at once
    warnings.filterwarnings("ignore", module=r"(torch|transformers|peft|accelerate|datasets)\.")
    for chatty in ("torch.distributed", "bitsandbytes"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def has_bars() -> bool:
    """Tell whether what comes from and goes to the Hub shows its progress here."""
    return sys.stderr.isatty() and is_main_process()


def said_of_precision(
    mixed_precision: str | None, accelerate: str | None, resume: bool
) -> list[str]:
    """Check ``--mixed-precision`` and return what the recipe must say of it."""
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
    """Run ``hftune train`` in the processes of ``accelerate launch``, and exit as they do."""
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
