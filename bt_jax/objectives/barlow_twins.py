"""The exact Barlow Twins loss, in two forms with equal results, on any number of devices.

    c = standardise(z1)^T standardise(z2) / N            paper section 2.1, equation 2
    loss = sum_i (1 - c_ii)^2 + lambd * sum_i sum_{j != i} c_ij^2      equation 1

The statistics are those of the reference's `BatchNorm1d(affine=False)` (main.py): per view, with biased variance, and
eps inside the root. Algorithm 1 of the paper has the unbiased deviation, with which c_ii cannot exceed (N - 1) / N.

With a mesh, the embeddings are split by feature: each of P devices has all N rows of D / P features. It computes the
statistics and the diagonal of its features alone. No device has a (D, D) matrix: the covariance form computes c in
blocks of rows, and the Gram form does not need c.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bt_jax.messages import UserError
from bt_jax.objectives.base import Context, Metric, Objective, Outcome
from bt_jax.objectives.forward import Forward, Tree
from bt_jax.objectives.functions import check_embeddings, embedding_std
from bt_jax.shapes import Array, Float

EPS = 1e-5  # the default of torch.nn.BatchNorm1d, which the reference uses
LAMBD = 0.0051  # reference main.py; the text of the paper rounds it to 5e-3 (section 2.2)
BLOCK = 1 << 24  # elements of c that one device computes at a time: 64 MB of float32

Form = Literal["auto", "covariance", "gram"]
FORMS: tuple[Form, ...] = ("covariance", "gram")


def standardise(z: Float[Array, "n d"]) -> Float[jax.Array, "n d"]:
    """Scales every feature to zero mean and unit biased variance over the batch.

    Args:
      z: (n, d), float.

    Returns:
      (n, d), float32, or the dtype of z if that is wider.
    """
    wide = jnp.asarray(z, z.dtype if jnp.finfo(z.dtype).bits > 32 else jnp.float32)
    centred = wide - wide.mean(axis=0)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=0) + EPS)


def cross_correlation(z1: Float[Array, "n d"], z2: Float[Array, "n e"]) -> Float[jax.Array, "d e"]:
    """The cross-correlation c (d, d) of two embeddings (n, d), in float32 or wider."""
    return _matmul(standardise(z1).T, standardise(z2)) / z1.shape[0]


def choose_form(n: int, d: int) -> Form:
    """The form with the cheaper matrix products, for n samples of d features.

    Loss and gradient need 4 n^2 d multiplications in the Gram form and 3 n d^2 in the covariance form.
    """
    return "gram" if 4 * n <= 3 * d else "covariance"


def barlow_twins(
    z1: Float[Array, "n d"],
    z2: Float[Array, "n d"],
    *,
    lambd: float = LAMBD,
    form: Form = "auto",
    mesh: Mesh | None = None,
) -> tuple[Float[jax.Array, ""], dict[str, Float[jax.Array, ""]]]:
    """The loss of two embeddings of the same n images.

    Args:
      z1, z2: (n, d), float32, bfloat16 or float64, n >= 2. Accumulation is in float32 or wider.
      lambd: weight of the off-diagonal term.
      form: "covariance" computes c, a block of rows at a time. "gram" computes two (n, n) matrices instead, with
        sum_ij c_ij^2 = <Z1 Z1^T, Z2 Z2^T> / n^2, and the diagonal from products of columns. "auto" is `choose_form`.
      mesh: the features are split over its one axis, for any sharding of z1 and z2. Without it, each device of a
        split batch computes all of c. If d is not divisible by the number of devices, it has no effect.

    Returns:
      The loss, and its parts: "on_diag" = sum (1 - c_ii)^2, "off_diag" = sum of c_ij^2 off the diagonal, without the
      factor lambd, and "diag_mean" = mean c_ii.

    Raises:
      UserError: z1 and z2 are not floating-point arrays (n, d) of one shape with n >= 2, or the form is unknown.
    """
    check_embeddings(z1=z1, z2=z2)
    n, d = z1.shape
    if form == "auto":
        form = choose_form(n, d)
    if form not in FORMS:
        raise UserError(f"form={form!r} is unknown", "Choose from auto, covariance, gram.")
    if mesh is not None and (mesh.devices.size == 1 or d % mesh.devices.size):
        mesh = None
    if mesh is not None:
        by_feature = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names[0]))
        z1, z2 = (jax.lax.with_sharding_constraint(z, by_feature) for z in (z1, z2))
    z1, z2 = standardise(z1), standardise(z2)
    diag = (z1 * z2).sum(axis=0) / n
    squares: jax.Array = _sum_of_squares(z1, z2, form, mesh)
    on_diag = jnp.square(1 - diag).sum()
    off_diag = squares - jnp.square(diag).sum()
    return on_diag + lambd * off_diag, {"on_diag": on_diag, "off_diag": off_diag, "diag_mean": diag.mean()}


@dataclasses.dataclass(frozen=True)
class BarlowTwins(Objective):
    """The method of the paper: the loss above of the projector's outputs for two views.

    Attributes:
      lambd: weight of the off-diagonal term.
      form: see `barlow_twins`.
      two_passes: each view has its own batch statistics, as in the reference (main.py). Otherwise both views share
        them.
      mesh: the devices over which the loss splits the features.
    """

    lambd: float = LAMBD
    form: str = "auto"
    two_passes: bool = True
    mesh: Mesh | None = None

    title: ClassVar = "Barlow Twins"
    paper: ClassVar = (
        "Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction,"
        " [arXiv 2103.03230](https://arxiv.org/abs/2103.03230)"
    )
    metrics: ClassVar = {
        "on_diag": Metric(
            "on-diagonal: disagreement of the views",
            "The loss is the on-diagonal term plus lambd times the off-diagonal term. The first falls from the start."
            " The second often rises in the first epochs, then falls slowly.",
            term=True,
        ),
        "off_diag": Metric("off-diagonal: redundant features", "", term=True),
        "diag_mean": Metric(
            "Mean diagonal of c",
            # The values of quickstart_cpu.md and cifar10_cpu.md in benchmarks/results.
            "The mean correlation of a feature between the two views; 1 is full agreement. About 0.8 is normal after 7"
            " to 12 epochs. If it stays near 0, the views have too little in common.",
            warning=(
                0.2,
                "The two views of an image hardly agree: the mean diagonal is {:.2f}, and 1 is full agreement.",
            ),
        ),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in ("auto", *FORMS):
            raise UserError(f"config.objective.form={self.form!r} is unknown", "Choose from auto, covariance, gram.")

    def loss(self, run: Forward, views: Sequence[jax.Array], memory: Tree, context: Context) -> Outcome:
        """The loss of paper section 2.1, which pulls the cross-correlation of the two embeddings to the identity."""
        h = run("backbone", views, together=not self.two_passes)
        z = run("projector", h, together=not self.two_passes)
        loss, parts = barlow_twins(*z, lambd=self.lambd, form=cast(Form, self.form), mesh=self.mesh)
        return Outcome(loss, h, parts | {"embedding_std": embedding_std(z[0])})


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _sum_of_squares(
    z1: Float[Array, "n d"], z2: Float[Array, "n d"], form: Form, mesh: Mesh | None
) -> Float[jax.Array, ""]:
    """sum_ij c_ij^2 of two standardised embeddings.

    The gradient is computed along with the value: each block of c is used for both, then freed. Automatic
    differentiation would store all blocks.
    """
    return _value_and_gradients(z1, z2, form, mesh)[0]


def _forward(z1, z2, form, mesh):
    value, *gradients = _value_and_gradients(z1, z2, form, mesh)
    return value, gradients


def _backward(form, mesh, gradients, cotangent):
    return tuple(cotangent * gradient for gradient in gradients)


_sum_of_squares.defvjp(_forward, _backward)


def _value_and_gradients(z1, z2, form, mesh):
    """The value and its gradients by z1 and z2. Each device computes those of its features."""
    compute = {"gram": _gram, "covariance": _covariance}[form]
    if mesh is None:
        return compute(z1, z2, axis=None)
    axis = mesh.axis_names[0]
    split = PartitionSpec(None, axis)
    outs = (PartitionSpec(), split, split)
    return jax.shard_map(partial(compute, axis=axis), mesh=mesh, in_specs=(split, split), out_specs=outs)(z1, z2)


def _gram(z1, z2, *, axis):
    """The Gram form: G1 = Z1 Z1^T and G2 = Z2 Z2^T, summed over the devices; d <G1, G2> / d Z1 = 2 G2 Z1."""
    n = z1.shape[0]
    grams = _matmul(z1, z1.T), _matmul(z2, z2.T)
    if axis is not None:
        grams = jax.lax.psum(grams, axis)
    value = (grams[0] * grams[1]).sum() / n**2
    return value, _matmul(grams[1], z1) * (2 / n**2), _matmul(grams[0], z2) * (2 / n**2)


def _covariance(z1, z2, *, axis):
    """The covariance form: the rows of c for the features of z1, in blocks C_b = Z1_b^T Z2 / n.

    d sum C^2 / d Z1_b = 2 Z2 C_b^T / n. Every block adds 2 Z1_b C_b / n to the gradient by Z2.
    """
    n, rows = z1.shape
    whole = z2 if axis is None else jax.lax.all_gather(z2, axis, axis=1, tiled=True)
    d = whole.shape[1]
    block = max(size for size in range(1, rows + 1) if rows % size == 0 and (size * d <= BLOCK or size == 1))

    def add(carry, start):
        z1_b = jax.lax.dynamic_slice_in_dim(z1, start, block, axis=1)
        c = _matmul(z1_b.T, whole) / n
        value, by_z2 = carry
        value = value + jnp.square(c).sum()
        return (value, by_z2 + _matmul(z1_b, c)), _matmul(whole, c.T)

    carry = jnp.zeros_like(z1, shape=()), jnp.zeros_like(whole)
    if block == rows:
        (value, by_z2), by_z1 = add(carry, 0)
    else:
        (value, by_z2), by_z1 = jax.lax.scan(add, carry, jnp.arange(0, rows, block))
        by_z1 = jnp.moveaxis(by_z1, 0, 1).reshape(n, rows)
    if axis is not None:
        value = jax.lax.psum(value, axis)
        by_z2 = jax.lax.psum_scatter(by_z2, axis, scatter_dimension=1, tiled=True)
    return value, by_z1 * (2 / n), by_z2 * (2 / n)


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    # The default precision is bfloat16 on a TPU and TF32 on a GPU. c needs float32 (jax#1856).
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
