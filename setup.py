"""The compiled parts of `codec`; everything else about the package stands in pyproject.toml.

An editable install builds them into the source tree, where any checkout's own are found first. They need a C++17 compiler.
"""

from pathlib import Path

import nanobind
from setuptools import Extension, setup

BINDINGS = "codec/native/nanobind.cpp"


def extension(name: str, folder: str, sources: str = "*.cpp") -> Extension:
    """C++ sources of a folder as a Python module."""
    library = Path(nanobind.source_dir())
    return Extension(
        name,
        sources=sorted({BINDINGS, *map(str, Path(folder).glob(sources))}),
        depends=sorted(map(str, Path(folder).glob("*.h"))),
        include_dirs=[nanobind.include_dir(), str(library), str(library.parent / "ext" / "robin_map" / "include")],
        define_macros=[("NDEBUG", None), ("NB_COMPACT_ASSERTIONS", None)],
        # nanobind wants to be compiled without strict aliasing, and modules share no symbols.
        extra_compile_args=[
            "-std=c++17",
            "-O3",
            "-g0",
            "-fvisibility=hidden",
            "-fno-strict-aliasing",
            "-fno-math-errno",
            "-ffp-contract=off",
        ],
        language="c++",
    )


setup(
    ext_modules=[
        extension("codec._compensate", "codec/native", "compensate.cpp"),
        extension("codec._cut", "codec/native", "cut.cpp"),
        extension("codec.hevc._hevc", "codec/hevc/src"),
    ]
)
