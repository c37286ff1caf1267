"""Does a codec's choice of patches tell motion better than uniform frames, at equal tokens? A small experiment of our own.

scenes.py       clips whose class is how an object moves, really encoded
selectors.py    codec, uniform frames, pixel difference, run-length tokenisation, random patches
clips.py        what every selector takes of every clip, made once and kept
training.py     this project's encoder, trained from scratch on one selector's patches
page.py         benchmarks/motion.md and its plot
"""
