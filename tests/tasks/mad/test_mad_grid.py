import json

import pytest

from manticore.errors import ManticoreError
from manticore.tasks.mad.examples import KINDS, checked_options
from manticore.tasks.mad.grid import Setting, settings


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))


def test_the_grid_has_the_published_66_settings():
    counts = {task: len(settings([task])) for task in KINDS}
    assert list(counts.values()) == [11, 14, 11, 13, 11, 6]
    names = [setting.name for setting in settings()]
    assert len(names) == len(set(names)) == 66
    assert [s.task for s in settings(baseline_only=True)] == list(KINDS)


@pytest.mark.parametrize("setting", settings(), ids=lambda setting: setting.name)
def test_every_setting_is_allowed_and_changes_one_thing(setting):
    options = checked_options(setting.task, setting.options)
    changed = {key for key, value in KINDS[setting.task].baseline.items() if options[key] != value}
    if setting.num_train_examples != KINDS[setting.task].num_train_examples:
        changed.add("num_train_examples")
    assert changed == {option for option, _ in setting.changes}
    assert len(changed) <= 1
    json.dumps(options)


def test_a_setting_gives_data_and_a_task():
    setting = Setting("memorization", (("vocab_size", 512),))
    data, task = setting.generate(), setting.load()
    assert data["train"][0].shape == (256, 32)
    assert (task.data["train"][:]["input_ids"].numpy() == data["train"][0]).all()
    assert task.vocab_size == 512
    fewer = Setting("compression", (("num_train_examples", 800), ("seq_len", 8)))
    assert fewer.generate(cache=False)["train"][0].shape == (800, 8)
    assert fewer.name == "compression/num_train_examples=800,seq_len=8"
    assert len(fewer.load().data["train"]) == 800


def test_tasks_are_chosen_by_name_with_or_without_prefix():
    assert [s.name for s in settings(["mad/compression", "memorization"], baseline_only=True)] == [
        "compression/baseline",
        "memorization/baseline",
    ]
    with pytest.raises(ManticoreError, match="Did you mean 'compression'"):
        settings(["compresion"])
