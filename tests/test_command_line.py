"""The command line: `rondel run script.py` and `rondel run -m module` run programs as python does.

Each test runs a program with python and with rondel and compares what they did.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("rondel")

Done = tuple[int, str, str]


def run_rondel(*args: str, cwd: Path, module: bool = True) -> Done:
    command = [sys.executable, "-m", "rondel"]
    if not module:
        command = [str(Path(sys.executable).with_name("rondel"))]
    return finished([*command, "run", *args], cwd)


def run_python(*args: str, cwd: Path) -> Done:
    return finished([sys.executable, *args], cwd)


def finished(command: list[str], cwd: Path) -> Done:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a script, a module next to it, and a package."""
    (tmp_path / "neighbour.py").write_text("NAME = 'the neighbour'\n")
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sibling.py").write_text("NAME = 'the sibling'\n")
    return tmp_path


def write(path: Path, code: str) -> str:
    path.write_text(textwrap.dedent(code))
    return str(path)


REPORT = '''
    """What the program is."""
    import asyncio, sys
    print(__name__, __doc__, __file__, __spec__, __package__ or None)
    print(sys.argv)
    print(sys.path[0])
    main = sys.modules["__main__"]
    print(main.__dict__ is globals(), main.__name__, main.__file__)
    def function(): ...
    print(function.__module__, getattr(main, "function", None) is function)
'''


def test_script_sees_what_it_sees_under_python(place: Path) -> None:
    script = write(place / "script.py", REPORT)
    for name in (script, "script.py", "./script.py"):
        args = (name, "one", "--two", "-m", "three", "--help", "-v", "--")
        assert run_rondel(*args, cwd=place) == run_python(*args, cwd=place)


def test_rondel_command_is_installed(place: Path) -> None:
    script = write(place / "script.py", REPORT)
    assert run_rondel(script, "one", cwd=place, module=False) == run_python(
        script, "one", cwd=place
    )


def test_script_imports_its_neighbours_not_those_of_the_current_folder(place: Path) -> None:
    write(place / "script.py", "import neighbour; print(neighbour.NAME)")
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere / "neighbour.py", "NAME = 'a stranger'")
    expected = run_python("../script.py", cwd=elsewhere)
    assert expected == (0, "the neighbour\n", "")
    assert run_rondel("../script.py", cwd=elsewhere) == expected


def test_module_sees_what_it_sees_under_python(place: Path) -> None:
    code = REPORT.replace("__file__, __spec__", "__file__, __spec__.name")
    write(place / "package" / "module.py", code + "\n    from . import sibling\n")
    args = ("-m", "package.module", "one", "--two", "-m", "--help")
    expected = run_python(*args, cwd=place)
    assert expected[0] == 0
    assert run_rondel(*args, cwd=place) == expected


def test_package_is_run_by_its_main_module(place: Path) -> None:
    write(place / "package" / "__main__.py", "import sys; print(__name__, __package__, sys.argv)")
    args = ("-m", "package", "one")
    expected = run_python(*args, cwd=place)
    assert expected[0] == 0
    assert run_rondel(*args, cwd=place) == expected


def test_folder_with_a_main_file(place: Path) -> None:
    folder = place / "folder"
    folder.mkdir()
    write(folder / "__main__.py", "import sys, local; print(__name__, sys.argv, local.NAME)")
    write(folder / "local.py", "NAME = 'local'")
    expected = run_python("folder", "one", cwd=place)
    assert expected == (0, "__main__ ['folder', 'one'] local\n", "")
    assert run_rondel("folder", "one", cwd=place) == expected


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("raise SystemExit", 0),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit('said why')", 1),
        ("import sys; sys.exit(None)", 0),
        ("import os; os._exit(5)", 5),
        ("raise LookupError('mine')", 1),
        ("import asyncio, sys\nasync def main(): sys.exit(4)\nasyncio.run(main())", 4),
        ("this is no python", 1),
        ("import atexit; atexit.register(print, 'at exit'); print('body')", 0),
    ],
)
@pytest.mark.parametrize("as_module", [False, True])
def test_exit_status_and_output(place: Path, code: str, status: int, as_module: bool) -> None:
    write(place / "script.py", code)
    args = ("-m", "script") if as_module else ("script.py",)
    expected = run_python(*args, cwd=place)
    assert expected[0] == status
    got = run_rondel(*args, cwd=place)
    assert got[:2] == expected[:2]
    # Tracebacks may show how the program was started; what they end with is the same.
    assert got[2].splitlines()[-1:] == expected[2].splitlines()[-1:]


def test_script_that_is_not_there(place: Path) -> None:
    status, output, error = run_rondel("missing.py", cwd=place)
    assert (status, output) == (2, "")
    assert "can't open file" in error
    assert "missing.py" in error
    assert "Traceback" not in error


def test_module_that_is_not_there(place: Path) -> None:
    status, output, error = run_rondel("-m", "missing", cwd=place)
    assert (status, output) == (1, "")
    assert error.rstrip().endswith("No module named missing")
    assert "Traceback" not in error


def test_usage(place: Path) -> None:
    for args in ((), ("-m",)):
        status, output, error = run_rondel(*args, cwd=place)
        assert (status, output) == (2, "")
        assert error.startswith("usage: rondel run ")
        assert "Traceback" not in error


LOOPS = """
    import asyncio, sys
    async def main():
        return type(asyncio.get_running_loop()).__module__.partition(".")[0]
    print(asyncio.run(main()))
    loop = asyncio.new_event_loop()
    print(loop.run_until_complete(main()))
    loop.close()
    with asyncio.Runner() as runner:
        print(runner.run(main()))
"""


@pytest.mark.parametrize("as_module", [False, True])
def test_program_runs_on_rondel(place: Path, as_module: bool) -> None:
    write(place / "script.py", LOOPS)
    args = ("-m", "script") if as_module else ("script.py",)
    assert run_rondel(*args, cwd=place) == (0, "rondel\n" * 3, "")


def test_get_event_loop_at_the_bottom_of_a_program(place: Path) -> None:
    write(
        place / "script.py",
        """
        import asyncio
        async def main(loop):
            assert asyncio.get_running_loop() is loop
            return type(loop).__module__.partition(".")[0]
        loop = asyncio.get_event_loop()
        print(loop.run_until_complete(main(loop)))
        loop.close()
        """,
    )
    assert run_rondel("script.py", cwd=place)[:2] == (0, "rondel\n")


def test_keyboard_interrupt_ends_it_as_it_ends_python(place: Path) -> None:
    script = write(
        place / "script.py",
        """
        import asyncio
        async def main():
            try:
                print("started", flush=True)
                await asyncio.sleep(30)
            finally:
                print("cleaned up", flush=True)
        asyncio.run(main())
        """,
    )
    results = []
    for command in ([sys.executable, script], [sys.executable, "-m", "rondel", "run", script]):
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A background job inherits SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            output, error = process.communicate(timeout=10)
        results.append((process.returncode, output, error.splitlines()[-1]))
    assert results[0] == (-signal.SIGINT, "cleaned up\n", "KeyboardInterrupt")
    assert results[1] == results[0]


def test_multiprocessing_finds_the_main_module(place: Path) -> None:
    """Spawned children import the program again by its path."""
    write(
        place / "script.py",
        """
        import asyncio, multiprocessing
        def double(value):
            return 2 * value
        async def main():
            context = multiprocessing.get_context("spawn")
            with context.Pool(1) as pool:
                return await asyncio.to_thread(pool.apply, double, (21,))
        if __name__ == "__main__":
            print(asyncio.run(main()))
        """,
    )
    assert run_rondel("script.py", cwd=place) == (0, "42\n", "")


def test_pickling_what_the_program_defines(place: Path) -> None:
    write(
        place / "script.py",
        """
        import pickle
        class Thing:
            pass
        print(type(pickle.loads(pickle.dumps(Thing()))) is Thing)
        """,
    )
    assert run_rondel("script.py", cwd=place) == (0, "True\n", "")


def test_threads_and_exit_handlers_outlive_the_script(place: Path) -> None:
    write(
        place / "script.py",
        """
        import atexit, sys, threading, time
        value = "still here"
        def late():
            time.sleep(0.1)
            print(value, sys.modules["__main__"].__dict__.get("value"))
        def at_exit():
            print("exit", value, sys.modules["__main__"].__dict__.get("value"))
        threading.Thread(target=late).start()
        atexit.register(at_exit)
        """,
    )
    expected = run_python("script.py", cwd=place)
    assert expected == (0, "still here still here\nexit still here still here\n", "")
    assert run_rondel("script.py", cwd=place) == expected
