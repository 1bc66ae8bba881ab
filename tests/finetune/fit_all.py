"""Several fits one after another, in each of the processes that torchrun starts: a JSON list of
argument lists is read from the file that is named.
"""

import json
import sys
from pathlib import Path

import torch

from torchmpo.finetune.__main__ import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    for words in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        if code := main(words):
            sys.exit(code)
