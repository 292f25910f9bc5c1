"""torchvision imports beside a CPU build of torch, and an import that works by itself is left alone."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("calls", [1, 2])
def test_torchvision_imports_and_its_transforms_work(calls: int) -> None:
    code = (
        "from bench import torchvision_fix\n" + "torchvision_fix.install()\n" * calls + "import torchvision, torch\n"
        "from torchvision.transforms import v2\n"
        "print(tuple(v2.Resize((4, 6))(torch.zeros(3, 9, 9)).shape))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(3, 4, 6)", done.stderr


def test_other_errors_of_the_import_are_not_hidden(tmp_path, monkeypatch) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('something else')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom bench import torchvision_fix\n"
    code += "torchvision_fix.install()\nimport torchvision"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "something else" in done.stderr
