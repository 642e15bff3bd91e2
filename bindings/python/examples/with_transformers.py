"""Hugging Face transformers: python with_transformers.py MODEL "prompt" [layers that choose, such as 2,12]."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import lessismore.transformers

name, prompt, layers = (*sys.argv[1:], None)[:3]
lessismore.transformers.register(budget=128, layers=layers and map(int, layers.split(",")))
model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="lessismore")
tokenizer = AutoTokenizer.from_pretrained(name)
output = model.generate(**tokenizer(prompt, return_tensors="pt", return_token_type_ids=False), max_new_tokens=200)
print(tokenizer.decode(output[0]))
print(lessismore.transformers.stats(model))
