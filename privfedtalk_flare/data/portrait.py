"""Paints one rendered person: shaded shapes with soft edges, all frames of a clip at once.

Coordinates: x to the right and y down, both in [-1, 1] over the picture; the face's own frame is the picture's,
shifted and tilted by the pose. Whatever follows the mouth is confined to `mouth_region`, so that nothing outside the
mask of the generator gives the aperture away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZE = 64
MASK_ROWS = (40, 64)
MASK_COLUMNS = (16, 48)
"""The mouth, chin and jaw, in pixels of a 64-pixel picture: 19 % of it. Other sizes scale."""


def mask_box(size: int) -> tuple[slice, slice]:
    """Rows and columns of the masked lower face in a picture of `size` x `size` pixels."""
    return (slice(MASK_ROWS[0] * size // SIZE, MASK_ROWS[1] * size // SIZE),
            slice(MASK_COLUMNS[0] * size // SIZE, MASK_COLUMNS[1] * size // SIZE))


@dataclass(frozen=True)
class Look:
    """What does not change about a person: colours (3,) in [0, 1], sizes in picture coordinates, switches in [0, 1]."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    shirt: np.ndarray
    wall: np.ndarray
    wall_low: np.ndarray
    blob: np.ndarray
    blob_at: np.ndarray
    light: np.ndarray
    face_width: float
    face_height: float
    jaw: float
    hair_size: float
    hair_long: float
    fringe: float
    eye_gap: float
    eye_size: float
    brow: float
    brow_tilt: float
    nose: float
    mouth_width: float
    mouth_y: float
    smile: float
    lip_full: float
    beard: float
    glasses: float
    blush: float

    @staticmethod
    def draw(rng: np.random.Generator) -> Look:
        """Draws a person. Skin tones lie on a light-to-dark line with a random undertone."""
        tone = rng.random()
        skin = np.array([0.96, 0.80, 0.69]) * (1 - tone) + np.array([0.36, 0.22, 0.16]) * tone
        skin = np.clip(skin * (1 + rng.uniform(-0.07, 0.07, 3)), 0, 1)
        palette = np.array([[0.08, 0.06, 0.05], [0.28, 0.17, 0.09], [0.55, 0.36, 0.17], [0.83, 0.68, 0.38],
                            [0.60, 0.22, 0.10], [0.62, 0.62, 0.63], [0.35, 0.18, 0.35]])
        hair = np.clip(palette[rng.integers(len(palette))] * rng.uniform(0.8, 1.2) + rng.uniform(-0.03, 0.03, 3), 0, 1)
        iris = np.array([[0.30, 0.18, 0.08], [0.25, 0.45, 0.70], [0.28, 0.50, 0.30], [0.45, 0.42, 0.35]])
        lips = np.clip(skin * np.array([0.95, 0.62, 0.62]) + np.array([0.10, 0.0, 0.02]) * rng.random(), 0, 1)
        wall = rng.uniform(0.15, 0.95, 3)
        return Look(
            skin=skin, hair=hair, iris=iris[rng.integers(len(iris))], lips=lips, shirt=rng.uniform(0.05, 0.95, 3),
            wall=wall, wall_low=np.clip(wall + rng.uniform(-0.3, 0.3, 3), 0, 1),
            blob=np.clip(wall + rng.uniform(-0.35, 0.35, 3), 0, 1), blob_at=rng.uniform(-1, 1, 2),
            light=np.array([rng.uniform(-0.7, 0.7), rng.uniform(-0.7, -0.1)]),
            face_width=float(rng.uniform(0.46, 0.58)), face_height=float(rng.uniform(0.72, 0.82)),
            jaw=float(rng.uniform(0.72, 1.0)), hair_size=float(rng.uniform(1.05, 1.28)),
            hair_long=float(rng.random() < 0.45), fringe=float(rng.uniform(-0.62, -0.38)),
            eye_gap=float(rng.uniform(0.19, 0.26)), eye_size=float(rng.uniform(0.085, 0.12)),
            brow=float(rng.uniform(0.022, 0.05)), brow_tilt=float(rng.uniform(-0.25, 0.25)),
            nose=float(rng.uniform(0.06, 0.10)), mouth_width=float(rng.uniform(0.19, 0.26)),
            mouth_y=float(rng.uniform(0.40, 0.47)), smile=float(rng.uniform(-0.01, 0.035)),
            lip_full=float(rng.uniform(0.045, 0.07)),
            beard=float(rng.random() < 0.22) * float(rng.uniform(0.35, 0.8)), glasses=float(rng.random() < 0.2),
            blush=float(rng.uniform(0, 0.5)))


@dataclass(frozen=True)
class Motion:
    """What changes from frame to frame, each (F,): pose in picture coordinates, radians, openness in [0, 1]."""

    x: np.ndarray
    y: np.ndarray
    tilt: np.ndarray
    turn: np.ndarray
    blink: np.ndarray
    gaze: np.ndarray
    brow: np.ndarray
    aperture: np.ndarray
    width: np.ndarray


def _ramp(distance: np.ndarray, softness: float) -> np.ndarray:
    """Coverage in [0, 1] from a signed distance (negative inside): an edge `softness` wide."""
    return np.clip(0.5 - distance / softness, 0, 1)


def _ellipse(x: np.ndarray, y: np.ndarray, a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
    """Signed distance to the ellipse of half-axes a, b (first order: value over gradient)."""
    f = (x / a) ** 2 + (y / b) ** 2
    return (f - 1) / (2 * np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2) + 1e-6)


class Canvas:
    """(F, S, S, 3) float32 picture; `paint` lays a colour over it by coverage."""

    def __init__(self, frames: int, size: int) -> None:
        self.picture = np.zeros((frames, size, size, 3), np.float32)

    def paint(self, coverage: np.ndarray, colour: np.ndarray) -> None:
        self.picture += coverage[..., None].astype(np.float32) * (colour.astype(np.float32) - self.picture)


def mouth_region(size: int) -> np.ndarray:
    """(S, S) float32: 1 well inside the mask, 0 on its edge and outside, for shapes that follow the mouth."""
    rows, columns = mask_box(size)
    region = np.zeros((size, size), np.float32)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    edge = lambda n: np.clip(np.minimum(np.arange(n), np.arange(n)[::-1]) / (0.1 * size), 0, 1)  # noqa: E731
    down = np.clip(np.arange(height) / (0.1 * size), 0, 1)  # the lower edge is the picture's own
    region[rows, columns] = down[:, None] * edge(width)[None]
    return region


def paint(look: Look, motion: Motion, size: int = SIZE) -> np.ndarray:
    """Paints a clip: (F, size, size, 3) uint8."""
    frames, soft = len(motion.x), 2.2 / size * 2
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    px, py = np.meshgrid(grid, grid)
    pose = {k: getattr(motion, k)[:, None, None].astype(np.float32) for k in vars(motion)}
    region = mouth_region(size)[None]
    canvas = Canvas(frames, size)
    _paint_wall(canvas, look, px, py)

    # The face's own frame: shift, then tilt about the neck. Inner features slide sideways with the turn of the head.
    x0, y0 = px[None] - pose["x"], py[None] - pose["y"] - 0.9
    cos, sin = np.cos(pose["tilt"]), np.sin(pose["tilt"])
    x, y = cos * x0 + sin * y0, -sin * x0 + cos * y0 + 0.9
    inner = x - 0.10 * pose["turn"]

    _paint_body(canvas, look, x, y, px[None] - 0.5 * pose["x"], py[None], soft)
    jaw_drop = 0.075 * pose["aperture"] * region
    face = _face(look, x, y, jaw_drop)
    canvas.paint(_ramp(face, soft), _skin(look, inner, y, jaw_drop))
    _paint_beard(canvas, look, inner, y, face, soft)
    _paint_eyes(canvas, look, inner, y, pose, soft)
    _paint_nose(canvas, look, inner, y, pose["turn"], soft)
    paint_mouth(canvas, look, inner, y, pose, region, soft)
    _paint_hair(canvas, look, x, y, face, soft)
    return np.clip(canvas.picture * 255 + 0.5, 0, 255).astype(np.uint8)


def _paint_wall(canvas: Canvas, look: Look, px: np.ndarray, py: np.ndarray) -> None:
    down = ((py + 1) / 2)[..., None]
    wall = look.wall * (1 - down) + look.wall_low * down
    near = np.exp(-((px - look.blob_at[0]) ** 2 + (py - look.blob_at[1]) ** 2) / 0.18)[..., None]
    canvas.picture[:] = (wall + 0.8 * near * (look.blob - wall)).astype(np.float32)


def _paint_body(canvas: Canvas, look: Look, x: np.ndarray, y: np.ndarray, bx: np.ndarray, by: np.ndarray,
                soft: float) -> None:
    if look.hair_long:
        back = _ellipse(x, y - 0.10, look.face_width * look.hair_size * 1.12, 0.95)
        canvas.paint(_ramp(back, soft), look.hair * 0.72)
    shoulders = _ellipse(bx, by - 1.30, 0.98, 0.50)
    shade = np.clip(1 + 0.25 * look.light[0] * bx, 0.6, 1.3)[..., None]
    canvas.paint(_ramp(shoulders, soft), np.clip(look.shirt * shade, 0, 1))
    neck = np.maximum(np.abs(x) - 0.24, -(y - 0.2))
    canvas.paint(_ramp(np.maximum(neck, _ellipse(bx, by - 0.62, 0.6, 0.42)), soft), look.skin * 0.74)


def _face(look: Look, x: np.ndarray, y: np.ndarray, jaw_drop: np.ndarray) -> np.ndarray:
    """Signed distance to the face: an oval whose lower half narrows to the jaw and drops with it."""
    low = np.clip(y, 0, 1)
    width = look.face_width * (1 - (1 - look.jaw) * 0.75 * low)
    return _ellipse(x, y - 0.02, width, look.face_height + jaw_drop * (y > 0))


def _skin(look: Look, x: np.ndarray, y: np.ndarray, jaw_drop: np.ndarray) -> np.ndarray:
    """Lambert shading of the oval (its normal is that of an ellipsoid), with blush on the cheeks."""
    nx, ny = x / (look.face_width * 1.15), y / (look.face_height * 1.15)
    nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0.02, 1))
    lit = 0.72 + 0.34 * nz + 0.20 * (nx * look.light[0] + ny * look.light[1]) - 0.5 * jaw_drop
    cheeks = np.exp(-(((np.abs(x) - 0.28) / 0.13) ** 2 + ((y - 0.22) / 0.12) ** 2))[..., None]
    colour = look.skin * np.clip(lit, 0.3, 1.25)[..., None]
    return np.clip(colour + look.blush * 0.16 * cheeks * np.array([1.0, 0.1, 0.15]), 0, 1)


def _paint_beard(canvas: Canvas, look: Look, x: np.ndarray, y: np.ndarray, face: np.ndarray, soft: float) -> None:
    if not look.beard:
        return
    chin = np.clip((y - look.mouth_y + 0.22 - 0.9 * np.clip(np.abs(x) - 0.22, -0.2, 0.3)) / 0.16, 0, 1)
    canvas.paint(look.beard * chin * _ramp(face, soft), look.hair * 0.8)


def _paint_eyes(canvas: Canvas, look: Look, x: np.ndarray, y: np.ndarray, pose: dict[str, np.ndarray],
                soft: float) -> None:
    eye_y, open_ = -0.12, 1 - pose["blink"]
    for side in (-1, 1):
        ex, ey = x - side * look.eye_gap, y - eye_y
        shut = _ramp(_ellipse(ex, ey, look.eye_size * 1.25, look.eye_size * 0.9), soft)
        canvas.paint(0.35 * shut, look.skin * 0.62)
        lid = look.eye_size * (0.12 + 0.5 * open_)
        white = _ramp(_ellipse(ex, ey, look.eye_size, lid), soft)
        canvas.paint(white, np.array([0.93, 0.93, 0.92]))
        iris = white * _ramp(_ellipse(ex - 0.035 * pose["gaze"], ey, look.eye_size * 0.48, look.eye_size * 0.48), soft)
        canvas.paint(iris, look.iris)
        canvas.paint(white * _ramp(_ellipse(ex - 0.035 * pose["gaze"], ey, look.eye_size * 0.22, look.eye_size * 0.22),
                                   soft), np.array([0.03, 0.03, 0.03]))
        lash = np.abs(ey + lid - 0.012) - 0.012
        canvas.paint(_ramp(np.maximum(lash, np.abs(ex) - look.eye_size), soft), look.hair * 0.35)
        brow_y = ey + 0.165 + 0.045 * pose["brow"] + side * look.brow_tilt * 0.25 * ex
        brow = np.maximum(np.abs(brow_y + 1.1 * ex**2) - look.brow, np.abs(ex) - look.eye_size * 1.35)
        canvas.paint(_ramp(brow, soft), look.hair * 0.75)
        if look.glasses:
            rim = np.abs(_ellipse(ex, ey, look.eye_size * 1.65, look.eye_size * 1.5)) - 0.016
            canvas.paint(0.9 * _ramp(rim, soft), np.array([0.12, 0.11, 0.12]))
    if look.glasses:
        bridge = np.maximum(np.abs(y - eye_y) - 0.014, np.abs(x) - (look.eye_gap - look.eye_size * 1.6))
        canvas.paint(0.9 * _ramp(bridge, soft), np.array([0.12, 0.11, 0.12]))


def _paint_nose(canvas: Canvas, look: Look, x: np.ndarray, y: np.ndarray, turn: np.ndarray, soft: float) -> None:
    nx = x - 0.06 * turn
    ridge = np.exp(-((nx / 0.055) ** 2)) * np.clip((y + 0.10) / 0.1, 0, 1) * np.clip((0.21 - y) / 0.06, 0, 1)
    canvas.paint(0.40 * ridge, np.clip(look.skin * 1.16, 0, 1))
    side = _ellipse(nx + np.sign(look.light[0]) * look.nose * 0.9, y - 0.08, 0.045, 0.15)
    canvas.paint(0.30 * _ramp(side, 3 * soft), look.skin * 0.66)
    for s in (-1, 1):
        canvas.paint(0.75 * _ramp(_ellipse(nx - s * look.nose * 0.62, y - 0.20, 0.030, 0.018), soft), look.skin * 0.35)


def paint_mouth(canvas: Canvas, look: Look, x: np.ndarray, y: np.ndarray, pose: dict[str, np.ndarray],
                 region: np.ndarray, soft: float) -> None:
    """Lips around a dark interior with upper teeth and tongue; all of it inside `region`."""
    aperture = pose["aperture"]
    half = look.mouth_width * (0.78 + 0.34 * pose["width"] - 0.10 * aperture)
    gap = 0.02 + 0.115 * aperture
    my = y - look.mouth_y - 0.045 * aperture + look.smile * np.clip((x / half) ** 2, 0, 1.5)
    inside = np.clip(3 * region, 0, 1)
    lips = _ellipse(x, my, half + 0.04, 0.115 * aperture + look.lip_full)
    upper = (my < 0)[..., None]
    canvas.paint(inside * _ramp(lips, soft), look.lips * np.where(upper, 0.86, 1.04))
    line = np.maximum(np.abs(my) - 0.004, np.abs(x) - half * 0.92)
    canvas.paint(0.7 * inside * _ramp(line, soft), look.lips * 0.35)
    hole = np.clip(aperture * 7, 0, 1) * _ramp(_ellipse(x, my, half * 0.90, gap), soft * 0.8) * inside
    canvas.paint(hole, np.array([0.10, 0.03, 0.04]))
    teeth = hole * _ramp(my + gap * 0.45, soft) * _ramp(np.abs(x) - half * 0.62, soft)
    canvas.paint(np.clip(aperture * 3 - 0.5, 0, 1) * 0.9 * teeth, np.array([0.93, 0.91, 0.87]))
    tongue = hole * _ramp(_ellipse(x, my - gap * 0.75, half * 0.55, gap * 0.5), soft)
    canvas.paint(np.clip(aperture * 2 - 0.6, 0, 1) * 0.85 * tongue, np.array([0.70, 0.32, 0.34]))


def _paint_hair(canvas: Canvas, look: Look, x: np.ndarray, y: np.ndarray, face: np.ndarray, soft: float) -> None:
    cap = _ellipse(x, y + 0.06, look.face_width * look.hair_size, look.face_height * 1.08)
    brim = y - look.fringe + 0.25 * x * np.sign(look.light[0]) - 0.5 * np.clip(np.abs(x) - 0.30, 0, 1)
    lit = np.clip(1.0 + 0.35 * np.exp(-(((x - 0.2 * look.light[0]) / 0.3) ** 2 + ((y + 0.72) / 0.18) ** 2)), 0, 2)
    canvas.paint(_ramp(np.maximum(cap, brim), soft), np.clip(look.hair * lit[..., None], 0, 1))
    fall = 0.30 if look.hair_long else -0.02
    sides = _ramp(np.maximum(cap, 0.86 * look.face_width - np.abs(x)), soft) * np.clip(1 - (y - fall) / 0.12, 0, 1)
    canvas.paint(sides, look.hair * 0.9)
