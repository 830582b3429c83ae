"""Checkpoints of other DNCs, moved as docs/migration.md says, and served."""

from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from dnc_serve.client import Client
from tests.documents import block, run_python, run_shell
from tests.end_to_end.servers import running

PAGE = "docs/migration.md"


def served(folder: Path, inputs: np.ndarray) -> np.ndarray:
    """The outputs of `runs/moved` to inputs [T, B, I], each sequence in a session of its own."""
    export = block(PAGE, "sh", "dnc export").splitlines()[0]
    run_shell(export, folder)
    with running(folder / "artifact", folder / "server") as server, Client(server.grpc) as client:
        outputs = []
        for row in range(inputs.shape[1]):
            with client.session(f"row-{row}") as session:
                chunks = np.split(inputs[:, row], [1, 3])
                outputs.append(np.concatenate([session.step(chunk) for chunk in chunks]))
    return np.stack(outputs, 1)


def test_a_checkpoint_of_the_package_is_served(dnc_package: ModuleType, tmp_path: Path) -> None:
    theirs = dnc_package.DNC(input_size=6, hidden_size=24, num_layers=2, nr_cells=16, cell_size=20, read_heads=4)
    torch.save(theirs.state_dict(), tmp_path / "checkpoint.pth")
    inputs = torch.randn(6, 2, 6)
    hidden = ([(torch.zeros(2, 2, 24), torch.zeros(2, 2, 24)) for _ in range(2)], None, None)
    expected = []
    with torch.no_grad():
        for x in inputs:
            outputs, hidden = theirs(x.unsqueeze(1), hidden)
            expected.append(outputs[:, 0])

    run_python(block(PAGE, "python", "from_dnc_package"), tmp_path)
    np.testing.assert_allclose(served(tmp_path, inputs.numpy()), torch.stack(expected), rtol=0, atol=1e-5)


def test_a_checkpoint_of_deepminds_is_served(golden, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    case = golden("dnc_repeat_copy_size")
    arrays = {name.removeprefix("weights/"): array for name, array in case.items() if name.startswith("weights/")}
    np.savez(tmp_path / "dnc.npz", **arrays)
    run_python(block(PAGE, "python", "from_deepmind"), tmp_path)
    outputs = served(tmp_path, case["inputs"].numpy())
    np.testing.assert_allclose(outputs, case["outputs"].numpy(), rtol=0, atol=1e-4)
