"""README.md of a published model: what it is, how it decodes, what it scored, how to load it."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open

from hrpo.common.files import read_json
from hrpo.common.markdown import code
from hrpo.latent import mode_of
from hrpo.models.adapter import ADAPTER_CONFIG
from hrpo.models.gate_file import GATE_FILE
from hrpo.models.names import BUILT_IN_MODELS, is_hub_name
from hrpo.models.settings import SETTINGS_FILE, HybridSettings, read_settings
from hrpo.reports.results import mode_scores
from hrpo.reports.tables import Table, scores_table

CARD_FILE = "README.md"
PLACEHOLDER = "OWNER/NAME"  # until the repository is known
TAG = "hrpo"
TASK_PATHS = ("path", "test_path")
CITATION = """@article{yue2025hybrid,
  title={Hybrid Latent Reasoning via Reinforcement Learning},
  author={Yue, Zhenrui and Jin, Bowen and Zeng, Huimin and Zhuang, Honglei and Qin, Zhen and Yoon, Jinsung
          and Shang, Lanyu and Han, Jiawei and Wang, Dong},
  journal={arXiv preprint arXiv:2505.18454},
  year={2025}
}"""


def model_card(folder: Path, results: dict[str, Any], repo: str = PLACEHOLDER) -> ModelCard:
    """Return the card of a saved hybrid model.

    Args:
        folder: where it lies.
        results: an evaluation, {"greedy": {...}, "sampled": {...}}, or nothing.
        repo: the name that it is loaded by.

    """
    settings = read_settings(folder / SETTINGS_FILE)
    has_adapter = (folder / ADAPTER_CONFIG).is_file()
    base, built_in = settings.base_model, BUILT_IN_MODELS.get(settings.base_model)
    latent, how = settings.latent_mode != "discrete", mode_of(settings.latent_mode).description
    data = ModelCardData(
        base_model=base if is_hub_name(base) else None,
        library_name="peft" if has_adapter else "transformers",
        license=built_in.licence.lower() if built_in else None,
        pipeline_tag="text-generation",
        tags=[TAG, "reinforcement-learning", *(["latent-reasoning"] if latent else []), "arxiv:2505.18454"],
    )
    base_name = base if built_in or is_hub_name(base) else Path(base).name
    task = settings.task.get("name")
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {repo}\n",
        f"{code(base_name)}, trained by reinforcement learning to reason {how}, see "
        f"[arXiv:2505.18454](https://arxiv.org/abs/2505.18454){f'; the task was {code(task)}' if task else ''}.\n",
        "## Settings\n",
        "\n".join([*Table(["setting", "value"], _setting_rows(settings, folder)).markdown(), ""]),
        "## Results\n",
        _results(results, task),
        "## Loading it\n",
        _loading(settings, has_adapter=has_adapter, repo=repo),
        "## Citation\n",
        f"```bibtex\n{CITATION}\n```\n",
        "## Licence\n",
        f"{code(base_name)} is licensed under {built_in.licence}.\n"
        if built_in
        else f"That of the base model {code(base_name)} applies; name it in `license` at the top of this file.\n",
    ]
    return ModelCard("\n".join(parts))


def is_own_card(path: Path) -> bool:
    """Whether a README.md is a card of this project, which its owner may have edited, and not one that PEFT wrote."""
    return path.is_file() and TAG in (ModelCard.load(path, ignore_metadata_errors=True).data.tags or [])


def results_of(folder: Path) -> dict[str, Any]:
    """Return the evaluation of the run that a checkpoint ended; nothing where it is not the last one of a run."""
    run = folder.parent
    if not ((run / "evaluation.json").is_file() and (run / "config.yaml").is_file()):
        return {}
    updates = re.search(r"^(?:max_steps|updates): (\d+)$", (run / "config.yaml").read_text(), re.MULTILINE)
    if updates is None or int(updates[1]) != read_settings(folder / SETTINGS_FILE).step:
        return {}
    again = "delete it to go on without the results"
    results: dict[str, Any] = read_json(run / "evaluation.json", "--checkpoint", again).get("after", {})
    return results


def _setting_rows(settings: HybridSettings, folder: Path) -> list[list[str]]:
    rows = [["latent mode", settings.latent_mode]]
    if mode_of(settings.latent_mode).gated:
        rows.append(["latent mixed in", settings.mixed_in])
        with safe_open(folder / GATE_FILE, "pt") as file:
            rows += [[name, value] for name, value in sorted(file.metadata().items(), reverse=True)]
    rows += [
        ["temperature", f"{settings.temperature:g}"],
        ["top_k", str(settings.top_k)],
        ["max_new_tokens", str(settings.max_new_tokens)],
        ["messages before the question", f"{len(settings.preamble)} (preamble in hybrid.json)"],
        ["number format of the computation", settings.dtype],
        ["updates", str(settings.step)],
        ["seed", str(settings.seed)],
    ]
    return rows + [[f"task.{name}", str(value)] for name, value in settings.task.items() if name not in TASK_PATHS]


def _results(results: dict[str, Any], task: str | None) -> str:
    if not results:
        return "None were recorded with this checkpoint; `hrpo eval` measures them.\n"
    measured = "\n".join(scores_table(mode_scores(results)).markdown())
    asked = f"Held-out problems of {code(str(task))}, decoded with these settings; 95 % intervals (Wilson) in brackets."
    return f"{measured}\n\n{asked}\n"


def _loading(settings: HybridSettings, *, has_adapter: bool, repo: str) -> str:
    code = [
        "With hrpo, in the mode that it was trained and evaluated in:\n",
        f'```bash\nhrpo generate --checkpoint {repo} "QUESTION"\n```\n',
        "```python\nfrom hrpo import HybridCausalLM, generate\n",
        f'model = HybridCausalLM.from_pretrained("{repo}")\n```\n',
    ]
    what = "plain tokens" if settings.latent_mode == "discrete" else "plain tokens alone, without its gate and latents"
    if has_adapter and settings.base_model in BUILT_IN_MODELS:
        return "\n".join(code)
    return "\n".join(
        [
            *code,
            f"With transformers{' and peft' if has_adapter else ''} alone it answers in {what}:\n",
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n",
            f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
            f'model = AutoModelForCausalLM.from_pretrained("{repo}")',
            'messages = [{"role": "user", "content": "QUESTION"}]  # after the preamble in hybrid.json',
            'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens="
            f"{settings.max_new_tokens})[0], skip_special_tokens=True))\n```\n",
        ]
    )
