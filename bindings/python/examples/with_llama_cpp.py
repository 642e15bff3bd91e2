"""llama-cpp-python: python with_llama_cpp.py MODEL.gguf "prompt"."""

import sys

import llama_cpp

import lessismore.llama_cpp

lessismore.llama_cpp.enable(budget=128, layers=[2, 9])  # before the model is made
llm = llama_cpp.Llama(sys.argv[1], n_ctx=2048, flash_attn=True, verbose=False)
print(llm.create_completion(sys.argv[2], max_tokens=200, temperature=0)["choices"][0]["text"])
