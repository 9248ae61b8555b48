# SPDX-License-Identifier: Apache-2.0
"""Search texts for tokens and paths of local folders, before they leave this machine."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import get_token

TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
LOCAL_PATH = re.compile(
    r"""(?<![\w.:/~-])(?:file://)?/(?:home|Users|root|mnt|media|private|tmp)/[\w.+~-]+/?[^\s"'`,;)\]}]*
    |\bfile:///?[^\s"'`,;)\]}]+
    |(?<!\w)~/[\w.-]+
    |\b[A-Za-z]:(?:\\+|/)(?:Users|Documents\ and\ Settings)(?:\\+|/)[^\s"'`,;)\]}]+""",
    re.VERBOSE,
)
ENDS = r"""(?=$|[/\\\s"'`,;:)\]}])"""


def known_secrets(folders: Mapping[str, Path | str]) -> dict[str, str]:
    """Return the strings that must not occur in a file, with a name for each.

    The strings are the paths of folders and the Hub token in use. A folder directly below the root,
    such as ``/root``, is left out, because a vocabulary may contain it as a word; the patterns of
    :func:`find_leak` find it.

    Example:
        >>> secrets = known_secrets({"the run's folder": "/data/runs/mine", "the home": "/root"})
        >>> "/data/runs/mine" in secrets, "/root" in secrets
        (True, False)
    """
    secrets = {}
    for name, folder in folders.items():
        absolute = Path(folder).expanduser().absolute()
        for path in (absolute, absolute.resolve()):
            if len(path.parts) > 2:
                secrets[str(path)] = name
    if token := get_token():
        secrets[token] = "the token in use"
    return secrets


def find_leak(text: str, secrets: Mapping[str, str], *, vocabulary: bool = False) -> str | None:
    """Return the place of a token or a local path in a text, or None.

    Args:
        text: Content of a file.
        secrets: Result of :func:`known_secrets`.
        vocabulary: Whether the text lists a tokenizer's words; parts of paths in it are no leak.

    Example:
        >>> find_leak("base: ~/models/base", {})
        'line 1: a local path, ~/models'
        >>> find_leak("see https://example.com/models/base", {})
    """
    for secret, name in secrets.items():
        for form in {secret, json.dumps(secret)[1:-1]}:
            if found := re.search(re.escape(form) + ENDS, text, re.MULTILINE):
                return f"{_line(text, found)}: {name}"
    if found := TOKEN.search(text):
        return f"{_line(text, found)}: what looks like a token"
    if not vocabulary and (found := LOCAL_PATH.search(text)):
        return f"{_line(text, found)}: a local path, {found[0]}"
    return None


def _line(text: str, found: re.Match[str]) -> str:
    return f"line {text.count(chr(10), 0, found.start()) + 1}"
