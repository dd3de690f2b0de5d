"""Pictures as people really send them: each kind is made here, and must come out upright, in RGB, in 8 bits."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError
from passerby.v1 import resources_pb2 as resources
from passerby_model import preprocess
from passerby_server.decode import Decoder
from passerby_server.lanes import Lane, entered
from passerby_server.sections import Limits
from PIL import Image, ImageCms

HEIGHT, WIDTH = 64, 32
RED, GREEN, BLUE, GREY = (200, 40, 30), (30, 180, 60), (40, 50, 210), (120, 120, 120)


def quarters(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """uint8 (height, width, 3): red and green above, blue and grey below."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = RED, GREEN
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = BLUE, GREY
    return picture


def saved(picture: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    made = Decoder(HEIGHT, WIDTH, Limits(), threads=2)
    yield made
    made.close()


def decoded(decoder: Decoder, data: bytes) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = asyncio.run(decoder.decode([resources.Frame(encoded=data)], 0, "frames"))[0]
    return pixels


def check_quarters(pixels: NDArray[np.uint8], tolerance: int = 4) -> None:
    centres = [pixels[row, column].astype(int) for row in (16, 48) for column in (8, 24)]
    np.testing.assert_allclose(centres, [RED, GREEN, BLUE, GREY], atol=tolerance)


def sixteen_bits(array: NDArray[np.uint8]) -> bytes:
    """PNG with 16 bits a channel; OpenCV writes it from BGR."""
    ok, data = cv2.imencode(
        ".png", (array.astype(np.uint16) * 257)[..., ::-1] if array.ndim == 3 else array.astype(np.uint16) * 257
    )
    assert ok
    return bytes(data.tobytes())


def animated(format: str) -> bytes:
    """Two frames, of which the second is black."""
    black = Image.new("RGB", (WIDTH, HEIGHT))
    options: dict[str, object] = {"lossless": True} if format == "WEBP" else {}
    return saved(Image.fromarray(quarters()), format, save_all=True, append_images=[black], duration=100, **options)


def with_profile() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return saved(Image.fromarray(quarters()), "JPEG", quality=95, icc_profile=profile)


PICTURES: list[tuple[str, Callable[[], bytes]]] = [
    ("jpeg", lambda: saved(Image.fromarray(quarters()), "JPEG", quality=95)),
    ("progressive jpeg", lambda: saved(Image.fromarray(quarters()), "JPEG", quality=95, progressive=True)),
    ("jpeg, colour at half the size", lambda: saved(Image.fromarray(quarters()), "JPEG", quality=95, subsampling=2)),
    ("jpeg with a colour profile", with_profile),
    ("cmyk jpeg", lambda: saved(Image.fromarray(quarters()).convert("CMYK"), "JPEG", quality=95)),
    ("png", lambda: saved(Image.fromarray(quarters()), "PNG")),
    ("png of 16 bits", lambda: sixteen_bits(quarters())),
    ("png with alpha", lambda: saved(Image.fromarray(np.dstack([quarters(), np.full((HEIGHT, WIDTH), 90, np.uint8)])), "PNG")),
    ("png palette", lambda: saved(Image.fromarray(quarters()).quantize(16), "PNG")),
    ("png with one transparent colour", lambda: saved(Image.fromarray(quarters()), "PNG", transparency=BLUE)),
    ("animated png", lambda: animated("PNG")),
    ("webp", lambda: saved(Image.fromarray(quarters()), "WEBP", lossless=True)),
    ("webp with alpha", lambda: saved(Image.fromarray(np.dstack([quarters(), np.full((HEIGHT, WIDTH), 90, np.uint8)])), "WEBP", lossless=True, exact=True)),
    ("animated webp", lambda: animated("WEBP")),
]  # fmt: skip


@pytest.mark.parametrize("make", [make for _, make in PICTURES], ids=[name for name, _ in PICTURES])
def test_every_kind_comes_out_as_the_same_picture(decoder: Decoder, make: Callable[[], bytes]) -> None:
    check_quarters(decoded(decoder, make()))


@pytest.mark.parametrize(
    "make",
    [
        lambda grey: saved(Image.fromarray(grey), "PNG"),
        lambda grey: sixteen_bits(grey),
        lambda grey: saved(Image.fromarray(grey), "JPEG", quality=95),
        lambda grey: saved(Image.merge("LA", [Image.fromarray(grey), Image.new("L", (WIDTH, HEIGHT), 7)]), "PNG"),
        lambda grey: saved(Image.fromarray(grey), "WEBP", lossless=True),
    ],
    ids=["png", "png of 16 bits", "jpeg", "png with alpha", "webp"],
)
def test_grey_is_repeated(decoder: Decoder, make: Callable[[NDArray[np.uint8]], bytes]) -> None:
    grey = np.linspace(10, 245, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
    pixels = decoded(decoder, make(grey)).astype(int)
    np.testing.assert_allclose(pixels, np.repeat(grey[..., None], 3, axis=2), atol=4)


def test_black_and_white(decoder: Decoder) -> None:
    bits = np.zeros((HEIGHT, WIDTH), bool)
    bits[: HEIGHT // 2] = True
    pixels = decoded(decoder, saved(Image.fromarray(bits), "PNG"))
    assert pixels[5, 5].tolist() == [255] * 3
    assert pixels[60, 5].tolist() == [0] * 3


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [1, 8], ids=["small", "reduced"])
def test_orientation(decoder: Decoder, format: str, orientation: int, scale: int) -> None:
    stored = Image.fromarray(quarters(HEIGHT * scale, WIDTH * scale))
    # What a camera stores so that the reader, who turns it by `orientation`, sees the quarters.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    check_quarters(decoded(decoder, saved(stored, format, exif=exif.tobytes(), quality=95)), tolerance=8)


@pytest.mark.parametrize("make", [make for _, make in PICTURES], ids=[name for name, _ in PICTURES])
def test_a_truncated_file_is_refused_wherever_it_ends(decoder: Decoder, make: Callable[[], bytes]) -> None:
    data = make()
    whole = preprocess.decode(data)
    for length in (1, 7, len(data) // 4, len(data) // 2):
        try:
            # Of an animation the first frame may be there.
            np.testing.assert_array_equal(preprocess.decode(data[:length]), whole)
        except InvalidArgumentError as error:
            assert error.reason in ("IMAGE_BROKEN", "IMAGE_UNREADABLE")  # noqa: PT017
        else:
            assert make in [made for name, made in PICTURES if name.startswith("animated")]


@pytest.mark.parametrize("make", [make for _, make in PICTURES], ids=[name for name, _ in PICTURES])
@pytest.mark.parametrize("size", [(24, 12), (100, 40), (256, 128)])
def test_resizing_at_once_gives_the_same_pixels(make: Callable[[], bytes], size: tuple[int, int]) -> None:
    data = make()
    in_two_steps = preprocess.resize(preprocess.decode(data, resized_to=size), *size)
    np.testing.assert_array_equal(preprocess.decode_resized(data, *size), in_two_steps)


@pytest.mark.parametrize(
    ("scale", "size"), [(1, (64, 32)), (2, (128, 64)), (3, (192, 96)), (4, (128, 64)), (8, (128, 64)), (20, (160, 80))]
)
def test_a_large_jpeg_is_decoded_at_no_less_than_twice_the_size(scale: int, size: tuple[int, int]) -> None:
    data = saved(Image.fromarray(quarters(HEIGHT * scale, WIDTH * scale)), "JPEG", quality=95)
    assert preprocess.decode(data, resized_to=(HEIGHT, WIDTH)).shape[:2] == size
    assert preprocess.decode(data).shape[:2] == (HEIGHT * scale, WIDTH * scale)
    other = saved(Image.fromarray(quarters(HEIGHT * scale, WIDTH * scale)), "PNG")
    assert preprocess.decode(other, resized_to=(HEIGHT, WIDTH)).shape[:2] == (HEIGHT * scale, WIDTH * scale)


def test_the_size_of_a_turned_jpeg_is_that_of_the_upright_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(quarters(WIDTH * 2, HEIGHT * 9))
    data = saved(wide, "JPEG", exif=exif.tobytes())
    assert preprocess.decode(data, resized_to=(HEIGHT, WIDTH)).shape[:2] == (HEIGHT * 9, WIDTH * 2)
    assert preprocess.decode(saved(wide, "JPEG"), resized_to=(WIDTH, HEIGHT)).shape[:2] == (WIDTH * 2, HEIGHT * 9)


def test_a_reduced_jpeg_is_nearly_the_same_picture() -> None:
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    large = Image.fromarray(small).resize((WIDTH * 8, HEIGHT * 8), Image.Resampling.BICUBIC)
    data = saved(large, "JPEG", quality=95)
    whole = preprocess.resize(preprocess.decode(data), HEIGHT, WIDTH).astype(int)
    reduced = preprocess.resize(preprocess.decode(data, resized_to=(HEIGHT, WIDTH)), HEIGHT, WIDTH).astype(int)
    assert np.abs(whole - reduced).mean() < 3


def test_raw_pixels_are_rgb(decoder: Decoder) -> None:
    picture = quarters(HEIGHT * 2, WIDTH * 2)
    frame = resources.Frame(raw=resources.RawImage(height=HEIGHT * 2, width=WIDTH * 2, rgb=picture.tobytes()))
    check_quarters(asyncio.run(decoder.decode([frame], 0, "frames"))[0])


def test_frames_of_a_query_do_not_wait_behind_those_of_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    gate = threading.Event()
    names: list[str] = []

    def slow(data: bytes, *_: object, **__: object) -> NDArray[np.uint8]:
        names.append(threading.current_thread().name)
        if data == b"slow":
            assert gate.wait(20)
        return quarters(HEIGHT, WIDTH)

    monkeypatch.setattr(preprocess, "decode_resized", slow)

    async def main() -> None:
        decoder = Decoder(HEIGHT, WIDTH, Limits(), threads=1)
        try:
            with entered(Lane("camera", bulk=True)):
                bulk = asyncio.create_task(decoder.decode([resources.Frame(encoded=b"slow")] * 20, 0, "frames"))
            await asyncio.sleep(0.01)
            await asyncio.wait_for(decoder.decode([resources.Frame(encoded=b"quick")], 0, "frames"), 10)
            assert not bulk.done()
            gate.set()
            await bulk
        finally:
            gate.set()
            decoder.close()

    asyncio.run(main())
    assert {name.rpartition("_")[0] for name in names} == {"passerby-bulk-decoder", "passerby-decoder"}
