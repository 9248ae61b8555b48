# SPDX-License-Identifier: Apache-2.0
"""``python -m hftune``, which ``accelerate launch`` starts on every process."""

from hftune.cli import main

if __name__ == "__main__":
    main()
