"""Upload a checkpoint to the Hub, with a model card and without what concerns this machine alone."""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hrpo.common.errors import InputError, model_named_by
from hrpo.hub.export import export, saved_model
from hrpo.hub.model_card import CARD_FILE, PLACEHOLDER, TASK_PATHS, is_own_card, model_card, results_of
from hrpo.models.adapter import ADAPTER_CONFIG
from hrpo.models.names import BUILT_IN_MODELS, connection_errors, is_hub_name
from hrpo.models.settings import SETTINGS_FILE, HybridSettings, read_settings
from hrpo.storage.run_dir import TRAINING_FILES

NO_LOGIN = "no login to the Hub; run `hf auth login`, or set HF_TOKEN to a token that may write"


def push_to_hub(
    checkpoint: str,
    repo: str,
    *,
    private: bool = False,
    merged: bool = False,
    trust_remote_code: bool = False,
    api: HfApi | None = None,
) -> str:
    """Upload a checkpoint; the repository is made where it is not there yet.

    A README.md in the folder that `hrpo export` wrote goes along as its owner has edited it; else the card is made
    anew. The optimizer's state stays here, and so do local paths.

    Args:
        checkpoint: a saved hybrid model, or a run folder for its newest one.
        repo: owner/name.
        private: make the repository private.
        merged: export first, and upload whole weights instead of an adapter.
        trust_remote_code: run code that comes with the base model, to merge.
        api: what talks to the Hub.

    Returns:
        The repository's address.

    Raises:
        InputError: nothing to upload there, a bad name, no login, or the Hub cannot be reached or refuses.

    """
    api = api or HfApi()
    _check_repo(repo)
    folder = saved_model(checkpoint)
    with model_named_by("--checkpoint"):
        settings = read_settings(folder / SETTINGS_FILE)
    has_adapter = (folder / ADAPTER_CONFIG).is_file()
    if has_adapter and not merged and not (settings.base_model in BUILT_IN_MODELS or is_hub_name(settings.base_model)):
        raise InputError(
            "--checkpoint",
            f"its adapter belongs to {settings.base_model}, a folder on this machine",
            "--merged uploads whole weights",
        )
    with _plain_errors(repo):
        api.whoami()  # before the work
    with tempfile.TemporaryDirectory() as scratch:
        if has_adapter and merged:
            folder = export(checkpoint, Path(scratch) / "merged", trust_remote_code=trust_remote_code)
        card = _card(folder, repo)
        draft = Path(scratch) / "draft"
        _write_draft(folder, settings, draft)
        card.save(draft / CARD_FILE)
        with _plain_errors(repo):
            url = api.create_repo(repo, private=private or None, exist_ok=True)
            if private and not api.model_info(repo).private:
                raise InputError(
                    "--repo", f"{repo} is there already and public", "make it private first, or name another"
                )
            api.upload_folder(repo_id=repo, folder_path=draft, commit_message="Upload with hrpo")
    return str(url)


def _check_repo(repo: str) -> None:
    """Refuse what is no name of a repository."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError("--repo", str(error)) from error
    if "/" not in repo:
        raise InputError("--repo", f"must be owner/name, got {repo!r}")


def _card(folder: Path, repo: str) -> ModelCard:
    if is_own_card(folder / CARD_FILE):
        return ModelCard((folder / CARD_FILE).read_text(encoding="utf-8").replace(PLACEHOLDER, repo))
    return model_card(folder, results_of(folder), repo)


def _write_draft(folder: Path, settings: HybridSettings, draft: Path) -> None:
    """Fill a folder with links to what is uploaded as it is, and with hybrid.json and adapter_config.json rewritten."""
    draft.mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.name not in (*TRAINING_FILES, CARD_FILE):
            (draft / file.name).symlink_to(file.resolve())
    base = settings.base_model
    if not is_hub_name(base):
        base = Path(base).name  # a built-in model's is its name
    task = {name: "" if name in TASK_PATHS else value for name, value in settings.task.items()}
    public = dataclasses.replace(settings, base_model=base, task=task)
    _replace(draft / SETTINGS_FILE, dataclasses.asdict(public))
    adapter = draft / ADAPTER_CONFIG
    if adapter.is_file():
        _replace(adapter, json.loads(adapter.read_text()) | {"base_model_name_or_path": base})


def _replace(link: Path, values: dict[str, object]) -> None:
    link.unlink()
    link.write_text(json.dumps(values, indent=2) + "\n")


@contextlib.contextmanager
def _plain_errors(repo: str) -> Iterator[None]:
    """Turn what the Hub's library raises into one line."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise InputError("--repo", NO_LOGIN) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = NO_LOGIN if status == 401 else " ".join((error.server_message or str(error)).split())
        raise InputError("--repo", f"the Hub refuses {repo} ({status}): {reason}") from error
    except connection_errors() as error:
        reason = " ".join(str(error).split())
        raise InputError("--repo", f"cannot reach the Hub for {repo}: {reason}", "check the network") from error
