"""A CRNN for text lines: convolutions, columns as time steps, two bidirectional LSTM layers, a
linear classifier."""

from torch import Tensor, nn


class CRNN(nn.Module):
    def __init__(self, symbols: int = 37, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        widths = (1, width, 2 * width, 4 * width, 4 * width)
        pools = (nn.MaxPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d((2, 1)), nn.MaxPool2d((4, 1)))
        layers: list[nn.Module] = []
        for a, b, pool in zip(widths, widths[1:], pools, strict=False):
            layers += [
                nn.Conv2d(a, b, 3, padding=1, bias=False),
                nn.BatchNorm2d(b),
                nn.ReLU(),
                pool,
            ]
        self.features = nn.Sequential(*layers)
        self.rnn = nn.LSTM(4 * width, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.classifier = nn.Linear(2 * hidden, symbols)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.features(x).squeeze(2).transpose(1, 2)
        states, _ = self.rnn(columns)
        return self.classifier(states).log_softmax(-1)


make_model = CRNN
input_shape = (1, 1, 32, 96)
