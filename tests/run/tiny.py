"""A recipe that runs in a second or two: two domains of a few made-up files, a model of width 16."""

import random
from pathlib import Path

SYLLABLES = ("ka", "lo", "mi", "ren", "tu", "sa", "vor", "el", "ni", "da")
RECIPE = """
name: tiny
seed: {seed}
threads: 1
data: {{domains: {{left: {folder}/left, right: "{folder}/right/*.txt"}}, held_out: 0.2}}
tokenizer: {{vocab_size: 300}}
model: {{dim: 16, num_layers: 1, num_heads: 2, hidden_dim: 16}}
train: {{batch_size: 4, seq_len: 32, lr: 1e-2, save_every: 4, save_every_s: 0, log_every: 3, dtype: fp32}}
evaluate: {{max_tokens: 200, batch_size: 4, seq_len: 32}}
stages:
  - {{id: dense, train: {{tokens: {tokens}}}}}
  - {{id: moe, from: dense, convert: upcycle, num_experts: 4, router: {{method: top_k, k: 2}}}}
  - {{id: moe-trained, from: moe, train: {{tokens: {tokens}}}}}
  - {{id: dense-trained, from: dense, train: {{tokens: {tokens}}}}}
  - {{id: moe-int8, from: moe-trained, compress: int8}}
  - {{id: samples, from: moe-trained, sample: {{prompts: [ka], max_new_tokens: 8}}}}
"""


def corpus(folder: Path) -> None:
    """Six files a domain; `right` draws from fewer syllables than `left`."""
    draws = random.Random(1)
    for domain, most in (("left", 10), ("right", 4)):
        for number in range(6):
            words = ["".join(draws.choices(SYLLABLES[:most], k=draws.randint(1, 3))) for _ in range(250)]
            path = folder / domain / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(" ".join(words) + "\n")


def recipe_with(folder: Path, stages: str) -> Path:
    """As `recipe_file` with other stages: the text from `stages:` on."""
    path = recipe_file(folder)
    head, _, _ = path.read_text().partition("stages:")
    path.write_text(head + stages.lstrip())
    return path


def stage_folder(out: Path, name: str) -> Path:
    """The one folder of a stage of the run in `out`."""
    (folder,) = (out / "stages").glob(f"{name}-????????")
    return folder


def recipe_file(folder: Path, *, seed: int = 0, tokens: int = 1500) -> Path:
    """Write the corpus and the recipe below `folder`; returns the recipe's path."""
    corpus(folder)
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(folder=folder, seed=seed, tokens=tokens))
    return path
