"""Things that networks seldom do: Fourier mixing, chosen tokens, sampling by a grid, coordinates,
detached branches, ..."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randomnets.base import KINDS, SPATIAL, Dice, Free, Made, Shape, divisors, unary, width

DROPOUTS = {"series": nn.Dropout1d, "image": nn.Dropout2d, "volume": nn.Dropout3d}


@unary("tokens", times=2)
def rare_tokens(dice: Dice, shape: Shape) -> Made:
    n, c = shape.size[0], shape.channels
    k = dice.whole(1, n)
    name = dice.pick(
        [
            "fourier",
            "filter",
            "chosen",
            "gathered",
            "similarity",
            "distances",
            "spread",
            "codes",
            "pairs",
            "ellipsis",
            "tensordot",
            "median",
            "pooled query",
            "bilinear",
            "implied",
            "replaced",
            "put back",
            "ranks",
            "ones",
            "masked",
        ]
    )
    score, filters, codes = nn.Linear(c, 1), Free(n // 2 + 1, c, 2, scale=0.3), Free(5, c)

    def chosen(m: nn.Module, x: Tensor) -> Tensor:
        best = m(x).squeeze(-1).topk(k, 1).indices
        return x.gather(1, best.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    def spread(x: Tensor) -> Tensor:
        place = torch.arange(n) % 2
        return torch.zeros(x.shape[0], 2, c).to(x).index_add(1, place, x)

    def quantise(p: Free, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, p.weight[None].expand(x.shape[0], -1, -1)).argmin(-1)
        return x + (F.embedding(nearest, p.weight) - x).detach()

    def put_back(m: nn.Module, x: Tensor) -> Tensor:
        best = m(x).topk(k, 1).indices.expand(-1, -1, x.shape[-1])
        return x + torch.zeros_like(x).scatter(1, best, x.gather(1, best).sin())

    def replaced(m: nn.Module, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, k - 1] = m(x)[:, 0]
        return y

    def masked(m: nn.Module, p: Free, x: Tensor) -> Tensor:
        order = m(x).squeeze(-1).argsort(1)
        kept = x.gather(1, order[:, :k, None].repeat(1, 1, x.shape[-1]))
        all_places = torch.cat([kept.sin(), p.weight.repeat(x.shape[0], n - k, 1)], 1)
        return all_places.gather(1, order.argsort(1)[..., None].tile(1, 1, x.shape[-1]))

    table: dict[str, tuple[Shape, Callable[..., Tensor], list[nn.Module], bool]] = {
        "masked": (shape, masked, [score, Free(1, 1, c)], False),
        "bilinear": (shape.wide(4), lambda m, x: m(x, x.flip(1)), [nn.Bilinear(c, c, 4)], False),
        "implied": (
            Shape("tokens", n, (4,)),
            lambda p, x: torch.einsum("bxi,ij", x, p.weight),
            [Free(c, 4)],
            False,
        ),
        "replaced": (shape, replaced, [nn.Linear(c, c)], False),
        "put back": (shape, put_back, [score], False),
        "ranks": (shape, lambda x: x + x.argsort(dim=1, stable=True) / n, [], False),
        "ones": (shape.wide(c + 1), lambda x: F.pad(x, (0, 1), value=1.0), [], False),
        "fourier": (shape, lambda x: torch.fft.fft(x, dim=1, norm="ortho").real, [], False),
        "filter": (
            shape,
            lambda p, x: torch.fft.irfft(
                torch.fft.rfft(x, dim=1, norm="ortho") * torch.view_as_complex(p.weight),
                n=n,
                dim=1,
                norm="ortho",
            ),
            [filters],
            False,
        ),
        "chosen": (shape.sized(k), chosen, [score], False),
        "gathered": (shape.sized(2), lambda x: x[:, [0, n - 1]], [], False),
        "similarity": (
            shape,
            lambda x: x * F.cosine_similarity(x, x[:, :1], -1, 1e-2).unsqueeze(-1),
            [],
            False,
        ),
        "distances": (
            Shape("tokens", n, (n,)),
            lambda x: -(x[:, :, None] - x[:, None]).pow(2).sum(-1) / 8,
            [],
            False,
        ),
        "spread": (shape.sized(2), spread, [], True),
        "codes": (shape, quantise, [codes], False),
        "pairs": (
            Shape("tokens", 2 * c, (n,)),
            lambda x: torch.cat([x, x - x.flip(1)], -1),
            [],
            False,
        ),
        "ellipsis": (
            shape.wide(4),
            lambda p, x: torch.einsum("...i,ij->...j", x, p.weight),
            [Free(c, 4)],
            False,
        ),
        "tensordot": (
            shape.wide(4),
            lambda p, x: torch.tensordot(x, p.weight, dims=([2], [1])),
            [Free(4, c)],
            False,
        ),
        "median": (shape, lambda x: x - x.median(1, keepdim=True).values, [], False),
        "pooled query": (
            Shape("vector", c, ()),
            lambda p, x: torch.baddbmm(
                torch.zeros(1, 1, 1).to(x), (x @ p.weight).softmax(1).mT, x
            ).squeeze(1),
            [Free(c, 1)],
            False,
        ),
    }
    after, run, parts, sized = table[name]
    return Made(f"rare {name} {k}", after, run, parts, sized, True)


@unary("image", times=2)
def rare_image(dice: Dice, shape: Shape) -> Made | None:
    c, (h, w) = shape.channels, shape.size
    name = dice.pick(
        [
            "coordinates",
            "sample",
            "shuffle",
            "fourier",
            "option a",
            "detached",
            "blur",
            "gamma",
            "patch mean",
            "batch matrix",
            "top",
            "checker",
            "scatter",
        ]
    )
    if name == "option a" and (h % 2 or w % 2):
        return None
    grid = torch.stack(
        torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    )
    gate, offset = nn.Conv2d(c, c, 1), nn.Conv2d(c, 2, 1)

    def detached(m: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = m(x).sigmoid()
        return x * scale + m(x.detach())

    def blur(x: Tensor) -> Tensor:
        kernel = torch.tensor([1.0, 2.0, 1.0]).to(x) / 4
        return F.conv2d(
            x,
            kernel[None, None, None].expand(x.shape[1], -1, -1, -1),
            padding=(0, 1),
            groups=x.shape[1],
        )

    def sample(m: nn.Module, x: Tensor) -> Tensor:
        places = grid.permute(1, 2, 0).flip(-1).to(x) + 0.1 * m(x).permute(0, 2, 3, 1).tanh()
        return F.grid_sample(x, places, align_corners=True)

    groups = dice.pick([2, *divisors(c)]) if c % 2 == 0 else c

    def checker() -> Tensor:
        return (torch.arange(h * w) % 2).reshape(1, 1, h, w)

    table: dict[str, tuple[Shape, Callable[..., Tensor], list[nn.Module], bool]] = {
        "coordinates": (
            shape.wide(c + 2),
            lambda x: torch.cat([x, grid.to(x).expand(x.shape[0], -1, -1, -1)], 1),
            [],
            False,
        ),
        "sample": (shape, sample, [offset], False),
        "shuffle": (shape, lambda m, x: m(x), [nn.ChannelShuffle(groups)], True),
        "fourier": (shape, lambda x: torch.fft.fft2(x, norm="ortho").abs(), [], False),
        "option a": (
            Shape("image", c + 4, (h // 2, w // 2)),
            lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)),
            [],
            True,
        ),
        "detached": (shape, detached, [gate], False),
        "blur": (shape, blur, [], True),
        "gamma": (
            shape,
            lambda p, x: x.abs().clamp(min=0.1) ** p.weight[0].sigmoid(),
            [Free(1)],
            False,
        ),
        "patch mean": (
            shape,
            lambda x: x - F.interpolate(F.adaptive_avg_pool2d(x, 1), x.shape[2:]),
            [],
            False,
        ),
        "batch matrix": (
            shape,
            lambda x: x + (x.flatten(2).mean(0) / 2).unflatten(1, (h, w)),
            [],
            False,
        ),
        "top": (shape, lambda x: x - x.flatten(2).topk(1, -1).values.unsqueeze(-1), [], False),
        "checker": (shape, lambda x: torch.where(checker().bool(), x, -x), [], False),
        "scatter": (
            shape,
            lambda x: torch.zeros_like(x).scatter(2, checker().expand(x.shape).clamp(max=h - 1), x),
            [],
            False,
        ),
    }
    after, run, parts, sized = table[name]
    return Made(f"rare {name} {groups}", after, run, parts, sized, True)


@unary(*SPATIAL)
def dropped_channels(dice: Dice, shape: Shape) -> Made:
    """Dropout of whole channels; what is dropped is read beside itself."""
    layer = dice.pick([DROPOUTS[shape.kind], nn.Dropout])(0.3, inplace=dice.whole(0, 3) == 0)
    if dice.flag():
        return Made(f"beside {layer}", shape, lambda m, x: (y := x * 2).sin() + m(y), [layer])
    return Made(f"{layer}", shape, lambda m, x: m(x + 1), [layer])


@unary(*KINDS)
def mixtures(dice: Dice, shape: Shape) -> Made:
    """Scalars: learned weights of branches, learned temperatures, a maximum over everything."""
    name = dice.pick(
        [
            "branches",
            "temperature",
            "over everything",
            "mean of all",
            "standardised by all",
            "powers",
        ]
    )
    run: dict[str, Callable[..., Tensor]] = {
        "branches": lambda p, x: (
            torch.stack([x, x.tanh(), x.sin()]) * p.weight.softmax(0)[(..., *[None] * shape.rank)]
        ).sum(0),
        "temperature": lambda p, x: x / (p.weight[0].exp() + 0.1),
        "over everything": lambda p, x: (
            x / (1 + x.abs().flatten(1).amax(1)[(..., *[None] * (shape.rank - 1))])
        ),
        "mean of all": lambda p, x: (
            x - x.mean(tuple(range(1, shape.rank)), keepdim=True) * p.weight[0]
        ),
        "standardised by all": lambda p, x: (
            x / (1 + x.flatten(1).norm(dim=1)[(..., *[None] * (shape.rank - 1))])
        ),
        "powers": lambda p, x: (
            p.weight[0] + p.weight[1] * x + p.weight[2] * x.square().clamp(max=4)
        ),
    }
    return Made(f"mixture {name}", shape, run[name], [Free(3)])


@unary("vector", "tokens")
def low_dimensional(dice: Dice, shape: Shape) -> Made:
    """Autoencoders with tied weights, residuals of different depths."""
    outs = width(dice)
    layer = nn.Linear(shape.channels, outs)
    if dice.flag():
        return Made(
            f"tied autoencoder {outs}",
            shape,
            lambda m, x: F.linear(m(x).relu(), m.weight.t()),
            [layer],
        )
    return Made(
        f"nested residuals {outs}",
        shape.wide(outs),
        lambda m, n, x: (y := m(x)) + n(y.relu() + n(y).relu()),
        [layer, nn.Linear(outs, outs)],
    )
