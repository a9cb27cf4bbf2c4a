"""What would be uploaded, told by a double with the Hub client's signatures; and models that lie in the Hub's cache."""

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, ModelCard, get_session
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from hrpo import HybridCausalLM, Lora
from hrpo.cli.main import main
from hrpo.common.errors import InputError
from hrpo.hub.export import export
from hrpo.hub.push import push_to_hub

REPO = "someone/some-model"


class Recorder:
    """Takes HfApi's calls, in HfApi's signatures, and keeps what an upload would have sent."""

    def __init__(self, private: bool = True, fail: dict[str, Exception] | None = None) -> None:
        self.private, self.fail = private, fail or {}
        self.calls: list[tuple[str, dict]] = []
        self.uploaded: dict[str, bytes] = {}

    def __getattr__(self, name):
        signature = inspect.signature(getattr(HfApi, name))

        def call(*args, **options):
            bound = signature.bind(self, *args, **options).arguments
            self.calls.append((name, {key: value for key, value in bound.items() if key != "self"}))
            if name in self.fail:
                raise self.fail[name]
            if name == "upload_folder":
                folder = Path(bound["folder_path"])
                files = [path for path in folder.glob("**/*") if path.is_file()]  # as HfApi finds them
                self.uploaded = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
            return {"create_repo": f"https://hub/{REPO}", "model_info": SimpleNamespace(private=self.private)}.get(name)

        return call


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    words = ["--config", "recipes/quickstart.yaml", "--name", "small", "--output_dir", str(folder), "--max_steps=1"]
    main(["train", *words, "--rollout.prompts_per_step=2", "--eval.problems=3", "--model.lora_rank=4"])
    return folder / "small"


def test_an_adapter(run):
    api = Recorder()
    assert push_to_hub(str(run), REPO, private=True, api=api) == f"https://hub/{REPO}"
    (create,) = [options for name, options in api.calls if name == "create_repo"]
    assert create == {"repo_id": REPO, "private": True, "exist_ok": True}
    assert api.calls[-1][0] == "upload_folder"
    assert api.calls[-1][1]["repo_id"] == REPO
    saved = run / "checkpoint-1"
    assert api.uploaded.keys() == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "gate.safetensors",
        "hybrid.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in ("adapter_model.safetensors", "gate.safetensors", "tokenizer.json"):
        assert api.uploaded[name] == (saved / name).read_bytes()
    assert json.loads(api.uploaded["hybrid.json"]) == json.loads((saved / "hybrid.json").read_text())
    assert json.loads(api.uploaded["adapter_config.json"])["base_model_name_or_path"] == "tiny"
    card = ModelCard(api.uploaded["README.md"].decode())
    assert card.data.library_name == "peft"
    assert "hrpo" in card.data.tags
    assert card.text.strip().startswith(f"# {REPO}")
    assert f'HybridCausalLM.from_pretrained("{REPO}")' in card.text
    accuracy = json.loads((run / "evaluation.json").read_text())["after"]["greedy"]["accuracy"]
    assert f"| accuracy [95 %] | {accuracy:.1%} [" in card.text


def test_merged(run):
    api = Recorder()
    push_to_hub(str(run), REPO, merged=True, api=api)
    (create,) = [options for name, options in api.calls if name == "create_repo"]
    assert create == {"repo_id": REPO, "private": None, "exist_ok": True}
    assert "model.safetensors" in api.uploaded
    assert not any("adapter" in name or "optimizer" in name for name in api.uploaded)
    card = ModelCard(api.uploaded["README.md"].decode())
    assert card.data.library_name == "transformers"
    assert f'AutoModelForCausalLM.from_pretrained("{REPO}")' in card.text
    assert "| accuracy [95 %] |" in card.text
    assert "OWNER/NAME" not in card.text


def test_an_exported_model_goes_with_its_edited_card(run, tmp_path):
    whole = export(str(run), tmp_path / "whole")
    text = (whole / "README.md").read_text()
    (whole / "README.md").write_text(text + "\nWritten by hand.\n")
    api = Recorder()
    push_to_hub(str(whole), REPO, merged=True, api=api)
    assert api.uploaded["README.md"].decode() == text.replace("OWNER/NAME", REPO) + "\nWritten by hand.\n"
    assert (whole / "README.md").read_text().endswith("by hand.\n")


@pytest.mark.parametrize("name", ["notes.txt", "README.md", "chat_template.jinja"])
@pytest.mark.parametrize("use", [lambda folder, out: push_to_hub(folder, REPO, api=Recorder()), export])
def test_what_a_link_points_to_stays_here(run, tmp_path, name, use):
    folder, secret = tmp_path / "stranger", tmp_path / "secret"
    shutil.copytree(run / "checkpoint-1", folder)
    secret.write_text("root:x:0:0")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(InputError, match=rf"^--checkpoint: .*{name} is a link to {secret}, outside of the folder"):
        use(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_within_a_folder(run, tmp_path):
    folder = tmp_path / "links"
    shutil.copytree(run / "checkpoint-1", folder)
    (folder / "kept.json").symlink_to("tokenizer.json")
    (tmp_path / "best").symlink_to(folder)
    api = Recorder()
    push_to_hub(str(tmp_path / "best"), REPO, api=api)
    assert api.uploaded["kept.json"] == (folder / "tokenizer.json").read_bytes()


def test_a_link_stays_one_where_its_folder_is_written_anew(tmp_path):
    model = HybridCausalLM.from_pretrained("tiny")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "secret").write_text("root:x:0:0")
    (tmp_path / "model" / "notes.txt").symlink_to(tmp_path / "secret")
    (tmp_path / "model" / "nowhere").symlink_to(tmp_path / "nothing")
    model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "notes.txt").readlink() == tmp_path / "secret"
    assert (tmp_path / "model" / "nowhere").is_symlink()


def test_local_paths_stay_here(tmp_path):
    base = HybridCausalLM.from_pretrained("tiny")
    base.lm.save_pretrained(tmp_path / "my-base")
    base.tokenizer.save_pretrained(tmp_path / "my-base")
    model = HybridCausalLM.from_pretrained(tmp_path / "my-base", lora=Lora(r=2, alpha=4))
    task = {"name": "gsm8k", "path": str(tmp_path / "train.jsonl"), "test_path": str(tmp_path / "test.jsonl")}
    model.settings = dataclasses.replace(model.settings, task=task)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"my-base, a folder on this machine; --merged"):
        push_to_hub(str(tmp_path / "adapter"), REPO, api=Recorder())
    api = Recorder()
    push_to_hub(str(tmp_path / "adapter"), REPO, merged=True, api=api)
    settings = json.loads(api.uploaded["hybrid.json"])
    assert settings["base_model"] == "my-base"
    assert settings["task"] == {"name": "gsm8k", "path": "", "test_path": ""}
    assert not any(str(tmp_path).encode() in data for data in api.uploaded.values())
    card = ModelCard(api.uploaded["README.md"].decode())
    assert card.data.license is None
    assert card.data.base_model is None
    assert "name it in `license`" in card.text


def test_a_base_on_the_hub_is_named(run):
    folder = run / "checkpoint-1"
    settings = json.loads((folder / "hybrid.json").read_text())
    whole = (folder / "hybrid.json").read_bytes()
    (folder / "hybrid.json").write_text(json.dumps(settings | {"base_model": "owner/base", "latent_mode": "discrete"}))
    api = Recorder()
    push_to_hub(str(folder), REPO, api=api)
    (folder / "hybrid.json").write_bytes(whole)
    card = ModelCard(api.uploaded["README.md"].decode())
    assert card.data.base_model == "owner/base"
    assert card.data.license is None
    assert "latent-reasoning" not in card.data.tags
    assert "With transformers and peft alone" in card.text
    assert json.loads(api.uploaded["adapter_config.json"])["base_model_name_or_path"] == "owner/base"


# ---- refusals -------------------------------------------------------------------------------------------------------


def refusal(status: int) -> HfHubHTTPError:
    request = get_session().build_request("POST", "https://hub/api")
    response_class = HfHubHTTPError.__init__.__globals__["Response"]
    response = response_class(status, request=request)
    return HfHubHTTPError("no\nsuch luck", response=response, server_message="You may\nnot do that")


CONNECTION_ERROR = HfHubHTTPError.__bases__[0]("Name or service not known")


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        ({"whoami": LocalTokenNotFoundError("none")}, "--repo: no login to the Hub; run `hf auth login`"),
        ({"whoami": refusal(401)}, "no login to the Hub"),
        ({"whoami": CONNECTION_ERROR}, "cannot reach the Hub.*Name or service not known"),
        ({"create_repo": OfflineModeIsEnabled("HF_HUB_OFFLINE is set")}, "cannot reach the Hub.*HF_HUB_OFFLINE"),
        ({"create_repo": refusal(403)}, r"refuses someone/some-model \(403\): You may not do that"),
        ({"upload_folder": CONNECTION_ERROR}, "cannot reach the Hub"),
        ({"upload_folder": TimeoutError("too slow")}, "cannot reach the Hub.*too slow"),
    ],
)
def test_what_the_hub_refuses_is_one_line(run, fail, message):
    api = Recorder(fail=fail)
    with pytest.raises(InputError, match=message) as caught:
        push_to_hub(str(run), REPO, api=api)
    assert "\n" not in str(caught.value)
    assert api.calls[-1][0] == next(iter(fail))  # and nothing after it
    assert not api.uploaded


def test_a_public_repository_does_not_take_a_private_model(run):
    api = Recorder(private=False)
    with pytest.raises(InputError, match="there already and public"):
        push_to_hub(str(run), REPO, private=True, api=api)
    assert not api.uploaded


@pytest.mark.parametrize("name", ["plain", "a/b/c", "some one/x", "a/-b", "a/b..c", ""])
def test_a_malformed_name(run, name):
    api = Recorder()
    with pytest.raises(InputError, match="--repo: "):
        push_to_hub(str(run), name, api=api)
    assert not api.calls


def test_the_command_without_login(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    with pytest.raises(SystemExit) as caught:
        main(["push", "--checkpoint", str(run), "--repo", REPO])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("hrpo: error: --repo: no login to the Hub")


def test_nothing_to_upload(tmp_path):
    with pytest.raises(InputError, match="--checkpoint: tiny is no saved hybrid model"):
        push_to_hub("tiny", REPO, api=Recorder())


# ---- loading from the Hub -------------------------------------------------------------------------------------------


def in_cache(cache: Path, name: str, folder: Path) -> None:
    """Lay a model down as the Hub's library does once it has fetched it."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots").mkdir()
    (place / "snapshots" / ("0" * 40)).symlink_to(folder.resolve())


def test_a_model_on_the_hub_brings_its_gate(run, tmp_path):
    api = Recorder()
    push_to_hub(str(run), REPO, api=api)
    (tmp_path / "pushed").mkdir()
    for name, data in api.uploaded.items():
        (tmp_path / "pushed" / name).write_bytes(data)
    in_cache(tmp_path / "cache", REPO, tmp_path / "pushed")
    in_cache(tmp_path / "cache", "someone/plain", Path("src/hrpo/tiny"))
    code = f"""
from hrpo import HybridCausalLM
model = HybridCausalLM.from_pretrained({REPO!r}, latent_mode="discrete")
print(model.settings.latent_mode, model.settings.base_model, model.gate.Lambda.double().sum().item())
print(HybridCausalLM.from_pretrained("someone/plain", latent_mode="discrete").settings)
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    hybrid, plain = done.stdout.splitlines()
    gate = HybridCausalLM.from_pretrained(run / "checkpoint-1").gate
    assert hybrid == f"hybrid tiny {gate.Lambda.double().sum().item()}"
    assert "base_model='someone/plain', latent_mode='discrete'" in plain
