"""The small files next to the weights: config.json, MindFormers' YAML, PEFT's adapter_config.json."""
