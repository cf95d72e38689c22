"""The same work on the processes of a cluster: the same plan, the same factors, and nothing lost with a worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import NO_DATA, STREAMED, checkpoint, contents

import lowrank
from lowrank.errors import ClusterError, NonFiniteWeight, UnsupportedModel
from lowrank.parallel import cluster
from lowrank.pipeline import Execution

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    """Two worker processes on this machine."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as found:
        yield found


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("llama"), num_hidden_layers=4)


def test_two_workers_give_what_one_process_gives(llama: Path, tmp_path: Path, workers: Any) -> None:
    far = Execution(scheduler=workers.scheduler_address)
    lowrank.compress(llama, 0.5, output=tmp_path / "far", settings=NO_DATA, execution=far)
    lowrank.compress(llama, 0.5, output=tmp_path / "here", settings=NO_DATA, execution=STREAMED)
    assert contents(tmp_path / "far") == contents(tmp_path / "here")


def slow_square(number: int) -> tuple[int, int]:
    time.sleep(0.3)
    return number * number, os.getpid()


def test_a_worker_that_is_killed_loses_nothing(workers: Any) -> None:
    with cluster(workers.scheduler_address) as pool:
        victims: list[int] = []

        def kill() -> None:
            time.sleep(1.0)
            pid = next(iter(workers.workers.values())).process.pid
            victims.append(pid)
            os.kill(pid, signal.SIGKILL)

        threading.Thread(target=kill).start()
        found = list(pool.map(slow_square, range(24)))
    assert [square for square, _ in found] == [n * n for n in range(24)]
    assert victims
    # The jobs before it was killed are its own, all later ones another's.
    assert len({pid for _, pid in found}) >= 2


def test_a_worker_that_is_killed_while_weights_are_factored(llama: Path, tmp_path: Path, workers: Any) -> None:
    lowrank.compress(llama, 0.5, output=tmp_path / "here", settings=NO_DATA, execution=STREAMED)
    done = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        progress = tmp_path / "far" / ".lowrank-progress"
        while not done.is_set():
            if len(list(progress.rglob("*.safetensors"))) > 3:
                pid = next(iter(workers.workers.values())).process.pid
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=kill)
    thread.start()
    far = Execution(scheduler=workers.scheduler_address)
    lowrank.compress(llama, 0.5, output=tmp_path / "far", settings=NO_DATA, execution=far)
    done.set()
    thread.join()
    assert killed
    assert contents(tmp_path / "far") == contents(tmp_path / "here")


def test_errors_of_a_worker_are_the_users(tmp_path: Path, workers: Any) -> None:
    import torch
    from checkpoints import index_of
    from safetensors.torch import load_file, save_file

    folder = checkpoint(tmp_path / "model")
    name = next(n for n in index_of(folder) if n.endswith("layers.1.self_attn.k_proj.weight"))
    tensors = load_file(folder / index_of(folder)[name])
    tensors[name][0, 0] = torch.nan
    save_file(tensors, folder / index_of(folder)[name], {"format": "pt"})
    far = Execution(scheduler=workers.scheduler_address)
    with pytest.raises(NonFiniteWeight, match=r"layers\.1\.self_attn\.k_proj\.weight .* 1 NaN"):
        lowrank.analyze(folder, settings=NO_DATA, execution=far)


def test_a_scheduler_that_is_not_there(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowrank.parallel.WAIT", "1s")
    with pytest.raises(ClusterError, match=r"no workers at tcp://127\.0\.0\.1:9 .*start `dask scheduler`"):
        lowrank.analyze(llama, settings=NO_DATA, execution=Execution(scheduler="tcp://127.0.0.1:9"))


def test_only_checkpoints_go_to_a_cluster(tmp_path: Path) -> None:
    from builders import saved_state

    with pytest.raises(UnsupportedModel, match="only those can be streamed"):
        lowrank.analyze(saved_state(tmp_path / "m.pt"), execution=Execution(scheduler="tcp://127.0.0.1:9"))
