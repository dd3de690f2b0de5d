import itertools

import pytest
import torch
from passerby.errors import InvalidArgumentError
from passerby_model.cosam import Cosam
from passerby_model.encoder import Architecture, Classifier, TrackletEncoder


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("se_resnet50+cosam45+tp", 29_733_731),
        ("se_resnet50+cosam45+ta", 46_493_540),
        ("se_resnet50+cosam45+rnn", 34_020_707),
        ("se_resnet50+none+tp", 27_319_649),
        ("resnet50+cosam45+tp", 27_202_739),
        ("resnet50+cosam45+ta", 43_962_548),
        ("resnet50+cosam45+rnn", 31_489_715),
        ("resnet50+none+tp", 24_788_657),
    ],
)
def test_parameter_counts_with_625_classes(name, parameters):
    with torch.device("meta"):
        model = Classifier(TrackletEncoder(Architecture.parse(name)), 625)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("channels", "size", "parameters"),
    [(1024, (16, 8), 813_313), (2048, (16, 8), 1_600_769), (2048, (8, 4), 1_582_337)],
)
def test_parameter_counts_of_cosam(channels, size, parameters):
    assert sum(p.numel() for p in Cosam(channels, 4, size).parameters()) == parameters


@pytest.mark.parametrize(
    "name",
    [
        "se_resnet50+cosam45+tp",
        "resnet50+none+ta",
        "se_resnet50+cosam2345+rnn",
        "resnet50+cosam4-paper+tp",
        "convnext_atto.d2_in1k+cosam45+tp",
        "mobilenetv3_small_050+none+rnn",
    ],
)
def test_names_round_trip(name):
    architecture = Architecture.parse(name, snippet_length=8, height=128, width=64)
    assert architecture.name == name
    assert (architecture.snippet_length, architecture.height, architecture.width) == (8, 128, 64)
    assert Architecture.from_dict(architecture.to_dict()) == architecture


@pytest.mark.parametrize(
    ("name", "sizes", "why"),
    [
        ("resnet51+none+tp", {}, "backbone"),
        ("resnet50+none+max", {}, "aggregation"),
        ("resnet50", {}, "backbone.attention.aggregation"),
        ("resnet50+cosam54+tp", {}, "each once"),
        ("resnet50+cosam16+tp", {}, "backbone.attention.aggregation"),
        ("resnet50+cosam+tp", {}, "backbone.attention.aggregation"),
        ("resnet50+cosam44+tp", {}, "each once"),
        ("resnet50+none-paper+tp", {}, "backbone.attention.aggregation"),
        ("resnet50+cosam45+tp", {"snippet_length": 1}, r"at least 2 .*COSAM compares.*resnet50\+none\+tp"),
        ("resnet50+none+ta", {"snippet_length": 1}, "at least 2 .*weighs frames"),
        ("resnet50+none+rnn", {"snippet_length": 1}, "at least 2 .*from frame to frame"),
        ("vit_tiny_patch16_224+cosam45+tp", {}, "no four stages"),
        ("convnext_atto+none+tp", {"width": 100}, "multiples of 32 .convnext_atto"),
        ("resnet50+none+tp", {"snippet_length": 0}, "at least 1"),
        ("resnet50+none+tp", {"height": 250}, "multiples of 32"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(name, sizes, why):
    with pytest.raises(InvalidArgumentError, match=why):
        Architecture.parse(name, **sizes)


def test_the_papers_form_needs_a_cosam():
    with pytest.raises(InvalidArgumentError, match="needs a COSAM"):
        Architecture("resnet50", cosam=(), form="paper")


@pytest.mark.parametrize("backbone", ["se_resnet50", "resnet50"])
def test_every_set_of_blocks_is_constructible(backbone):
    """16 sets of blocks, with each of TP, TA, RNN, of N = 2, 4, 8 and of the forms among them: shapes alone."""
    subsets = [blocks for size in range(5) for blocks in itertools.combinations("2345", size)]
    for number, blocks in enumerate(subsets):
        aggregation, length = ("tp", "ta", "rnn")[number % 3], (2, 4, 8)[number // 3 % 3]
        attention = f"cosam{''.join(blocks)}{'-paper' if number % 2 else ''}" if blocks else "none"
        name = f"{backbone}+{attention}+{aggregation}"
        architecture = Architecture.parse(name, snippet_length=length, height=64, width=32)
        assert architecture.name == name
        with torch.device("meta"):
            descriptor, masks = TrackletEncoder(architecture)(torch.empty(2, length, 3, 64, 32))
        assert descriptor.shape == (2, 512 if aggregation == "rnn" else 2048)
        sizes = {2: (16, 8), 3: (8, 4), 4: (4, 2), 5: (2, 1) if aggregation == "ta" else (4, 2)}
        expected = {int(block): (2, length, *sizes[int(block)]) for block in blocks}
        assert {block: tuple(mask.shape) for block, mask in masks.items()} == expected


@pytest.mark.parametrize(
    ("name", "size", "length"),
    [
        ("se_resnet50+none+tp", 2048, 1),
        ("se_resnet50+cosam2345+tp", 2048, 2),
        ("resnet50+cosam5+ta", 2048, 8),
        ("resnet50+cosam4-paper+rnn", 512, 4),
        ("resnet18+cosam25+tp", 512, 2),
        ("convnext_atto+cosam45+tp", 320, 2),
        ("mobilenetv3_small_050+cosam2345+ta", 288, 8),
    ],
)
def test_shapes(name, size, length):
    architecture = Architecture.parse(name, snippet_length=length, height=64, width=32)
    encoder = TrackletEncoder(architecture).eval()
    with torch.inference_mode():
        descriptor, masks = encoder(torch.randn(3, length, 3, 64, 32))
    assert descriptor.shape == (3, size)
    assert tuple(masks) == architecture.cosam
    for block, mask in masks.items():
        assert mask.shape == (3, length, *architecture.map_size(block))
        assert 0 < mask.min() <= mask.max() < 1


@pytest.mark.parametrize("shape", [(1, 3, 3, 64, 32), (1, 2, 3, 32, 64), (2, 3, 64, 32)])
def test_other_input_sizes_are_a_clear_error(shape):
    encoder = TrackletEncoder(Architecture.parse("resnet18+cosam5+tp", snippet_length=2, height=64, width=32))
    with pytest.raises(InvalidArgumentError, match=r"takes \(B, N, 3, H, W\)"):
        encoder(torch.zeros(shape))
    with pytest.raises(InvalidArgumentError, match="was built for"):
        encoder.cosam["5"](torch.zeros(2, 512, 3, 3))


def test_frames_of_other_snippets_do_not_matter():
    encoder = TrackletEncoder(Architecture.parse("resnet18+cosam5+tp", snippet_length=2, height=64, width=32))
    frames = torch.randn(3, 2, 3, 64, 32)
    with torch.inference_mode():
        together = encoder.eval()(frames)[0]
        alone = torch.cat([encoder(snippet[None])[0] for snippet in frames])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_ncc_stays_in_float32_under_autocast():
    module = Cosam(12, 2, (4, 2)).eval()
    x = torch.randn(4, 12, 4, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = module.reduce(x)
        volume = module.ncc(reduced)
    assert reduced.dtype == torch.bfloat16
    assert volume.dtype == torch.float32
    torch.testing.assert_close(volume, module.ncc(reduced.float()))
