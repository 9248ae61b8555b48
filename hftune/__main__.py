# SPDX-License-Identifier: Apache-2.0
"""Run the command line as ``python -m hftune``; ``accelerate launch`` does so on every process."""

from hftune.cli import main

if __name__ == "__main__":
    main()
