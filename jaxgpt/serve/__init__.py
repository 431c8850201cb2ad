"""A trained model behind HTTP: OpenAI's API and a page to chat on. Only batching.py knows JAX."""
