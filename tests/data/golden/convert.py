"""Turns selection.npz (the LessIsMore authors' own token sets) into selection.bin, which needs no reader.

    python3 convert.py selection.npz selection.bin

Plain Python: an .npz is a zip of .npy files, and these are small one- or two-dimensional arrays.
"""

import ast
import struct
import sys
import zipfile


def load(archive, name):
    data = archive.read(name + ".npy")
    assert data[:6] == b"\x93NUMPY"
    if data[6] == 1:
        begin, length = 10, struct.unpack("<H", data[8:10])[0]
    else:
        begin, length = 12, struct.unpack("<I", data[8:12])[0]
    head = ast.literal_eval(data[begin : begin + length].decode())
    assert not head["fortran_order"]
    count = 1
    for size in head["shape"]:
        count *= size
    code = {"<f4": "f", "<f8": "d", "<i4": "i", "<i8": "q"}[head["descr"]]
    return head["shape"], struct.unpack("<%d%s" % (count, code), data[begin + length :])


def main(source, target):
    with zipfile.ZipFile(source) as archive, open(target, "wb") as out:
        (cases, width), meta = load(archive, "meta")
        out.write(struct.pack("<i", cases))
        for case in range(cases):
            i, heads, n, budget, ratio, sinks = meta[case * width : (case + 1) * width]
            shape, logits = load(archive, "logits%d" % i)
            assert shape == (heads, n), (shape, heads, n)
            _, chosen = load(archive, "set%d" % i)
            out.write(struct.pack("<iiiidi", int(heads), int(n), int(budget), int(sinks), ratio, len(chosen)))
            out.write(struct.pack("<%df" % len(logits), *logits))
            out.write(struct.pack("<%di" % len(chosen), *(int(t) for t in chosen)))


if __name__ == "__main__":
    main(*sys.argv[1:])
