"""The parts of each silhouette, as text that `outlines` reads.

A class is a block: "name, colour", then a line for each part: the function of `outlines` that makes it, its tone,
and its numbers. "mirrored" in front flips a part from right to left; "curves" stands for the parts that
`outlines.CURVES` computes.
"""

SILHOUETTES = """
banana, yellow
    curves

cheeseburger, brown
    rect patty -0.92 0.1 0.92 0.42
    ellipse bun 0 0.42 0.88 0.46 0 180
    poly cheese -1 0  1 0  0.6 0.3  0.3 0.12  0 0.36  -0.35 0.12
    rect leaf -0.98 -0.14 0.98 0.06
    ellipse body 0 -0.12 0.92 0.78 180 360
    ellipse white -0.35 -0.5 0.07 0.05
    ellipse white 0.1 -0.62 0.07 0.05
    ellipse white 0.45 -0.42 0.07 0.05

volcano, grey
    ellipse white 0.06 -0.82 0.36 0.17
    ellipse white 0.3 -0.66 0.2 0.12
    poly body -1 0.95  -0.34 -0.4  0.34 -0.4  1 0.95
    poly flame -0.36 -0.42  0.36 -0.42  0.46 0  0.24 -0.16  0.14 0.45  -0.06 -0.1  -0.22 0.24  -0.36 -0.1
    poly flame -0.1 -0.4  0.02 -0.74  0.14 -0.4

apple, red
    ellipse body -0.3 0.2 0.6 0.72
    ellipse body 0.3 0.2 0.6 0.72
    stroke wood 0 -0.35 0.1 -0.9 0.14
    ellipse leaf 0.42 -0.74 0.34 0.16
    ellipse light -0.45 -0.05 0.16 0.22

star, yellow
    curves

heart, red
    curves

key, yellow
    ring body -0.58 0 0.42 0.2
    rect body -0.2 -0.1 1 0.1
    rect body 0.52 0.05 0.66 0.42
    rect body 0.84 0.05 0.99 0.5

umbrella, purple
    rect black -0.06 -0.9 0.06 0.75
    ring black 0.18 0.72 0.24 0.12 0 180
    ellipse body 0 0.08 1 0.92 180 360
    ellipse dark 0 0.08 0.36 0.9 180 360
    ellipse light 0 0.1 0.36 0.16 180 360

mushroom, red
    poly white -0.3 0  0.3 0  0.4 0.95  -0.4 0.95
    ellipse body 0 0.14 0.98 0.98 180 360
    ellipse white -0.42 -0.2 0.19 0.17
    ellipse white 0.2 -0.48 0.2 0.17
    ellipse white 0.58 -0.08 0.15 0.14

fish, orange
    poly dark 0.4 0  1 -0.55  0.86 0  1 0.55
    ellipse body -0.2 0 0.78 0.48
    poly dark -0.3 -0.42  0.15 -0.8  0.24 -0.38
    ellipse white -0.62 -0.1 0.13 0.13
    ellipse black -0.64 -0.1 0.07 0.07
    ring light -0.55 0 0.36 0.07 -60 60

pine tree, green
    rect wood -0.14 0.6 0.14 1
    poly body 0 -1  0.5 -0.35  -0.5 -0.35
    poly dark 0 -0.6  0.68 0.15  -0.68 0.15
    poly body 0 -0.2  0.86 0.7  -0.86 0.7

house, pink
    rect body -0.72 -0.1 0.72 0.92
    poly dark -1 -0.06  0 -0.96  1 -0.06
    rect wood -0.14 0.36 0.2 0.92
    rect white 0.34 0.14 0.6 0.44
    rect white -0.58 0.14 -0.3 0.44
    rect dark 0.42 -0.86 0.62 -0.4

car, blue
    poly body -1 0.4  -1 0  -0.62 -0.06  -0.34 -0.48  0.36 -0.48  0.62 -0.04  1 0.08  1 0.4
    poly white -0.46 -0.06  -0.27 -0.36  -0.02 -0.36  -0.02 -0.06
    poly white 0.08 -0.06  0.08 -0.36  0.3 -0.36  0.46 -0.06
    ellipse black -0.55 0.42 0.25 0.25
    ellipse black 0.55 0.42 0.25 0.25
    ellipse grey -0.55 0.42 0.1 0.1
    ellipse grey 0.55 0.42 0.1 0.1

sailboat, white
    rect wood -0.06 -1 0.05 0.5
    poly body 0.1 -0.96  0.1 0.36  0.86 0.36
    poly dark -0.12 -0.7  -0.12 0.36  -0.72 0.36
    poly wood -0.98 0.48  0.98 0.48  0.66 0.92  -0.66 0.92

mug, blue
    ring body 0.48 0.08 0.46 0.17 -90 90
    rect body -0.72 -0.7 0.5 0.84
    ellipse dark -0.11 -0.7 0.61 0.15
    rect light -0.72 0.2 0.5 0.42

bottle, green
    poly body -0.15 -0.75  0.15 -0.75  0.17 -0.3  0.4 -0.02  0.4 1  -0.4 1  -0.4 -0.02  -0.17 -0.3
    rect wood -0.17 -1 0.17 -0.76
    rect white -0.4 0.26 0.4 0.68

guitar, brown
    ellipse body 0 0.52 0.52 0.46
    ellipse body 0 0 0.38 0.34
    rect wood -0.09 -0.86 0.09 0.1
    rect dark -0.17 -1 0.17 -0.72
    ellipse black 0 0.24 0.17 0.17
    rect black -0.22 0.6 0.22 0.7

crown, yellow
    poly body -0.9 0.7  -0.98 -0.5  -0.48 0.04  0 -0.76  0.48 0.04  0.98 -0.5  0.9 0.7
    rect dark -0.9 0.48 0.9 0.7
    ellipse light 0 -0.78 0.13 0.13
    ellipse light -0.93 -0.54 0.12 0.12
    ellipse light 0.93 -0.54 0.12 0.12

anchor, blue
    ring body 0 -0.74 0.26 0.12
    rect body -0.1 -0.55 0.1 0.9
    rect body -0.46 -0.4 0.46 -0.22
    ring body 0 0.1 0.88 0.2 15 165
    poly body 0.98 0.2  0.98 0.62  0.58 0.5
    mirrored poly body 0.98 0.2  0.98 0.62  0.58 0.5

butterfly, orange
    poly dark 0 0.05  0.55 0.1  0.78 0.4  0.6 0.85  0.3 0.75  0 0.2
    poly body 0 -0.1  0.3 -0.75  0.75 -0.95  1 -0.75  0.92 -0.25  0.5 0.1  0 0.12
    ellipse light 0.62 -0.5 0.17 0.17
    mirrored poly dark 0 0.05  0.55 0.1  0.78 0.4  0.6 0.85  0.3 0.75  0 0.2
    mirrored poly body 0 -0.1  0.3 -0.75  0.75 -0.95  1 -0.75  0.92 -0.25  0.5 0.1  0 0.12
    mirrored ellipse light 0.62 -0.5 0.17 0.17
    ellipse black 0 0 0.09 0.6

hammer, grey
    rect wood -0.12 -0.5 0.12 1
    rect body -0.5 -0.92 0.72 -0.42
    poly dark -0.5 -0.92  -1 -0.6  -0.9 -0.42  -0.5 -0.5
    rect dark 0.56 -0.96 0.76 -0.38

light bulb, yellow
    ellipse body 0 -0.3 0.68 0.66
    poly body -0.52 0.1  0.52 0.1  0.28 0.52  -0.28 0.52
    rect grey -0.3 0.52 0.3 0.84
    rect black -0.16 0.84 0.16 1
    ring light 0 -0.3 0.5 0.12 180 260

eyeglasses, black
    ring body -0.55 0.1 0.43 0.14
    ring body 0.55 0.1 0.43 0.14
    stroke body -0.2 0.02 0.2 0.02 0.14
    stroke body -0.94 0 -0.98 -0.36 0.13
    stroke body 0.94 0 0.98 -0.36 0.13

balloon, pink
    stroke black 0 0.4 0.1 0.72 0.06
    stroke black 0.1 0.7 -0.04 1 0.06
    ellipse body 0 -0.34 0.54 0.66
    poly dark 0 0.24  0.14 0.44  -0.14 0.44
    ellipse light -0.22 -0.56 0.12 0.2

ladder, brown
    stroke body -0.46 -1 -0.56 1 0.17
    stroke body 0.46 -1 0.56 1 0.17
    stroke dark -0.5 -0.72 0.5 -0.72 0.14
    stroke dark -0.5 -0.28 0.5 -0.28 0.14
    stroke dark -0.5 0.16 0.5 0.16 0.14
    stroke dark -0.5 0.6 0.5 0.6 0.14

cactus, green
    ellipse body 0 -0.62 0.24 0.36
    rect body -0.24 -0.62 0.24 0.62
    rect body -0.72 0.02 -0.2 0.26
    rect body -0.78 -0.38 -0.52 0.26
    rect body 0.2 -0.16 0.72 0.08
    rect body 0.52 -0.6 0.78 0.08
    poly flame -0.46 0.56  0.46 0.56  0.34 1  -0.34 1

rocket, white
    poly flame -0.2 0.6  0.2 0.6  0 1
    poly dark -0.28 0.1  -0.68 0.72  -0.24 0.6
    poly dark 0.28 0.1  0.68 0.72  0.24 0.6
    poly body 0 -1  0.2 -0.7  0.3 -0.3  0.26 0.62  -0.26 0.62  -0.3 -0.3  -0.2 -0.7
    ellipse dark 0 -0.22 0.15 0.15

chair, brown
    rect body -0.62 -1 -0.42 1
    rect body 0.44 0.1 0.62 1
    rect dark -0.62 0 0.66 0.22
    rect dark -0.62 -0.86 -0.42 -0.1

airplane, white
    poly dark 0.06 -0.1  0.3 -0.1  -0.3 -0.92  -0.46 -0.92
    poly dark 0.06 0.1  0.3 0.1  -0.3 0.92  -0.46 0.92
    poly dark -0.6 0  -1 -0.42  -0.86 0  -1 0.42
    ellipse body 0.08 0 0.92 0.17

ice cream, pink
    poly bun -0.42 0  0.42 0  0 1
    ellipse body 0 -0.38 0.56 0.52
    ellipse dark 0 0.02 0.52 0.15
    ellipse light -0.2 -0.56 0.14 0.12
"""

CAKE_PARTS = """
rect white -0.9 0.1 0.9 0.9
rect flame -0.9 0.42 0.9 0.56
ellipse cheese 0 0.1 0.9 0.2
rect patty -0.42 -0.6 -0.24 0.06
ring patty 0.24 -0.42 0.28 0.14 -180 60
stroke patty 0.4 -0.3 0.1 0 0.15
rect patty 0.06 -0.1 0.56 0.06
poly flame -0.42 -0.66  -0.33 -0.98  -0.24 -0.66
poly flame 0.15 -0.72  0.24 -1  0.33 -0.72
"""
