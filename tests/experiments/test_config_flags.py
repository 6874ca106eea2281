import dataclasses

import pytest
from absl import flags

from caspo_jax.preferences import PairConfig
from caspo_jax.training import LossConfig, TrainConfig


@pytest.fixture
def parse(monkeypatch):
    """parse(base, *argv) -> the config that the flags give."""
    from experiments import config_flags

    def run(base, *argv):
        values = flags.FlagValues()
        monkeypatch.setattr(config_flags, "FLAGS", values)
        monkeypatch.setattr("sys.argv", ["program", *argv])
        config_flags.define_config("c", base, "a config")
        values(["program", *argv])
        return config_flags.given_config("c", base)

    return run


def test_given_fields_replace_and_the_rest_stays(parse):
    base = TrainConfig.preset("paper")
    config = parse(
        base, "--c.learning_rate=1e-4", "--c.loss.beta=0.3", "--c.max_steps=7", "--noc.tensorboard"
    )
    loss = dataclasses.replace(base.loss, beta=0.3)
    assert config == dataclasses.replace(base, learning_rate=1e-4, loss=loss, max_steps=7, tensorboard=False)
    assert parse(base) == base


def test_what_is_not_given_of_an_inner_config_stays(parse):
    inner = LossConfig(beta=0.7, nll_alpha=0.3)
    config = parse(TrainConfig(loss=inner), "--c.loss.label_smoothing=0.1")
    assert config.loss == dataclasses.replace(inner, label_smoothing=0.1)


def test_literals_and_tuples(parse):
    config = parse(PairConfig(), "--c.competitor=token", "--c.kinds=wrong", "--c.tau=0.25")
    assert config == PairConfig(competitor="token", kinds=("wrong",), tau=0.25)


def test_none_is_given_as_help_and_errors_write_it(parse):
    base = TrainConfig(max_steps=9)
    config = parse(base, "--c.clip_norm=None", "--c.max_steps=None", "--c.best_metric=None")
    assert config == dataclasses.replace(base, clip_norm=None, max_steps=None)
    assert parse(base, "--c.clip_norm=0.5", "--c.best_metric=loss").clip_norm == 0.5
    with pytest.raises(flags.IllegalFlagValueError, match="clip_norm=much"):
        parse(base, "--c.clip_norm=much")


def test_an_unknown_field_is_named(parse, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(TrainConfig(), "--c.lr=1")
    assert stopped.value.code == 1
    assert "Field lr not found" in capsys.readouterr().err
