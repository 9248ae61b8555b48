# SPDX-License-Identifier: Apache-2.0
"""What must not leave this machine: tokens and the paths of local folders, looked for in text."""

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
    """Return what is looked for to the letter, and what it is: folders, and the token in use.

    A folder right below the root, such as ``/root``, is a word that any vocabulary may hold; it is
    left to :func:`find_leak`'s patterns.
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
    """Return where a text gives away a token or a local path, or None.

    Args:
        text: A file's text.
        secrets: From :func:`known_secrets`.
        vocabulary: The text lists a tokenizer's words, among which pieces of paths are no leak.

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
