"""OpenAI's client against llama-cpp-python's server: python with_openai.py URL "prompt".

The server: LESSISMORE_BUDGET=128 LESSISMORE_LAYERS=2,9 python -m lessismore.llama_cpp --model MODEL.gguf
"""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none")
stream = client.completions.create(model="any", prompt=sys.argv[2], max_tokens=200, temperature=0, stream=True)
for chunk in stream:
    print(chunk.choices[0].text, end="", flush=True)
print()
