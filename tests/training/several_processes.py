# SPDX-License-Identifier: Apache-2.0
"""One of several processes: ``accelerate launch several_processes.py RECIPES.json``."""

import json
import sys
from pathlib import Path

import hftune

if __name__ == "__main__":
    for sections in json.loads(Path(sys.argv[1]).read_text()):
        hftune.train(hftune.Recipe(**sections))
