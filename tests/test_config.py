"""configs/ and overrides become one validated `Config`; every mistake is one sentence."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prospect.cli import load_config as load
from prospect.config.cli import Command, documented, run_job
from prospect.config.load import jobs, sections
from prospect.config.schema import Config, StorageSettings
from prospect.dialogue.prompt import ContextSettings
from prospect.earlier import GONE
from prospect.errors import ConfigError, DataError
from prospect.serving.config import ServeConfig
from prospect.serving.settings import ServingSettings

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
JOBS = sorted(jobs())
OPTIONS = sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.glob("*/*.yaml"))


def mistake(*overrides: str, job: str = "train") -> str:
    """The sentence that a mistake is answered with."""
    with pytest.raises(ConfigError) as caught:
        load(job, overrides)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("job", JOBS)
def test_every_job_composes_and_builds(job: str, tmp_path: Path) -> None:
    config = load(job, [f"storage.root={tmp_path}"])
    assert config.storage.root == str(tmp_path)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_builds(option: str, tmp_path: Path) -> None:
    section = option.partition("/")[0]
    job = next((job for job in JOBS if section in sections(job)), None)
    assert job, f"no job uses {section}"
    config = load(job, [f"storage.root={tmp_path}", *chosen(option)])
    written = yaml.safe_load((CONFIGS / f"{option}.yaml").read_text()) or {}
    assert set(written) <= getattr(config, section).model_fields_set


def chosen(option: str) -> list[str]:
    """The overrides that choose an option, with a place for data that one must bring."""
    section, name = option.split("/")
    values = yaml.safe_load((CONFIGS / f"{option}.yaml").read_text()) or {}
    return [f"{section}={name}", *(f"{section}.{key}=/data" for key, value in values.items() if value == "???")]


@pytest.mark.parametrize("option", [option for option in OPTIONS if "???" in (CONFIGS / f"{option}.yaml").read_text()])
def test_data_that_one_must_bring_is_asked_for(option: str) -> None:
    section, name = option.split("/")
    job = next(job for job in JOBS if section in sections(job))
    with pytest.raises(ConfigError, match=rf"`{section}.path` is missing: give {section}.path=PATH"):
        load(job, [f"{section}={name}"])


@pytest.mark.parametrize("file", [*JOBS, *OPTIONS, "runtime_env"])
def test_every_file_says_how_it_is_used(file: str) -> None:
    lines = (CONFIGS / f"{file}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[1].startswith("# Run: ")
    assert file == "runtime_env" or lines[2].startswith("# Override: ")


@pytest.mark.parametrize("file", [*JOBS, *OPTIONS])
def test_the_commands_that_files_mention_are_good(file: str, tmp_path: Path) -> None:
    for line in (CONFIGS / f"{file}.yaml").read_text().splitlines():
        _, _, command = line.partition("# Run: ") if "# Run: " in line else line.partition("# Override: ")
        if command:
            script, *overrides = command.removeprefix("python jobs/").removeprefix("serve run ").split()
            job = {"serve.app:app": "serve"}.get(script, script.removesuffix(".py"))
            load(job, [*overrides, f"storage.root={tmp_path}"])


@pytest.mark.parametrize("option", OPTIONS)
def test_yaml_holds_only_differences(option: str) -> None:
    section, name = option.split("/")
    job = next(job for job in JOBS if section in sections(job))
    fields = type(
        getattr(
            load(job, chosen(option)),
            section,
        )
    ).model_fields
    for key, value in (yaml.safe_load((CONFIGS / f"{option}.yaml").read_text()) or {}).items():
        names_the_option = key == "name" or (key, value) == ("strategy", name)  # unset, a strategy is as trained
        assert names_the_option or fields[key].is_required() or fields[key].default != value, (
            f"{section}.{key} is the default"
        )


def test_jobs_default_to_what_needs_no_weights() -> None:
    config = load("demo")
    assert (config.model.base, config.vision.weights, config.data.source) == ("tiny", "random:0", "dialogues")


def test_overrides_win_over_options_and_options_over_defaults() -> None:
    assert load("train").model.lora.r == Config().model.lora.r
    config = load("train", ["model=llama_3_2_1b", "model.lora.r=8", "model.dtype=float32"])
    assert (config.model.base, config.model.lora.r, config.model.dtype) == (
        "meta-llama/Llama-3.2-1B-Instruct",
        8,
        "float32",
    )


@pytest.mark.parametrize("name", ["proassist", "smolvlm2_24gb"])
def test_the_earlier_projects_users_find_its_hyper_parameters(name: str) -> None:
    training = load("train", [f"training={name}"]).training
    assert (training.learning_rate, training.epochs, training.max_steps) == (1e-5, 10, None)
    assert training.weight_decay == 0.01
    assert training.batch_size / (training.num_workers * training.micro_batch_size) == 8, "accumulation"
    losses = training.losses
    weights = (losses.speaking_text, losses.dst_text, losses.summary_text, losses.speak, losses.update, losses.state)
    assert weights == (1.0,) * 6
    assert (losses.decision, losses.focal_alpha, losses.focal_gamma) == ("focal", 0.25, 2.0)


def test_values_follow_hydras_grammar() -> None:
    config = load("train", ["data.datasets=[wtag,'a b']", "data.holdout=2", "data.path='/a=b/c d'", "data.videos=null"])
    assert config.data.datasets == ("wtag", "a b")
    assert (config.data.holdout, config.data.path, config.data.videos) == (2, "/a=b/c d", None)


LOOKS_LIKE_SOMETHING_ELSE = [
    "1_7", "10_42", "007", "1e3", "2024", "2024_11_29", "24", "1.50", "0x10", "true", "no", "inf", "nan", "None", "~",
    "", " ", "a,b", "a=b", "[a]", "[a", "{a: 1}", "a: b", "Videos (1)", "R&D", "#1", "küche", "料理", "it's", "100%",
    "a\\b", "$HOME", "@x", "'", '"a', "line\nbreak",
]  # fmt: skip


@pytest.mark.parametrize("text", LOOKS_LIKE_SOMETHING_ELSE)
def test_a_field_of_text_keeps_what_was_typed(text: str) -> None:
    experiment = text or "one"
    config = load("label", [f"preview={text}", f"data.suffix={text}", f"tracking.experiment={experiment}",
                            f"labels.similarity.model={text}"])  # fmt: skip
    assert (config.preview, config.data.suffix, config.tracking.experiment) == (text, text, experiment)
    assert config.labels.similarity.model == Path(text).expanduser()


@settings(max_examples=40)
@given(st.text().filter(lambda text: text not in ("null", "???") and "${" not in text and text[:1] not in "'\""))
def test_a_field_of_text_keeps_any_characters(text: str) -> None:
    assert load("label", [f"data.suffix={text}"]).data.suffix == text


@settings(max_examples=40)
@given(st.lists(st.from_regex(r"[\w./()&%#=-]+", fullmatch=True).filter(lambda text: text != "null")))
def test_a_list_of_text_keeps_its_items(items: list[str]) -> None:
    assert load("label", [f"data.datasets=[{','.join(items)}]"]).data.datasets == tuple(items)


def test_quotes_null_and_references_keep_their_meaning(tmp_path: Path) -> None:
    for typed, text in (("'1_7'", "1_7"), ("\"a 'b'\"", "a 'b'"), ("null", None), ("'null'", "null"), ("'", "'")):
        assert load("label", [f"preview={typed}"]).preview == text
    assert load("label", [f"storage.root={tmp_path}", "data.path=${storage.root}/a b"]).data.path == f"{tmp_path}/a b"
    assert load("label", ["data.datasets=[ 101, 1_7 ,'a, b',c d]"]).data.datasets == ("101", "1_7", "a, b", "c d")
    assert load("label", ["data.datasets=[]"]).data.datasets == ()


def test_other_fields_are_read_by_hydra_s_grammar() -> None:
    config = load("train", ["training.learning_rate=1e-3", "training.epochs=1_0", "plan=true", "data.holdout=3"])
    assert (config.training.learning_rate, config.training.epochs) == (1e-3, 10)
    assert (config.plan, config.data.holdout) == (True, 3)
    assert load("label", ["data.holdout=[1_7,10_42]"]).data.holdout == ("1_7", "10_42")
    assert load("train", ["card=24"]).card == "24"


@pytest.mark.parametrize("key", ["data.path", "data.videos", "model.base", "evaluation.model", "storage.root"])
@pytest.mark.parametrize("path", ["~/kitchen", "'~/my kitchen'"])
def test_a_home_folder_is_found_in_every_path(key: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    value: Any = load("train", [f"{key}={path}"])
    for part in key.split("."):
        value = getattr(value, part)
    assert value == path.strip("'").replace("~", "/home/ada")


def test_storage_root_is_absolute_and_others_lie_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load("train", ["storage.root=there"])
    assert config.storage.root == f"{tmp_path}/there"
    assert config.data.path == f"{tmp_path}/there/corpus"
    assert load("train", ["storage.root=s3://bucket/runs"]).storage.root == "s3://bucket/runs"
    monkeypatch.setenv("PROSPECT_STORAGE_ROOT", "/srv/outputs")
    assert load("train").storage.root == "/srv/outputs"


def test_a_relative_root_is_refused_inside_a_cluster_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROSPECT_STORAGE_ROOT", raising=False)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "`storage.root` is the relative path `outputs`" in mistake()
    assert load("train", ["storage.root=/srv/outputs"]).storage.root == "/srv/outputs"
    with pytest.raises(ConfigError, match="relative path `here`"):
        StorageSettings(root="here")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.bse=3", ["`model.bse`: unknown field", "did you mean `base`", "decision_backend"]),
        ("model.lora.rank=3", ["`model.lora.rank`: unknown field", "alpha, dropout, r."]),
        ("modle.base=tiny", ["Unknown section `modle`", "did you mean `model`"]),
        ("modle=tiny", ["Unknown section `modle`", "did you mean `model`"]),
        ("model=smollm", ["Unknown option `smollm` of `model`", "or `smollm2_135m`", "llama_3_2_3b"]),
        ("model.lora.r=many", ["`model.lora.r` ('many') must be an integer."]),
        ("model.lora.r=0", ["`model.lora.r` (0) must be greater than or equal to 1."]),
        ("model.adaptation=half", ["`model.adaptation` ('half') must be 'full', 'lora' or 'qlora'."]),
        ("model.lora=3", ["`model.lora` (3) must be an object."]),
        ("storage.root=null", ["`storage.root` (null) must be a string."]),
        ("serving.port=1", ["train does not use `serving`", "storage, cluster, corpus"]),
        ("suite=embed", ["train does not use `suite`", "storage, cluster, corpus"]),
        ("labels=llm", ["train does not use `labels`", "storage, cluster, corpus"]),
        ("model.base=${nope}", ["`model.base` cannot be resolved", "'nope' not found"]),
        ("model.base=${nope", ["`model.base` cannot be resolved", "${storage.root}"]),
        ("model.base=", ["`model.base` ('') must have at least 1 character."]),
        ("training.epochs=1,2", ["`training.epochs=1,2` is not a valid override", "key=[a,b]"]),
        ("data.datasets=[a", ["`data.datasets=[a` is not a valid override", "key=value"]),
        ("data.datasets=[a,null]", ["`data.datasets.1` (null) must be a string."]),
        ("training.warmup_steps=750", ["`training.warmup_steps` (750) must be below `training.max_steps` (750)"]),
        ("training.max_steps=8", ["`training.warmup_steps` (30) must be below `training.max_steps` (8)"]),
        ("num_workers=2", ["Unknown section `num_workers` (did you mean `training.num_workers`?); a key "]),
        ("lr=1e-3", ["Unknown section `lr` (did you mean `training.learning_rate`?); a key "]),
        (
            "sampling.negative_rate=1",
            ["Unknown section `sampling` (did you mean `training.sampling.negative_rate`?)"],
        ),
        ("training.lr=1e-3", ["`training.lr`: unknown field (did you mean `learning_rate`?)"]),
        ("+model.base=a", ["`+model.base=a` is not a valid override"]),
        ("~model", ["`~model` is not a valid override"]),
        ("--verbose", ["`--verbose` is not a valid override", "key=value"]),
        ("model", ["`model` is not a valid override", "key=value"]),
    ],
)
def test_a_mistake_is_one_sentence(override: str, says: list[str]) -> None:
    sentence = mistake(override)
    for words in says:
        assert words in sentence


@pytest.mark.parametrize("override", ["api_key_env=sk-1", "labels.llm.api_key=sk-1", "labels.llm.api_key_env=sk-${1"])
def test_a_value_that_may_be_a_secret_is_not_repeated(override: str) -> None:
    assert "sk-" not in mistake(override, job="label")


def test_mistakes_of_several_keys_and_of_combinations() -> None:
    assert "(1 more mistake)" in mistake("model.lora.r=0", "model.lora.alpha=0")
    assert "`corpus`: min_steps (5) must not exceed max_steps (3)." in mistake(
        "corpus.min_steps=5", "corpus.max_steps=3", job="demo"
    )
    assert "`corpus` has no options" in mistake("corpus=large", job="demo")
    assert "Unknown job `trian` (did you mean `train`?)" in mistake(job="trian")


def test_every_key_says_its_value() -> None:
    keys = {key: value for key, value, _ in documented(ServeConfig())}
    assert keys["model.lora.r"] == Config().model.lora.r
    assert keys["serving.port"] == ServingSettings().port


@pytest.mark.parametrize("job", [*JOBS, *(f"benchmark suite={name}" for name in sections("benchmark")["suite"])])
def test_every_key_says_what_it_means(job: str) -> None:
    name, *suite = job.split()
    places = ["suite.path=/data"] if suite == ["suite=labels"] else []
    meanings = {key: text for key, _, text in documented(load(name, [*suite, *places]))}
    assert [key for key, text in meanings.items() if not text.endswith(".")] == []


class TestRunJob:
    """What a job's script does with its command line."""

    @staticmethod
    def run(job: str, body, *arguments: str) -> int:
        with pytest.raises(SystemExit) as left:
            run_job(job, body, arguments, Command.script(job), Config)
        return int(left.value.code or 0)

    def test_records_the_composed_configuration(self, tmp_path, capsys) -> None:
        seen: list[Config] = []
        override = f"storage.root={tmp_path}/a b"
        assert self.run("train", seen.append, override, "model.lora.r=4") == 0
        path = Path(capsys.readouterr().out.removeprefix("configuration: ").strip())
        assert path.parent == tmp_path / "a b" / "configs"
        assert path.name.startswith("train-")
        assert path.read_text().startswith(f"# python jobs/train.py 'storage.root={tmp_path}/a b' model.lora.r=4\n")
        assert Config.model_validate(yaml.safe_load(path.read_text())) == seen[0]
        assert list(path.parent.iterdir()) == [path]

    def test_mistakes_leave_with_2_and_one_line(self, tmp_path, capsys) -> None:
        def fail(config: Config) -> None:
            raise DataError("data.path: /nowhere is not there")

        assert self.run("train", fail, f"storage.root={tmp_path}") == 2
        assert capsys.readouterr().err == "error: data.path: /nowhere is not there\n"
        assert self.run("train", fail, "model.x=1") == 2
        assert capsys.readouterr().err.count("\n") == 1
        (tmp_path / "file").touch()
        assert self.run("train", fail, f"storage.root={tmp_path}/file") == 2
        assert "cannot be written" in capsys.readouterr().err

    def test_an_interrupt_leaves_with_130(self, tmp_path, capsys) -> None:
        def interrupt(config: Config) -> None:
            raise KeyboardInterrupt

        assert self.run("train", interrupt, f"storage.root={tmp_path}") == 130
        assert capsys.readouterr().err == "interrupted\n"

    def test_a_defect_keeps_its_stack_trace(self, tmp_path) -> None:
        with pytest.raises(ZeroDivisionError):
            run_job("train", lambda config: 1 // 0, [f"storage.root={tmp_path}"], Command.script("train"), Config)

    def test_help_names_sections_options_keys_and_meanings(self, capsys) -> None:
        assert self.run("train", lambda config: None, "--help") == 0
        usage = capsys.readouterr().out
        for words in ("usage: python jobs/train.py", "model (model=", "|smolvlm_tiny|tiny)", "model.base='tiny'"):
            assert words in usage


def test_the_uploaded_package_finds_configs_in_its_working_directory(tmp_path: Path) -> None:
    """With `py_modules` the package lies far from the repository, whose upload is the current folder."""
    script = """
import prospect.config.load as load
load.__file__ = "/uploads/1/prospect/config/load.py"
print(*load.sections("train"))
"""
    for folder, answer in ((CONFIGS.parent, "storage"), (tmp_path, "start the job from the repository's root")):
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert answer in done.stdout + done.stderr


@pytest.mark.parametrize("job", ["eval", "serve"])
def test_a_model_goes_on_with_the_context_that_it_was_trained_with_but_for_what_is_set(job):
    trained = ContextSettings(strategy="drop_all", max_seq_len=512, recipe=False)
    values = trained.model_dump(mode="json")
    assert load(job).context.over(values) == trained
    chosen = load(job, ["context=state_refresh", "context.tail_seconds=2"]).context.over(values)
    assert chosen == trained.model_copy(update={"strategy": "state_refresh", "tail_seconds": 2.0})
    assert pickle.loads(pickle.dumps(load(job, ["context=none"]))).context.over(values).max_seq_len == 512


@pytest.mark.parametrize("key", GONE)
def test_a_setting_that_is_gone_says_what_to_do(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"`{key}` was removed: .*leave it out\.$"):
        load("label", [f"{key}=1"])
