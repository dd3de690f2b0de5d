import io
import struct
import zlib
from typing import Literal

import numpy as np
import pytest
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_model import preprocess
from PIL import Image


@pytest.mark.parametrize("size", ["128x64", "256x128", "217x93", "400x160"])
def test_resize_and_normalise_equal_the_reference(shared, size):
    golden = np.load(shared / "golden" / "preprocess.npz")
    resized = preprocess.resize(golden[f"in_{size}"])
    np.testing.assert_array_equal(resized, golden[f"resized_{size}"])
    crop = preprocess.normalise(resized)[:, 100:116, 50:66]
    np.testing.assert_allclose(crop, golden[f"tensor_crop_{size}"], atol=1e-6)


def test_normalise_keeps_leading_axes():
    frames = np.zeros((2, 4, 8, 6, 3), dtype=np.uint8)
    out = preprocess.normalise(frames)
    assert out.shape == (2, 4, 3, 8, 6)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[0, 0, :, 0, 0], [-2.1179, -2.0357, -1.8044], atol=1e-4)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["grey", "rgba", "float", "empty"],
)
def test_resize_refuses_other_arrays(image):
    with pytest.raises(InvalidArgumentError, match="uint8"):
        preprocess.resize(image)


def encode(array, fmt, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, fmt, **options)
    return buffer.getvalue()


GRADIENT = np.arange(40 * 20 * 3, dtype=np.uint32).reshape(40, 20, 3).astype(np.uint8)


@pytest.mark.parametrize(("fmt", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_decode_lossless_formats(fmt, options):
    np.testing.assert_array_equal(preprocess.decode(encode(GRADIENT, fmt, **options)), GRADIENT)


def test_decode_grey_alpha_palette_and_16_bit():
    grey = GRADIENT[..., 0]
    assert preprocess.decode(encode(grey, "PNG")).shape == (40, 20, 3)
    rgba = np.dstack([GRADIENT, np.full((40, 20), 128, np.uint8)])
    np.testing.assert_array_equal(preprocess.decode(encode(rgba, "PNG")), GRADIENT)
    deep = grey.astype(np.uint16) << 8
    np.testing.assert_array_equal(preprocess.decode(encode(deep, "PNG"))[..., 0], grey)
    buffer = io.BytesIO()
    Image.fromarray(rgba).quantize(16).save(buffer, "PNG")
    assert preprocess.decode(buffer.getvalue()).shape == (40, 20, 3)


def test_decode_applies_exif_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to be upright
    turned = preprocess.decode(encode(GRADIENT, "JPEG", exif=exif.tobytes()))
    assert turned.shape == (20, 40, 3)


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [5_000, 10_000, 30_000])
def test_decode_refuses_bombs_before_decoding(side):
    with pytest.raises(InvalidArgumentError, match="pixels") as caught:
        preprocess.decode(png_header(side, side))
    assert caught.value.reason == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello, this is text",
        encode(GRADIENT, "JPEG")[:300],
        encode(GRADIENT, "PNG")[:60],
        encode(GRADIENT, "BMP"),
        encode(GRADIENT, "GIF"),
        png_header(10, 10),
    ],
    ids=["empty", "text", "cut-jpeg", "cut-png", "bmp", "gif", "no-pixels"],
)
def test_decode_refuses_what_is_no_image(data):
    with pytest.raises(InvalidArgumentError):
        preprocess.decode(data)


def test_read_image_names_the_path(tmp_path):
    with pytest.raises(NotFoundError, match=r"absent\.png"):
        preprocess.read_image(tmp_path / "absent.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    with pytest.raises(InvalidArgumentError, match=r"broken\.png"):
        preprocess.read_image(broken)
    fine = tmp_path / "fine.png"
    fine.write_bytes(encode(GRADIENT, "PNG"))
    np.testing.assert_array_equal(preprocess.read_image(fine), GRADIENT)


def test_orientation_data_that_cannot_be_rewritten_is_a_broken_image() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    exif[0x10F] = "maker of cameras"
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG", exif=exif)
    data = bytearray(stream.getvalue())
    order: Literal["little", "big"] = "little" if b"II*\0" in data else "big"
    maker = data.index((0x10F).to_bytes(2, order) + (2).to_bytes(2, order))
    # The text becomes one fraction, which Pillow reads, but cannot write again as the text that it should be.
    data[maker + 2 : maker + 8] = (5).to_bytes(2, order) + (1).to_bytes(4, order)
    with pytest.raises(InvalidArgumentError, match="broken or incomplete"):
        preprocess.decode(bytes(data))
