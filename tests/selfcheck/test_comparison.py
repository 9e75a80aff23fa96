"""The stored numbers of the self-check against NumPy in float64, and its errors for wrong numbers.

python -m tests.selfcheck.test_comparison      writes bt_jax/selfcheck/numbers.json
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bt_jax import compilers, main
from bt_jax.config import keys
from bt_jax.messages import UserError
from bt_jax.objectives import barlow_twins
from bt_jax.run_folder import environment
from bt_jax.selfcheck import comparison, programs
from bt_jax.tasks import pretrain
from tests.support.paths import ROOT

# ---------------------------------------------------------------------------------------- the same programs in NumPy


def standardised(z):
    """z (n, d) with zero mean and unit biased variance, and the function of its backward pass."""
    offset = z - z.mean(0)
    scale = 1 / np.sqrt(np.square(offset).mean(0) + barlow_twins.EPS)
    out = offset * scale
    return out, lambda g: scale * (g - g.mean(0) - out * (g * out).mean(0))


def loss_and_gradients(z1, z2):
    (a, back1), (b, back2) = standardised(z1), standardised(z2)
    n = len(z1)
    c = np.einsum("ni,nj->ij", a, b) / n
    weight = np.where(np.eye(len(c), dtype=bool), 1, barlow_twins.LAMBD)
    error = c - np.eye(len(c))
    by_c = 2 * weight * error
    by_a, by_b = np.einsum("nj,ij->ni", b, by_c) / n, np.einsum("ni,ij->nj", a, by_c) / n
    return (weight * np.square(error)).sum(), back1(by_a), back2(by_b)


def batch_norm(x, cotangent):
    out, back = standardised(x.reshape(-1, x.shape[-1]))
    g = cotangent.reshape(out.shape)
    return (out * g).sum(), back(g).reshape(x.shape)


def convolution(x, kernel, cotangent):
    size, stride = len(kernel), x.shape[1] // cotangent.shape[1]
    pad, side = size // 2, cotangent.shape[1]
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out, by_x, by_kernel = np.zeros_like(cotangent), np.zeros_like(padded), np.zeros_like(kernel)
    for i in range(size):
        for j in range(size):
            rows, columns = (slice(start, start + stride * (side - 1) + 1, stride) for start in (i, j))
            out += np.einsum("nhwi,io->nhwo", padded[:, rows, columns], kernel[i, j])
            by_x[:, rows, columns] += np.einsum("nhwo,io->nhwi", cotangent, kernel[i, j])
            by_kernel[i, j] = np.einsum("nhwi,nhwo->io", padded[:, rows, columns], cotangent)
    return out, by_x[:, pad : pad + x.shape[1], pad : pad + x.shape[2]], by_kernel


def similarities(bank, queries):
    bank, queries = (x / np.sqrt(np.square(x).sum(1, keepdims=True)) for x in (bank, queries))
    return np.einsum("qd,bd->qb", queries, bank)


BY_NUMPY = {
    "vmap of a sum of squares": lambda x, matrix: np.square(x).sum(1),  # the matrix is the identity
    "sum((E @ broadcast(c)) * E)": lambda e, c: c * np.square(e.sum(1)).sum(),
    "loss and gradients, covariance form": loss_and_gradients,
    "loss and gradients, Gram form": loss_and_gradients,
    "batch norm and its gradient": batch_norm,
    "LARS norms": lambda p, g: np.sqrt(np.square(p).sum() / np.square(g).sum()) * g,
    "3x3 convolution, its two gradients": convolution,
    "3x3 convolution, stride 2, its gradients": convolution,
    "1x1 convolution, stride 2, its gradients": convolution,
    "kNN similarities": similarities,
}


PATTERNS = list(BY_NUMPY)[:2]  # the patterns that some releases of XLA compute wrongly


def numbers() -> dict[str, list[list[float]]]:
    """The content of selfcheck/numbers.json."""
    digests = {}
    for rows in (16_385, 32_769):
        for check in programs.checks(rows):
            outputs = BY_NUMPY[check.name](*check.inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            digests[check.stored_name(rows)] = [programs.digest(np.asarray(out)).tolist() for out in outputs]
    return digests


def test_the_stored_numbers_equal_numpy():
    stored, computed = json.loads(comparison.NUMBERS.read_text()), numbers()
    assert stored.keys() == computed.keys()
    for name, outputs in computed.items():
        for digest, expected in zip(stored[name], outputs, strict=True):
            # Another release of NumPy may sum in another order.
            np.testing.assert_allclose(digest, expected, rtol=0, atol=1e-13 * np.abs(expected).max(), err_msg=name)


# ---------------------------------------------------------------------------------------------- this machine is correct


@pytest.mark.parametrize("x64", [False, True])
def test_this_machine_computes_correctly(x64):
    with jax.enable_x64(x64):
        wrong = [result for result in comparison.run_on(jax.devices()[0]) if not result.correct]
    assert not wrong


# ------------------------------------------------------------------------------------------- wrong numbers are detected


@pytest.mark.parametrize("name", BY_NUMPY)
def test_a_wrong_number_is_detected(name, monkeypatch, tmp_path):
    """One element of an output is off by a tenth of the largest element."""
    check = next(check for check in programs.checks(32_769) if check.name == name)

    def planted(*inputs):
        first, *rest = jax.tree.leaves(check.run(*inputs))
        flat = first.ravel()
        return flat.at[-1].add(0.1 * abs(flat).max()).reshape(first.shape), *rest

    monkeypatch.setattr(programs, "checks", lambda rows: [check._replace(run=planted)])
    with pytest.raises(UserError) as caught:
        comparison.require(tmp_path)
    message = str(caught.value)
    assert all(
        part in message for part in (name, compilers.jaxlib_version(), jax.devices()[0].device_kind, "selfcheck")
    )
    assert not list(tmp_path.iterdir())  # a failed check runs again at the next start


def test_nan_is_detected(monkeypatch):
    check = programs.checks(32_769)[1]
    monkeypatch.setattr(programs, "checks", lambda rows: [check._replace(run=lambda *inputs: jax.numpy.nan)])
    assert comparison.run_on(jax.devices()[0])[0].error == np.inf


@pytest.mark.skipif(not compilers.needs_flag(), reason="this jaxlib is not known to compute wrongly")
def test_the_patterns_are_wrong_with_the_fusion_on():
    """The command does not change a user's flag, and its message names the flag."""
    flag = f"--{compilers.FLAG}=individual_dot,individual_convolution,reduce"
    environment = os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bt_jax.selfcheck"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    wrong = [text.split("  ")[1] for text in done.stdout.splitlines() if text.endswith("WRONG")]
    assert wrong == [name for name in PATTERNS if "vmap" not in name or compilers.jaxlib_version() == "0.10.2"]
    assert f"Remove {flag} from XLA_FLAGS" in done.stderr
    assert f"XLA_FLAGS has {flag}" in done.stderr  # the warning


# -------------------------------------------------------------------------------------------------------- when it runs


def test_it_runs_once_for_the_same_conditions(monkeypatch, tmp_path):
    device = jax.devices()[0].device_kind

    def passed():
        comparison.require(tmp_path)
        return dict(compilers.checked)

    one = programs.checks(32_769)[1:2]
    monkeypatch.setattr(programs, "checks", lambda rows: one)
    assert passed() == {device: "passed"}
    assert passed() == {device: "passed before"}
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_cpu_enable_fast_math=false")
    assert passed() == {device: "passed"}
    with jax.enable_x64(True):
        assert passed() == {device: "passed"}
    current, in_table = compilers.jaxlib_version(), compilers.needs_flag()
    table = compilers.WRONG_REDUCE_FUSION
    # The version alone may change, not whether it needs the flag.
    other = next(version for version in (*table, "0.99") if version != current and (version in table) == in_table)
    monkeypatch.setattr(compilers, "jaxlib_version", lambda: other)
    assert passed() == {device: "passed"}


def test_the_program_begins_with_the_self_check_unless_it_is_switched_off(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(main, "WORKDIR", SimpleNamespace(value=str(tmp_path / "run")))
    monkeypatch.setattr(compilers, "checked", {})
    runs = []
    monkeypatch.setattr(pretrain, "run", lambda *a, **options: runs.append(environment.describe()["self_check"]))
    check = programs.checks(32_769)[1]
    wrong, device = check._replace(run=lambda *inputs: check.run(*inputs) + 1), jax.devices()[0].device_kind
    settings = keys.pretrain()
    monkeypatch.setattr(programs, "checks", lambda rows: [wrong])
    with pytest.raises(UserError, match="computes wrongly"):
        main._run(settings, 0.0)
    assert not runs
    settings.self_check = False
    main._run(settings, 0.0)
    settings.self_check = True
    monkeypatch.setattr(programs, "checks", lambda rows: [check])
    main._run(settings, 0.0)
    assert runs == ["left out", {device: "passed"}]


if __name__ == "__main__":
    comparison.NUMBERS.write_text(json.dumps(numbers(), indent=1) + "\n")
