"""What is no tensor goes between processes over gloo, whatever they train on."""

from datetime import timedelta

import pytest
import torch
from torch import distributed as dist

from hrpo.common import distributed


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    distributed._groups.clear()


def test_on_gpus_objects_have_a_group_of_their_own(alone, monkeypatch):
    assert distributed.objects() is None  # the default group is gloo's
    monkeypatch.setattr(dist, "get_backend", lambda *_: "nccl")
    group = distributed.objects()
    assert group is distributed.objects()
    monkeypatch.undo()
    assert dist.get_backend(group) == "gloo"
    assert group._get_backend(torch.device("cpu")).options._timeout == distributed.LONGEST > timedelta(hours=1)
    sent = [{"a": 1}]
    dist.broadcast_object_list(sent, src=0, group=group)
    assert sent == [{"a": 1}]
