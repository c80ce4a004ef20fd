"""Every library against float64, at every class of rows; and the choice among them."""

import functools

import pytest
import torch

from mixwell.kernels import linear as products_of_linear
from mixwell.kernels import probe
from mixwell.kernels.linear import compiles, linear, product_nn, product_nt, product_tn
from mixwell.kernels.packing import pack
from mixwell.kernels.probe import PRODUCTS, ROWS, WIDTHS, Choices, choices, row_class
from mixwell.kernels.products import PACKED, PLAIN, fits_fp16, through, works


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 2e-6) -> None:
    assert got.dtype == torch.float32
    assert (got.double() - want).abs().max() <= tolerance * want.abs().max()


def pair(rows: int, generator: torch.Generator, outputs: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """x and a weight whose numbers came from bfloat16."""
    return (torch.randn(rows, 16, generator=generator),
            (torch.randn(outputs, 16, generator=generator) * 0.004).bfloat16().float())


def all_through(library: str) -> Choices:
    """Choices that send every product to one library."""
    plain = {(kind, i, size): library for kind in PRODUCTS for i in range(len(ROWS)) for size in WIDTHS}
    return Choices(plain, (library,) * len(ROWS), (library,) * len(ROWS))


@pytest.mark.parametrize("library", PLAIN)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 9, 40])
@pytest.mark.parametrize("outputs", [24, 7])
def test_plain_libraries_agree_with_float64(library, rows, outputs, generator):
    if not works(library, torch.float32):
        pytest.skip(f"no {library} here")
    x, weight = pair(rows, generator, outputs)
    want = x.double() @ weight.double().T
    got, into = through(library, x, weight), torch.empty(rows, outputs)
    assert through(library, x, weight, into) is into and got.shape == want.shape and got.is_contiguous()
    if rows:
        close(got, want)
        close(into, want)


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_packed_forms_agree_with_float64(form, rows, generator):
    if not works(form, torch.float32):
        pytest.skip(f"no {form} here")
    product, convert = PACKED[form]
    x, weight = pair(rows, generator)
    close(product(x, convert(weight)), x.double() @ weight.double().T)


@pytest.mark.parametrize("library", ["blas", "onednn"])
def test_every_kind_of_product_through_either_library(library, monkeypatch, generator):
    if not works(library, torch.float32):
        pytest.skip(f"no {library} here")
    monkeypatch.setattr(products_of_linear, "choices", lambda: all_through(library))
    a, b, wide = (torch.randn(*shape, generator=generator) for shape in ((9, 16), (9, 24), (9, 48)))
    strided, weight = wide[:, ::2], torch.randn(24, 16, generator=generator)
    for into in (False, True):
        outs = [torch.empty(shape) if into else None for shape in ((9, 24), (9, 16), (16, 24), (16, 24))]
        close(product_nt(a, weight, outs[0]), a.double() @ weight.double().T)
        close(product_nn(b, weight, outs[1]), b.double() @ weight.double())
        close(product_tn(a, b, outs[2]), a.double().T @ b.double())
        close(product_tn(a, strided, outs[3]), a.double().T @ strided.double())
    assert compiles(a, weight) is (library == "onednn")
    assert not compiles(a.double(), weight) and compiles(a.bfloat16(), weight)


def test_what_fits_float16_and_what_does_not():
    exact = torch.randn(40, 40, generator=torch.Generator().manual_seed(1))
    for scale in (1e-6, 0.02, 1.0, 1e6):  # float16 alone would lose the first and overflow at the last
        assert fits_fp16((exact * scale).bfloat16().float()) and not fits_fp16(exact * scale)
    assert fits_fp16(torch.zeros(2, 2)) and not fits_fp16(torch.full((2, 2), torch.inf))


def test_weights_with_all_their_digits_are_never_rounded_to_float16(monkeypatch, generator):
    if not works("fp16", torch.float32):
        pytest.skip("no float16 products here")
    monkeypatch.setattr("mixwell.kernels.packing.choices",
                        lambda: Choices({}, ("blas",) * len(ROWS), ("fp16",) * len(ROWS)))
    weight = torch.randn(24, 16, generator=generator)
    assert pack(weight) is None
    packed = pack(weight.bfloat16().float())
    assert packed is not None and packed.nbytes == 2 * weight.numel()


def test_a_bfloat16_weight_is_packed_in_a_form_that_works_here(generator):
    weight = torch.randn(24, 16, generator=generator).bfloat16()
    x = torch.randn(3, 16, generator=generator).bfloat16()
    packed = pack(weight)
    assert (packed is not None) == any(works(form, torch.bfloat16) for form in PACKED)
    if packed is not None:
        with torch.no_grad():
            got = linear(x, packed)
        assert got.dtype == torch.bfloat16
        want = x.double() @ weight.double().T
        assert (got.double() - want).abs().max() <= 0.02 * want.abs().max()


def test_rows_fall_into_the_class_of_the_next_smaller_number():
    assert [ROWS[row_class(rows)] for rows in (0, 1, 2, 3, 4, 7, 8, 31, 32, 255, 256, 10**6)] == \
        [1, 1, 2, 2, 4, 4, 8, 8, 32, 32, 256, 256]


def test_choices_name_libraries_that_work_and_stay(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(probe, "_choices", functools.cache(probe._choices.__wrapped__))
    found = choices()
    assert set(found.plain) == {(kind, i, size) for kind in PRODUCTS for i in range(len(ROWS)) for size in WIDTHS}
    for name in {*found.plain.values(), *found.exact, *found.half}:
        assert works(name, torch.float32)
    assert "fp16" not in found.exact

    def measured_again():
        raise AssertionError("measured a second time")

    probe._choices.cache_clear()
    monkeypatch.setattr(probe, "measure_products", measured_again)
    assert probe.choices().digest() == found.digest()


def test_an_alternative_must_be_clearly_faster(monkeypatch):
    times = {"blas": 1.0, "close": 0.97, "fast": 0.9, "onednn": 0.92}
    monkeypatch.setattr(probe, "_seconds", lambda call, repeats=1: times[call])
    assert probe.fastest({"blas": "blas", "close": "close"}) == "blas"
    assert probe.fastest({"blas": "blas", "close": "close", "fast": "fast"}) == "fast"
    assert probe.fastest({"blas": "blas", "onednn": "onednn"}) == "blas"
    times["onednn"] = 0.8
    assert probe.fastest({"blas": "blas", "onednn": "onednn"}) == "onednn"


def test_the_digest_tells_choices_apart():
    assert all_through("blas").digest() == all_through("blas").digest() != all_through("onednn").digest()
