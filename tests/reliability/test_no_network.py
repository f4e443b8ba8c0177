"""Nothing of the package reaches for a network: not when imported (`tests/test_package.py`), not when it trains, tests or predicts."""

from pathlib import Path

# Listens to the interpreter itself, below every library: no connection, datagram or name lookup passes unseen, however it is made in
# Python. gloo's and NCCL's own sockets, between the processes of one run, are made in C++ and are no part of this.
GUARDED = """
import runpy, sys
REMOTE = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")

def guard(event, arguments):
    if event in REMOTE:
        with open("reached.txt", "a") as file:
            file.write(f"{event} {arguments[1:]}\\n")
        raise OSError("no network here")

sys.addaudithook(guard)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_training_and_evaluation_reach_for_no_network(child, command, small_fit, source):
    Path("guarded.py").write_text(GUARDED)
    config = ["--config", "run/config.yaml"]
    predict = ["predict", "--ckpt", "run", "--data", str(source), "--output", "out.csv"]
    for words in ([*small_fit, "--run_dir", "run", "--trainer.max_epochs", "1"], ["test", *config], predict):
        process = child("guarded.py", command, *words)
        assert process.wait() == 0, process.text()
    assert Path("out.csv").exists()
    assert not Path("reached.txt").exists(), Path("reached.txt").read_text()


def test_the_guard_guards(child):
    Path("guarded.py").write_text(GUARDED)
    Path("caller.py").write_text("import urllib.request\nurllib.request.urlopen('http://192.0.2.1/')\n")
    assert child("guarded.py", "caller.py").wait() == 1
    assert Path("reached.txt").exists()
