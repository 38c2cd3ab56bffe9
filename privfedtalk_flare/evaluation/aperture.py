"""Recovers how far a rendered person's mouth is open, from pixels alone.

An analytic instrument, no training: a mouth painted by the renderer's own code is fitted to every frame by least
squares, and the opening with the smallest residual is the answer. The colours of lips and skin are unknowns, solved in
closed form, so that skin tone, lip colour and beard need not be known. The opening is fitted frame by frame, with no
smoothing, which would hide jitter and lend a still mouth the motion of its neighbours; over the clip go only the lips'
colour, thickness and smile, chosen once, and the place of the mouth, which moves as heads do.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from privfedtalk_flare.data.portrait import Canvas, Look, paint_mouth

TOP, BOTTOM, SIDE = -0.19, 0.28, 0.31
"""The patch around the closed mouth, in units of half the picture; nostrils lie above it, the chin below."""
MOUTH_HEIGHT = (0.30, 0.58)
"""Where the closed mouth's centre is looked for: rows in the picture's own coordinates (-1 top, 1 bottom)."""
OPENINGS = np.linspace(0.0, 1.1, 12)
WIDTHS = tuple(np.linspace(-0.6, 1.5, 6))
"""The renderer's `width` for a mouth of .225: half-widths .13 to .29."""
LIPS = tuple(product((0.047, 0.057, 0.067), (-0.005, 0.0125, 0.03), (0.0, 0.7, 1.2)))
"""What a clip keeps: thickness of the lips, smile, and the generator's blur (standard deviation in pixels)."""
TILTS = (-0.09, 0.0, 0.09)
FRAMES_FOR_LIPS = 12
LIPS_OF_SKIN = np.array([1.0, 0.62, 0.64])
"""The colour of lips over the skin's, a first guess."""
NOISE = 4.0
"""Grey levels of a pixel that are not worth explaining."""
STRIDE = 0.02
"""What a step of one 64th of the picture costs the path of the mouth, as a share of what a frame can explain."""


@dataclass(frozen=True)
class Models:
    """M candidate mouths on a patch of P pixels, all weighted by `_weight`: what skin can look like around the mouth
    (`skin`, an orthonormal (M, P, B)), where the lips are beyond that (`lips`, (M, P), orthogonal to `skin`), and the
    inside of the mouth in its own colours (`inside`, (M, P, 3) grey levels)."""

    skin: NDArray
    lips: NDArray
    inside: NDArray

    @cached_property
    def flat_skin(self) -> NDArray:
        """(P, M B): the skin of all candidates side by side."""
        return self.skin.transpose(1, 0, 2).reshape(self.skin.shape[1], -1)

    @cached_property
    def flat_inside(self) -> NDArray:
        """(3 P, M)."""
        return self.inside.transpose(2, 1, 0).reshape(-1, len(self.inside))

    @cached_property
    def inside_on_skin(self) -> NDArray:
        """(3, M, B)."""
        return np.einsum("mpb,mpc->cmb", self.skin, self.inside)

    @cached_property
    def inside_on_lips(self) -> NDArray:
        """(3, M)."""
        return np.einsum("mp,mpc->cm", self.lips, self.inside)

    @cached_property
    def powers(self) -> tuple[NDArray, NDArray]:
        """(M,) squared lengths of inside and lips."""
        return (self.inside**2).sum((1, 2)), (self.lips**2).sum(1)


@dataclass(frozen=True)
class Fit:
    """F frames against M candidates, skin colours solved for: the squared residual without lips `rest` (F, M), the
    projection on the lips `along` (F, 3, M) and their squared length (M,)."""

    rest: NDArray
    along: NDArray
    length: NDArray

    def free(self) -> NDArray:
        """(F, M) residuals with the lips in whatever colour fits each frame best."""
        return self.rest - (self.along**2).sum(1) / self.length

    def fixed(self, colour: NDArray) -> NDArray:
        """(F, M) residuals with the lips in `colour` (3,), grey levels."""
        return self.rest - 2 * np.einsum("fcm,c->fm", self.along, colour) + (colour**2).sum() * self.length

    def near(self, colour: NDArray) -> NDArray:
        """(F, M) residuals with the lips near `colour` (3,): straying from it costs as much as it would gain."""
        strayed = self.along / self.length - colour[:, None]
        return self.free() + (strayed**2).sum(1) * self.length / 2

    def colour(self, openings: NDArray) -> NDArray:
        """(3,) the lips' colour: median over the more open half of the frames, where lips cannot pass for the dark
        between them. The M candidates are ordered by `openings`."""
        best = self.free().argmin(1)
        openness = openings.repeat(len(self.length) // len(openings))
        colours = np.take_along_axis(self.along, best[:, None, None], 2)[..., 0] / self.length[best][:, None]
        return np.median(colours[openness[best] >= np.median(openness[best])], axis=0)


def face_area(size: int) -> NDArray:
    """(size, size) bool: where `mouth_aperture` looks for the mouth of a `size`-pixel picture, the lower half's middle.

    Larger than the generator's mask, because the fit wants some skin around the mouth; what lies outside the mask says
    nothing about the aperture.
    """
    area = np.zeros((size, size), bool)
    area[size // 2:, 3 * size // 16:13 * size // 16] = True
    return area


def mouth_aperture(frames: NDArray, mask: NDArray | None = None) -> NDArray:
    """The aperture of every frame, (F,) float64: about 0 for a closed and 1 for a wide-open mouth.

    `frames` is (F, S, S, 3) in grey levels 0..255, `mask` a boolean (S, S), by default `face_area`; no pixel outside it
    is read. Raises `ValueError` where shapes do not fit or the mask has no room for a mouth.
    """
    frames = np.asarray(frames)
    mask = face_area(frames.shape[1]) if mask is None and frames.ndim == 4 else np.asarray(mask)
    if frames.ndim != 4 or frames.shape[1] != frames.shape[2] or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"frames of shape {frames.shape}; expected square pictures (F, S, S, 3), F at least 1")
    if mask.shape != frames.shape[1:3] or mask.dtype != bool:
        raise ValueError(f"mask of shape {mask.shape}, dtype {mask.dtype}; expected a boolean {frames.shape[1:3]}")
    if len(frames) > 1 and (frames == frames[:1]).all():
        return np.repeat(mouth_aperture(frames[:1], mask), len(frames))  # a still picture is fitted once
    size = frames.shape[1]
    patches = _patches(frames, _locate(frames, _centres(mask), LIPS_OF_SKIN * _skin_colour(frames, mask)))
    some = patches[np.linspace(0, len(frames) - 1, FRAMES_FOR_LIPS).astype(int)]
    fits = [_fit(some, _models(size, "lips", *kept)) for kept in LIPS]
    colours = [fit.colour(OPENINGS[::2]) for fit in fits]
    best = min(range(len(LIPS)), key=lambda i: fits[i].fixed(colours[i]).min(1).sum())
    fine = _fit(patches, _fine_models(size, "fine", *LIPS[best])).fixed(colours[best])
    return _lowest(fine.reshape(len(frames), len(OPENINGS), -1).min(2))


def _lowest(profile: NDArray) -> NDArray:
    """(F,) openings of least residual, between the candidates by a parabola; `profile` is (F, openings)."""
    at = np.clip(profile.argmin(1), 1, len(OPENINGS) - 2)[:, None]
    left, here, right = (np.take_along_axis(profile, at + k, 1)[:, 0] for k in (-1, 0, 1))
    bend = np.maximum(left - 2 * here + right, 1e-9)
    step = np.clip(0.5 * (left - right) / bend, -1.0, 1.0)
    return OPENINGS[at[:, 0]] + step * (OPENINGS[1] - OPENINGS[0])


def _centres(mask: NDArray) -> NDArray:
    """(N, 2) rows and columns around which the whole patch lies inside the mask, at a mouth's height."""
    size = len(mask)
    rows, columns = _offsets(size)
    height = [round((h + 1) * size / 2 - 0.5) for h in MOUTH_HEIGHT]
    centres = np.array([(r, c) for r, c in product(range(height[0], height[1] + 1), range(size))
                        if r + rows[-1] < size and c + columns[0] >= 0 and c + columns[-1] < size
                        and mask[r + rows[0]:r + rows[-1] + 1, c + columns[0]:c + columns[-1] + 1].all()])
    if not len(centres):
        raise ValueError(f"the mask ({int(mask.sum())} of {mask.size} pixels) has no room for a patch of {len(rows)} x "
                         f"{len(columns)} pixels around a mouth; it must cover the lower face")
    return centres


def _skin_colour(frames: NDArray, mask: NDArray) -> NDArray:
    """(3,) median colour of the mask's upper quarter: nose and cheeks, above any beard."""
    rows = np.flatnonzero(mask.any(1))
    upper = mask.copy()
    upper[rows[0] + max(1, len(rows) // 4):] = False
    return np.median(frames[:, upper].reshape(-1, 3), axis=0)


def _locate(frames: NDArray, centres: NDArray, colour: NDArray) -> NDArray:
    """(F, 2) row and column of the closed mouth's centre, among `centres`: where a mouth with lips near `colour`
    explains the largest share of what plain skin does not, on a path that heads can follow."""
    size = frames.shape[1]
    models = [_models(size, "mouth", blur=blur) for blur in (0.0, 1.0)]
    share = np.empty((len(frames), len(centres)))
    noise = 3 * NOISE**2 * (_weight(size) ** 2).sum()
    for column, centre in enumerate(centres):
        patches = _patches(frames, np.broadcast_to(centre, (len(frames), 2)))
        skin = _fit(patches, _models(size, "skin")).rest[:, 0]
        mouth = np.min([_fit(patches, m).near(colour).min(1) for m in models], axis=0)
        share[:, column] = (skin - mouth) / (skin + noise)
    return centres[_steady(share, STRIDE * (((centres[:, None] - centres[None]) * 64 / size) ** 2).sum(-1))]


def _steady(share: NDArray, cost: NDArray) -> NDArray:
    """(F,) the path through `share` (F, N) with the largest sum less the `cost` (N, N) of its steps (Viterbi)."""
    best, origin = share[0], []
    for now in share[1:]:
        reached = best[:, None] - cost
        origin.append(reached.argmax(0))
        best = reached.max(0) + now
    path = [int(best.argmax())]
    for back in reversed(origin):
        path.append(int(back[path[-1]]))
    return np.array(path[::-1])


def _offsets(size: int) -> tuple[NDArray, NDArray]:
    """Pixel offsets of the patch's rows and columns from its centre."""
    half = size / 2
    side = round(SIDE * half)
    return np.arange(round(TOP * half), round(BOTTOM * half) + 1), np.arange(-side, side + 1)


def _patches(frames: NDArray, centres: NDArray) -> NDArray:
    """(F, 3, P) float32 weighted patches around `centres` (F, 2)."""
    size = frames.shape[1]
    rows, columns = _offsets(size)
    found = frames[np.arange(len(frames))[:, None, None], centres[:, 0, None, None] + rows[:, None],
                   centres[:, 1, None, None] + columns[None]]
    return _read(found.astype(np.float32), size).transpose(0, 2, 1)


def _grid(size: int) -> tuple[NDArray, NDArray]:
    rows, columns = _offsets(size)
    return np.meshgrid(columns / (size / 2), rows / (size / 2))


@functools.lru_cache(maxsize=4)
def _weight(size: int) -> NDArray:
    """(R, C) root of the pixels' weights: 1 at the mouth, 0 where nose, cheeks and chin have too little to say."""
    x, y = _grid(size)
    weight = np.exp(-(((x / 0.30) ** 2 + ((y - 0.04) / 0.26) ** 2) ** 2) / 2).astype(np.float32)
    return np.where(weight < 0.4, 0, weight)


def _read(pictures: NDArray, size: int) -> NDArray:
    """(M, R, C, N) patches -> (M, P, N): their pixels of some weight, weighted."""
    return pictures[:, _weight(size) > 0] * _weight(size)[_weight(size) > 0][:, None]


def _build(size: int, which: str, full: float = 0.057, smile: float = 0.0125, blur: float = 0.0) -> Models:
    """Candidates to locate the mouth ('skin': none; 'mouth': some), to choose the lips ('lips'), and to measure."""
    pixel = 2 / size
    x, y = _grid(size)
    ground = np.stack([np.ones_like(x), x / SIDE, y / SIDE, (x / SIDE) ** 2, (y / SIDE) ** 2], -1)
    if which == "skin":
        pixels = np.count_nonzero(_weight(size))
        return Models(_orthonormal(_read(ground[None], size)), np.zeros((1, pixels), np.float32),
                      np.zeros((1, pixels, 3), np.float32))
    steps = {"mouth": ((0.0, 0.4, 0.9), (0.1, 0.9), (0.0,), (0.0,), TILTS),
             "lips": (OPENINGS[::2], WIDTHS[::2], (-0.5, 0.5), (0.0,), TILTS),
             "fine": (OPENINGS, WIDTHS, (-2.0, -1.4, -0.8, -0.2, 0.4, 1.0), (-0.7, 0.0, 0.7), TILTS)}[which]
    opening, width, down, right, tilt = (np.array(v, np.float32)[:, None, None]
                                         for v in zip(*product(*steps), strict=True))
    x0, y0 = x.astype(np.float32) - right * pixel, y.astype(np.float32) - down * pixel
    turned = np.cos(tilt) * x0 + np.sin(tilt) * y0, np.cos(tilt) * y0 - np.sin(tilt) * x0

    def painted(skin: tuple[float, ...], lips: tuple[float, ...]) -> NDArray:
        look = replace(Look.draw(np.random.default_rng(0)), mouth_y=0.0, mouth_width=0.225, lip_full=full, smile=smile,
                       lips=np.array(lips))
        canvas = Canvas(len(opening), 1)
        canvas.picture = np.broadcast_to(np.array(skin, np.float32), (*turned[0].shape, 3)).copy()
        paint_mouth(canvas, look, *turned, {"aperture": opening, "width": width}, np.ones_like(turned[0]), 4.4 / size)
        return gaussian_filter(canvas.picture, (0, blur, blur, 0), mode="nearest") if blur else canvas.picture

    inside = painted((0, 0, 0), (0, 0, 0))  # painting is linear in the colours: each is switched on in its own channel
    skin, lips = np.moveaxis(painted((1, 0, 0), (0, 1, 0)) - inside, -1, 0)[:2, ..., None]
    basis, lips = _orthonormal(_read(skin * ground, size)), _read(lips, size)
    lips = lips - basis @ (basis.transpose(0, 2, 1) @ lips)
    return Models(basis, lips[..., 0].astype(np.float32), _read(inside * 255, size).astype(np.float32))


def _orthonormal(columns: NDArray) -> NDArray:
    """(M, P, B) float32 orthonormal bases of the columns, by Cholesky: a tenth of the time of QR."""
    lower = np.linalg.cholesky(columns.transpose(0, 2, 1) @ columns)
    return (columns @ np.linalg.inv(lower).transpose(0, 2, 1)).astype(np.float32)


_models = functools.lru_cache(maxsize=32)(_build)
_fine_models = functools.lru_cache(maxsize=2)(_build)  # 60 MB each


def _fit(patches: NDArray, models: Models) -> Fit:
    """Least squares of every candidate on patches (F, 3, P), in closed form.

    With Q the orthonormal skin and v = patch - inside, what is left of v is |v|^2 - |Q'v|^2.
    """
    count, _, colours = models.skin.shape
    inside, lips = models.powers
    seen = (patches @ models.flat_skin).reshape(-1, 3, count, colours) - models.inside_on_skin
    mixed = patches.reshape(len(patches), -1) @ models.flat_inside
    power = (patches**2).sum((1, 2))[:, None] + inside
    along = patches @ models.lips.T - models.inside_on_lips
    return Fit(power - 2 * mixed - (seen**2).sum((1, 3)), along, lips)
