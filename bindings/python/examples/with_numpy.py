"""NumPy: one decoder decoded over a K/V store of one's own, layer by layer."""

import numpy as np

import lessismore

LAYERS, HEADS, KV_HEADS, DIM, CONTEXT = 8, 8, 2, 64, 4096
rng = np.random.default_rng(0)
keys, values = rng.standard_normal((2, LAYERS, CONTEXT + 4, KV_HEADS, DIM), np.float32).astype(np.float16)

with lessismore.Engine(LAYERS, budget=512, layers=[2, 4]) as engine, engine.decoder() as decoder:
    for n in range(CONTEXT + 1, CONTEXT + 5):  # the new token's key and value are stored first
        for layer in range(LAYERS):
            query = rng.standard_normal((HEADS, DIM), np.float32)
            output = decoder.attend(layer, query, keys[layer, :n], values[layer, :n])
    stats = engine.stats()
print(f"{stats['steps']} steps, {stats['tokens_attended'] / stats['tokens_visible']:.1%} of the tokens attended")
