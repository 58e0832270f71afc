"""The networks have the published sizes, take any image, and are built or refused by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deep.models import MODELS, build_model, resolve_model
from deep.models.preact_resnet import PreActBlock
from deep.models.wide_resnet import WideBlock
from theory.errors import InputError

SMALL = {
    "preact18": {"width": 4},
    "preact34": {"width": 4},
    "preact50": {"width": 4},
    "preact101": {"width": 2},
    "wrn28-10": {"width": 1},
    "lenet": {},
    "vgg11": {"width": 4},
    "vgg13": {"width": 4},
    "mlp": {"width": 16},
    "mlp-bias-free": {"width": 16},
}


def seen_by(model, layer, x):
    """The inputs that `layer` gets while the model computes model(x)."""
    inputs = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        model(x)
    finally:
        handle.remove()
    return inputs[0]


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        # Published code of MixupE, CIFAR-10 and CIFAR-100.
        ("preact18", {}, 11_171_146),
        ("preact18", {"num_classes": 100}, 11_217_316),
        ("preact50", {}, 23_509_066),
        ("preact50", {"num_classes": 100}, 23_693_476),
        ("preact101", {}, 42_501_194),
        ("preact101", {"num_classes": 100}, 42_685_604),
        ("wrn28-10", {}, 36_489_290),
        ("wrn28-10", {"num_classes": 100}, 36_546_980),
        # torchvision's vgg11_bn and vgg13_bn without their dense layers, plus one of 512 × 10.
        ("vgg11", {}, 132_868_840 - 123_642_856 + 5_130),
        ("vgg13", {}, 133_053_736 - 123_642_856 + 5_130),
        # LeNet-5's weights for one channel when its second convolution is fully connected.
        ("lenet", {"in_channels": 1}, 61_706),
        ("mlp", {"in_channels": 47, "image_size": 1}, 48 * 128 + 129 * 128 + 129 * 10),
    ],
)
def test_parameter_counts_are_the_published_ones(name, options, count):
    with torch.device("meta"):
        model = build_model(name, **options)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_preact_depth_counts_the_layers_on_the_longest_path(depth):
    with torch.device("meta"):
        model = build_model(f"preact{depth}")
    shortcuts = [b.shortcut for b in model.modules() if isinstance(b, PreActBlock)]
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([layer for layer in layers if layer not in shortcuts]) == depth


def test_registry_and_table_of_small_networks_name_the_same():
    assert set(MODELS) - {"gin", "gin-bias-free"} == set(SMALL)  # those take graphs


@pytest.mark.parametrize("size", [(32, 32), (160, 101), (33, 47)])
@pytest.mark.parametrize("name", SMALL)
def test_every_network_takes_images_of_any_size(name, size):
    torch.manual_seed(0)
    model = build_model(name, num_classes=7, in_channels=1, image_size=size, **SMALL[name])
    logits = model(torch.randn(2, 1, *size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["preact18", "preact50", "wrn28-10"])
def test_residual_networks_take_tiny_images_too(name):
    model = build_model(name, image_size=3, **SMALL[name]).eval()
    assert model(torch.randn(1, 3, 3, 3)).shape == (1, 10)


@pytest.mark.parametrize("name", ["preact18", "preact34", "preact50"])
def test_preact_resnet_without_shifts_is_positively_homogeneous(name):
    """f(2x) = 2f(x) at initialisation; any further shift or normalisation would break it."""
    torch.manual_seed(0)
    model = build_model(name, width=4).double().eval()
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    nn.init.zeros_(model.linear.bias)  # the batch norms' shifts start at zero
    torch.testing.assert_close(model(2 * x), 2 * model(x), rtol=1e-12, atol=1e-12)
    nn.init.ones_(model.linear.bias)
    assert not torch.allclose(model(2 * x), 2 * model(x))


@pytest.mark.parametrize(("name", "homogeneous"), [("mlp", False), ("mlp-bias-free", True)])
def test_a_perceptron_without_biases_is_homogeneous(name, homogeneous):
    torch.manual_seed(0)
    model = build_model(name, in_channels=7, image_size=1).double()
    x = torch.randn(5, 7, dtype=torch.float64)
    assert torch.allclose(model(2 * x), 2 * model(x), rtol=1e-12, atol=1e-12) == homogeneous


def test_preact_resnet_has_no_norm_or_relu_before_the_pooling():
    model = build_model("preact18", width=4).eval()
    pooled = seen_by(model, model.linear, torch.randn(4, 3, 16, 16))
    assert pooled.min() < 0
    assert all(conv.bias is None for conv in model.modules() if isinstance(conv, nn.Conv2d))


def test_preact_shortcut_sees_the_pre_activated_input():
    torch.manual_seed(0)
    block = PreActBlock(4, [(2, 1, 1), (2, 3, 2), (8, 1, 1)]).eval()
    nn.init.normal_(block.norms[0].bias)
    x = torch.randn(2, 4, 7, 7)
    activated = F.relu(block.norms[0](x))
    torch.testing.assert_close(seen_by(block, block.shortcut, x), activated)
    branch = F.conv2d(activated, block.convs[0].weight)
    branch = F.conv2d(F.relu(block.norms[1](branch)), block.convs[1].weight, stride=2, padding=1)
    branch = F.conv2d(F.relu(block.norms[2](branch)), block.convs[2].weight)
    expected = branch + F.conv2d(activated, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), expected)


def test_preact_shortcut_is_the_identity_where_shapes_agree():
    block = PreActBlock(4, [(4, 3, 1), (4, 3, 1)]).eval()
    nn.init.zeros_(block.convs[-1].weight)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(x), x)


def test_wide_resnet_arrangement():
    """Biased convolutions, raw input to the shortcut, stride in conv2, norm and ReLU at the end."""
    model = build_model("wrn28-10", width=1).eval()
    assert all(conv.bias is not None for conv in model.modules() if isinstance(conv, nn.Conv2d))
    assert seen_by(model, model.linear, torch.randn(4, 3, 16, 16)).min() >= 0
    block = WideBlock(4, 8, 2).eval()
    x = torch.randn(2, 4, 7, 7)
    torch.testing.assert_close(seen_by(block, block.shortcut, x), x)
    assert seen_by(block, block.conv2, x).shape == (2, 8, 7, 7)
    assert block(x).shape == (2, 8, 4, 4)


def test_vgg_halves_the_image_after_each_stage():
    model = build_model("vgg13", width=2)
    seen = [seen_by(model, stage, torch.randn(2, 3, 64, 64)).shape[1:] for stage in model.stages]
    assert seen == [(3, 64, 64), (2, 32, 32), (4, 16, 16), (8, 8, 8), (16, 4, 4)]


def test_lenet_is_the_classical_network_on_images_of_32():
    """The adaptive pooling gets 5 × 5 and hands it on unchanged."""
    model = build_model("lenet", in_channels=1)
    pooling = next(m for m in model.modules() if isinstance(m, nn.AdaptiveAvgPool2d))
    arriving = seen_by(model, pooling, torch.randn(2, 1, 32, 32))
    assert arriving.shape == (2, 16, 5, 5)
    torch.testing.assert_close(pooling(arriving), arriving)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "preact5O"}, "did you mean preact50"),
        ({"name": "PreAct18"}, "did you mean preact18"),
        ({"name": "transformer"}, "choose one of preact18, .*mlp, .*or path/to/file.py:factory"),
        ({"name": "lenet", "width": 3}, "lenet has no width"),
        ({"name": "lenet", "image_size": 15}, "at least 16×16, not 15×15"),
        ({"name": "vgg11", "image_size": (40, 31)}, "at least 32×32, not 40×31"),
        ({"name": "mlp", "num_classes": 0}, "num_classes is 0"),
        ({"name": "mlp", "in_channels": -1}, "in_channels is -1"),
        ({"name": "mlp", "image_size": (4, 0)}, "image_size is 0"),
        ({"name": "preact18", "width": 0}, "width is 0"),
    ],
)
def test_build_model_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        build_model(**arguments)


USER_FILE = """
from dataclasses import dataclass

from sibling import HIDDEN
from torch import nn


@dataclass
class Unused:
    size: int = 0


def everything(num_classes, in_channels, image_size):
    height, width = image_size
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * height * width, num_classes))


class Fixed(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.layer = nn.Linear(HIDDEN, num_classes)


def broken():
    return 1 / 0


def needs_more(num_classes, colour):
    return nn.Linear(1, 1)


def wrong():
    return 3


NUMBER = 5
"""


@pytest.fixture
def user_file(tmp_path):
    (tmp_path / "sibling.py").write_text("HIDDEN = 4\n")
    path = tmp_path / "model.py"
    path.write_text(USER_FILE)
    return path


def resolve(spec):
    return resolve_model(str(spec), num_classes=3, in_channels=2, image_size=(4, 5))


def test_resolve_model_builds_registry_networks():
    model = resolve("mlp")
    assert model(torch.randn(6, 2, 4, 5)).shape == (6, 3)


def test_resolve_model_calls_the_users_factory_with_what_it_names(user_file):
    assert resolve(f"{user_file}:everything")(torch.randn(6, 2, 4, 5)).shape == (6, 3)
    assert resolve(f"{user_file}:Fixed").layer.weight.shape == (3, 4)


def test_resolve_model_takes_relative_paths_and_a_square_size(user_file, monkeypatch):
    monkeypatch.chdir(user_file.parent)
    model = resolve_model("model.py:everything", num_classes=3, in_channels=2, image_size=4)
    assert model(torch.randn(6, 2, 4, 4)).shape == (6, 3)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("absent", "no factory 'absent': it defines Unused, everything, Fixed, broken"),
        ("NUMBER", "no factory 'NUMBER'"),
        ("broken", "line 25: ZeroDivisionError: division by zero"),
        ("needs_more", "TypeError: .*missing 1 required .*'colour'"),
        ("wrong", "returned int: a factory must return a torch.nn.Module"),
        ("", "names no factory: write path/to/file.py:factory"),
    ],
)
def test_resolve_model_refuses_factories(user_file, factory, message):
    with pytest.raises(InputError, match=message):
        resolve(f"{user_file}:{factory}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nimport no_such_package\n", "line 2: ModuleNotFoundError: No module named"),
        ("x = 1\n\ndef f(:\n", "line 3: SyntaxError"),
        ("raise ValueError('one\\ntwo')\n", "line 1: ValueError: one two"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        ("x = 1\n", "it defines no function or class"),
    ],
)
def test_resolve_model_refuses_files_in_one_line(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(InputError, match=message) as caught:
        resolve("mine.py:f")
    assert "\n" not in str(caught.value)


def test_resolve_model_refuses_missing_and_foreign_files(tmp_path):
    with pytest.raises(InputError, match=r"gone\.py does not exist"):
        resolve(tmp_path / "gone.py:f")
    with pytest.raises(InputError, match="names no factory"):
        resolve("model.py")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="not Python source"):
        resolve(tmp_path / "notes.txt:f")
