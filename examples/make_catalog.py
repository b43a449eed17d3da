"""Draw the demo catalog: eight product stills and their manifest, from code alone.

    python examples/make_catalog.py [FOLDER]

Nothing here is random: the same Pillow and numpy give the same files.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from studio import Canvas, Point, arc, rgb, smooth


def mug() -> Image.Image:
    c = Canvas(1000, 1000)
    c.studio([(0, "#dfc3a8"), (1, "#efdcc8")], [(0, "#e6cdb4"), (1, "#cfa984")], 660)
    c.glow((330, 300), (520, 420), "#fff6ea", 0.55)
    c.ground((490, 778), (215, 34), "#6b4426", 0.6)
    handle = smooth([(668, 446), (760, 430), (812, 500), (796, 600), (730, 664), (650, 676)], closed=False)
    c.fill(c.stroke(handle, 44), c.across(660, 830, [(0, "#3a5a58"), (0.6, "#6f9590"), (1, "#47706c")]))
    c.fill(c.stroke([(x - 5, y - 9) for x, y in handle[12:-10]], 8, blur=5), "#cfe3dd", 0.75)
    left = smooth([(288, 350), (290, 480), (296, 610), (320, 734)], closed=False)
    right = [(980 - x, y) for x, y in reversed(left)]
    body = c.polygon([*left, *arc((490, 738), (170, 42), 178, 2), *right])
    tone = [(0, "#4a716d"), (0.16, "#7ba39d"), (0.34, "#a9c9c2"), (0.55, "#7da59f"), (0.85, "#4c7470"), (1, "#3c5f5c")]
    c.fill(body, c.across(288, 692, tone))
    c.within(body, c.box(270, 640, 710, 800, 0, blur=36), "#24403e", 0.45)
    drip = smooth(
        [
            (280, 340),
            (280, 468),
            (330, 492),
            (372, 452),
            (430, 446),
            (474, 512),
            (524, 518),
            (556, 458),
            (612, 442),
            (652, 486),
            (704, 470),
            (704, 340),
        ]
    )
    c.within(body, c.polygon([(x, y + 7) for x, y in drip], blur=7), "#2c4c49", 0.5)
    glaze = Image.composite(c.polygon(drip), Image.new("L", c.size), body)
    c.fill(glaze, c.across(288, 692, [(0, "#cfbfa8"), (0.3, "#fdf7ea"), (0.6, "#eee0ca"), (1, "#b7a286")]))
    c.within(body, c.box(352, 380, 376, 690, 12, blur=9), "#ffffff", 0.6)
    c.fill(c.ellipse((490, 350), (202, 56)), c.across(288, 692, [(0, "#d8c8b1"), (0.35, "#fffaf0"), (1, "#c5b195")]))
    inside = c.ellipse((490, 354), (184, 46))
    c.fill(inside, c.across(306, 674, [(0, "#8c7a62"), (1, "#d9cab3")]))
    c.within(inside, c.ellipse((490, 378), (174, 42)), "#3a2114")
    c.within(inside, c.ellipse((470, 380), (150, 30), blur=12), "#7a4b2b", 0.8)
    c.within(inside, c.ring((490, 378), (172, 41), 6, blur=2), "#c79a6a", 0.8)
    for x, lean in ((440, -1), (520, 1)):
        steam = smooth([(x, 320), (x + 26 * lean, 250), (x - 20 * lean, 180), (x + 18 * lean, 96)], closed=False)
        c.fill(c.stroke(steam, 15, blur=14), "#ffffff", 0.42)
    return c.finished()


def sneaker() -> Image.Image:
    c = Canvas(1200, 800)
    c.studio([(0, "#e7897a"), (1, "#f3ab98")], [(0, "#ec9a88"), (1, "#d67866")], 560)
    c.glow((420, 220), (620, 360), "#ffd9c9", 0.6)
    c.ground((610, 668), (420, 30), "#6d221b", 0.62)
    sole_line = [(196, 600), (330, 614), (560, 622), (800, 620), (960, 606), (1036, 580)]
    sole = c.shape(
        [
            (190, 590),
            (330, 606),
            (600, 612),
            (880, 604),
            (1030, 572),
            (1046, 606),
            (1020, 652),
            (900, 668),
            (600, 672),
            (330, 672),
            (212, 662),
            (184, 628),
        ]
    )
    upper = c.shape(
        [
            (204, 604),
            (188, 520),
            (198, 420),
            (214, 330),
            (246, 300),
            (292, 326),
            (350, 352),
            (420, 330),
            (470, 268),
            (520, 262),
            (580, 318),
            (680, 398),
            (800, 452),
            (930, 480),
            (1010, 520),
            (1036, 584),
            (900, 622),
            (600, 632),
            (330, 624),
        ]
    )
    c.fill(upper, c.down(270, 620, [(0, "#ffffff"), (0.55, "#f3efea"), (1, "#cfc6c0")]))
    c.within(upper, c.shape([(196, 640), (196, 560), (600, 600), (1040, 540), (1060, 640)], blur=22), "#9c8b86", 0.6)
    toe = c.shape([(818, 640), (800, 560), (838, 486), (900, 470), (1000, 510), (1050, 580), (1040, 640)])
    toe = Image.composite(toe, Image.new("L", c.size), upper)
    c.fill(toe, c.linear((840, 470), (1000, 640), [(0, "#35507f"), (0.4, "#27406b"), (1, "#182a4a")]))
    c.within(toe, c.stroke(smooth([(860, 506), (930, 506), (1000, 548)], closed=False), 12, blur=10), "#8fa9d6", 0.8)
    heel = c.shape([(180, 640), (176, 500), (196, 380), (262, 396), (318, 480), (330, 560), (320, 640)])
    heel = Image.composite(heel, Image.new("L", c.size), upper)
    c.fill(heel, c.linear((190, 380), (320, 620), [(0, "#3c588a"), (1, "#1b2e52")]))
    c.within(upper, c.stroke(smooth([(262, 398), (318, 480), (332, 640)], closed=False), 3), "#0f1b33", 0.5)
    wave = smooth([(330, 548), (420, 520), (510, 560), (600, 520), (690, 556), (800, 510)], closed=False)
    c.within(upper, c.stroke([(x + 2, y + 6) for x, y in wave], 20, blur=5), "#7c6a66", 0.45)
    c.within(upper, c.stroke(wave, 20), "#f0b23e")
    opening = c.shape(
        [
            (214, 322),
            (246, 300),
            (292, 326),
            (350, 352),
            (420, 330),
            (470, 268),
            (440, 300),
            (404, 346),
            (350, 374),
            (288, 356),
            (244, 330),
        ]
    )
    c.fill(opening, "#5d6a86")
    tongue = c.shape([(424, 322), (462, 214), (506, 196), (552, 226), (604, 330), (560, 350), (520, 300), (476, 300)])
    c.fill(tongue, c.across(420, 600, [(0, "#27406b"), (0.5, "#4a689d"), (1, "#27406b")]))
    lace_bed = c.shape([(462, 292), (506, 268), (590, 330), (700, 404), (800, 452), (770, 486), (650, 450), (540, 384)])
    c.within(upper, lace_bed, "#d9d2cc")
    for n in range(6):
        x, y = 488 + 55 * n, 300 + 33 * n
        lace = [(x - 16, y + 46 - 3 * n), (x + 40, y - 12 + 2 * n)]
        c.fill(c.stroke([(a + 2, b + 7) for a, b in lace], 15, blur=4), "#6d5d5a", 0.5)
        c.fill(c.stroke(lace, 14), "#fffdf9")
        c.fill(c.ellipse((x - 16, y + 46 - 3 * n), (5, 5)), "#27406b")
    for offset in (0, 8):
        seam = smooth([(352 + offset, 370), (372 + offset, 470), (360 + offset, 600)], closed=False)
        c.within(upper, c.stroke(seam, 2), "#a89b96", 0.8)
    c.fill(sole, c.down(580, 672, [(0, "#fffdf8"), (0.6, "#efe8df"), (1, "#bfb2a8")]))
    c.within(sole, c.stroke(smooth([(x, y + 22) for x, y in sole_line], closed=False), 5), "#f0b23e")
    c.within(sole, c.box(180, 654, 1060, 690, 0, blur=3), "#8b7167", 0.8)
    return c.finished()


def watch() -> Image.Image:
    c = Canvas(960, 1200)
    c.studio([(0, "#243039"), (1, "#3d4d57")], [(0, "#35444e"), (1, "#1c262d")], 880)
    c.glow((360, 420), (520, 560), "#8fa6b3", 0.5)
    c.fill(c.box(352, 90, 640, 1130, 90, blur=40), "#0a0f13", 0.6)
    leather = [(0, "#3d2112"), (0.2, "#8a5230"), (0.5, "#a96a41"), (0.8, "#7b4526"), (1, "#331a0d")]
    for sign in (-1, 1):
        far = 600 + sign * 510
        near = 600 + sign * 190
        strap = c.polygon(
            [(352, near), (608, near), (574, far), *((560, far + 14 * sign), (400, far + 14 * sign)), (386, far)]
        )
        c.fill(strap, c.across(354, 606, leather))
        for side in (-1, 1):
            for n in range(19):
                y = near + sign * (56 + 15 * n)
                x = 480 + side * (104 - 0.055 * abs(y - near))
                c.fill(c.stroke([(x, y), (x, y + 7)], 3.4), "#e8c9a4", 0.9)
        c.within(
            strap, c.box(330, min(near, near + sign * 60), 630, max(near, near + sign * 60), 0, blur=24), "#1d0e06", 0.6
        )
    for x in (366, 594):
        for y in (392, 808):
            c.fill(
                c.box(x - 26, y - 62, x + 26, y + 62, 22),
                c.across(x - 26, x + 26, [(0, "#8d959b"), (0.4, "#f5f7f8"), (1, "#6f777d")]),
            )
    c.fill(c.box(716, 566, 768, 634, 12), c.down(566, 634, [(0, "#7e868c"), (0.4, "#f3f5f6"), (1, "#555d63")]))
    for n in range(6):
        c.fill(c.box(722, 573 + 10 * n, 766, 576 + 10 * n, 1), "#4b5358", 0.7)
    middle = (480.0, 600.0)
    steel = [(0, "#fbfcfc"), (0.3, "#aab2b7"), (0.55, "#e9edef"), (0.8, "#7c858b"), (1, "#cfd5d8")]
    c.fill(c.ellipse((480, 614), (256, 256), blur=18), "#05090c", 0.6)
    c.fill(c.ellipse(middle, (252, 252)), c.linear((300, 360), (660, 850), steel))
    c.fill(c.ellipse(middle, (226, 226)), c.linear((660, 850), (300, 360), steel))
    c.fill(
        c.ellipse(middle, (212, 212)),
        c.radial((440, 520), (330, 330), [(0, "#f9f6ee"), (0.7, "#ece6d8"), (1, "#cfc6b3")]),
    )
    c.fill(c.ring(middle, (212, 212), 16, blur=8), "#5f5647", 0.45)
    for n in range(60):
        t = math.radians(6 * n)
        long = n % 5 == 0
        start, end = (150 if long else 184), 194
        line = [(480 + r * math.sin(t), 600 - r * math.cos(t)) for r in (start, end)]
        c.fill(c.stroke(line, 9 if long else 2.4), "#2a3640" if long else "#6d7276")
    c.fill(
        c.ellipse((480, 700), (54, 54)),
        c.radial((480, 700), (56, 56), [(0, "#e3dccb"), (0.9, "#d6cdb8"), (1, "#b9ae96")]),
    )
    for n in range(12):
        t = math.radians(30 * n)
        c.fill(c.stroke([(480 + r * math.sin(t), 700 - r * math.cos(t)) for r in (42, 49)], 2.4), "#6d7276")
    for degrees, tail, length, thick, colour in (
        (305, 24, 108, 15, "#24384a"),
        (58, 30, 166, 11, "#24384a"),
        (222, 46, 182, 4, "#c8553d"),
    ):
        t = math.radians(degrees)
        hand = [(480 + r * math.sin(t), 600 - r * math.cos(t)) for r in (-tail, length)]
        c.fill(c.stroke([(x + 5, y + 9) for x, y in hand], thick, blur=5), "#3b3527", 0.45)
        c.fill(c.stroke(hand, thick), colour)
    c.fill(c.ellipse(middle, (14, 14)), "#c8553d")
    c.fill(c.ellipse(middle, (5, 5)), "#f7e9dc")
    dial = c.ellipse(middle, (212, 212))
    c.within(dial, c.polygon([(250, 560), (470, 340), (590, 340), (250, 690)], blur=16), "#ffffff", 0.34)
    return c.finished()


def lamp() -> Image.Image:
    c = Canvas(960, 1200)
    c.studio([(0, "#2f4a45"), (1, "#45665e")], [(0, "#5a4636"), (1, "#3a2b20")], 930)
    c.glow((480, 470), (560, 560), "#ffd998", 0.62)
    c.glow((480, 1010), (420, 130), "#ffcf8a", 0.6)
    c.ground((480, 1046), (178, 26), "#150d07", 0.7)
    brass = [(0, "#5f451c"), (0.25, "#b98e45"), (0.42, "#ffe9b0"), (0.6, "#b98a40"), (1, "#4e3714")]
    c.fill(
        c.polygon(
            [(310, 1030), *arc((480, 1036), (170, 30), 180, 0), (650, 1018), *arc((480, 1016), (170, 30), 0, -180)]
        ),
        c.across(310, 650, brass),
    )
    c.fill(c.ellipse((480, 1014), (170, 29)), c.across(310, 650, [(0, "#8a6a30"), (0.4, "#f3d894"), (1, "#7a5a26")]))
    body = c.shape(
        [
            (452, 1016),
            (438, 976),
            (404, 900),
            (396, 820),
            (424, 740),
            (456, 690),
            (462, 640),
            (498, 640),
            (504, 690),
            (536, 740),
            (564, 820),
            (556, 900),
            (522, 976),
            (508, 1016),
        ]
    )
    c.fill(
        body,
        c.across(396, 564, [(0, "#9c4a34"), (0.22, "#d98563"), (0.4, "#f6c4a3"), (0.62, "#cf7553"), (1, "#6f2f20")]),
    )
    c.within(body, c.box(380, 620, 580, 730, 0, blur=40), "#ffd9a0", 0.5)
    for y in (740, 905):
        c.within(body, c.box(380, y, 580, y + 5, 2), "#7d3826", 0.45)
    c.fill(c.box(462, 566, 498, 652, 6), c.across(462, 498, brass))
    shade = c.polygon(
        [
            (352, 250),
            *arc((480, 250), (128, 22), 180, 360),
            (608, 250),
            (722, 590),
            *arc((480, 590), (242, 40), 0, 180),
            (238, 590),
        ]
    )
    c.fill(
        shade,
        c.across(238, 722, [(0, "#d9b27a"), (0.3, "#ffeccb"), (0.5, "#fff8e8"), (0.7, "#ffe9c2"), (1, "#cf9f62")]),
    )
    c.within(shade, c.ellipse((480, 520), (150, 150), blur=70), "#ffffff", 0.85)
    c.within(shade, c.box(200, 200, 760, 320, 0, blur=40), "#c18d4e", 0.35)
    for n in range(-11, 12):
        c.within(shade, c.stroke([(480 + 11 * n, 230), (480 + 21.5 * n, 630)], 1.6), "#c99a5c", 0.28)
    c.within(shade, c.stroke(arc((480, 585), (242, 40), 0, 180), 9), "#b98a4c", 0.75)
    c.fill(c.stroke(arc((480, 250), (126, 20), 0, 360), 4), "#c79d5f")
    chain = [(566, 612), (566, 706)]
    c.fill(c.stroke(chain, 3), "#c59a50")
    c.fill(c.ellipse((566, 712), (8, 10)), "#f2d48c")
    return c.finished()


def perfume() -> Image.Image:
    c = Canvas(960, 1200)
    c.studio([(0, "#cdb7d6"), (1, "#eadcec")], [(0, "#e0cde3"), (1, "#b798c0")], 850)
    c.glow((300, 360), (520, 520), "#ffffff", 0.6)
    c.fill(c.polygon([(330, 990), (660, 990), (900, 1110), (560, 1130)], blur=34), "#74507f", 0.5)
    c.fill(c.polygon([(420, 1000), (620, 1000), (760, 1078), (540, 1084)], blur=26), "#f6b98a", 0.7)
    c.ground((480, 1000), (172, 18), "#4f3159", 0.6)
    gold = [(0, "#80602a"), (0.2, "#d8b467"), (0.38, "#fff3cf"), (0.6, "#cfa552"), (1, "#6f5120")]
    cap = c.box(404, 226, 556, 412, 16)
    c.fill(cap, c.across(404, 556, gold))
    c.within(cap, c.box(404, 226, 556, 244, 10, blur=4), "#fff8e2", 0.8)
    for n in range(9):
        c.within(cap, c.box(404 + 19 * n, 262, 406.5 + 19 * n, 412, 0), "#7d5c26", 0.35)
    c.fill(c.box(436, 410, 524, 468, 6), c.across(436, 524, gold))
    outer = c.box(290, 460, 670, 1004, 58)
    c.fill(outer, c.linear((290, 460), (670, 1004), [(0, "#fbf3f4"), (0.5, "#efd3cf"), (1, "#d3a5a6")]))
    c.within(outer, c.ring((480, 732), (230, 330), 40, blur=26), "#ffffff", 0.6)
    juice = c.box(326, 560, 634, 962, 34)
    c.fill(juice, c.linear((326, 560), (634, 962), [(0, "#ffd3a8"), (0.5, "#f49e7c"), (1, "#cf6a6c")]))
    c.within(juice, c.ellipse((420, 690), (150, 210), blur=60), "#fff0d8", 0.7)
    c.within(juice, c.box(326, 900, 634, 970, 20, blur=24), "#a8434f", 0.55)
    c.fill(c.box(326, 556, 634, 566, 5), "#ffe9d0", 0.9)
    c.fill(c.box(476, 466, 484, 930, 4), "#ffffff", 0.38)
    c.fill(c.box(386, 690, 574, 846, 6), "#fffaf3", 0.94)
    c.fill(c.box(396, 700, 564, 836, 3), "#c9a35a")
    c.fill(c.box(398, 702, 562, 834, 2), "#fffaf3")
    for points in (
        arc((480, 752), (26, 26), 0, 360),
        arc((462, 752), (8, 26), 0, 360),
        arc((498, 752), (8, 26), 0, 360),
    ):
        c.fill(c.stroke(points, 2.4), "#b0883e")
    c.fill(c.box(430, 798, 530, 802, 2), "#8a6f45")
    c.fill(c.box(450, 812, 510, 815, 1), "#8a6f45", 0.7)
    c.within(outer, c.box(306, 500, 322, 960, 8, blur=4), "#ffffff", 0.85)
    c.within(outer, c.box(648, 520, 656, 940, 4, blur=3), "#ffffff", 0.55)
    return c.finished()


def backpack() -> Image.Image:
    c = Canvas(960, 1200)
    c.studio([(0, "#d9b64e"), (1, "#edcf74")], [(0, "#e3c05c"), (1, "#bf942f")], 900)
    c.glow((330, 340), (560, 520), "#fff3c4", 0.6)
    c.ground((490, 1046), (260, 32), "#5a3f06", 0.66)
    c.fill(c.stroke(smooth([(420, 250), (426, 170), (480, 146), (534, 170), (540, 250)], closed=False), 24), "#1c3a3c")
    for sign in (-1, 1):
        strap = smooth(
            [(480 + sign * 196, 420), (480 + sign * 286, 560), (480 + sign * 290, 800), (480 + sign * 220, 960)],
            closed=False,
        )
        c.fill(c.stroke(strap, 40), c.down(420, 960, [(0, "#1f4143"), (1, "#122829")]))
    body = c.shape(
        [
            (262, 1040),
            (236, 900),
            (234, 640),
            (262, 380),
            (330, 250),
            (480, 206),
            (630, 250),
            (698, 380),
            (726, 640),
            (724, 900),
            (698, 1040),
            (480, 1062),
        ]
    )
    c.fill(
        body,
        c.across(234, 726, [(0, "#1f4b4d"), (0.25, "#3c7f7d"), (0.42, "#579b96"), (0.7, "#316c6c"), (1, "#173a3c")]),
    )
    c.within(body, c.ellipse((430, 290), (190, 70), blur=40), "#9fd0c8", 0.45)
    c.within(body, c.box(220, 940, 740, 1080, 0, blur=44), "#0c2325", 0.6)
    zip_line = smooth(
        [(292, 600), (300, 440), (356, 336), (480, 300), (604, 336), (660, 440), (668, 600)], closed=False
    )
    c.fill(c.stroke(zip_line, 13), "#143234")
    c.fill(c.stroke(zip_line, 3), "#c8a24c")
    for x, y in zip_line[::3]:
        c.fill(c.ellipse((x, y), (3.4, 3.4)), "#e9cf88")
    c.fill(c.stroke([(292, 600), (286, 650)], 9), "#b9573c")
    pocket = [
        (300, 1000),
        (290, 860),
        (300, 720),
        (330, 668),
        (480, 654),
        (630, 668),
        (660, 720),
        (670, 860),
        (660, 1000),
        (480, 1020),
    ]
    c.within(body, c.shape([(x + 2, y + 14) for x, y in pocket], blur=15), "#0a1f20", 0.65)
    front = c.shape(pocket)
    c.fill(front, c.across(290, 670, [(0, "#2a6262"), (0.3, "#4d918d"), (0.55, "#3e8280"), (1, "#1f4e50")]))
    c.within(
        front,
        c.stroke(
            smooth(
                [
                    (306, 992),
                    (302, 860),
                    (312, 730),
                    (340, 684),
                    (480, 672),
                    (620, 684),
                    (648, 730),
                    (658, 860),
                    (654, 992),
                ],
                closed=False,
            ),
            2,
        ),
        "#a9d4cc",
        0.55,
    )
    flap = smooth(
        [
            (300, 740),
            (306, 690),
            (340, 660),
            (480, 646),
            (620, 660),
            (654, 690),
            (660, 740),
            (570, 792),
            (480, 802),
            (390, 792),
        ]
    )
    c.within(front, c.polygon([(x, y + 12) for x, y in flap], blur=9), "#0a1f20", 0.6)
    c.fill(c.polygon(flap), c.across(300, 660, [(0, "#8a4a2c"), (0.3, "#c9825a"), (0.6, "#b56d45"), (1, "#7a3c20")]))
    for x in (390, 570):
        c.fill(
            c.box(x - 21, 640, x + 21, 872, 9),
            c.across(x - 21, x + 21, [(0, "#7c4224"), (0.4, "#c07a52"), (1, "#6b351b")]),
        )
        c.fill(c.box(x - 29, 796, x + 29, 846, 8), c.down(796, 846, [(0, "#fff0c0"), (0.5, "#c9a04a"), (1, "#8a6724")]))
        c.fill(c.box(x - 17, 808, x + 17, 834, 4), "#7c4224")
        c.fill(c.box(x - 2.5, 800, x + 2.5, 836, 2), "#f4dc9c")
    c.fill(c.box(434, 430, 526, 508, 8), c.linear((434, 430), (526, 508), [(0, "#c98860"), (1, "#96522f")]))
    c.fill(c.stroke([(452, 490), (472, 456), (484, 474), (494, 460), (508, 490)], 4), "#fbe7cf")
    return c.finished()


def plant() -> Image.Image:
    c = Canvas(1000, 1000)
    c.studio([(0, "#c9d6cb"), (1, "#e4ebe2")], [(0, "#d5dfd4"), (1, "#a9bcab")], 730)
    c.glow((300, 260), (560, 460), "#ffffff", 0.65)
    c.ground((500, 888), (182, 28), "#34483a", 0.6)
    leaves = [
        (-62, 330, 74, "#1f5038"),
        (60, 340, 76, "#23573d"),
        (-36, 420, 84, "#2c6a48"),
        (34, 430, 84, "#2f6f4c"),
        (-84, 250, 66, "#2a6746"),
        (84, 262, 66, "#265f41"),
        (-12, 480, 88, "#3a8059"),
        (16, 350, 80, "#4a946a"),
        (-50, 240, 64, "#4e9a6e"),
        (52, 238, 62, "#459066"),
    ]
    for degrees, length, width, colour in leaves:
        t = math.radians(degrees)

        def place(along: float, aside: float, t: float = t, length: float = length) -> Point:
            bend = 0.16 * length * math.sin(t) * along * along
            x = 500 + along * length * math.sin(t) + aside * math.cos(t)
            return x, 640 - along * length * math.cos(t) + aside * math.sin(t) + abs(bend) * 1.5

        side = [(0.0, 5.0), (0.25, 6.0), (0.42, 0.42 * width), (0.62, 0.5 * width), (0.84, 0.3 * width)]
        outline = [place(a, -b) for a, b in side] + [place(1.04, 0)] + [place(a, b) for a, b in reversed(side)]
        leaf = c.shape(outline)
        dark = tuple(round(v * 0.55) for v in rgb(colour))
        light = tuple(min(255, round(v * 1.28 + 26)) for v in rgb(colour))
        c.fill(c.shape([(x + 6, y + 12) for x, y in outline], blur=10), "#173526", 0.28)
        c.fill(
            leaf,
            c.linear(
                place(0.1, 0),
                place(1, 0),
                [(0, (dark[0], dark[1], dark[2])), (0.55, colour), (1, (light[0], light[1], light[2]))],
            ),
        )
        half = [place(a, 0) for a, _ in side] + [place(1.04, 0)] + [place(a, b) for a, b in reversed(side)]
        c.within(leaf, c.shape(half), "#0e2c1d", 0.2)
        c.within(leaf, c.stroke([place(a, 0) for a in np.linspace(0, 1, 12)], 3), "#bfe0c0", 0.55)
        for a in np.linspace(0.42, 0.86, 6):
            for s in (-1, 1):
                c.within(leaf, c.stroke([place(a - 0.07, 0), place(a + 0.03, s * width * 0.5)], 1.6), "#bfe0c0", 0.3)
    pot = c.polygon([(330, 640), (362, 850), *arc((500, 862), (136, 34), 172, 8), (638, 850), (670, 640)])
    c.fill(
        pot,
        c.across(330, 670, [(0, "#a44f33"), (0.2, "#d27b58"), (0.36, "#eaa684"), (0.62, "#c7694a"), (1, "#84381f")]),
    )
    c.within(pot, c.box(310, 800, 690, 920, 0, blur=34), "#5a2413", 0.5)
    band = smooth([(330, 790), (400, 748), (450, 800), (500, 752), (550, 800), (600, 748), (670, 790)], closed=False)
    c.within(pot, c.stroke(band, 7), "#f6dcc6", 0.85)
    c.within(pot, c.box(300, 640, 700, 706, 0, blur=12), "#5e2715", 0.5)
    rim = c.polygon(
        [
            (314, 616),
            *arc((500, 616), (186, 30), 180, 360),
            (686, 616),
            (682, 664),
            *arc((500, 666), (182, 30), 0, 180),
            (318, 664),
        ]
    )
    c.fill(
        rim,
        c.across(314, 686, [(0, "#ac5638"), (0.22, "#dc8863"), (0.38, "#f3b796"), (0.64, "#cf7351"), (1, "#8c3e24")]),
    )
    soil = c.ellipse((500, 616), (168, 23))
    c.fill(soil, c.across(332, 668, [(0, "#241610"), (0.5, "#4b3122"), (1, "#2d1c13")]))
    for degrees in (-30, -12, 4, 14, 34):
        t = math.radians(degrees)
        c.fill(
            c.stroke([(500 + 26 * math.sin(t), 622), (500 + 110 * math.sin(t), 622 - 100 * math.cos(t))], 9), "#2f6f4c"
        )
    return c.finished()


def headphones() -> Image.Image:
    c = Canvas(1080, 1080)
    c.studio([(0, "#7f97bd"), (1, "#a9bcd8")], [(0, "#98aed0"), (1, "#6c86b0")], 800)
    c.glow((380, 330), (560, 480), "#e9f1ff", 0.55)
    c.ground((540, 936), (330, 30), "#1e2f50", 0.55)
    band = arc((540, 560), (318, 392), 186, 354, 90)
    c.fill(c.stroke(band, 66), c.across(200, 880, [(0, "#c9c2b8"), (0.3, "#fffdf8"), (0.6, "#efe9df"), (1, "#a79e92")]))
    c.fill(
        c.stroke(arc((540, 566), (284, 356), 196, 344, 90), 28),
        c.across(230, 850, [(0, "#6a3d2a"), (0.4, "#b9795a"), (1, "#57301f")]),
    )
    c.fill(c.stroke(arc((540, 556), (334, 408), 212, 300, 60), 8, blur=6), "#ffffff", 0.8)
    for side in (-1, 1):
        x = 540 + side * 318
        c.fill(
            c.stroke([(x, 510), (x + side * 4, 640)], 26),
            c.across(x - 14, x + 14, [(0, "#7d858f"), (0.4, "#f6f8fa"), (1, "#666e78")]),
        )
        pad = x - side * 54
        c.fill(
            c.box(pad - 62, 566, pad + 62, 924, 62),
            c.across(pad - 62, pad + 62, [(0, "#57301f"), (0.5, "#b27152"), (1, "#4c2919")]),
        )
        c.fill(c.box(pad - 40, 600, pad + 40, 890, 40, blur=18), "#d69a79", 0.35)
        outer = x + side * 14
        cup = c.box(outer - 70, 560, outer + 70, 930, 70)
        c.fill(c.box(outer - 70 - side * 10, 566, outer + 70 - side * 10, 936, 70, blur=12), "#24160f", 0.4)
        c.fill(
            cup,
            c.across(outer - 70, outer + 70, [(0, "#cfc8be"), (0.35, "#fffdf8"), (0.65, "#ece5da"), (1, "#9f968a")]),
        )
        c.within(cup, c.box(outer - 90, 850, outer + 90, 960, 0, blur=34), "#7b7064", 0.55)
        c.within(cup, c.box(outer - 36, 600, outer - 22, 840, 7, blur=6), "#ffffff", 0.9)
        trim = c.box(outer - 34 + side * 14, 640, outer + 34 + side * 14, 850, 34)
        c.fill(trim, c.down(640, 850, [(0, "#e9c79f"), (0.5, "#c08a5a"), (1, "#8f5f37")]))
        c.fill(
            c.box(outer - 28 + side * 14, 646, outer + 28 + side * 14, 844, 28),
            c.linear((outer - 28, 646), (outer + 40, 844), [(0, "#fbf7f0"), (1, "#cdc4b8")]),
        )
    return c.finished()


@dataclass(frozen=True, kw_only=True)
class Product:
    sku: str
    draw: Callable[[], Image.Image]
    file: str
    prompt: str
    resolution_class: str
    tier: str
    brand: str
    price: str


PRODUCTS = [
    Product(
        sku="MUG-01",
        draw=mug,
        file="mug.webp",
        prompt="camera slowly zooming in on the ceramic mug, steam rising",
        resolution_class="512p",
        tier="standard",
        brand="Tonwerk",
        price="24.00",
    ),
    Product(
        sku="SNKR-02",
        draw=sneaker,
        file="sneaker.jpg",
        prompt="camera panning left across the sneaker, bright studio light",
        resolution_class="512p",
        tier="standard",
        brand="Strider",
        price="119.00",
    ),
    Product(
        sku="WTCH-03",
        draw=watch,
        file="watch.webp",
        prompt="camera rolling clockwise over the wristwatch, light glinting on steel",
        resolution_class="768p",
        tier="standard",
        brand="Meridian",
        price="289.00",
    ),
    Product(
        sku="LAMP-04",
        draw=lamp,
        file="lamp.webp",
        prompt="camera tilting up along the table lamp, warm evening light",
        resolution_class="512p",
        tier="standard",
        brand="Lumen & Co",
        price="89.00",
    ),
    Product(
        sku="PERF-05",
        draw=perfume,
        file="perfume.webp",
        prompt="slow orbit to the right around the perfume bottle, soft caustics",
        resolution_class="512p",
        tier="standard",
        brand="Maison Aube",
        price="74.50",
    ),
    Product(
        sku="PACK-06",
        draw=backpack,
        file="backpack.jpg",
        prompt="dolly shot toward the backpack, shallow depth of field",
        resolution_class="512p",
        tier="standard",
        brand="Fernweh",
        price="139.00",
    ),
    Product(
        sku="PLNT-07",
        draw=plant,
        file="plant.webp",
        prompt="camera slowly zooming out from the potted plant, leaves swaying gently",
        resolution_class="256p",
        tier="draft",
        brand="Grünhaus",
        price="32.00",
    ),
    Product(
        sku="HEAD-08",
        draw=headphones,
        file="headphones.webp",
        prompt="camera panning right past the headphones, calm blue backdrop",
        resolution_class="256p",
        tier="draft",
        brand="Aria",
        price="199.00",
    ),
]


def save(image: Image.Image, path: Path) -> None:
    if path.suffix == ".jpg":
        image.save(path, quality=80, optimize=True, progressive=True)
    else:
        image.save(path, quality=86, method=6)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for product in PRODUCTS:
        save(product.draw(), folder / product.file)
    with (folder / "catalog.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "image", "prompt", "resolution_class", "tier", "brand", "price"])
        for p in PRODUCTS:
            table.writerow([p.sku, p.file, p.prompt, p.resolution_class, p.tier, p.brand, p.price])


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "catalog")
