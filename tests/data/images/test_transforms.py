"""Transforms against torchvision's own on Pillow images, and RandAugment against literal loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as T

from itr.data.images.randaugment import (
    ARGUMENTS,
    apply_operation,
    draw_operations,
    forward_matrix,
    warp,
)
from itr.data.images.transforms import (
    DRAWS,
    Choices,
    check_view,
    draw_choices,
    normalize,
    random_box,
    transform,
)
from itr.errors import ConfigError
from itr.view import PixelView
from tests.data.image_files import photo

SHAPES = [(40, 30), (30, 41), (57, 90), (24, 24), (3, 100), (1, 1), (500, 375)]
# Flat pictures are cut before the short side is resized: they have a test of their own.
EVALUATED = [
    (shape, resize)
    for shape in SHAPES
    for resize in ("squash", "shortest")
    if resize == "squash" or max(shape) <= 16 * min(shape)
]


def tensor_of(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def made(image, view, choices=None, decoder="pillow"):
    return normalize(transform(tensor_of(image), view, choices or Choices(), decoder), view)


def literal(view):
    mode = {"bicubic": T.InterpolationMode.BICUBIC, "bilinear": T.InterpolationMode.BILINEAR}
    kind = mode[view.interpolation]
    resize = {
        "squash": [T.Resize((view.size, view.size), kind)],
        "shortest": [T.Resize(view.size, kind), T.CenterCrop(view.size)],
    }[view.resize]
    return T.Compose([*resize, T.ToTensor(), T.Normalize(view.mean, view.std)])


@pytest.mark.parametrize("shape, resize", EVALUATED)
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_evaluation_transforms_equal_torchvisions(shape, resize, mode):
    view = PixelView(size=24, resize=resize, interpolation=mode)
    image = photo(*shape)
    torch.testing.assert_close(made(image, view), literal(view)(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resize", ["squash", "shortest"])
def test_torchvisions_resize_lies_within_grey_levels_of_pillows(shape, resize):
    """One, or two where a side grows many times over."""
    view = PixelView(size=24, resize=resize)
    image = tensor_of(photo(*shape))
    fast, slow = (transform(image, view, Choices(), d) for d in ("torchvision", "pillow"))
    assert int((fast.int() - slow.int()).abs().max()) <= (1 if min(shape) >= 24 else 2)


@pytest.mark.parametrize("shape", [(2000, 4), (4, 2000), (1, 900)])
@pytest.mark.parametrize("decoder", ["torchvision", "pillow"])
def test_flat_pictures_give_their_middle(shape, decoder):
    image = np.zeros((shape[1], shape[0], 3), np.uint8)
    middle = tuple(slice(n // 2 - 50, n // 2 + 50) if n > 50 else slice(None) for n in shape[::-1])
    image[middle] = 200
    view = PixelView(size=32, resize="shortest")
    found = transform(torch.from_numpy(image).permute(2, 0, 1), view, Choices(), decoder)
    assert found.shape == (3, 32, 32) and (found == 200).all()


def test_alpha_weighs_the_colours_and_is_dropped():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (200, 200, 200, 255)
    pixels[:, 4:] = (7, 7, 7, 0)  # cannot be seen: must not darken the edge
    view = PixelView(size=4, resize="shortest", premultiply=True)
    for decoder in ("torchvision", "pillow"):
        found = transform(torch.from_numpy(pixels).permute(2, 0, 1), view, Choices(), decoder)
        assert found.shape == (3, 4, 4) and (found[:, :, 1].int() - 200).abs().max() <= 1
        expected = Image.fromarray(pixels).resize((4, 4), Image.Resampling.BICUBIC).convert("RGB")
        assert torch.equal(found, tensor_of(expected))


@pytest.mark.parametrize("decoder", ["torchvision", "pillow"])
def test_crop_and_flip_equal_torchvisions(decoder):
    image, view = photo(60, 50), PixelView(size=24, resize="random_crop", flip=True)
    choices = Choices(box=(5, 10, 31, 28), flip=True)
    expected = T.functional.hflip(
        T.functional.resized_crop(image, 5, 10, 31, 28, [24, 24], T.InterpolationMode.BICUBIC)
    )
    found = transform(tensor_of(image), view, choices, decoder)
    assert int((found.int() - tensor_of(expected).int()).abs().max()) <= (decoder == "torchvision")


# Choices


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 10**6))
def test_random_boxes_lie_inside_and_keep_their_bounds(height, width, seed):
    view = PixelView(resize="random_crop", crop_scale=(0.3, 0.9), crop_ratio=(0.5, 2.0))
    uniforms = np.random.default_rng(seed).random(DRAWS)
    top, left, h, w = random_box(view, uniforms, height, width)
    assert 0 <= top <= height - h and 0 <= left <= width - w and h > 0 and w > 0
    if min(height, width) > 60 and max(height, width) < 2 * min(height, width):
        assert 0.28 < h * w / (height * width) < 0.92 and 0.48 < w / h < 2.1


def test_random_boxes_are_distributed_as_torchvisions():
    view = PixelView(resize="random_crop", crop_scale=(0.2, 1.0))
    rng, n = np.random.default_rng(0), 4000
    image = photo(120, 80)
    ours = np.array([random_box(view, rng.random(DRAWS), 80, 120) for _ in range(n)], float)
    torch.manual_seed(0)
    params = [T.RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    theirs = np.array(params, float)
    for values in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0],
                   lambda b: b[:, 1]):  # fmt: skip
        a, b = np.sort(values(ours)), np.sort(values(theirs))
        at = np.concatenate([a, b])
        distance = np.abs(np.searchsorted(a, at, "right") - np.searchsorted(b, at, "right")) / n
        assert distance.max() < 1.95 * math.sqrt(2 / n)  # Kolmogorov-Smirnov, 0.1%


def test_draws_decide_crop_flip_and_operations():
    view = PixelView(resize="random_crop", flip=True, randaugment=True)
    uniforms = np.full(DRAWS, 0.4)
    choices = draw_choices(view, uniforms, 100, 100)
    assert choices.flip and choices.box is not None and len(choices.operations) == 2
    uniforms[40] = 0.6
    assert not draw_choices(view, uniforms, 100, 100).flip
    assert draw_choices(PixelView(), uniforms, 100, 100) == Choices()


def test_operations_are_uniform_and_signed_ones_lose_their_sign_half_the_time():
    rng = np.random.default_rng(0)
    drawn = [draw_operations(rng.random(6)) for _ in range(8000)]
    counts = np.bincount([len(operations) for operations in drawn]) / 8000
    np.testing.assert_allclose(counts, [0.25, 0.5, 0.25], atol=0.03)
    flat = [operation for operations in drawn for operation in operations]
    names = {name: [a for n, a in flat if n == name] for name in ARGUMENTS}
    for name, arguments in names.items():
        assert abs(len(arguments) / len(flat) - 0.1) < 0.015
        negative = np.mean([a < 0 for a in arguments])
        assert negative == 0 or (name in "ShearX ShearY TranslateX TranslateY Rotate".split()
                                 and abs(negative - 0.5) < 0.08)  # fmt: skip
        assert {abs(a) for a in arguments} == {ARGUMENTS[name]}


# Operations


def literal_warp(image, matrix):
    """Bilinear, pixel by pixel, in float64; 128 outside."""
    _, height, width = image.shape
    full = np.linalg.inv(np.vstack([np.reshape(matrix, (2, 3)), [0, 0, 1]]))
    out = np.zeros(image.shape)
    for y in range(height):
        for x in range(width):
            u, v, _ = full @ (x, y, 1)
            u, v = round(u * 32) / 32, round(v * 32) / 32  # the arithmetic knows 1/32 pixel
            left, top = math.floor(u), math.floor(v)
            for row, vertical in ((top, 1 - (v - top)), (top + 1, v - top)):
                for column, horizontal in ((left, 1 - (u - left)), (left + 1, u - left)):
                    inside = 0 <= row < height and 0 <= column < width
                    value = image[:, row, column].numpy() if inside else 128.0
                    out[:, y, x] += vertical * horizontal * value
    return out


@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"])
@pytest.mark.parametrize("sign", [1, -1])
def test_geometry_equals_literal_bilinear(name, sign):
    image = tensor_of(photo(23, 17))
    argument = sign * ARGUMENTS[name]
    expected = literal_warp(image, forward_matrix(name, argument, 17, 23))
    found = apply_operation(image, (name, argument))
    # A position at the border between two 1/32 may be rounded to the other.
    off = np.abs(found.numpy() - expected)
    assert off.max() <= 4 and (off > 0.51).mean() < 0.02


def test_geometry_goes_the_stated_way():
    image = torch.full((3, 21, 21), 10, dtype=torch.uint8)
    image[:, 10, 15] = 250
    right = apply_operation(image, ("TranslateX", 7.0))  # a positive offset moves to the left
    assert right[0, 10, 8] == 250 and right[0, 0, 20] == 128
    turned = warp(image, forward_matrix("Rotate", 90.0, 21, 21))
    row, column = divmod(int(turned[0].argmax()), 21)
    assert row < 8 and abs(column - 10) <= 1  # counter-clockwise: from the right to the top


def test_photometric_operations():
    image = tensor_of(photo(30, 20))
    assert torch.equal(apply_operation(image, ("Identity", 0.0)), image)
    bright = apply_operation(image, ("Brightness", 1.36))
    assert torch.equal(bright, (image.double() * 1.36).clamp(max=255).to(torch.uint8))
    dull = (image // 4 + 60).to(torch.uint8)
    stretched = apply_operation(dull, ("AutoContrast", 0.0))
    assert stretched.amin() == 0 and stretched.amax() >= 254  # torchvision cuts, not rounds
    equal = apply_operation(dull, ("Equalize", 0.0))
    assert equal.float().std() > dull.float().std()
    sharp = apply_operation(image, ("Sharpness", 1.36))
    assert torch.equal(sharp[:, 0], image[:, 0]) and not torch.equal(sharp, image)


def test_the_authors_slips_are_off_unless_asked_for():
    dull = tensor_of(photo(30, 20)) // 4 + 60
    assert apply_operation(dull, ("AutoContrast", 0.0)).float().mean() < 200
    assert (apply_operation(dull, ("AutoContrast", 0.0), wrapping=True) == 255).all()
    edge = torch.zeros((3, 9, 9), dtype=torch.uint8)
    edge[:, :, 4:] = 255
    assert set(apply_operation(edge, ("Sharpness", 1.36)).unique().tolist()) == {0, 255}
    assert len(apply_operation(edge, ("Sharpness", 1.36), wrapping=True).unique()) > 2


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 9), (3, 2)])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_operations_on_tiny_pictures(name, shape):
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    for wrapping in (False, True):
        out = apply_operation(image, (name, ARGUMENTS[name]), wrapping)
        assert out.shape == image.shape and out.dtype == torch.uint8


def test_views_that_cannot_be_done():
    for view, word in (
        (PixelView(resize="crop"), "resize='crop'"),
        (PixelView(interpolation="nearest"), "interpolation='nearest'"),
        (PixelView(size=0), "size=0"),
    ):
        with pytest.raises(ConfigError, match=word):
            check_view(view)
