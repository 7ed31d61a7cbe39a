"""Networks by name: what loads, what keeps files apart, and one clear sentence for everything
else."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pruneopt.errors import UserError
from pruneopt.models import zoo
from pruneopt.models.source import LoadedModel, load_model
from pruneopt.models.template import starting_file
from pruneopt.models.workload import TensorSplit, Workload
from pruneopt.passes.training.recipe import SGD
from pruneopt.passes.training.trainer import train

Write = Callable[..., str]
NET = "from torch import nn\nimport torch\nmodel = nn.Linear(4, 3)\ninput_shape = (2, 4)\n"
DATA = "x, y = torch.randn(90, 4), torch.arange(90) % 3\n"


def module_of(loaded: LoadedModel) -> nn.Module:
    assert isinstance(loaded.module, nn.Module)
    return loaded.module


def test_template_works_as_it_is(write: Write) -> None:
    loaded = load_model(write("model.py", starting_file()))
    workload = loaded.workload()
    module = module_of(loaded)
    train(module, workload, SGD(epochs=6, lr=0.1, batch_size=64))
    assert loaded.example_inputs[0].shape == (1, 1, 8, 8)
    assert workload.score(module, "test") > 0.9


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        ("zoo:resnet20?num_classes=7", [(1, 3, 32, 32)]),
        ("torchvision:squeezenet1_1", [(1, 3, 224, 224)]),
        ("torchvision:inception_v3?init_weights=false", [(1, 3, 299, 299)]),
        ("torchvision:lraspp_mobilenet_v3_large", [(1, 3, 520, 520)]),
        ("torchvision:r3d_18", [(1, 3, 16, 112, 112)]),
        ("torchvision:raft_small", [(1, 3, 128, 128), (1, 3, 128, 128)]),
        ("timm:resnet10t", [(1, 3, 176, 176)]),
    ],
)
def test_library_networks(
    spec: str, shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("weights must not be downloaded")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    loaded = load_model(spec)
    assert [tuple(value.shape) for value in loaded.example_inputs] == shapes
    assert loaded.summary
    assert load_model(spec, input_shape=(1, 3, 64, 64)).example_inputs[0].shape == (1, 3, 64, 64)


def test_random_weights_are_always_the_same() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = (module_of(load_model("zoo:digits_resnet")) for _ in range(2))
    assert torch.equal(one.get_parameter("conv1.weight"), two.get_parameter("conv1.weight"))
    assert torch.equal(torch.get_rng_state(), before)


def test_exported_program(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(4, 3).eval(), (torch.ones(2, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(UserError, match=r"net\.pt2 may run code .*give --trust \(trusted=True"):
        load_model(str(tmp_path / "net.pt2"))
    loaded = load_model(str(tmp_path / "net.pt2"), trusted=True)
    assert isinstance(loaded.module, torch.export.ExportedProgram)
    assert torch.equal(loaded.example_inputs[0], torch.ones(2, 4))
    with pytest.raises(UserError, match="carries its own weights"):
        load_model(str(tmp_path / "net.pt2"), weights=tmp_path / "w.pt", trusted=True)
    content = (tmp_path / "net.pt2").read_bytes()
    (tmp_path / "net.pt2").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"net\.pt2 is truncated, or not a program"):
        load_model(str(tmp_path / "net.pt2"), trusted=True)


def test_factories_options_and_wrappers(write: Write) -> None:
    path = write(
        "nets.py",
        NET + "class Wide(nn.Linear):\n    'A wide one.'\n    def __init__(self, width=1):\n"
        "        super().__init__(4, 3 * width)\n"
        "def wrapped():\n    return nn.DataParallel(model)\n"
        "def example_inputs():\n    return torch.ones(1, 4)\n",
    )
    assert load_model(path).summary.startswith("Applies")
    wide = load_model(path + ":Wide?width=2")
    assert module_of(wide).get_parameter("weight").shape == (6, 4)
    assert wide.summary == "A wide one."
    assert type(load_model(path + ":wrapped").module) is nn.Linear
    assert torch.equal(wide.example_inputs[0], torch.ones(1, 4))


def test_own_loss_metric_evaluate_and_data(write: Write) -> None:
    path = write(
        "own.py",
        NET + DATA + "def data():\n    return (x, y), (x[:30], y[:30])\n"
        "def loss(outputs, targets):\n    return outputs.mean()\n"
        "def metric(outputs, targets):\n    return torch.full((len(targets),), 0.5)\n"
        "def evaluate(model):\n    import late\n    return late.VALUE\n",
    )
    write("late.py", "VALUE = 0.75")
    loaded = load_model(path)
    workload = loaded.workload()
    assert (workload.score(module_of(loaded)), workload.score(module_of(loaded), "test")) == (
        0.5,
        0.75,
    )
    assert (len(workload.train), len(workload.subval), len(workload.test)) == (72, 18, 30)
    assert loaded.loss is workload.loss
    assert "late" not in sys.modules


@pytest.mark.parametrize(
    "returned",
    [
        "(x, y), (x, y), (x, y)",
        "{'train': (x, y), 'test': (x, y), 'calibration': (x, y), 'subval': (x, y), 'num_classes': "
        "3}",
        "TensorDataset(x, y), DataLoader(TensorDataset(x, y))",
        "Subset(TensorDataset(x, y), range(60)), list(zip(x, y))",
    ],
)
def test_forms_of_own_data(write: Write, returned: str) -> None:
    head = "from torch.utils.data import *\n"
    loaded = load_model(
        write("own.py", head + NET + DATA + f"def data():\n    return {returned}\n")
    )
    workload = loaded.workload()
    assert 0 <= workload.score(module_of(loaded), "test") <= 1
    labels = torch.cat([targets for _, targets in workload.subval.batches(1000)])
    assert labels.bincount().min() == labels.bincount().max()


def test_finished_workload_and_spec_beside_the_file(write: Write, tmp_path: Path) -> None:
    import numpy as np

    np.savez(
        tmp_path / "points.npz",
        x=np.random.default_rng(0).normal(size=(60, 4)),
        y=np.arange(60) % 3,
    )
    loaded = load_model(write("model.py", NET + "data = 'npz:points.npz'\n"))
    assert loaded.workload().name == "npz"
    split = TensorSplit(torch.randn(6, 4), torch.arange(6) % 3, torch.arange(6))
    own = LoadedModel(
        "m", "m", nn.Linear(4, 3), (torch.ones(1, 4),), Workload("w", 3, split, split, split, split)
    )
    assert own.workload().name == "w"
    with pytest.raises(UserError, match="m names no data"):
        LoadedModel("m", "m", nn.Linear(4, 3), (torch.ones(1, 4),)).workload()


def test_each_file_has_its_own_siblings(write: Write) -> None:
    """Packages called utils and models, in two folders at once, and ours stays what it is."""
    text = (
        "import models, utils\nfrom models.net import Net\ninput_shape = (1, 4)\n"
        "def make_model():\n    import utils.later\n    return Net(utils.later.WIDTH)\n"
    )
    for folder, width in (("a", 3), ("b", 5)):
        write(f"{folder}/model.py", text)
        write(f"{folder}/models/__init__.py", "")
        write(
            f"{folder}/models/net.py",
            "from torch import nn\nclass Net(nn.Linear):\n"
            "    def __init__(self, width):\n        super().__init__(4, width)\n",
        )
        path = write(f"{folder}/utils/later.py", f"WIDTH = {width}\n")
    before, paths = dict(sys.modules), list(sys.path)
    a, b, again = (load_model(str(Path(path).parents[2] / name / "model.py")) for name in "aba")
    assert [module_of(loaded).out_features for loaded in (a, b, again)] == [3, 5, 3]
    assert sys.path == paths
    assert all(sys.modules[name] is module for name, module in before.items())
    added = {
        name
        for name in sys.modules.keys() - before.keys()
        if name.partition(".")[0] in ("models", "utils")
    }
    assert not added
    assert sys.modules["pruneopt.models"].__name__ == "pruneopt.models"


def test_a_name_loaded_from_elsewhere_does_not_stand_in(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = type(sys)("utils")
    other.__file__ = write("elsewhere/utils.py", "")
    monkeypatch.setitem(sys.modules, "utils", other)
    write("own/utils.py", "WIDTH = 3\n")
    loaded = load_model(
        write(
            "own/model.py",
            "import utils\nfrom torch import nn\nmodel = "
            "nn.Linear(4, utils.WIDTH)\n"
            "input_shape = (1, 4)\n",
        )
    )
    assert module_of(loaded).out_features == 3
    assert sys.modules["utils"] is other


def test_edited_file_is_read_again(write: Write) -> None:
    assert module_of(load_model(write("model.py", NET))).out_features == 3
    assert module_of(load_model(write("model.py", NET.replace("3)", "7)")))).out_features == 7


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = (\n", r"model\.py line 1 is not valid Python"),
        (
            "import torch\nraise ValueError('no\\nGPU')\n",
            r"model\.py line 2 raised ValueError while .*: no GPU",
        ),
        ("import helper\n", r"helper\.py line 2 raised ZeroDivisionError"),
        ("import broken\n", r"broken\.py line 1 is not valid Python"),
        ("import not_there\n", r"line 1 raised ModuleNotFoundError .*No module named 'not_there'"),
        ("import sys\nsys.exit(1)\n", r"line 2 ends the program .*__main__"),
        ("x = 1\n", "defines neither 'model' nor 'make_model': add one$"),
        ("from torch import nn\nnet = nn.ReLU()\n", r"name one of net as model\.py:net"),
        (
            "input_shape = (1, 4)\nmodel = 3\n",
            r"model\.py line 2: 'model' is a int, it must be a torch\.nn\.Module",
        ),
        ("def make_model():\n    return None\n", r"line 1: 'make_model' returns a NoneType"),
        (
            "def make_model():\n    return 1 / 0\n",
            r"line 2 raised ZeroDivisionError while 'make_model' was called",
        ),
        (
            "def make_model(size):\n    pass\n",
            "raised TypeError while 'make_model' was called.*'size'",
        ),
        (NET + "model = torch.jit.trace(model, torch.ones(1, 4))\n", "is TorchScript"),
        (NET + "model = nn.LazyLinear(3)\n", "'weight' in .* has no shape yet"),
        (NET + "model = nn.Linear(4, 3, device='meta')\n", "on the meta device"),
        (
            NET + "model.bias.data[1] = torch.nan\n",
            "'bias' in .* holds 1 NaN or infinite values of 3",
        ),
        (
            NET + "model = nn.BatchNorm1d(4)\nmodel.running_var.fill_(torch.inf)\n",
            "'running_var' in .* holds 4",
        ),
        (NET.replace("input_shape = (2, 4)", ""), "has no example_inputs and no input_shape"),
        (NET + "input_shape = (2, 'a')\n", r"model\.py line 4: input_shape must be whole numbers"),
        (NET + "example_inputs = 'a'\n", "line 5: example_inputs must be a tuple of tensors"),
        (
            NET + "def example_inputs():\n    return 1 / 0\n",
            "line 6 raised ZeroDivisionError while example_inputs",
        ),
        (NET + "data = 5\n", "line 5: data must be a data spec or a function, not a int"),
        (NET + "loss = 'l1'\n", "line 5: loss must be a function, not a str"),
    ],
)
def test_errors_in_the_file(write: Write, text: str, message: str) -> None:
    write("helper.py", "\n1 / 0\n")
    write("broken.py", "def f(:\n")
    path = write("model.py", text)
    with pytest.raises(UserError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("1 / 0", r"model\.py line 7 raised ZeroDivisionError while data\(\) ran"),
        ("5", "is a int: it must be"),
        ("x, y", "is a tuple: it must be"),
        ("{'train': (x, y)}", "has the parts train: it must be"),
        ("{'train': (x, y), 'test': (x, y), 'valid': (x, y)}", "has the parts test, train, valid"),
        ("(x, y[:5]), (x, y)", "'train' of model has 90 inputs and 5 targets"),
        ("iter([1]), (x, y)", "is not a map-style data set"),
        ("(x, y), []", "'test' of model is empty"),
        (
            "{'train': (x, y), 'test': (x, y), 'num_classes': 'a'}",
            "num_classes .* must be a whole number",
        ),
    ],
)
def test_errors_in_own_data(write: Write, returned: str, message: str) -> None:
    loaded = load_model(write("model.py", NET + DATA + f"def data():\n    return {returned}\n"))
    with pytest.raises(UserError, match=message):
        loaded.workload()


def test_samples_that_do_not_stack(write: Write) -> None:
    loaded = load_model(
        write("model.py", NET + "data = lambda: ([(torch.ones(i), 0) for i in range(40)],) * 2\n")
    )
    with pytest.raises(UserError, match="cannot be stacked"):
        loaded.workload().score(module_of(loaded))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.py", "there is no file nowhere.py"),
        ("nowhere.pt2", "there is no file nowhere.pt2"),
        ("resnet50", "'resnet50' is not a network: write model.py"),
        ("{model}:", "is not a network"),
        ("{model}:modle", "defines no 'modle': did you mean model"),
        ("{model}?width=2", "'model' is a finished network and takes no options"),
        ("torchvision:resnet5", "torchvision has no network 'resnet5': did you mean resnet50"),
        ("timm:resnet5", "timm has no network 'resnet5': did you mean resnet5"),
        ("timm:hf-hub:someone/net", "timm has no network 'hf-hub:someone/net'"),
        ("zoo:resnet5", "did you mean resnet5"),
        ("torchvision:resnet18?weights=DEFAULT", "nothing is downloaded"),
        ("torchvision:resnet18?depth=3", "cannot be built: .*unexpected keyword argument 'depth'"),
        ("timm:resnet18?pretrained=true", "nothing is downloaded"),
    ],
)
def test_errors_in_the_spec(write: Write, spec: str, message: str) -> None:
    path = write("model.py", NET)
    with pytest.raises(UserError, match=message):
        load_model(spec.replace("{model}", path))


def test_bad_input_shape(write: Write) -> None:
    with pytest.raises(UserError, match="the input shape must be whole numbers above 0"):
        load_model(write("model.py", NET), input_shape=(0, 4))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".th"])
@pytest.mark.parametrize("form", ["plain", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_forms_of_weights(tmp_path: Path, suffix: str, form: str, prefix: str) -> None:
    source = zoo.create("digits_resnet")
    tensors = {
        prefix + key: value
        for key, value in source.state_dict().items()
        if "num_batches" not in key
    }
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors if form == "plain" else {form: tensors, "epoch": 3}, path)
    loaded = module_of(load_model("zoo:digits_resnet", weights=path))
    assert all(
        torch.equal(a, b) for a, b in zip(source.parameters(), loaded.parameters(), strict=True)
    )


def test_a_shared_parameter_may_be_stored_once(write: Write, tmp_path: Path) -> None:
    text = NET.replace("nn.Linear(4, 3)", "nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))")
    path = write("model.py", text + "model[1].weight = model[0].weight\n")
    tensors = {
        key: torch.ones_like(value)
        for key, value in module_of(load_model(path)).state_dict().items()
    }
    del tensors["1.weight"]
    save_file(tensors, tmp_path / "w.safetensors")
    assert (
        module_of(load_model(path, weights=tmp_path / "w.safetensors"))
        .get_parameter("1.weight")
        .sum()
        == 16
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_weights(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    state = zoo.create("digits_resnet").state_dict()
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    for keep in (path.stat().st_size // 2, 5, 0):
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(UserError, match=r"w\..* is truncated or not a"):
            load_model("zoo:digits_resnet", weights=path)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    state = zoo.create("digits_resnet").state_dict()

    def refused(message: str, changed: object) -> None:
        torch.save(changed, tmp_path / "w.pt")
        with pytest.raises(UserError, match=message):
            load_model("zoo:digits_resnet", weights=tmp_path / "w.pt")

    without = {key: value for key, value in state.items() if not key.startswith("bn1.")}
    refused(r"it lacks 4 of the network's tensors, first 'bn1.weight'$", without)
    refused(r"it has 1 the network does not know, first 'head'$", state | {"head": torch.ones(1)})
    refused(
        r"1 shapes differ, first bn1.bias, \[3\] in the file and \[16\]",
        state | {"bn1.bias": torch.ones(3)},
    )
    refused("'bn1.bias' in .*w.pt holds 16 NaN", state | {"bn1.bias": torch.full((16,), torch.nan)})
    refused("holds no state dict", {"epoch": 3})
    refused("holds Python objects, not only tensors", nn.Linear(2, 2))


def test_weights_path_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the weights file .*none\.pt does not exist"):
        load_model("zoo:resnet20", weights=tmp_path / "none.pt")
    (tmp_path / "w.txt").touch()
    with pytest.raises(UserError, match="is not a weights file"):
        load_model("zoo:resnet20", weights=tmp_path / "w.txt")


def test_infinite_constants_are_allowed(write: Write) -> None:
    """Attention masks hold -inf on purpose."""
    text = NET + "model.register_buffer('mask', torch.full((3,), -torch.inf))\n"
    loaded = module_of(load_model(write("model.py", text)))
    assert loaded.get_buffer("mask").isinf().all()


@pytest.mark.parametrize("name", ["resnet20", "resnet32", "resnet56"])
def test_published_weights_load(shared: Path, name: str) -> None:
    path = shared / "weights" / f"cifar10_{name}_optA.safetensors"
    module = module_of(load_model(f"zoo:{name}", weights=path))
    stored = load_file(path)
    assert all(torch.equal(value, stored[key]) for key, value in module.named_parameters())


# Parts of networks


def test_a_file_may_choose_the_part_to_prune(write: Write) -> None:
    text = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, batch):
        return {"out": self.head(self.body(batch["x"]))}

model = Net()
input_shape = (1, 4)

def forward(model, x):
    return model({"x": x})["out"]
"""
    loaded = load_model(str(write("model.py", text)))
    assert module_of(loaded)(*loaded.example_inputs).shape == (1, 2)
    names = sorted(dict(module_of(loaded).named_parameters()))
    assert names == ["body.bias", "body.weight", "head.bias", "head.weight"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "inputs"), [("ssdlite320_mobilenet_v3_large", 1), ("fasterrcnn_resnet50_fpn", 2)]
)
def test_detectors_are_taken_up_to_their_raw_outputs(name: str, inputs: int) -> None:
    loaded = load_model(f"torchvision:{name}")
    assert len(loaded.example_inputs) == inputs
    found = module_of(loaded).eval()(*loaded.example_inputs)
    assert "boxes" in found or "bbox_regression" in found
