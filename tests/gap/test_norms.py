"""Safe norms: never below the truth, and close to it."""

import math

import pytest
import torch

from prunus.theory.gap.convolution import Geometry, circular_norm, conv_norm, reshape_norm, tap_norm
from prunus.theory.gap.norms import lanczos, spectral_norm
from reference.gap import circular_matrix, conv_matrix

KERNEL = torch.sin(1 + torch.arange(108, dtype=torch.float64)).reshape(4, 3, 3, 3)


def spectra(generator, count):
    """Matrices: Gaussian, rank one, clustered, graded, tiny and huge."""
    for i in range(count):
        n, m = (int(k) for k in torch.randint(1, 30, (2,), generator=generator))
        a = torch.randn(n, m, dtype=torch.float64, generator=generator)
        if i % 4 == 1:
            a = torch.outer(a[:, 0], a[0])
        elif i % 4 == 2:
            q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
            a = q * (1 - 1e-9 * torch.arange(n, dtype=torch.float64))
        elif i % 4 == 3:
            a = a * torch.logspace(0, -8, m, dtype=torch.float64) * 10.0 ** (i % 60 - 30)
        yield a


@pytest.mark.parametrize("method", ["exact", "gram_power", "lanczos", "block_power", "cheap"])
def test_never_below_the_norm(method):
    """Random starts fail with probability 200 · 1e-9 together."""
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    count = 200 if method == "exact" else 60
    for a in spectra(torch.Generator().manual_seed(0), count):
        steps_prove = method != "lanczos" or min(a.shape) > 12
        if not steps_prove:
            continue
        found = spectral_norm(a, method=method, generator=generator).value
        true = float(torch.linalg.svdvals(a)[0])
        assert found >= true * (1 - 1e-15)
        worst = max(worst, found / true)
    limits = {"exact": 1 + 1e-10, "gram_power": 1.02, "lanczos": 4, "block_power": 1.05, "cheap": 6}
    assert worst <= limits[method]


def test_lanczos_refuses_too_few_steps():
    with pytest.raises(ValueError, match="prove nothing"):
        spectral_norm(torch.eye(5), method="lanczos", generator=torch.Generator())


@pytest.mark.parametrize(("steps", "proves"), [(12, False), (13, True)])
def test_the_least_number_of_lanczos_steps(steps, proves):
    """√ε = ln(1.648 √n / δ) / (2k − 1) < 1: 23.5 / 23 proves nothing, 23.5 / 25 does."""
    spread = torch.linspace(1, 2, 10_000, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)

    def bound():
        return lanczos(
            lambda x: spread * x, 10_000, steps=steps, delta=1e-8, generator=generator
        ).value

    if not proves:
        with pytest.raises(ValueError, match="12 Lanczos steps prove nothing"):
            bound()
        return
    root = math.log(1.648 * 100 / 1e-8) / 25
    least, most = (math.sqrt(theta / (1 - root**2)) for theta in (1.9, 2.0))
    assert least < bound() <= most * 1.001


def test_circular_norms_are_exact():
    assert circular_norm(KERNEL, (8, 8)) == pytest.approx(15.74578869, rel=1e-8)
    assert circular_norm(KERNEL, (8, 8), (2, 2)) == pytest.approx(8.55557291, rel=1e-8)
    for grid, stride in [(2, 1), (4, 1), (6, 2), (6, 3)]:
        matrix = circular_matrix(KERNEL, grid, stride)
        true = float(torch.linalg.svdvals(matrix)[0])
        assert circular_norm(KERNEL, (grid, grid), (stride, stride)) == pytest.approx(true)


def test_reference_bounds_of_a_kernel():
    padded = Geometry(size=(8, 8), padding=((1, 1), (1, 1)))
    assert conv_norm(KERNEL, padded).value == pytest.approx(15.55381683, rel=1e-8)
    true = torch.linalg.svdvals(conv_matrix(KERNEL, 8, 1, 1))[0]
    assert float(true) == pytest.approx(14.93999348, rel=1e-6)
    assert tap_norm(KERNEL) == pytest.approx(20.7937, rel=1e-5)
    assert reshape_norm(KERNEL) == pytest.approx(17.5599, rel=1e-5)


@pytest.mark.parametrize("size", [4, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize("groups", [1, 3])
def test_zero_padded_norms_are_above_the_matrix(size, stride, padding, groups):
    generator = torch.Generator().manual_seed(size + 10 * stride + 100 * padding)
    kernel = torch.randn(6, 3 // groups, 3, 3, dtype=torch.float64, generator=generator)
    true = float(torch.linalg.svdvals(conv_matrix(kernel, size, stride, padding, groups))[0])
    shape = Geometry(
        size=(size, size),
        stride=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        groups=groups,
    )
    found = conv_norm(kernel, shape).value
    assert true <= found * (1 + 1e-12)
    if stride == 1 and padding == 1:
        assert found <= 1.25 * true  # 4 to 7 pixels: borders weigh much; 1.05 at usual sizes


def test_dilation_inserts_zeros():
    wide = KERNEL.new_zeros(4, 3, 5, 5)
    wide[:, :, ::2, ::2] = KERNEL
    dilated = Geometry(size=(9, 9), padding=((2, 2), (2, 2)), dilation=(2, 2))
    plain = Geometry(size=(9, 9), padding=((2, 2), (2, 2)))
    assert conv_norm(KERNEL, dilated) == conv_norm(wide, plain)


def test_zero_and_bad_matrices():
    assert spectral_norm(torch.zeros(3, 4)).value == 0
    assert spectral_norm(1e-200 * torch.ones(3, 4)).value == pytest.approx(math.sqrt(12) * 1e-200)
    with pytest.raises(ValueError, match="`matrix` must be finite"):
        spectral_norm(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match="pass a `generator`"):
        spectral_norm(torch.eye(3), method="lanczos")
    with pytest.raises(ValueError, match="Unknown norm method"):
        spectral_norm(torch.eye(3), method="exakt")  # type: ignore[arg-type]
