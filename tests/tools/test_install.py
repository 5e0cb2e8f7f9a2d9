"""install.sh with interpreters that only say what they are asked to do."""

import os
import shutil
import signal
import subprocess

import pytest

from ..small_models import ROOT

# Answers what install.sh asks; every pip call becomes a line of pip.log.
# The files "interrupt" and "fail" name a call that does not end well.
INTERPRETER = """#!{bash}
version={version} log={log}
case "$*" in
    *version_info*) exit {unsuitable} ;;
    *base_prefix*) echo "$version" /usr ;;
    '-m venv --clear '*)
        venv="${{@:4}}"
        rm -rf "$venv"
        mkdir -p "$venv/bin"
        touch "$venv/pyvenv.cfg"
        cp "$0" "$venv/bin/python"
        echo "venv $version" >>"$log/log"
        [ ! -e "$log/interrupt-venv" ] || {{
            rm "$log/interrupt-venv"
            kill -INT $PPID
            exit 0
        }}
        touch "$venv/has-pip" ;;
    '-m pip --version') [ -e "$(dirname "$0")/../has-pip" ] ;;
    '-m pip '*)
        [ -e "$(dirname "$0")/../has-pip" ] || exit 1
        echo "pip $*" >>"$log/log"
        case "$*" in *torch*)
            [ ! -e "$log/interrupt-pip" ] || {{
                rm "$log/interrupt-pip"
                kill -INT $PPID
                exit 1
            }}
            [ ! -e "$log/fail-pip" ] || {{ rm "$log/fail-pip"; exit 1; }} ;;
        esac ;;
    *torch.__version__*) echo 2.13.0 ;;
esac
"""


class Machine:
    """A checkout in a folder with odd characters, and some interpreters."""

    def __init__(self, folder):
        self.checkout = folder / 'a checkout, 100%'
        (self.checkout / 'tools').mkdir(parents=True)
        for name in ('setup.cfg', 'tools/install.sh'):
            shutil.copy(ROOT / name, self.checkout / name)
        self.bin = folder / 'bin'
        self.bin.mkdir()
        # Of the real machine everything but its interpreters.
        for folder in os.get_exec_path():
            for tool in os.scandir(folder) if os.path.isdir(folder) else ():
                link = self.bin / tool.name
                if 'python' not in tool.name and not link.exists():
                    link.symlink_to(tool.path)

    def python(self, name, version='3.12.1 (main)', suits=True):
        path = self.bin / name
        path.write_text(
            INTERPRETER.format(
                bash=shutil.which('bash'),
                version=f"'{version}'",
                log=f"'{self.checkout}'",
                unsuitable=int(not suits),
            )
        )
        path.chmod(0o755)

    def next_time(self, what):
        (self.checkout / what).touch()

    def install(self, **environment):
        """Its exit status and output, and what the interpreters did."""
        log = self.checkout / 'log'
        log.unlink(missing_ok=True)
        done = subprocess.run(
            [self.bin / 'bash', self.checkout / 'tools/install.sh'],
            env=dict(PATH=str(self.bin), **environment),
            capture_output=True,
            text=True,
            timeout=60,
            # Ctrl-C, also where the tests run in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        did = log.read_text() if log.exists() else ''
        return done.returncode, done.stdout + done.stderr, did


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_suitable_interpreter_is_found_and_the_second_run_does_nothing(
    machine,
):
    machine.python('python3.11', suits=False)  # a name that leads nowhere
    machine.python('python3.12')
    status, said, did = machine.install()
    assert status == 0, said
    assert did.startswith('venv 3.12.1')
    assert ' mmcv==2.1.0' in did and '.[mmdet,demo,tests]' in did
    status, said, did = machine.install()
    assert status == 0 and 'up to date' in said and not did


def test_without_a_suitable_interpreter_it_says_what_is_missing(machine):
    machine.python('python3', suits=False)
    status, said, _ = machine.install()
    assert status == 1 and 'no Python 3.10 to 3.13' in said
    status, said, _ = machine.install(PYTHON='python3.9')
    assert status == 1 and 'python3.9 is no Python 3.10 to 3.13' in said


def test_python_3_13_gets_the_forks(machine):
    machine.python('python3.13', '3.13.0 (main)')
    status, said, did = machine.install()
    assert status == 0, said
    assert '.[onedl,demo,tests] onedl-mmcv==' in did


def test_a_run_that_was_interrupted_can_be_repeated(machine):
    machine.python('python3.12')
    for stage in ('venv', 'pip'):
        machine.next_time(f'interrupt-{stage}')
        status, _, did = machine.install()
        # Bash may report its own exit or the signal.
        assert status in (130, -signal.SIGINT) and 'venv' in did
    status, said, did = machine.install()
    assert status == 0, said
    assert did.startswith('venv'), 'a half-changed environment is made anew'


def test_what_failed_by_itself_is_not_made_anew(machine):
    machine.python('python3.12')
    machine.next_time('fail-pip')
    assert machine.install()[0] == 1
    status, _, did = machine.install()
    assert status == 0 and 'venv' not in did


def test_another_interpreter_makes_another_environment(machine):
    machine.python('python3.12')
    machine.python('python3.10', '3.10.13 (main)')
    assert machine.install()[0] == 0
    status, _, did = machine.install(PYTHON='python3.10')
    assert status == 0 and did.startswith('venv 3.10.13')
    # A finished one stays without a word about the interpreter ...
    assert 'up to date' in machine.install()[1]
    # ... and what a failed run began does not.
    machine.next_time('fail-pip')
    assert machine.install(PYTHON='python3.12')[0] == 1
    machine.python('python3.11', '3.11.7 (main)')
    assert machine.install()[2].startswith('venv 3.11.7')


def test_wheels_from_a_folder_need_no_network(machine, tmp_path):
    machine.python('python3.12')
    wheels = tmp_path / 'my wheels'
    wheels.mkdir()
    status, said, did = machine.install(WHEELS=str(wheels))
    assert status == 0, said
    installs = [line for line in did.splitlines() if ' install ' in line]
    option = f' install --no-index --find-links {wheels} '
    assert installs and all(option in line for line in installs)


def test_a_folder_of_something_else_is_not_cleared(machine):
    machine.python('python3.12')
    (machine.checkout / '.venv').mkdir()
    (machine.checkout / '.venv/thesis.tex').touch()
    status, said, _ = machine.install()
    assert status == 1 and 'something else' in said
    assert (machine.checkout / '.venv/thesis.tex').exists()
