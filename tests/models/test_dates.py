"""Chat templates that write today's date keep to one day, in a run, its checkpoints and an evaluation."""

import dataclasses
import datetime
import json
from types import SimpleNamespace

import pytest
import torch
from models import byte_level
from transformers import LlamaConfig, LlamaForCausalLM

from hrpo import HybridCausalLM
from hrpo.chat import encode
from hrpo.common.errors import InputError
from hrpo.config.schema import CheckConfig, EvalConfig, ModelConfig, RolloutConfig, TrainConfig
from hrpo.evaluation.run import evaluate_checkpoints
from hrpo.models import dates
from hrpo.training.run import Run

DAY, NEXT = datetime.date(2031, 3, 4), datetime.date(2031, 3, 5)
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
FORMATS = {
    "{{ strftime_now('%Y-%m-%d') }}": "2031-03-04",
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}{%- endif %}\n  {{ date_string }}': "04 Mar 2031",
    "{% set how = '%A, %-d %B %y, %H:%M, 100%%' %}{% set now = strftime_now %}{{ now(how) }}": (
        "Tuesday, 4 March 31, 00:00, 100%"
    ),
    "{% macro head() %}{{ 'on ' + strftime_now(format='%j') }}{% endmacro %}{{ head() }}": "on 063",
}
QUESTION = [{"role": "user", "content": "1+1 on %Y?"}]


@pytest.fixture
def clock(monkeypatch):
    """Let it be another day."""

    class Day(datetime.date):
        now = DAY

        @classmethod
        def today(cls):
            return cls.now

    monkeypatch.setattr(dates, "datetime", SimpleNamespace(date=Day, datetime=datetime.datetime))
    return Day


@pytest.mark.parametrize(("asks", "written"), FORMATS.items())
def test_the_day_is_written(asks, written):
    tokenizer = byte_level(chat_template=asks + TURNS)
    assert dates.pin_date(tokenizer, DAY)
    (ids,) = encode(tokenizer, [QUESTION])
    assert tokenizer.decode(ids).lstrip() == f"{written}<user>1+1 on %Y?<assistant>"
    assert not dates.pin_date(tokenizer, NEXT)  # it keeps to its day
    assert encode(tokenizer, [QUESTION]) == [ids]


def test_other_templates_stay_as_they_are():
    for template in (TURNS, None):
        tokenizer = byte_level(chat_template=template)
        assert not dates.pin_date(tokenizer, DAY)
        assert tokenizer.chat_template == template
    assert not dates.pin_date(None, DAY)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    tokenizer = byte_level(chat_template="{{ strftime_now('%Y-%m-%d') }}" + TURNS)
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    lm = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **shape))
    folder = tmp_path_factory.mktemp("plain")
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def today_in(tokenizer):
    return tokenizer.decode(encode(tokenizer, [QUESTION])[0])[:10]


def test_a_run_keeps_to_its_day(plain, clock, tmp_path, capsys):
    config = TrainConfig(
        name="run",
        output_dir=str(tmp_path),
        max_steps=2,
        model=ModelConfig(name=plain, lora_rank=0),
        rollout=RolloutConfig(prompts_per_step=1, group_size=2, max_new_tokens=4),
        check=CheckConfig(prompts=0),
        eval=EvalConfig(problems=0),
    )
    begun = Run(config)
    assert "writes today's date: in this run and its checkpoints it stays 2031-03-04" in capsys.readouterr().out
    assert today_in(begun.model.tokenizer) == "2031-03-04"
    clock.now = NEXT
    begun.lock.release()
    resumed = Run(config, resume=True)  # without a checkpoint
    assert today_in(resumed.model.tokenizer) == "2031-03-04"
    checkpoint = resumed.save()
    resumed.lock.release()
    assert today_in(Run(config, resume=True).model.tokenizer) == "2031-03-04"
    assert today_in(HybridCausalLM.from_pretrained(checkpoint).tokenizer) == "2031-03-04"
    assert today_in(Run(dataclasses.replace(config, name="other")).model.tokenizer) == "2031-03-05"
    (tmp_path / "run" / "date.txt").write_text("soon")
    with pytest.raises(InputError, match=r"date\.txt: it holds no day"):
        Run(config, resume=True)


def test_an_evaluation_keeps_to_its_day(plain, clock, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("hrpo.evaluate.encode", lambda *words: asked.append(today_in(words[0])) or encode(*words))
    options = {"tasks": ["arithmetic"], "problems": 2, "samples": 1, "max_new_tokens": 2, "out": str(tmp_path / "e")}
    evaluate_checkpoints([plain], **options)
    for path in tmp_path.rglob("*sampled*"):
        path.unlink()
    clock.now = NEXT
    evaluate_checkpoints([plain], **options)
    assert asked == ["2031-03-04"] * 3
    assert "2031" not in json.dumps(json.loads((tmp_path / "e" / "settings.json").read_text())["tasks"])
