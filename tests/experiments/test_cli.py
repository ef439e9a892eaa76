"""What all commands share: where compiled programs are kept."""

import os
import platform
import signal
import subprocess
import sys

import jax
import pytest

from experiments import KEEP_MEMORY, _cli

KEYS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    before = {key: getattr(jax.config, key) for key in KEYS}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for key, value in before.items():
        jax.config.update(key, value)


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path):
    _cli.use_compilation_cache()
    (folder,) = (tmp_path / "cache" / "behrt_jax").iterdir()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    _cli.use_compilation_cache()
    assert len(list(folder.parent.iterdir())) == 1


def test_a_folder_of_ones_own_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    _cli.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None and not (tmp_path / "cache").exists()


def test_nothing_is_kept_where_the_cache_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    _cli.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")
@pytest.mark.parametrize("name", ["-m", "a program"])
def test_a_command_and_nothing_else_starts_again_with_malloc_settings(name):
    program = f"import os, sys; sys.argv[0] = {name!r}; import experiments; print(os.environ.get('MALLOC_ARENA_MAX'))"
    environment = {key: value for key, value in os.environ.items() if key not in KEEP_MEMORY}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == (KEEP_MEMORY["MALLOC_ARENA_MAX"] if name == "-m" else "None")


@pytest.mark.parametrize(
    ("resumes", "line"), [(False, "run the same command to start over."), (True, "run the same command to resume.")]
)
def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys, resumes, line):
    def main():
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # put back at the end
    for name in ("_parse_flags", "use_compilation_cache"):
        monkeypatch.setattr(_cli, name, lambda: None)
    with pytest.raises(SystemExit, match="130"):
        _cli.run(main, resumes=resumes)
    signal.signal(signal.SIGTERM, handler)
    assert capsys.readouterr().err.endswith(line + "\n")
