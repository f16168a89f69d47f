#!/usr/bin/env python3
"""Records allocator functions of a shared object as test data, on standard output.

usage: record.py LIBRARY "PACKAGE VERSION ARCHITECTURE" >> recorded.txt

LIBRARY comes from `apt-get download PACKAGE` and `dpkg-deb -x`. Each line holds a function's name, its
address and its bytes, at most 512 of them. Names that share an address are joined by a comma.
"""
import re
import subprocess
import sys

NAMES = "malloc calloc realloc reallocarray free posix_memalign aligned_alloc memalign valloc pvalloc".split()
LIMIT = 512


def readelf(*arguments):
    return subprocess.run(["readelf", "-W", *arguments], check=True, capture_output=True, text=True).stdout


library, package = sys.argv[1:]
code = open(library, "rb").read()
segments = [
    [int(field, 16) for field in match.groups()]
    for match in re.finditer(r"^ +LOAD +(\w+) (\w+) \w+ (\w+)", readelf("-l", library), re.M)
]
functions = {}
for line in readelf("--dyn-syms", library).splitlines():
    fields = line.split()
    if len(fields) == 8 and fields[3] in ("FUNC", "IFUNC") and fields[6] != "UND":
        name = fields[7].split("@")[0]
        if name in NAMES:
            functions.setdefault((int(fields[1], 16), int(fields[2], 0)), []).append(name)
print(f"\nobject {package} {library[library.rindex('/') + 1:]}")
for (address, size), names in sorted(functions.items(), key=lambda item: NAMES.index(min(item[1], key=NAMES.index))):
    offset, base, _ = next(s for s in segments if s[1] <= address < s[1] + s[2])
    data = code[address - base + offset :][: min(size, LIMIT)]
    print(",".join(sorted(names, key=NAMES.index)), hex(address), data.hex())
