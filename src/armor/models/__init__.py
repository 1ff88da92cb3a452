"""Reading causal language models: loading them and finding their decoder by structure."""
