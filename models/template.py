"""The commented starting file that `pruneopt new model.py` writes."""

from __future__ import annotations

__all__ = ["starting_file"]

_TEXT = '''\
"""A network for pruneopt. What stands below the network is optional; replace what is not yours.

    pruneopt inspect model.py
    pruneopt compile model.py --budget 50%FLOPs
"""

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """Three convolutions for 8x8 scanned digits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(64)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.classifier(x.mean((2, 3)))


# The network. Called once; name another function as model.py:other_function. A trained network is
# loaded here, or with the command line's weights option.
def make_model() -> nn.Module:
    model = Net()
    # model.load_state_dict(torch.load("weights.pt", weights_only=True))
    return model


# The shape of one input, batch first. For several inputs: example_inputs = (tensor, tensor).
input_shape = (1, 1, 8, 8)

# The part to prune, where the whole network cannot be captured or does not take and return tensors
# (a detector up to its raw outputs). Called with the example inputs; what code outside of this part
# reads must be among its outputs:
# def forward(model: nn.Module, images: torch.Tensor) -> object:
#     return model.head(model.backbone(images))

# What to score and train with. "digits" comes with scikit-learn; `pruneopt compile --help` names
# others, such as "folder:DIR" (one folder of images per class). Paths start at this file's folder.
data = "digits"

# Your own data sets instead, each a torch Dataset of (input, target) or a pair of tensors (inputs,
# targets):
# def data():
#     return train_set, test_set

# Your own measures instead of cross-entropy and top-1. The loss is a scalar to minimise; the metric
# gives one number per sample, and searches keep what has the larger mean:
# def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
#     return F.cross_entropy(outputs, targets)
#
# def metric(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
#     return (outputs.argmax(1) == targets).float()

# Your own final test instead of the mean metric over the test data, larger is better:
# def evaluate(model: nn.Module) -> float:
#     return my_mean_average_precision(model)
'''


def starting_file() -> str:
    """Return the text of a model file that works as it is: a small convolutional network on
    scikit-learn's digits."""
    return _TEXT
