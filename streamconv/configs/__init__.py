"""The small files beside the weights: config.json, MindFormers' YAML, PEFT's adapter_config.json."""
