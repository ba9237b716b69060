#!/usr/bin/env python3
"""What Pillow makes of a small image by the operations of AutoAugment and RandAugment.

    pip install pillow==13.0.0
    python3 pillow_operations.py > pillow_operations.json

`src/data/augment/operations.rs` is compared with it, value by value. Images are hexadecimal, channel by channel.
"""

import json

from PIL import Image, ImageEnhance, ImageOps

HEIGHT, WIDTH = 18, 20
GREY = (128, 128, 128)


def image():
    """Smooth and rough parts, and no channel with the whole range of values."""
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    for y in range(HEIGHT):
        for x in range(WIDTH):
            noise = (x * 7919 + y * 104729 + x * y * 31) % 61
            picture.putpixel((x, y), (20 + 9 * x + noise // 4, 40 + 10 * y + noise // 3, 60 + noise * 3))
    return picture


def affine(picture, matrix):
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=GREY)


def operation(name, picture, strength, sign):
    signed = sign * strength
    enhance = lambda kind: kind(picture).enhance(1 + 0.9 * signed)
    pixels = lambda size: int(150 / 331 * signed * size)
    return {
        "ShearX": lambda: affine(picture, (1, 0.3 * signed, 0, 0, 1, 0)),
        "ShearY": lambda: affine(picture, (1, 0, 0, 0.3 * signed, 1, 0)),
        "TranslateX": lambda: affine(picture, (1, 0, pixels(WIDTH), 0, 1, 0)),
        "TranslateY": lambda: affine(picture, (1, 0, 0, 0, 1, pixels(HEIGHT))),
        "Rotate": lambda: picture.rotate(30 * signed, Image.Resampling.NEAREST, fillcolor=GREY),
        "Brightness": lambda: enhance(ImageEnhance.Brightness),
        "Color": lambda: enhance(ImageEnhance.Color),
        "Contrast": lambda: enhance(ImageEnhance.Contrast),
        "Sharpness": lambda: enhance(ImageEnhance.Sharpness),
        "Posterize": lambda: ImageOps.posterize(picture, 8 - round(4 * strength)),
        "Solarize": lambda: ImageOps.solarize(picture, 255 * (1 - strength)),
        "AutoContrast": lambda: ImageOps.autocontrast(picture),
        "Equalize": lambda: ImageOps.equalize(picture),
        "Invert": lambda: ImageOps.invert(picture),
    }[name]()


def planes(picture):
    return "".join(band.tobytes().hex() for band in picture.split())


def main():
    signed = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"]
    cases = [(name, strength, sign) for name in signed for strength in (1 / 3, 1.0) for sign in (1, -1)]
    cases += [(name, strength, 1) for name in ("Posterize", "Solarize") for strength in (0.3, 1.0)]
    cases += [(name, 0.0, 1) for name in ("AutoContrast", "Equalize", "Invert")]
    made = [
        {"operation": name, "strength": strength, "negative": sign < 0,
         "pixels": planes(operation(name, image(), strength, sign))}
        for name, strength, sign in cases
    ]
    print(json.dumps({"shape": [3, HEIGHT, WIDTH], "pixels": planes(image()), "cases": made}, indent=0))


main()
