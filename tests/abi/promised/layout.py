#!/usr/bin/env python3
"""Writes a C program that prints where the fields of a header's structures lie and what its constants are.

Compiled against that header and against a later one it has to print the same, but for limits, which may grow. With END_CHECKED
it fails where a structure ends in padding: a field that is added there would be in what an older host leaves undefined.
"""

import re
import sys


def main() -> None:
    text = re.sub(r"/\*.*?\*/", "", open(sys.argv[1], encoding="utf-8").read(), flags=re.S)
    lines = []
    for name, body in re.findall(r"typedef struct (lim_\w+) \{(.*?)\n\} \1;", text, re.S):
        if name == "lim_api":  # its fields are the functions, in their order
            fields = re.findall(r"X\([^,]*, (\w+),", text)
        else:
            fields = [re.search(r"(\w+)\s*$", part).group(1) for part in body.split(";") if part.strip()]
        assert fields and "struct_size" in body, name
        lines += [f"FIELD({name}, {field})" for field in fields] + [f"END({name}, {fields[-1]})"]
    for _, body in re.findall(r"typedef enum (lim_\w+) \{(.*?)\}", text, re.S):
        lines += [f"NUMBER({name})" for name in re.findall(r"(LIM_\w+)\s*=", body)]
    lines += [f"LIMIT({name})" for name in re.findall(r"#define (LIM_MAX_\w+)", text)]
    lines += ["NUMBER(LIM_API_VERSION)", "NUMBER(LIM_DEVICE_CPU)"]
    print('#include <stdio.h>\n#include "lessismore.h"')
    print('#define FIELD(s, f) printf("%s.%s at %zu, %zu bytes\\n", #s, #f, offsetof(s, f), sizeof(((s *)0)->f));')
    print('#define NUMBER(n) printf("%s is %ld\\n", #n, (long)(n));')
    print('#define LIMIT(n) printf("%s at least %ld\\n", #n, (long)(n));')
    print("#ifdef END_CHECKED")
    print('#define END(s, f) if (offsetof(s, f) + sizeof(((s *)0)->f) != sizeof(s)) return printf("%s ends in padding\\n", #s), 1;')
    print("#else\n#define END(s, f)\n#endif")
    print("int main(void) {\n    " + "\n    ".join(lines) + "\n    return 0;\n}")


main()
