"""Standard streams that are closed, full or read by nobody, and limits on the process: the exit
code stays what it would have been, and one line says what is missing."""

import os
import resource
import sys

import pytest

FULL = "/dev/full"
needs_full = pytest.mark.skipif(not os.path.exists(FULL), reason="there is no /dev/full")


def read_a_little(process, n_bytes):
    """Read so much of the output and close the pipe, as `head -c` does; code and standard error."""
    assert process.stdout.read(n_bytes)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    return process.returncode, err.decode()


def test_a_reader_that_leaves_ends_a_reply(start, small):
    code, err = read_a_little(start("run", small, "-p", "hello", "-n", "400"), 1)
    assert code == 1 and "Traceback" not in err and "Exception" not in err, err


def test_a_reader_that_leaves_a_long_listing(start, small):
    process = start("inspect", small, "--json", stdout=os.pipe()[1])
    # Nobody ever reads: the write fails or fits into the pipe.
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 1) and b"Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [
        ["inspect"],
        ["verify"],
        ["run", "-p", "hello", "-n", "8", "--temp", "0"],
        ["run", "--help"],
        ["plan", "--version"],
    ],
)
@needs_full
def test_standard_output_on_a_full_disk(hga, small, words):
    with open(FULL, "wb") as full:
        code, _, err = hga(words[0], small, *words[1:], stdout=full)
    assert code == 3
    assert err.splitlines()[-1] == "hga: error: standard output: No space left on device"
    assert "Traceback" not in err and "Exception" not in err


@needs_full
def test_standard_error_on_a_full_disk_changes_no_exit_code(hga, small):
    with open(FULL, "wb") as full:
        assert hga("inspect", "nowhere", stderr=full)[0] == 2
        code, out, _ = hga("run", small, "-p", "hello", "-n", "8", "--temp", "0", stderr=full)
    assert code == 0 and out


def test_standard_error_that_nobody_reads(start, small):
    gone, end = os.pipe()
    os.close(gone)
    process = start("run", small, "-p", "hello", "-n", "8", "--temp", "0", stderr=end)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and out
    assert start("inspect", "nowhere", stderr=end).wait(60) == 2
    os.close(end)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_streams_that_the_caller_closed(hga, small, closed):
    def close() -> None:
        for fd in closed:
            os.close(fd)

    code, _, err = hga("run", small, "-p", "hello", "-n", "3", preexec_fn=close)
    assert code == 0 and "Traceback" not in err


def limited(what, value):
    """For preexec_fn: a limit of the process."""
    return lambda: resource.setrlimit(what, (value, value))


@pytest.mark.slow
def test_few_open_files(hga, small, tmp_path):
    words = ["-p", "hello", "-n", "3", "--kv", "disk", "--session", "s", "--kv-dir", tmp_path]
    outcomes = []
    for n in range(3, 24, 4):
        code, _, err = hga("run", small, *words, preexec_fn=limited(resource.RLIMIT_NOFILE, n))
        assert "Traceback" not in err or n < 8, err
        # Below what Python itself needs, the interpreter has the last word.
        assert code in (0, 1, 2) or n < 8, (n, code, err)
        outcomes.append(code)
    assert outcomes[-1] == 0
    assert hga("verify", tmp_path / "s")[0] == 0


def test_no_lockable_memory_for_io_uring(hga, small):
    pytest.importorskip("liburing", reason="the package liburing is not installed")
    words = ["run", small, "-p", "hello", "-n", "3", "--temp", "0", "--kv", "disk", "--io"]
    plain = hga(*words, "threads")
    locked = hga(*words, "uring", preexec_fn=limited(resource.RLIMIT_MEMLOCK, 0))
    assert plain[0] == locked[0] == 0 and plain[1] == locked[1], locked[2]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit address space")
def test_little_address_space_is_refused_in_one_line(hga, small):
    outcomes = set()
    for mib in (150, 300, 600, 1200, 2400):
        limit = limited(resource.RLIMIT_AS, mib << 20)
        code, _, err = hga("run", small, "-p", "hello", "-n", "3", preexec_fn=limit)
        if mib >= 600:
            assert code in (0, 3), (mib, code, err)
            assert code == 0 or err.count("hga: error:") == 1, err
        outcomes.add(code)
    assert 0 in outcomes


def test_a_limit_on_the_size_of_files(hga, small, tiny_hf, tmp_path):
    limit = limited(resource.RLIMIT_FSIZE, 8192)
    out = tmp_path / "o.hga"
    code, _, err = hga("pack", tiny_hf("llama"), "-o", out, preexec_fn=limit)
    assert code == 3 and f"{out}: File too large" in err.splitlines()[-1], err
    assert not out.exists()
    words = ["--session", "s", "--kv-dir", tmp_path / "kept"]
    code, text, err = hga("run", small, "-p", "hello", "-n", "3", *words, preexec_fn=limit)
    assert code == 3 and text and "limit on the size of files" in err.splitlines()[-1], err
