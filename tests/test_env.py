"""env/run for real, in throw-away checkouts whose only requirement is a wheel made here."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

ENV = Path(__file__).resolve().parent.parent / "env"
WHEEL = "tiny-1.0-py3-none-any.whl"
SHOW_ORIGIN = "import tiny, pipeline; print(tiny.__file__); print(pipeline.__file__)"


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """A folder with one package."""
    folder = tmp_path_factory.mktemp("wheels")
    files = {
        "tiny.py": b"",
        "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
    }
    digests = {n: base64.urlsafe_b64encode(hashlib.sha256(c).digest()) for n, c in files.items()}
    record = [f"{n},sha256={digests[n].rstrip(b'=').decode()},{len(files[n])}" for n in files]
    record.append("tiny-1.0.dist-info/RECORD,,")
    files["tiny-1.0.dist-info/RECORD"] = "\n".join(record).encode()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    return folder


def new_checkout(folder: Path) -> Path:
    """What env/run needs of a checkout, and a netpress that tells which checkout it is from."""
    for name in ["run", "create.py", "bin/netpress"]:
        (folder / "env" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ENV / name, folder / "env" / name)
    (folder / "env" / "requirements.txt").write_text("-c constraints.txt\ntiny==1.0\n")
    (folder / "env" / "constraints.txt").write_text("")
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "__init__.py").write_text("")
    (folder / "pipeline" / "cli.py").write_text("def main(): print('netpress of', __file__)\n")
    return folder


def environ(home: Path, **changes: str) -> dict[str, str]:
    """That of a user with nothing set up."""
    home.mkdir(parents=True, exist_ok=True)
    plain = {"HOME": str(home), "PATH": os.defpath, "PIP_CONFIG_FILE": os.devnull}
    return plain | {"NETPRESS_PYTHON": sys.executable} | changes


def run(checkout: Path, *command: str, env: dict[str, str], cwd: Path | None = None):
    return subprocess.run(
        [checkout / "env" / "run", *command],
        env=env,
        cwd=cwd or checkout,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def start(checkout: Path, *command: str, env: dict[str, str]) -> subprocess.Popen:
    """As from a terminal: tests that a script runs in the background inherit that Ctrl-C is to be
    ignored, and so would all that they start."""
    return subprocess.Popen(
        [checkout / "env" / "run", *command],
        env=env,
        cwd=checkout,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@dataclass
class Index:
    """A package index that gives the wheel away only once it is told to."""

    url: str
    asked: threading.Event  # pip waits for the wheel, so the set-up is in its middle
    go_on: threading.Event
    served: list[str]

    def wait_until_asked_by(self, process: subprocess.Popen, seconds: float) -> None:
        """A process that ended will not ask any more: it is not waited for."""
        deadline = time.monotonic() + seconds
        while not self.asked.wait(0.1):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline


@contextmanager
def index(wheels: Path):
    asked, go_on, served = threading.Event(), threading.Event(), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = f'<a href="/{WHEEL}">{WHEEL}</a>'.encode()
            if self.path.endswith(".whl"):
                asked.set()
                go_on.wait(60)
                body = (wheels / WHEEL).read_bytes()
                served.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            pass  # the killed client's connection

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Index(f"http://127.0.0.1:{server.server_port}/simple", asked, go_on, served)
    finally:
        go_on.set()
        server.shutdown()
        server.server_close()


def attempts(root: Path) -> list[Path]:
    """The folders, finished or not; not the link to the finished one."""
    return [p for p in root.glob("env-*") if p.is_dir() and not p.is_symlink()]


def links(root: Path) -> list[Path]:
    return [p for p in root.glob("env-*") if p.is_symlink()]


@pytest.fixture(scope="module")
def made(tmp_path_factory, wheels):
    """A checkout after its first env/run, in folders with spaces: (checkout, env, run)."""
    checkout = new_checkout(tmp_path_factory.mktemp("made") / "my checkout")
    home = checkout.parent / "my home"
    env = environ(home, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))
    return checkout, env, run(checkout, "python", "-c", SHOW_ORIGIN, env=env)


def test_first_use_makes_the_environment_and_says_so(made):
    checkout, env, first = made
    assert first.returncode == 0, first.stderr
    tiny, pipeline = first.stdout.splitlines()
    assert tiny.startswith(f"{env['HOME']}/.cache/netpress/env-")
    assert pipeline == str(checkout / "pipeline" / "__init__.py")
    assert first.stderr.startswith("netpress: making the environment with Python 3.")
    assert len(first.stderr.splitlines()) == 2
    (link,) = links(Path(env["HOME"], ".cache", "netpress"))
    mask = os.umask(0o077)
    os.umask(mask)
    assert link.stat().st_mode & 0o777 == 0o777 & ~mask  # as readable as all else of the user


@pytest.mark.parametrize("python", [sys.executable, ""], ids=["named", "searched"])
def test_later_uses_are_quiet_and_need_no_index(made, python):
    checkout, env, _ = made
    env = env | {"PIP_FIND_LINKS": "/nowhere", "NETPRESS_PYTHON": python}
    later = run(checkout, "python", "-c", SHOW_ORIGIN, env=env)
    assert (later.returncode, later.stderr) == (0, "")
    assert len(attempts(Path(env["HOME"], ".cache", "netpress"))) == 1


def test_an_environment_that_is_there_starts_few_programs_and_no_python(made, tmp_path):
    """Each of them is a millisecond or two; a Python is more than all of them."""
    checkout, env, _ = made
    calls = tmp_path / "calls"
    for name in ("uname", "cat", "sha256sum", "dirname", "readlink", "true"):
        shim = tmp_path / "bin" / name
        shim.parent.mkdir(exist_ok=True)
        real = shutil.which(name)
        shim.write_text(f'#!/bin/sh\necho {name} >>"{calls}"\nexec {real} "$@"\n')
        shim.chmod(0o755)
    env = {k: v for k, v in env.items() if k != "NETPRESS_PYTHON"}
    ended = run(checkout, "true", env=env | {"PATH": str(tmp_path / "bin")})  # and nothing else
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(calls.read_text().split()) == [
        *("cat", "dirname", "dirname", "sha256sum", "true", "uname")
    ]


def test_what_runs_is_this_checkout_in_whatever_folder(made, tmp_path):
    checkout, env, _ = made
    other = new_checkout(tmp_path / "other")
    env = env | {"PYTHONPATH": str(other)}
    for mine, theirs in [(checkout, other), (other, checkout)]:
        result = run(mine, "netpress", env=env, cwd=theirs)
        assert result.stdout == f"netpress of {mine / 'pipeline' / 'cli.py'}\n"
        assert result.stderr == ""  # both use one environment


def test_a_link_to_env_run_is_as_good_as_the_file(made, tmp_path):
    checkout, env, _ = made
    (tmp_path / "go").symlink_to(checkout / "env" / "run")
    result = subprocess.run([tmp_path / "go", "netpress"], env=env, capture_output=True, text=True)
    assert result.stdout == f"netpress of {checkout / 'pipeline' / 'cli.py'}\n"


def test_the_exit_code_is_the_commands(made):
    checkout, env, _ = made
    assert run(checkout, "sh", "-c", "exit 7", env=env).returncode == 7
    assert run(checkout, env=env).returncode == 2


def test_an_environment_whose_python_left_the_machine_is_made_anew(made, tmp_path):
    checkout, env, _ = made
    shutil.copytree(Path(env["HOME"], ".cache"), tmp_path / ".cache", symlinks=True)
    (link,) = links(tmp_path / ".cache" / "netpress")
    (link / "bin" / "python").unlink()
    again = run(checkout, "python", "-c", SHOW_ORIGIN, env=env | {"HOME": str(tmp_path)})
    assert again.returncode == 0 and "making the environment" in again.stderr
    assert len(attempts(link.parent)) == 1


def test_interrupted_in_the_middle_then_redone(tmp_path, wheels):
    checkout, root = new_checkout(tmp_path / "checkout"), tmp_path / "root"
    with index(wheels) as slow:
        env = environ(tmp_path / "home", NETPRESS_ENV_ROOT=str(root), PIP_INDEX_URL=slow.url)
        for interrupt in (kill_all, kill_only_the_installer, press_ctrl_c):
            slow.asked.clear()
            process = start(checkout, "echo", "ran", env=env)
            slow.wait_until_asked_by(process, 120)
            interrupt(process.pid)
            stdout, _ = process.communicate(timeout=30)
            assert (process.returncode != 0, stdout) == (True, "")
            assert links(root) == []
            assert frees_its_lock(root)

        slow.go_on.set()
        again = run(checkout, "python", "-c", SHOW_ORIGIN, env=env)
        assert again.returncode == 0, again.stderr
        assert len(links(root)) == len(attempts(root)) == 1


def kill_all(pid: int) -> None:
    os.killpg(pid, signal.SIGKILL)


def kill_only_the_installer(pid: int) -> None:
    psutil.Process(pid).children()[0].kill()


def press_ctrl_c(pid: int) -> None:
    os.killpg(pid, signal.SIGINT)


def frees_its_lock(root: Path) -> bool:
    """Whether within 5 s nothing is at work any more."""
    (path,) = root.glob("*.lock")
    with path.open() as lock:
        for _ in range(50):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                time.sleep(0.1)
    return False


def test_two_at_once_make_one_environment(tmp_path, wheels):
    root = tmp_path / "root"
    with index(wheels) as slow:
        env = environ(tmp_path / "home", NETPRESS_ENV_ROOT=str(root), PIP_INDEX_URL=slow.url)
        first = start(new_checkout(tmp_path / "one"), "python", "-c", SHOW_ORIGIN, env=env)
        slow.wait_until_asked_by(first, 30)
        second = start(new_checkout(tmp_path / "two"), "python", "-c", SHOW_ORIGIN, env=env)
        assert "another env/run is making the environment" in second.stderr.readline()
        slow.go_on.set()
        origins = [process.communicate(timeout=60)[0].splitlines() for process in (first, second)]
    assert origins[0][0] == origins[1][0]
    assert origins[1][1] == str(tmp_path / "two" / "pipeline" / "__init__.py")
    assert len(slow.served) == len(attempts(root)) == 1


def test_what_pip_cannot_get_is_named_with_the_log(tmp_path):
    checkout = new_checkout(tmp_path / "checkout")
    result = run(checkout, "true", env=environ(tmp_path / "home", PIP_NO_INDEX="1"))
    assert result.returncode == 1
    assert "No matching distribution found for tiny==1.0" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("netpress: the environment could not be made; its log is ")
    assert "tiny" in Path(last.split("its log is ")[1]).read_text()
    assert attempts(tmp_path / "home" / ".cache" / "netpress") == []


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    env = environ(tmp_path, NETPRESS_ENV_ROOT=str(tmp_path / "file" / "root"))
    result = run(new_checkout(tmp_path / "checkout"), "true", env=env)
    assert result.returncode == 1
    assert result.stderr.startswith("netpress: the environment could not be made in ")
    assert "Traceback" not in result.stderr


def no_python(folder: Path) -> dict[str, str]:
    """A PATH with all that env/run calls, and no Python."""
    folder.mkdir()
    for tool in ["sh", "uname", "cat", "sha256sum", "dirname", "readlink"]:
        (folder / tool).symlink_to(shutil.which(tool))
    return {"PATH": str(folder), "NETPRESS_PYTHON": ""}


def without_venv(folder: Path) -> Path:
    """Debian's Python before python3-venv is installed, as far as the question goes."""
    script = folder / "python3"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.modules['ensurepip'] = None\n"
        "exec(sys.argv[sys.argv.index('-c') + 1])\n"
    )
    script.chmod(0o755)
    return script


def test_no_python_is_one_sentence(tmp_path):
    env = environ(tmp_path / "home", **no_python(tmp_path / "bin"))
    result = run(new_checkout(tmp_path / "checkout"), "true", env=env)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert result.stderr.startswith("netpress: no Python 3.10 or newer is on PATH")


def test_a_python_without_venv_is_one_sentence(tmp_path):
    env = environ(tmp_path / "home", **no_python(tmp_path / "bin"))
    script = without_venv(tmp_path / "bin")
    checkout = new_checkout(tmp_path / "checkout")
    for named, called in [("", "python3"), (str(script), str(script))]:
        result = run(checkout, "true", env=env | {"NETPRESS_PYTHON": named})
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
        assert result.stderr.startswith(f"netpress: {called} cannot make a virtual environment")
        assert "apt-get install python3-venv" in result.stderr


def test_a_named_python_that_is_none_is_one_sentence(tmp_path):
    env = environ(tmp_path / "home", NETPRESS_PYTHON="/bin/false")
    result = run(new_checkout(tmp_path / "checkout"), "true", env=env)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert result.stderr.startswith("netpress: NETPRESS_PYTHON is /bin/false, which does not run")


def test_no_home_is_one_sentence(tmp_path):
    env = {k: v for k, v in environ(tmp_path).items() if k != "HOME"}
    result = run(new_checkout(tmp_path / "checkout"), "true", env=env)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "set NETPRESS_ENV_ROOT" in result.stderr
