"""What `armor demo` works on: a tiny trained Llama and text that every Python carries."""
