"""What the commands take, and what they refuse: one line that names field, value and remedy."""

import dataclasses
import json
import sys

import pytest

import tarl_jax.serve.__main__ as serve
import tarl_jax.view.__main__ as view
from tarl_jax import chat, evaluate, export, main, plan
from tarl_jax.config import ConfigError, RunConfig, TarlError, from_config_dict
from tarl_jax.config.fields import fields, overridden
from tarl_jax.config.presets import sized
from tarl_jax.runs.command import load_parts
from tarl_jax.runs.directory import claimed_run_dir, flat, open_run_dir, read_run

CONFIG = "from tarl_jax.config.presets import sized\n\ndef get_config(size=''):\n    {}\n"
TINY = "--config=mine.py:tiny"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in, with a config file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TARL_DEBUG", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "mine.py").write_text(CONFIG.format("return sized(size)"))
    return tmp_path


def ended(monkeypatch, capsys, command, *arguments):
    """(exit status, standard output, standard error) of a command."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as end:
        command.main()
    said = capsys.readouterr()
    return end.value.code or 0, said.out, said.err


BAD = [
    # (arguments, what the line names)
    ([TINY, "--config.rl.steps=-3"], ["config.rl.steps = -3", "at least 0"]),
    ([TINY, "--config.rl.steps=many"], ["config.rl.steps = 'many'", "expected int"]),
    ([TINY, "--config.rl.learning_rate=nan"], ["config.rl.learning_rate = nan", "above 0"]),
    ([TINY, "--config.reward.turn_cap=inf"], ["config.reward.turn_cap = inf", "finite"]),
    ([TINY, "--config.rl.pack=maybe"], ["config.rl.pack = 'maybe'", "expected bool"]),
    ([TINY, "--config.eval.every=-1"], ["config.eval.every = -1", "at least 0"]),
    ([TINY, "--config.eval.bootstrap=0"], ["config.eval.bootstrap = 0", "at least 1"]),
    ([TINY, "--config.model.d_model=0"], ["config.model.d_model = 0", "at least 1"]),
    ([TINY, "--config.model.head_dim=3"], ["config.model.head_dim = 3", "even"]),
    ([TINY, "--config.shop.num_users=-3"], ["config.shop.num_users = -3", "at least 1"]),
    ([TINY, "--config.tasks.num_train=3"], ["config.tasks.num_train = 3", "tasks_per_step = 4"]),
    ([TINY, "--config.tasks.requests=1,x"], ["config.tasks.requests = '1,x'", "list of numbers"]),
    ([TINY, "--rl.steps=3"], ["--rl.steps", "did you mean --config.rl.steps?"]),
    ([TINY, "--config.rl.stpes=3"], ["config.rl.stpes", "did you mean --config.rl.steps"]),
    ([TINY, "--config.terminal_scale=3"], ["--config.reward.terminal_scale?"]),
    ([TINY, "--config.rl=3"], ["config.rl = '3'", "a group of keys"]),
    ([TINY, "--config.rl.steps.more=3"], ["config.rl.steps.more", "did you mean"]),
    ([TINY, "--wrokdir=run"], ["--wrokdir", "did you mean --workdir?"]),
    ([TINY, "more", "words"], ["'words'", "flags look like"]),
    ([TINY, "--config.rl.steps"], ["--config.rl.steps", "=VALUE"]),
    ([TINY, "--workdir=ftp://host/run"], ["ftp://host/run", "gs://BUCKET/RUN", "mount"]),
    ([TINY, "--workdir=gs://"], ["gs://", "gs://BUCKET/RUN"]),
    ([TINY, "--config.log.copy_to=ftp://host/run"], ["config.log.copy_to = 'ftp://host/run'"]),
    ([TINY, "--config.warm_start.cache_dir=s3://b/c"], ["cache_dir", "mount the bucket"]),
    ([TINY, "--workdir=mine.py/run"], ["--workdir mine.py/run", "choose a folder"]),
    ([TINY, "--workdir=."], ["--workdir .", "choose another"]),
    ([TINY, "--config.tasks.file=none.jsonl"], ["none.jsonl", "does not exist"]),
    ([TINY, "--config.sandbox.data=none"], ["none"]),
    ([TINY, "--config.sandbox.domain=bank"], ["config.sandbox.domain = 'bank'", "choose one of"]),
    ([TINY, "--config.model.pretrained=none"], ["none"]),
    ([TINY, "--config.reward.calibration=none.json"], ["none.json"]),
    ([TINY, "--config.user.kind=llm"], ["OPENAI_API_KEY"]),
    ([TINY, "--config.judge.kind=llm"], ["OPENAI_API_KEY"]),
    (["--config=theirs.py"], ["theirs.py does not exist"]),
    (["--config=mine.py:huge"], ["size 'huge'", "tiny"]),
    ([], ["--config=configs/grpo_tarl.py"]),
    (["nowhere"], ["nowhere: is not there", "--config"]),
    (["here"], ["here: holds no run", "--config"]),
]


@pytest.mark.parametrize("arguments, named", BAD, ids=lambda value: " ".join(value)[:50])
def test_bad_input_is_one_line_and_leaves_nothing(folder, monkeypatch, capsys, arguments, named):
    if arguments == ["here"]:
        (folder / "here").mkdir()
    before = sorted(folder.rglob("*"))
    status, _, error = ended(monkeypatch, capsys, main, *arguments)
    assert status in (1, 2)
    assert error.startswith("error: ") and error.count("\n") == 1, error
    for words in named:
        assert words in error
    after = [p for p in sorted(folder.rglob("*")) if "__pycache__" not in p.parts]
    assert after == before


def test_help_lists_every_field_with_type_default_and_sentence(monkeypatch, capsys):
    status, text, _ = ended(monkeypatch, capsys, main, "--help")
    assert status == 0
    lines = text.splitlines()
    for key, field in fields().items():
        place = next(i for i, line in enumerate(lines) if line.startswith(f"  --config.{key}="))
        assert lines[place + 1].startswith(f"      ({field.kind_name}) ")
        assert len(field.sentence) > 3, f"{key}: say what it is, behind # on its line"
    assert "--config.rl.steps=60" in text and max(map(len, lines)) <= 120


def test_every_field_is_found_once_and_none_is_made_up():
    assert fields().keys() == flat(RunConfig()).keys()


def test_overrides_are_read_by_the_type_of_the_field():
    config = from_config_dict(overridden({}, {
        "rl.steps": "7", "rl.learning_rate": "1e-3", "rl.pack": "False", "name": "7",
        "tasks.requests": "(0.5, 0.5)", "speech.voices": "en, en-us", "eval.spoken": "",
        "maths.ratio": "0.25",
    }))
    assert (config.rl.steps, config.rl.learning_rate, config.rl.pack) == (7, 1e-3, False)
    assert (config.name, config.tasks.requests) == ("7", (0.5, 0.5))
    assert config.speech.voices == ("en", "en-us") and config.eval.spoken == ()
    assert config.maths.ratio == (0.25,)


def test_print_config_prints_it_and_does_nothing_else(folder, monkeypatch, capsys):
    status, text, _ = ended(monkeypatch, capsys, main, TINY, "--config.rl.steps", "9",
                            "--print_config")
    assert status == 0 and sorted(p.name for p in folder.iterdir()) != ["runs"]
    expected = flat(from_config_dict(sized("tiny")))
    assert json.loads(text) == {**expected, "rl.steps": 9}
    assert not (folder / "runs").exists()


COMMANDS = [main, evaluate, export, plan, serve, chat]


@pytest.fixture
def run(folder):
    """A run that has its config and, as far as a dry run looks, a checkpoint of step 2."""
    made = open_run_dir(dataclasses.replace(from_config_dict(sized("tiny")), workdir="run"))
    (made / "checkpoints" / "2").mkdir(parents=True)
    (made / "metrics.jsonl").write_text('{"step": 2, "kind": "train"}\n')
    return folder


def test_the_commands_are_all_of_them():
    assert {c.__name__.split(".")[1] for c in (*COMMANDS, view)} == set(main.SUBCOMMANDS.values())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.__name__)
def test_every_command_prints_its_config(run, monkeypatch, capsys, command):
    status, text, _ = ended(monkeypatch, capsys, command, "run", "--config.eval.trials=2",
                            "--print_config")
    assert status == 0
    found = json.loads(text)
    assert found["eval.trials"] == 2 and found["rl.steps"] == 3 and found["workdir"] == "run"


@pytest.mark.parametrize("command, more, says", [
    (main, ["--config.rl.steps=9"], ["run: goes on in run after step 2", "steps: 9 of"]),
    (evaluate, ["--config.eval.trials=2"],
     ["reads the checkpoint of step 2 of run", "evaluation: 8 tasks x 2 trials"]),
    (export, ["--out=new"], ["reads the checkpoint of step 2"]),
    (serve, ["--port=0"], ["reads the checkpoint of step 2"]),
    (chat, ["--task=shop-held_out-3"], ["reads the checkpoint", "task: shop-held_out-3"]),
], ids=lambda value: getattr(value, "__name__", ""))
def test_every_command_rehearses(run, monkeypatch, capsys, command, more, says):
    before = sorted(run.rglob("*"))
    status, text, _ = ended(monkeypatch, capsys, command, "run", *more, "--dry_run")
    assert status == 0
    for line in ("devices: 2", "memory: ", "lengths: ", "all checks pass", *says):
        assert line in text
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("command, more, named", [
    (evaluate, ["--step=7"], ["--step=7", "[2]"]),
    (evaluate, ["--config.rl.learning_rate=1e-5"], ["rl.learning_rate", "another config"]),
    (export, ["--out=."], ["exists already"]),
    (export, [], ["--out is required"]),
    (chat, ["--task=none"], ["--task=none", "shop-held_out-0"]),
    (serve, ["--host=0.0.0.0"], ["TARL_SERVE_TOKEN"]),
], ids=str)
def test_a_rehearsal_refuses_what_the_command_would(run, monkeypatch, capsys, command, more, named):
    status, _, error = ended(monkeypatch, capsys, command, "run", *more, "--dry_run")
    assert status in (1, 2) and all(words in error for words in named), error


REFUSED = [
    # (command, arguments, what the line names)
    (evaluate, ["run", "--step=seven"], ["--step", "'seven'", "int"]),
    (evaluate, ["run", "--user=human"], ["--user=human", "--audio=FILE", "both or none"]),
    (evaluate, ["run", "--user=human", "--audio=no.wav"], ["--user=human", "omni_tarl.py"]),
    (evaluate, ["run", "--config.eval.trials=0"], ["config.eval.trials = 0", "at least 1"]),
    (evaluate, ["run", "--config.eval.domain=bank"], ["config.eval.domain = 'bank'", "retail"]),
    (evaluate, ["run/config.json"], ["run/config.json: is a file", "name the directory"]),
    (evaluate, ["s3://"], ["s3://", "s3://BUCKET/RUN"]),
    (evaluate, ["run", "--trials=3"], ["--trials", "did you mean --config.eval.trials?"]),
    (main, ["run", "--config.rl.learning_rate=0.5", "--config.seed=3"],
     ["rl.learning_rate: ", "-> 0.5; seed: 0 -> 3. Leave these out"]),
    (export, ["run", "--out=gs://b/x"], ["--out=gs://b/x", "mount the bucket"]),
    (export, ["run", "--out=run/config.json"], ["run/config.json", "choose another"]),
    (export, ["run", "--out=run/config.json/x"], ["config.json is a file", "another folder"]),
    (export, ["run", "--out=x", "--adapters"], ["lora.rank = 0", "leave out --adapters"]),
    (export, ["run", "--out=x", "--step=-5"], ["--step=-5", "[2]"]),
    (serve, ["run", "--port=99999"], ["--port=99999", "choose another"]),
    (serve, ["run", "--slots=0"], ["--slots=0", "at least 1"]),
    (serve, ["run", "--turn=99999"], ["--turn=99999", "--context=384"]),
    (serve, ["run", "--max_requests=0"], ["--max_requests=0", "at least 1"]),
    (serve, ["run", "--idle_seconds=nan"], ["--idle_seconds=nan", "above 0"]),
    (serve, ["run", "--record=no/such.jsonl"], ["--record=no/such.jsonl", "folder that is there"]),
    (chat, ["run", "--step=1"], ["--step=1", "[2]", "-1 for the newest"]),
    (chat, ["nowhere"], ["nowhere: is not there", "name the directory"]),
    (view, [], ["RUN"]),
    (view, ["nowhere"], ["nowhere: no such run", "name a run's directory"]),
    (view, ["mine.py"], ["mine.py:1: not an episode"]),
    (view, ["run", "--port=99999"], ["--port=99999", "choose another"]),
    (view, ["run", "--which=best"], ["--which", "'best'", "success"]),
    (view, ["run", "--indx=3"], ["--indx", "did you mean --index?"]),
    (view, ["run", "--config.rl.steps=3"], ["--config.rl.steps", "--help lists all"]),
    (view, ["run", "--curves", "--out=x.html"], ["--curves and --out", "one of them"]),
    (view, ["run", "--out="], ["--out=", "name a file"]),
    (view, ["gs://"], ["gs://", "gs://BUCKET/RUN"]),
    (plan, ["--config=mine.py", "--topology=v9:4x4"], ["--topology=v9:4x4", "known TPUs", "h100"]),
    (plan, ["--config=mine.py", "--topology=h100:0"], ["--topology=h100:0", "h100:8"]),
    (plan, ["--config=mine.py", "--slices=0"], ["--slices=0", "at least 1"]),
]


@pytest.mark.parametrize("command, arguments, named", REFUSED, ids=lambda value: " ".join(
    value if isinstance(value, list) else [value.__name__.split(".")[1]])[:50])
def test_other_commands_refuse_in_one_line_too(run, monkeypatch, capsys, command, arguments, named):
    before = sorted(run.rglob("*"))
    if command is view:
        status, error = view.main(arguments), capsys.readouterr().err
    else:  # a rehearsal checks what the command checks
        status, _, error = ended(monkeypatch, capsys, command, *arguments, "--dry_run")
    assert status in (1, 2) and error.startswith("error: ") and error.count("\n") == 1, error
    for words in named:
        assert words in error
    after = [p for p in sorted(run.rglob("*")) if "__pycache__" not in p.parts]
    assert after == before


@pytest.mark.parametrize("command, arguments, extra", [
    (serve, ["run"], "uvicorn"), (main, [TINY, "--config.log.wandb=mine"], "wandb")])
def test_a_package_that_is_not_there_is_named(run, monkeypatch, capsys, command, arguments, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    status, _, error = ended(monkeypatch, capsys, command, *arguments, "--dry_run")
    assert status == 2 and error.count("\n") == 1
    assert f"pip install -e '.[{extra if extra == 'wandb' else 'serve'}]'" in error
    assert ended(monkeypatch, capsys, command, "--help")[0] == 0


def test_a_slice_is_laid_out_without_compiling(folder, monkeypatch, capsys):
    pytest.importorskip("libtpu", reason="needs TPU's compiler (pip install libtpu)")
    status, text, _ = ended(monkeypatch, capsys, plan, "--config=mine.py:qwen3_8b", "--dry_run")
    assert status == 0 and "16 chips" in text and "nothing was compiled" in text


def test_the_page_rehearses_too(run, capsys):
    assert view.main(["run", "--print_config"]) == 0
    assert json.loads(capsys.readouterr().out)["rl.steps"] == 3
    assert view.main(["run", "--dry_run"]) == 0
    assert "run: 1 lines of metrics" in capsys.readouterr().out
    assert view.main(["run", "--out=no/such/report.html", "--dry_run"]) == 2
    assert view.main(["nowhere", "--dry_run"]) == 2


def test_a_run_knows_its_config_and_where_its_parts_are(folder, monkeypatch, capsys):
    config = from_config_dict(sized("tiny"))
    (folder / "parts.py").write_text("def get_parts():\n    return 'mine'\n")
    monkeypatch.setattr(sys, "argv", ["main.py", "--config=parts.py:tiny"])
    run = open_run_dir(RunConfig(workdir="run", rl=config.rl), {"reward": {"name": "r"}})
    values, file = read_run(run)
    assert from_config_dict(values).rl == config.rl
    assert file == folder / "parts.py" and load_parts(file) == "mine"

    status, text, _ = ended(monkeypatch, capsys, evaluate, "run", "--config.eval.trials=2",
                            "--print_config")
    found = json.loads(text)
    assert status == 0 and found["eval.trials"] == 2 and found["rl.steps"] == config.rl.steps

    (folder / "parts.py").unlink()
    status, _, error = ended(monkeypatch, capsys, export, "run", "--out=x")
    assert status == 2 and "parts.py, which is not there" in error and "--config=FILE" in error


def test_what_another_version_wrote_is_refused_in_words(folder, monkeypatch, capsys):
    open_run_dir(RunConfig(workdir="run"))
    path = folder / "run" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rl.old_knob": 3}))
    status, _, error = ended(monkeypatch, capsys, evaluate, "run")
    assert status == 2 and "rl.old_knob" in error and "versions.json" in error


def test_a_field_that_a_run_did_not_know_has_its_default(tmp_path):
    config = RunConfig(workdir=str(tmp_path / "run"))
    path = open_run_dir(config) / "config.json"
    (tmp_path / "run" / "checkpoints" / "0").mkdir(parents=True)
    old = {k: v for k, v in json.loads(path.read_text()).items() if k != "rollout.refills"}
    path.write_text(json.dumps(old))
    open_run_dir(config)
    path.write_text(json.dumps(old))
    refills = dataclasses.replace(config.rollout, refills=2)
    with pytest.raises(ConfigError, match=r"rollout\.refills: 0 -> 2"):
        open_run_dir(dataclasses.replace(config, rollout=refills))


def test_only_a_run_that_never_began_is_taken_away(folder):
    class Stop(TarlError):
        keeps_run = True

    old = folder / "old"
    old.mkdir()
    open_run_dir(RunConfig(workdir="old"))
    for workdir, error, stays in (
        ("runs/new", TarlError, False), ("", TarlError, False), ("old", TarlError, True),
        ("runs/bug", ValueError, True), ("runs/stopped", Stop, True),
    ):
        with pytest.raises(error), claimed_run_dir(RunConfig(workdir=workdir)) as (path, _):
            open_run_dir(RunConfig(workdir=str(path)))
            raise error("x")
        assert path.exists() == stays
        assert (folder / "runs").exists() == any(folder.glob("runs/*"))
    with pytest.raises(TarlError), claimed_run_dir(RunConfig(workdir="runs/begun")) as (path, _):
        (path / "checkpoints" / "0").mkdir(parents=True)
        raise TarlError("x")
    assert path.exists()


def test_the_console_command_names_its_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tarl", "--help"])
    main.tarl()
    text = capsys.readouterr().out
    assert all(f"python -m tarl_jax.{name}" in text for name in main.SUBCOMMANDS.values())
    monkeypatch.setattr(sys, "argv", ["tarl", "trian"])
    with pytest.raises(SystemExit) as end:
        main.tarl()
    assert end.value.code == 2 and "'trian'" in capsys.readouterr().err
    begun = []
    monkeypatch.setattr(main, "run_module", lambda *of: begun.append(of))
    monkeypatch.setattr(sys, "argv", ["tarl", "train", "run", "--debug"])
    main.tarl()
    assert begun == [("tarl_jax.main", ["run", "--debug"])]
