"""The entry point: what is kept and redone, how it fails, what is compiled, and which data sets are run."""

import collections
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from small_experiments import HERE, SEED_1, lines, read, refusal, run, snapshot, write_config

import run_experiment
from data_dir.dataloaders import Dataloader
from data_dir.datasets import create_dataset
from runs import command, compilation_cache
from runs.folder import finished_result
from runs.selection import select_configs

pytestmark = pytest.mark.usefixtures("empty_figures")

ROOT = Path(__file__).resolve().parents[2]


# What is kept, and what is redone


def test_a_finished_run_is_kept_and_reported(workplace, capsys):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    before = snapshot(SEED_1)
    capsys.readouterr()
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    assert snapshot(SEED_1) == before
    output = capsys.readouterr().out
    assert "Tiny LinHRU RHEL seed 1: kept, test accuracy" in output
    assert "another config" not in output
    assert f"accuracy, %  {100 * read(SEED_1 / 'result.json')['test_metric']:.1f} " in output
    assert "has no hash" not in output
    result = read(SEED_1 / "result.json")
    del result["model_sha256"]
    (SEED_1 / "result.json").write_text(json.dumps(result))
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    assert "seed_1); result.json has no hash of model.eqx, so it is not known" in capsys.readouterr().out
    assert run_experiment.main(["--evaluate", str(SEED_1)]) == 0
    assert "result.json has no hash of model.eqx" in capsys.readouterr().err


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_another_config_is_refused_before_any_other_begins(workplace, capsys, finished):
    assert run("--dataset_name", "Tiny", "--seeds", "2") == 0
    if not finished:
        (SEED_1.with_name("seed_2") / "result.json").unlink()
    before = snapshot(Path("outputs"))
    assert run("--dataset_name", "Tiny", "--seeds", "1", "2", "--num_steps", "6", "--double_precision") == 2
    assert snapshot(Path("outputs")) == before
    assert (
        "another config (num_steps 4, now 6; precision 'float32', now 'float64'). --overwrite"
        in capsys.readouterr().err
    )


def test_what_says_nothing_about_the_numbers_may_change(workplace):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    flags = ("--seeds", "1", "2", "--checkpoint_steps", "3", "--skip_nonfinite", "1")
    assert run("--dataset_name", "Tiny", *flags) == 0


def test_overwrite_redoes_finished_runs(workplace):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--num_steps", "6", "--overwrite") == 0
    assert read(SEED_1 / "result.json")["steps"] == 6
    assert [record["step"] for record in lines(SEED_1 / "metrics.jsonl")] == [2, 4, 6]


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_run_without_a_sound_result_is_redone(workplace, damage):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    path = SEED_1 / "result.json"
    path.unlink() if damage == "missing" else path.write_text(path.read_text()[:30])
    (SEED_1 / "metrics.jsonl").write_text('{"step": 99}\n')
    (SEED_1 / "notes.txt").write_text("the user's own")
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    assert read(path)["status"] == "completed"
    assert [record["step"] for record in lines(SEED_1 / "metrics.jsonl")] == [2, 4]
    assert (SEED_1 / "notes.txt").read_text() == "the user's own"


def test_the_result_comes_last_and_an_old_one_goes_first(workplace, monkeypatch):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0

    def broken(*_, **__):
        assert not (SEED_1 / "result.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(eqx, "tree_serialise_leaves", broken)
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--overwrite") == 130
    assert finished_result(SEED_1) is None
    assert not (SEED_1 / "model.eqx").exists()


# How it fails


def test_a_seed_that_diverges_is_recorded_and_the_others_go_on(workplace, monkeypatch, capsys):
    def create(*args, seed, **options):
        data = create_dataset(*args, seed=seed, **options)
        if seed == 2:
            nothing, labels = np.full((20, 8, 3), np.nan), np.eye(2)[np.arange(20) % 2]
            bad = Dataloader(nothing, labels, rows=data.split["train"])
            data = dataclasses.replace(data, train=bad)
        return data

    monkeypatch.setattr("runs.run.create_dataset", create)
    assert run("--dataset_name", "Tiny", "--seeds", "1", "2", "3") == 1
    output = capsys.readouterr()
    assert "seed 2: FAILED, the training loss is not finite at step 1 (" in output.out
    assert "1 of 3 runs failed" in output.err
    statuses = [read(SEED_1.parent / f"seed_{seed}" / "result.json")["status"] for seed in (1, 2, 3)]
    assert statuses == ["completed", "failed", "completed"]
    result = read(SEED_1.parent / "seed_2" / "result.json")
    assert result["error"].startswith("the training loss is not finite at step 1 (")
    rows = read(SEED_1.parent / "seed_2" / "split.json")["seeds"]["2"]["train"]
    assert len(result["rows"]) == 4
    assert set(result["rows"]) <= set(rows)
    assert (result["steps"], result["best_step"], result["val_metric"], result["test_metric"]) == (1, None, None, None)

    # The failed one is tried again, the finished ones are kept.
    monkeypatch.setattr("runs.run.create_dataset", create_dataset)
    before = snapshot(SEED_1)
    assert run("--dataset_name", "Tiny", "--seeds", "1", "2", "3") == 0
    assert snapshot(SEED_1) == before
    assert read(SEED_1.parent / "seed_2" / "result.json")["status"] == "completed"


def test_an_absurd_learning_rate_is_reported_with_the_step(workplace, capsys):
    write_config({**HERE, "dataset_name": "Tiny", "lr": 1e38, "num_steps": 50})
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 1
    result = read(SEED_1 / "result.json")
    assert result["status"] == "failed"
    assert 2 <= result["steps"] <= 50
    assert f" at step {result['steps']} (" in result["error"]
    assert result["error"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--modle_name LinHRU", "unrecognized arguments: --modle_name LinHRU; did you mean --model_name? ("),
        ("--seeds 1 --lr 0.003", "--lr 0.003; did you mean --set lr=0.003? ("),
        ("--learning_rate=0.1", "did you mean --set lr=0.1?"),
        ("--hiden_dim", "did you mean --set hidden_dim=VALUE?"),
        ("--plann", "unrecognized arguments: --plann; did you mean --plan?"),
        ("--model LinHRU", "unrecognized arguments: --model LinHRU"),
        ("--model_name GRU", "--model_name: invalid choice: 'GRU': choose from LinHRU"),
        ("--learning_algorithm EP", "invalid choice: 'EP'"),
        ("--seeds", "--seeds: expected at least one argument"),
        ("--seeds one", "error: --seeds: 'one' is not a whole number from 0 to 4294967295 ("),
        ("--seeds -1", "--seeds: '-1' is not a whole number from 0 to 4294967295"),
        ("--seeds 4294967296", "'4294967296' is not a whole number from 0 to"),
        ("--num_steps 0", "--num_steps: '0' is not a whole number of at least 1"),
        ("--batch_size 1.5", "--batch_size: '1.5' is not a whole number of at least 1"),
        ("--skip_nonfinite -1", "--skip_nonfinite: '-1' is not a whole number of at least 0"),
        ("--model_name LinHRUs", "'LinHRUs': did you mean LinHRU? choose from LinHRU, NonlinHRU, all"),
    ],
)
def test_a_wrong_flag_ends_in_one_line(capsys, flags, message):
    assert message in refusal(capsys, flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dataset_name Tny", "no config for the data set 'Tny'. Did you mean Tiny? There are: "),
        ("--dataset_name Tiny --model_name NonlinHRU", "no configs here"),
        ("--dataset_name Tiny --data_dir nowhere", "data_dir nowhere: no such folder, so it has no data set 'Tiny'"),
        ("--dataset_name Tiny Absent", "dataset_name 'Absent': no folder data/processed"),
        ("--dataset_name Spoilt", "Spoilt.json: lr is -1: allowed is a positive number"),
        ("--dataset_name Renamed", 'Renamed.json: dataset_name is "Tiny": allowed is the name of the file, Renamed'),
        ("--dataset_name Tiny --seeds 1 1", "seeds is [1, 1] (a seed is listed twice)"),
        ("--dataset_name Tiny --batch_size 15", "batch_size 15: must not exceed the 14 samples"),
        ("--dataset_name Tiny --output_parent_dir configs/LinHRU/Tiny.json", "Not a directory"),
    ],
)
def test_what_cannot_be_done_ends_in_one_message(workplace, capsys, flags, message):
    write_config({**HERE, "dataset_name": "Absent"})
    write_config({**HERE, "dataset_name": "Spoilt", "lr": -1})
    shutil.copy("configs/LinHRU/Tiny.json", "configs/LinHRU/Renamed.json")
    assert run(*flags.split()) == 2
    output = capsys.readouterr()
    assert output.err.startswith("run_experiment.py: error: ")
    assert message in output.err
    assert "Traceback" not in output.err
    assert not list(
        Path().glob("outputs/**/result.json")
    )  # nothing is trained before the last set is known to be there


# What is compiled


@pytest.fixture
def kept_or_taken():
    """Counts the programs that were compiled and put into a folder, and those that were taken from there."""
    events = collections.Counter()

    def listen(event, **_):
        events[event.removeprefix("/jax/compilation_cache/cache_")] += 1

    jax.monitoring.register_event_listener(listen)
    yield lambda: (events["misses"], events["hits"])
    jax.monitoring.unregister_event_listener(listen)


def test_a_kept_program_gives_the_bits_of_a_fresh_one(workplace, kept_or_taken):
    of_tests = jax.config.jax_compilation_cache_dir

    def trained(folder, cache):
        jax.clear_caches()
        before = kept_or_taken()
        # BPTT, because it compiles fastest.
        flags = "--dataset_name Tiny --seeds 1 --learning_algorithm BPTT --output_parent_dir"
        assert run(*flags.split(), folder, "--compilation_cache", cache) == 0
        model = Path(folder, "Tiny", "LinHRU_BPTT", "seed_1", "model.eqx").read_bytes()
        return model, [after - earlier for after, earlier in zip(kept_or_taken(), before, strict=True)]

    with compilation_cache.enabled("none"):
        jax.jit(lambda x: x + 1)(1.0)
    assert kept_or_taken() == (0, 0)
    fresh, (kept, _) = trained("fresh", "folder")
    assert len(list(Path("folder").glob("jit_*"))) == kept > 0
    assert list(Path("folder").glob("jit__compiled_steps-*"))
    again, (kept_again, taken) = trained("again", "folder")
    assert kept_again == 0
    assert taken >= kept
    assert again == fresh
    assert jax.config.jax_compilation_cache_dir == of_tests


def test_a_folder_for_compiled_programs_that_cannot_be_written_is_a_notice(workplace, capsys):
    folder = "configs/LinHRU/Tiny.json/kept"
    with compilation_cache.enabled(folder):
        assert jax.config.jax_compilation_cache_dir is None
    assert capsys.readouterr().err == (
        f"Compiled programs are not kept: {folder}: Not a directory "
        "(--compilation_cache names another folder, or none).\n"
    )


def test_a_url_for_compiled_programs_is_given_to_jax(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with compilation_cache.enabled("gs://bucket/programs"):
        assert jax.config.jax_compilation_cache_dir == "gs://bucket/programs"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"JAX_COMPILATION_CACHE_DIR": "/one", "XDG_CACHE_HOME": "/two"}, "/one"),
        ({"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": "/two"}, "/two/rhel/jax"),
        ({}, "/home/user/.cache/rhel/jax"),
    ],
)
def test_where_compiled_programs_are_kept_by_default(monkeypatch, variables, folder):
    monkeypatch.setenv("HOME", "/home/user")
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert command.parser().parse_args([]).compilation_cache == folder
    assert f"(default: {folder})" in " ".join(command.parser().format_help().split())


# Which data sets


def test_without_a_processed_set_it_says_so_and_runs_the_bundled_one(workplace, monkeypatch, capsys):
    # Its own run is tested above; here only that it is chosen.
    failed = {"status": "failed", "error": "not trained"}
    monkeypatch.setattr("runs.train_all.run_seed", lambda *_, **__: failed)
    (workplace / "empty").mkdir()
    assert run_experiment.main(["--data_dir", "empty", "--seeds", "1"]) == 1
    output = capsys.readouterr().out
    assert "None of the six UEA sets is processed in empty" in output
    assert "python data_dir/download_uea.py --datasets SelfRegulationSCP1 SelfRegulationSCP2 --data_dir empty" in output
    assert "python data_dir/process_uea.py --data_dir empty" in output
    assert "BasicMotions LinHRU RHEL seed 1: FAILED" in output


def test_by_default_the_processed_sets_of_the_published_experiments_run(workplace):
    for name in ("Heartbeat", "EigenWorms"):
        shutil.copytree("data/processed/UEA/Tiny", f"data/processed/UEA/{name}")
    arguments = command.parser().parse_args(["--data_dir", "data"])
    configs = select_configs(arguments)
    assert {config.model_name for config in configs} == {"LinHRU"}
    assert [config.dataset_name for config in configs] == ["EigenWorms", "Heartbeat"]
    assert {config.learning_algorithm for config in configs} == {"RHEL"}


def test_help_names_every_flag_without_loading_anything_heavy():
    code = (
        "import atexit, sys; atexit.register(lambda: print('jax' in sys.modules)); import run_experiment as command; "
    )
    code += "command.main(['--help'])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.endswith("\nFalse\n")
    flags = (
        "model_name dataset_name learning_algorithm seeds config_dir data_dir output_parent_dir num_steps print_steps"
    )
    flags += " checkpoint_steps skip_nonfinite tensorboard"
    for flag in (*flags.split(), "batch_size", "double_precision", "overwrite", "compilation_cache"):
        assert f"--{flag} " in shown.stdout
