"""The entry point: what a run leaves behind, what is kept and redone, and how it fails."""

import collections
import dataclasses
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

import run_experiment
import runs
import train
from data_dir.dataloaders import Dataloader
from data_dir.datasets import create_dataset
from data_dir.pickles import write_arrays
from experiment_configs.schema import load_config
from models import load_run

ROOT = Path(__file__).resolve().parent.parent
FILES = {"config.json", "split.json", "metrics.jsonl", "model.eqx", "curves.png", "result.json", "checkpoints", ".lock"}
FIELDS = {
    "seeds": [1, 2],
    "lr": 0.01,
    "lr_scheduler": "lambda lr: lr",
    "num_steps": 4,
    "print_steps": 2,
    "batch_size": 4,
    "metric": "accuracy",
    "classification": True,
    "time": True,
    "output_step": 1,
    "num_blocks": 1,
    "hidden_dim": 3,
    "ssm_dim": 2,
    "complex_ssm": True,
    "train_steps": True,
    "epsilon": None,
    "data_dir": "data",
    "output_parent_dir": "outputs",
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with two small processed sets and their configs, as the present directory."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name, regression in (("Tiny", False), ("Pulse", True)):
        folder = tmp_path / "data" / "processed" / "UEA" / name
        folder.mkdir(parents=True)
        write_arrays(folder / "data.pkl", random.normal(size=(20, 8, 2)))
        labels = random.uniform(-0.5, 0.5, size=(20, 2)) if regression else np.eye(2)[np.arange(20) % 2]
        write_arrays(folder / "labels.pkl", labels)
        write_arrays(folder / "original_idxs.pkl", (np.arange(12), np.arange(12, 20)))
        fields = {**FIELDS, "dataset_name": name}
        if regression:
            fields |= {"metric": "mse", "classification": False, "output_step": 4}
        write_config(fields)
    return tmp_path


def write_config(fields, model_name="LinHRU"):
    path = Path("configs", model_name, f"{fields['dataset_name']}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))


def run(*flags):
    return run_experiment.main(["--config_dir", "configs", *flags])


def read(path):
    return json.loads(Path(path).read_text())


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


SEED_1 = Path("outputs", "Tiny", "LinHRU_RHEL", "seed_1")


# What a run leaves


def test_the_rows_of_each_part_are_saved_and_can_be_given_back(workplace):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    saved = read(SEED_1 / "split.json")
    parts = saved["seeds"]["1"]
    assert (saved["dataset"], saved["n_samples"]) == ("Tiny", 20)
    assert sorted(row for part in parts.values() for row in part) == list(range(20))

    # Another split by an index file: its rows are those that the run uses and saves.
    parts["train"][0], parts["test"][0] = parts["test"][0], parts["train"][0]
    Path("mine.json").write_text(json.dumps(saved))
    write_config({**FIELDS, "dataset_name": "Tiny", "split": "mine.json"})
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--overwrite") == 0
    assert read(SEED_1 / "split.json")["seeds"]["1"] == parts


def test_a_refused_overwrite_leaves_the_finished_run_intact(workplace, capsys):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    before = snapshot(SEED_1)
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--overwrite", "--batch_size", "1000") == 2
    assert "must not exceed the 14 samples of the training part of Tiny" in capsys.readouterr().err
    assert snapshot(SEED_1) == before


def test_data_on_the_device_give_the_same_run(workplace):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    write_config({**FIELDS, "dataset_name": "Tiny", "inmemory": True})
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--output_parent_dir", "device") == 0
    host, device = (folder / "model.eqx" for folder in (SEED_1, Path("device", *SEED_1.parts[1:])))
    assert host.read_bytes() == device.read_bytes()


def test_the_script_end_to_end_on_real_data(tmp_path):
    command = [sys.executable, str(ROOT / "run_experiment.py"), "--dataset_name", "BasicMotions", "--seeds", "2345"]
    command += ["--num_steps", "4", "--print_steps", "2", "--data_dir", "data", "--output_parent_dir", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr

    folder = tmp_path / "out" / "BasicMotions" / "LinHRU_RHEL" / "seed_2345"
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    result, saved = read(folder / "result.json"), read(folder / "config.json")
    assert (result["status"], result["seed"], result["steps"]) == ("completed", 2345, 4)
    assert [record["step"] for record in lines(folder / "metrics.jsonl")] == [2, 4]
    changes = {"seeds": [2345], "num_steps": 4, "print_steps": 2, "data_dir": "data", "output_parent_dir": "out"}
    shipped = load_config(ROOT / "experiment_configs" / "repeats" / "LinHRU" / "BasicMotions.json")
    assert saved["config"] == {**shipped.model_dump(mode="json"), **changes}
    names = [name.lower() for name in saved["data"]["class_names"]]
    assert names == ["badminton", "running", "standing", "walking"]
    assert saved["data"]["samples"] == {"train": 56, "validation": 12, "test": 12}
    assert saved["versions"]["jax"] == jax.__version__
    assert saved["device"].startswith(jax.devices()[0].platform)
    assert saved["command"].endswith("--print_steps 2 --data_dir data --output_parent_dir out")
    assert saved["commit"] is None or len(saved["commit"].removesuffix("-dirty")) == 40
    confusion = np.array(result["test_confusion"])
    assert (confusion.shape, confusion.sum()) == ((4, 4), 12)
    assert np.trace(confusion) / 12 == pytest.approx(result["test_metric"])
    assert result["peak_memory_bytes"]["host"] > 2**20
    assert result["seconds_per_1000_steps"] > 0

    # stdout: one line for the run, then the table; stderr, which is no terminal here: a line per evaluation.
    assert f"test accuracy {result['test_metric']:.4f}" in done.stdout
    header, row = done.stdout.splitlines()[-3:-1]
    assert header.split()[:3] == ["data", "set", "model"]
    assert row.split()[:3] == ["BasicMotions", "LinHRU", "RHEL"]
    assert f"{100 * result['test_metric']:.1f} ± n/a" in row
    assert len(done.stderr.splitlines()) == 2
    assert "\r" not in done.stderr


def test_the_best_model_is_saved_so_that_it_gives_the_recorded_result(workplace):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    saved = read(SEED_1 / "config.json")
    data = create_dataset("data", "Tiny", seed=1, time=True)
    assert (saved["data"]["data_dim"], saved["data"]["label_dim"], saved["data"]["length"]) == (3, 2, 8)
    model, state = load_run(SEED_1)
    loss, metric = train.evaluate(model, state, data.test, batch_size=4, classification=True)
    result = read(SEED_1 / "result.json")
    assert (loss, metric) == (result["test_loss"], result["test_metric"])
    assert result["parameters"] == train.count_parameters(model)


def test_the_metrics_are_the_evaluations(workplace):
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--num_steps", "5") == 0
    records = lines(SEED_1 / "metrics.jsonl")
    assert [record["step"] for record in records] == [2, 4, 5]
    assert all(set(record) == set(train.Evaluation._fields) for record in records)
    best = max(record["val_metric"] for record in records)
    result = read(SEED_1 / "result.json")
    assert result["val_metric"] == best
    assert result["best_step"] == next(record["step"] for record in records if record["val_metric"] == best)


def test_a_confusion_matrix_counts_the_true_class_by_row():
    outputs = np.array([[0.1, 0.9, 0.0], [0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    assert runs.confusion(outputs, np.eye(3)[[1, 0, 0]]) == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_event_files_have_every_evaluation(workplace):
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--tensorboard") == 0
    (file,) = (SEED_1 / "events").iterdir()
    events = [Event.FromString(record) for record in records_of(file)]
    found = {(value.tag, event.step): value.simple_value for event in events for value in event.summary.value}
    expected = {
        (name, record["step"]): np.float32(value)
        for record in lines(SEED_1 / "metrics.jsonl")
        for name, value in record.items()
        if name != "step"
    }
    assert found == expected
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--overwrite") == 0
    assert not (SEED_1 / "events").exists()


def records_of(file):
    """The records of an event file: a length, its checksum, the bytes and their checksum."""
    content, at = file.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield content[at + 12 : at + 12 + length]
        at += 16 + length


def test_event_files_need_their_package(workplace, monkeypatch, capsys):
    monkeypatch.setattr(run_experiment.importlib.util, "find_spec", lambda name: None)
    assert run("--dataset_name", "Tiny", "--tensorboard") == 2
    assert "pip install tensorboardX" in capsys.readouterr().err


def test_flags_override_the_config_and_nothing_else(workplace):
    flags = "--dataset_name Tiny --learning_algorithm BPTT --seeds 7 8 --num_steps 3 --print_steps 1 --batch_size 5"
    assert run(*flags.split(), "--output_parent_dir", "elsewhere") == 0
    expected = load_config("configs/LinHRU/Tiny.json").model_dump(mode="json") | {
        "learning_algorithm": "BPTT",
        "seeds": [7, 8],
        "num_steps": 3,
        "print_steps": 1,
        "batch_size": 5,
        "output_parent_dir": "elsewhere",
    }
    for seed in (7, 8):
        folder = Path("elsewhere", "Tiny", "LinHRU_BPTT", f"seed_{seed}")
        assert read(folder / "config.json")["config"] == expected
        assert read(folder / "result.json")["steps"] == 3
    assert not Path("outputs").exists()


def test_double_precision_lasts_as_long_as_the_command(workplace):
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--double_precision") == 0
    assert read(SEED_1 / "config.json")["precision"] == "float64"
    assert not jax.config.jax_enable_x64
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--output_parent_dir", "single") == 0
    single = Path("single", *SEED_1.parts[1:])
    assert read(single / "config.json")["precision"] == "float32"
    assert b"<f4" not in (SEED_1 / "model.eqx").read_bytes()
    assert b"<f4" in (single / "model.eqx").read_bytes()


def test_the_same_seed_twice_gives_the_same_files(workplace):
    for folder in ("one", "two"):
        assert run("--dataset_name", "Tiny", "--seeds", "1", "--output_parent_dir", folder) == 0
    one, two = (Path(folder, *SEED_1.parts[1:]) for folder in ("one", "two"))
    assert (one / "model.eqx").read_bytes() == (two / "model.eqx").read_bytes()
    for first, second in zip(lines(one / "metrics.jsonl"), lines(two / "metrics.jsonl"), strict=True):
        assert timeless(first) == timeless(second)
    assert timeless(read(one / "result.json")) == timeless(read(two / "result.json"))


def test_a_regression_and_a_classification_in_one_command(workplace, capsys):
    assert run("--dataset_name", "Tiny", "Pulse") == 0
    table = capsys.readouterr().out.splitlines()[-4:-1]
    assert [row.split()[0] for row in table] == ["data", "Tiny", "Pulse"]
    results = [read(path) for path in sorted(Path("outputs", "Pulse", "LinHRU_RHEL").glob("*/result.json"))]
    assert [result["seed"] for result in results] == [1, 2]
    errors = [result["test_metric"] for result in results]
    drawn = Path("outputs", "Pulse", "LinHRU_RHEL", "seed_1", "predictions.png")
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert f"mse          {np.mean(errors):.4f} ± {np.std(errors, ddof=1):.4f}" in table[2]


def test_the_table_has_the_sample_standard_deviation_of_the_completed_runs(workplace):
    config = load_config("configs/LinHRU/Tiny.json")
    of_seeds = [{"status": "completed", "test_metric": metric, "val_metric": 1.0} for metric in (0.5, 1.0)]
    failed = {"status": "failed", "test_metric": None, "val_metric": None}
    row = run_experiment._table([(config, [*of_seeds, failed])]).splitlines()[1]
    assert " ".join(row.split()) == "Tiny LinHRU RHEL 2 1 accuracy, % 75.0 ± 35.4 100.0 ± 0.0"
    row = run_experiment._table([(config, [failed])]).splitlines()[1]
    assert " ".join(row.split()) == "Tiny LinHRU RHEL 0 1 accuracy, % - -"


# What is kept, and what is redone


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def timeless(record):
    """A line of metrics.jsonl or a result without what depends on the clock and the machine."""
    return {name: value for name, value in record.items() if not name.startswith(("seconds", "peak"))}


def test_a_finished_run_is_kept_and_reported(workplace, capsys):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    before = snapshot(SEED_1)
    capsys.readouterr()
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    assert snapshot(SEED_1) == before
    output = capsys.readouterr().out
    assert "Tiny LinHRU RHEL seed 1: kept, test accuracy" in output
    assert "another config" not in output
    assert f"{100 * read(SEED_1 / 'result.json')['test_metric']:.1f} ± n/a" in output


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


def test_overwrite_redoes_a_finished_run(workplace):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--num_steps", "6", "--overwrite") == 0
    assert read(SEED_1 / "result.json")["steps"] == 6
    assert [record["step"] for record in lines(SEED_1 / "metrics.jsonl")] == [2, 4, 6]


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "list"])
def test_a_run_without_a_sound_result_is_redone(workplace, damage):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    path = SEED_1 / "result.json"
    if damage == "missing":
        path.unlink()
    else:
        path.write_text({"empty": "", "cut": path.read_text()[:30], "list": "[]"}[damage])
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
    assert runs.finished_result(SEED_1) is None
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

    monkeypatch.setattr(runs, "create_dataset", create)
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
    monkeypatch.setattr(runs, "create_dataset", create_dataset)
    before = snapshot(SEED_1)
    assert run("--dataset_name", "Tiny", "--seeds", "1", "2", "3") == 0
    assert snapshot(SEED_1) == before
    assert read(SEED_1.parent / "seed_2" / "result.json")["status"] == "completed"


@pytest.mark.parametrize("learning_algorithm", ["RHEL", "BPTT"])
def test_an_absurd_learning_rate_is_reported_with_the_step(workplace, capsys, learning_algorithm):
    write_config({**FIELDS, "dataset_name": "Tiny", "lr": 1e38, "num_steps": 50, "print_steps": 50})
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--learning_algorithm", learning_algorithm) == 1
    result = read(SEED_1.parent.parent / f"LinHRU_{learning_algorithm}" / "seed_1" / "result.json")
    assert result["status"] == "failed"
    assert 2 <= result["steps"] <= 50
    assert f" at step {result['steps']} (" in result["error"]
    assert result["error"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--modle_name LinHRU", "unrecognized arguments: --modle_name LinHRU"),
        ("--model LinHRU", "unrecognized arguments: --model LinHRU"),
        ("--model_name GRU", "invalid choice: 'GRU'"),
        ("--learning_algorithm EP", "invalid choice: 'EP'"),
        ("--seeds", "--seeds: expected at least one argument"),
        ("--seeds one", "invalid seed from 0 to 4294967295 value: 'one'"),
        ("--seeds -1", "invalid seed from 0 to 4294967295 value: '-1'"),
        ("--num_steps 0", "invalid positive whole number value: '0'"),
        ("--batch_size 1.5", "invalid positive whole number value: '1.5'"),
    ],
)
def test_a_wrong_flag_ends_in_one_line(capsys, flags, message):
    with pytest.raises(SystemExit) as exit:
        run(*flags.split())
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dataset_name Tny", "no config for the data set 'Tny'. Did you mean Tiny? There are: "),
        ("--dataset_name Tiny --model_name NonlinHRU", "no configs here"),
        ("--dataset_name Tiny --data_dir nowhere", "dataset_name 'Tiny': no folder nowhere/processed"),
        ("--dataset_name Tiny Absent", "dataset_name 'Absent': no folder data/processed"),
        ("--dataset_name Spoilt", "Spoilt.json: lr is -1: allowed is a positive number"),
        ("--dataset_name Renamed", 'Renamed.json: dataset_name is "Tiny": allowed is the name of the file, Renamed'),
        ("--dataset_name Tiny --seeds 1 1", "seeds is [1, 1] (a seed is listed twice)"),
        ("--dataset_name Tiny --batch_size 15", "batch_size 15: must not exceed the 14 samples"),
        ("--dataset_name Tiny --output_parent_dir configs/LinHRU/Tiny.json", "Not a directory"),
    ],
)
def test_what_cannot_be_done_ends_in_one_message(workplace, capsys, flags, message):
    write_config({**FIELDS, "dataset_name": "Absent"})
    write_config({**FIELDS, "dataset_name": "Spoilt", "lr": -1})
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
    def trained(folder, cache):
        jax.clear_caches()
        before = kept_or_taken()
        flags = ("--dataset_name", "Tiny", "--seeds", "1", "--output_parent_dir", folder)
        assert run(*flags, "--compilation_cache", cache) == 0
        model = Path(folder, *SEED_1.parts[1:], "model.eqx").read_bytes()
        return model, [after - earlier for after, earlier in zip(kept_or_taken(), before, strict=True)]

    fresh, (kept, taken) = trained("fresh", "none")
    assert (kept, taken) == (0, 0)
    first, (kept, _) = trained("first", "folder")
    assert len(list(Path("folder").glob("jit_*"))) == kept > 0
    assert list(Path("folder").glob("jit__compiled_steps-*"))
    second, (kept_again, taken) = trained("second", "folder")
    assert kept_again == 0
    assert taken >= kept
    assert first == fresh
    assert second == fresh
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_for_compiled_programs_that_cannot_be_written_is_a_notice(workplace, capsys):
    folder = "configs/LinHRU/Tiny.json/kept"
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--compilation_cache", folder) == 0
    (notice,) = (line for line in capsys.readouterr().err.splitlines() if "step" not in line)
    assert notice == (
        f"Nothing compiled is kept: {folder}: Not a directory (--compilation_cache names another folder, or none)."
    )


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"JAX_COMPILATION_CACHE_DIR": "/one", "XDG_CACHE_HOME": "/two"}, "/one"),
        ({"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": "/two"}, "/two/rhel/jax"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/user/.cache/rhel/jax"),
        ({}, "/home/user/.cache/rhel/jax"),
    ],
)
def test_where_compiled_programs_are_kept_by_default(monkeypatch, variables, folder):
    monkeypatch.setenv("HOME", "/home/user")
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run_experiment.parser().parse_args([]).compilation_cache == folder
    assert f"(default: {folder})" in " ".join(run_experiment.parser().format_help().split())


# Which data sets


def test_without_a_processed_set_it_says_so_and_runs_the_bundled_one(workplace, monkeypatch, capsys):
    # Its own run is tested above; here only that it is chosen.
    monkeypatch.setattr(runs, "run_seed", lambda config, seed, **_: {"status": "failed", "error": config.dataset_name})
    assert run_experiment.main(["--data_dir", "empty", "--seeds", "1"]) == 1
    output = capsys.readouterr().out
    assert "None of the six UEA sets is processed in empty" in output
    assert "python data_dir/download_uea.py --datasets SelfRegulationSCP1 SelfRegulationSCP2 --data_dir empty" in output
    assert "python data_dir/process_uea.py --data_dir empty" in output
    assert "BasicMotions LinHRU RHEL seed 1: FAILED" in output


def test_by_default_the_processed_sets_of_the_published_experiments_run(workplace):
    for name in ("Heartbeat", "EigenWorms"):
        shutil.copytree("data/processed/UEA/Tiny", f"data/processed/UEA/{name}")
    arguments = run_experiment.parser().parse_args(["--data_dir", "data"])
    configs = run_experiment._configs(arguments)
    assert {config.model_name for config in configs} == {"LinHRU"}
    assert [config.dataset_name for config in configs] == ["EigenWorms", "Heartbeat"]
    assert {config.learning_algorithm for config in configs} == {"RHEL"}


def test_help_names_every_flag_without_loading_anything_heavy():
    code = "import sys, run_experiment; print(run_experiment.parser().format_help()); assert 'jax' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    flags = (
        "model_name dataset_name learning_algorithm seeds config_dir data_dir output_parent_dir num_steps print_steps"
    )
    flags += " checkpoint_steps skip_nonfinite tensorboard"
    for flag in (*flags.split(), "batch_size", "double_precision", "overwrite", "compilation_cache"):
        assert f"--{flag} " in shown.stdout


# Real data, to the end


@pytest.mark.slow
@pytest.mark.parametrize("learning_algorithm", ["RHEL", "BPTT"])
@pytest.mark.parametrize("model_name", ["LinHRU", "NonlinHRU"])
def test_basic_motions_is_learnt(tmp_path, model_name, learning_algorithm):
    flags = f"--dataset_name BasicMotions --model_name {model_name} --learning_algorithm {learning_algorithm}"
    flags += f" --seeds 2345 3456 4567 --data_dir {tmp_path / 'data'} --output_parent_dir {tmp_path}"
    assert run_experiment.main(flags.split()) == 0
    folders = (tmp_path / "BasicMotions" / f"{model_name}_{learning_algorithm}").iterdir()
    accuracies = [read(folder / "result.json")["test_metric"] for folder in folders]
    assert len(accuracies) == 3
    assert np.mean(accuracies) >= 0.9
