"""Where settings come from, who wins, and what is said about mistakes."""

from dataclasses import fields
from enum import StrEnum
from pathlib import Path

import pytest

from app.cli import run
from app.settings import ImageAlpha, ImageOrientation, Quantize, Rope, Settings
from model.images import Alpha, Orientation
from model.worker import protocol

OPTION_NAMES = [
    option.name for group in fields(Settings) for option in fields(getattr(Settings(), group.name))
]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run ``laneway check`` and read its table: name -> (value, origin)."""

    def run_check(*argv: str, env: dict[str, str] | None = None) -> dict[str, tuple[str, str]]:
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        assert run(["check", *argv]) == 0, capsys.readouterr().err
        rows = (line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        return {name: tuple(rest.rsplit("  ", 1)[i].strip() for i in (0, 1)) for name, rest in rows}  # type: ignore[misc]

    return run_check


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run a command that must fail as the caller's mistake; returns its one line."""

    def run_and_read(*argv: str, env: dict[str, str] | None = None) -> str:
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        assert run([*argv]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("laneway: ")
        assert captured.err.count("\n") == 1, captured.err
        return captured.err.removeprefix("laneway: ").rstrip()

    return run_and_read


def test_every_setting_has_a_flag_a_variable_and_a_key(check):
    """One flat name everywhere is the promise; a name that is taken twice would break it."""
    assert len(set(OPTION_NAMES)) == len(OPTION_NAMES)
    assert list(check()) == OPTION_NAMES
    assert all(origin == "default" for _, origin in check().values())


def test_flags_win_over_the_environment_and_the_environment_over_the_file(check, tmp_path: Path):
    config = tmp_path / "laneway.toml"
    config.write_text(
        'port = 1111\nworkers = 1\nserved_name = "mine"\nopenai_aliases = false\ndimensions = [256, 128]\n'
    )
    env = {"LANEWAY_CONFIG": str(config), "LANEWAY_PORT": "2222", "LANEWAY_WORKERS": "2"}
    table = check("--port", "3333", env=env)
    assert table["port"] == ("3333", "--port")
    assert table["workers"] == ("2", "LANEWAY_WORKERS")
    assert table["served_name"] == ('"mine"', str(config))
    assert table["openai_aliases"] == ("false", str(config))
    assert table["dimensions"] == ("[256, 128]", str(config))
    assert table["host"] == ('"127.0.0.1"', "default")


def test_the_config_flag_wins_over_the_variable(check, tmp_path: Path):
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("port = 1")
    two.write_text("port = 2")
    assert check("--config", str(two), env={"LANEWAY_CONFIG": str(one)})["port"] == ("2", str(two))


def test_the_model_may_stand_alone_on_the_command_line(check):
    env = {"LANEWAY_MODEL": "from-the-environment"}
    assert check(env=env)["model"] == ('"from-the-environment"', "LANEWAY_MODEL")
    assert check("BAAI/bge-m3", env=env)["model"] == ('"BAAI/bge-m3"', "MODEL")
    assert check("--model", "BAAI/bge-m3", env=env)["model"] == ('"BAAI/bge-m3"', "--model")


def test_a_variable_that_is_empty_is_not_set(check, tmp_path: Path):
    """Compose files write ``LANEWAY_PORT=${PORT}``, whether or not there is a PORT."""
    config = tmp_path / "laneway.toml"
    config.write_text("port = 1111")
    names = ("PORT", "SERVED_NAME", "DIMENSIONS", "DTYPE", "OPENAI_ALIASES", "MAX_TOKENS")
    env = {f"LANEWAY_{name}": "" for name in names}
    assert {check(env=env)[name.lower()][1] for name in names} == {"default"}
    assert check("--config", str(config), env=env)["port"] == ("1111", str(config))
    assert check("--port", "2222", env=env | {"LANEWAY_CONFIG": ""})["port"] == ("2222", "--port")


def test_a_list_is_written_by_repeating_the_flag(check):
    assert check("--dimensions", "512", "--dimensions", "256")["dimensions"][0] == "[512, 256]"


@pytest.mark.parametrize("written", ["512 256", "512,256", "512, 256", " 512 ,256,"])
def test_a_list_is_written_as_one_text_with_commas_or_spaces(check, tmp_path: Path, written: str):
    """A variable has no other way, and people try both."""
    assert check("--dimensions", written)["dimensions"] == ("[512, 256]", "--dimensions")
    config = tmp_path / "laneway.toml"
    config.write_text(f'dimensions = "{written}"')
    assert check("--config", str(config))["dimensions"] == ("[512, 256]", str(config))
    assert check(env={"LANEWAY_DIMENSIONS": written})["dimensions"] == ("[512, 256]", "LANEWAY_DIMENSIONS")


def test_hosts_are_a_list_too(check):
    env = {
        "LANEWAY_MEDIA_URLS": "allowlist",
        "LANEWAY_MEDIA_HOSTS": "a.example.org,.b.example.org:8443 8.8.8.8",
    }
    assert check(env=env)["media_hosts"][0] == '["a.example.org", ".b.example.org:8443", "8.8.8.8"]'


@pytest.mark.parametrize(
    "host", ["10.0.0.5", "169.254.169.254:80", "127.0.0.1", "localhost", "pics.LOCALHOST:80"]
)
def test_a_host_that_no_image_may_come_from_is_refused_at_start(complaint, host: str):
    """Whoever wrote it expects it to work, and would look for the cause in every refused request."""
    assert complaint("check", "--media-urls", "allowlist", "--media-hosts", f"a.example.org,{host}") == (
        f'Invalid value "a.example.org, {host}" for --media-hosts. "{host}" is an inner address, and images are '
        "fetched from public ones only. Images of your own network can be sent in requests, as data URIs."
    )


@pytest.mark.parametrize("choice", ["cl100k_base", "model", "reject"])
def test_choices_are_spelt_as_the_values_are(check, choice: str):
    """cyclopts would have ``cl100-k-base``."""
    assert check("--token-ids", choice)["token_ids"] == (f'"{choice}"', "--token-ids")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Rope, protocol.Rope),
        (Quantize, protocol.Quantization),
        (ImageOrientation, Orientation),
        (ImageAlpha, Alpha),
    ],
)
def test_the_models_choices_are_those_of_the_settings(ours: type[StrEnum], theirs: type[StrEnum]):
    """Told twice, because the command line's help does not wait for the model room to be imported."""
    assert [choice.value for choice in ours] == [choice.value for choice in theirs]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--prot", "1"], "Unknown option: --prot. Did you mean --port?"),
        (["--port", "x"], 'Invalid value for --port: unable to convert "x" into int.'),
        (["--port", "8.5"], 'Invalid value for --port: unable to convert "8.5" into int.'),
        (["--dimensions", "8.5,3"], 'Invalid value for --dimensions: unable to convert "8.5" into int.'),
        (["--media-hosts", "a b/c"], 'Invalid value "a, b/c" for --media-hosts. "b/c" is no host; write images.example.org, images.example.org:8443, or .example.org for all hosts below it.'),
        (["--port", "65536"], 'Invalid value "65536" for --port. It must be between 0 and 65,535.'),
        (["--port", "-1"], 'Invalid value "-1" for --port. It must be between 0 and 65,535.'),
        (["--port"], 'Command "check" parameter --port requires an argument.'),
        (["--document-share", "nan"], 'Invalid value "nan" for --document-share. It must be between 0 and 1.'),
        (
            ["--document-share", "0.9", "--batch-share", "0.2"],
            "document_share (0.9) and batch_share (0.2) must stay below 1 together, or no time is left for queries.",
        ),
        (
            ["--header-timeout-s", "inf"],
            'Invalid value "inf" for --header-timeout-s. It must be more than 0 and at most 86,400 seconds.',
        ),
        (["--max-batch-size", "0"], 'Invalid value "0" for --max-batch-size. It must be 1 or more.'),
        (["--dimensions", "512,0"], 'Invalid value "512, 0" for --dimensions. It must be 1 or more.'),
        (["--device", "gpu"], 'Invalid value "gpu" for --device. It must be "auto", "cpu", "cuda", or "cuda:" and a number.'),
        (
            ["--dtype", "bfloat"],
            'Invalid value "bfloat" for --dtype. Choose from: "auto", "float32", "bfloat16", "float16". '
            'Did you mean "bfloat16"?',
        ),
        (
            ["--log-level", "loud"],
            'Invalid value "loud" for --log-level. Choose from: "debug", "info", "warning", "error".',
        ),
        (
            ["--min-image-tokens", "300", "--max-image-tokens", "200"],
            "min_image_tokens (300) is more than max_image_tokens (200).",
        ),
        (["--host", " "], 'Invalid value " " for --host. It must be more than white space.'),
        (["one", "two"], 'Unexpected argument "two".'),
        (["one", "--model", "two"], 'The model is given twice: "one" and --model "two".'),
        (["--config", "nowhere.toml"], "There is no file nowhere.toml (--config)."),
        (["--config", "/"], "Cannot read / (--config): Is a directory."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_flag_is_one_line_that_names_it(complaint, argv: list[str], line: str):
    assert complaint("check", *argv) == line


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("prot = 1", 'Unknown key "prot" in {path}. Did you mean "port"?'),
        ("served-name = 'x'", 'Unknown key "served-name" in {path}. Did you mean "served_name"?'),
        ("config = 'x'", 'Unknown key "config" in {path}.'),
        ("[server]\nport = 1", 'Unknown key "server" in {path}. Keys are flat: write them without a table.'),
        ("port = { number = 1 }", '"port" in {path} is a table; it must be a single value.'),
        ("port = 'x'", 'Invalid value for port from {path}: unable to convert "x" into int.'),
        ("port = true", 'Invalid value for port from {path}: unable to convert "True" into int.'),
        ("port = 8.5", 'Invalid value for port from {path}: unable to convert "8.5" into int.'),
        (
            "port = 70000",
            'Invalid value "70000" for port provided by {path}. It must be between 0 and 65,535.',
        ),
        ("port = oops", "{path} is not valid TOML: Invalid value (at line 1, column 8)."),
    ],
    ids=lambda value: value.partition("=")[0],
)
def test_a_wrong_key_is_one_line_that_names_the_file(complaint, tmp_path: Path, content: str, line: str):
    config = tmp_path / "laneway.toml"
    config.write_text(content)
    assert complaint("check", "--config", str(config)) == line.format(path=config)


def test_a_file_that_is_not_text_is_one_line(complaint, tmp_path: Path):
    config = tmp_path / "laneway.toml"
    config.write_bytes(b"port = 1\xff")
    assert complaint("check", "--config", str(config)).startswith(f"{config} is not valid TOML: ")


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("LANEWAY_PROT", "1", 'Unknown environment variable "LANEWAY_PROT". Did you mean "LANEWAY_PORT"?'),
        ("LANEWAY_SERVER_PORT", "1", 'Unknown environment variable "LANEWAY_SERVER_PORT". Did you mean "LANEWAY_PORT"?'),
        ("LANEWAY_PORT", "x", 'Invalid value for LANEWAY_PORT from the environment: unable to convert "x" into int.'),
        ("LANEWAY_PORT", "-1", 'Invalid value "-1" for LANEWAY_PORT provided by the environment. It must be between 0 and 65,535.'),
        ("LANEWAY_CONFIG", "nowhere.toml", "There is no file nowhere.toml (LANEWAY_CONFIG)."),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_one_line_that_names_it(complaint, variable: str, value: str, line: str):
    """A variable with a typing error is ignored by most programs, and found out weeks later."""
    assert complaint("check", env={variable: value}) == line


@pytest.mark.parametrize("command", ["serve", "check", "healthcheck", "pull"])
def test_every_command_reads_the_same_settings_as_strictly(complaint, command: str):
    line = 'Unknown environment variable "LANEWAY_PROT". Did you mean "LANEWAY_PORT"?'
    assert complaint(command, env={"LANEWAY_PROT": "1"}) == line


def test_other_programs_variables_are_none_of_our_business(check):
    assert check(env={"PORT": "1", "LANE": "2", "OTHER_LANEWAY_PORT": "3"})["port"][1] == "default"
