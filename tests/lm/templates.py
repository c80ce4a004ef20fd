"""Chat templates in the manners that public models have, and tokenizers to go with them."""

import json

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mixwell.lm.template import CHATML
from mixwell.lm.tokenizer import Tokenizer

TEXTS = ["say hello world, be good user assistant system think and again " * 30, "What? It's a test.\n\n" * 20]

# Says with each role what the special token is, from pieces, as Phi-4-mini does.
PIECES = ("{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
          "{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}")
# Begins with BOS, trims contents, ends turns with one token, as Llama 3 does.
HEADERS = """{{- bos_token }}
{%- for message in messages %}
{{- '<|start|>' + message['role'] + '<|mid|>\\n\\n' + message['content'] | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|mid|>\\n\\n' }}{%- endif %}
"""
# Has no prompt for the answer and insists on turns, as Mistral does.
INST = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"""
# Drops what was thought in earlier answers, and writes an empty thought into the last, as Qwen3 does.
THINKING = """{%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == "user" %}{%- set ns.last = index %}{%- set ns.open = false %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- set thought = '' %}
        {%- if '</think>' in message.content %}
            {%- set thought = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if loop.index0 > ns.last %}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
# Says itself what the answers are.
MARKED = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}
{%- else %}
{{- message.content + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATES = {
    "chatml": (CHATML, CHAT), "thinking": (THINKING, CHAT), "marked": (MARKED, CHAT),
    "headers": (HEADERS, ("<|text|>", "<|start|>", "<|mid|>", "<|end|>")),
    "pieces": (PIECES, ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")),
    "inst": (INST, ("</s>", "<s>", "[INST]", "[/INST]")),
}


def byte_level(name: str) -> Tokenizer:
    """A tokenizer of the kind that is trained here, with that template."""
    source, special = TEMPLATES[name]
    found = Tokenizer.train(TEXTS, 300 + len(special), special).with_chat_template(source)
    if name != "thinking":
        return found
    # Thoughts stand between added tokens that are not special, as Qwen3's do.
    backend = Backend.from_str(found.save_files()["tokenizer.json"].decode())
    backend.add_tokens(["<think>", "</think>"])
    return Tokenizer(found.save_files() | {"tokenizer.json": backend.to_str().encode()})


def word_marks(name: str) -> Tokenizer:
    """A tokenizer that marks where words begin, the text's own beginning included, as Llama 2's does; with BOS."""
    source, special = TEMPLATES[name]
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *special, *fallback], show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    main = json.loads(backend.to_str())
    main["added_tokens"] = [entry for entry in main["added_tokens"] if not entry["content"].startswith("<0x")]
    plain = Tokenizer(files(main, special[0], special[1])).with_chat_template(source)
    return plain.with_bos(True)


def lossy() -> Tokenizer:
    """A tokenizer that lowers letters and knows few of them: what it loses is to be counted."""
    letters = [(letter, -3.0) for letter in "abcdef"]
    backend = Backend(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("\u2581", -2.0), *letters], 0))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="never", split=False)
    backend.add_special_tokens(["<unk>", "</s>"])
    return Tokenizer(files(json.loads(backend.to_str()), "</s>", "</s>"))


def files(main: dict, eos: str, bos: str) -> dict[str, bytes]:
    """The files of a tokenizer with these tokens named."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "bos_token": bos}
    return {"tokenizer.json": json.dumps(main).encode(), "tokenizer_config.json": json.dumps(config).encode()}
